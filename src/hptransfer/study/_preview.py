"""What a study will train and what that takes, before it is run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hptransfer.study._local_engine import LocalEngine
from hptransfer.study._plan import Machine, Precision, Speed, StackedGroup, require_memory
from hptransfer.study._runner import open_checked_data, plan_groups
from hptransfer.study._trial import Trial, list_trials, num_flops, num_params, num_steps, num_tokens
from hptransfer.study.config import StudyConfig
from hptransfer.train._tokens import TokenData

if TYPE_CHECKING:
    from hptransfer.study.adaptive import SearchBound


@dataclass(frozen=True, kw_only=True)
class WidthPlan:
    """What the trials of one width take.

    Attributes
    ----------
    width : int
        D.
    params : int
        Parameters of the model.
    trials, runs : int
        Trials, and the training runs that serve them: equal numbers train once.
    groups, stacked : int
        Groups of stacked runs, and runs in the largest.
    precision : str
        Of the matrix products.
    mode : str
        How a step is taken: ``eager``, ``captured``, ``compiled``, ``compiled+captured``, or
        ``one by one`` where a user's own model cannot be stacked.
    steps : int
        Optimizer steps of a run.
    tokens_per_run : int
        Training tokens of a run.
    epochs_per_run : float or None
        Passes of a run over the training text; None where it was not read, or batches are the
        user's own.
    flops : int
        Training FLOPs of all runs.
    memory_bytes : int
        Of the largest group in training.
    seconds : float
        Time of all groups, with all workers at work.
    """

    width: int
    params: int
    trials: int
    runs: int
    groups: int
    stacked: int
    precision: str
    mode: str
    steps: int
    tokens_per_run: int
    epochs_per_run: float | None
    flops: int
    memory_bytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """What a study will train on this machine, or what the first round of a search will.

    Attributes
    ----------
    study : str
        The study's name.
    machine : Machine
        This machine, with its workers and their threads.
    widths : tuple of WidthPlan
        By width.
    equal : tuple of tuple of str
        Parameterizations whose numbers are equal at some width, so that they train once.
    bound : SearchBound or None
        The most that later rounds of an adaptive study can take; None for a grid.
    notes : tuple of str
        What a user should know of how widths are trained, in one line each.
    """

    study: str
    machine: Machine
    widths: tuple[WidthPlan, ...]
    equal: tuple[tuple[str, ...], ...]
    bound: "SearchBound | None"
    notes: tuple[str, ...] = ()

    @property
    def trials(self) -> int:
        """Trials in all."""
        return sum(each.trials for each in self.widths)

    @property
    def runs(self) -> int:
        """Training runs in all."""
        return sum(each.runs for each in self.widths)

    @property
    def flops(self) -> int:
        """Training FLOPs in all."""
        return sum(each.flops for each in self.widths)

    @property
    def memory_bytes(self) -> int:
        """Bytes that all workers take together at most."""
        return self.machine.workers * max(each.memory_bytes for each in self.widths)

    @property
    def seconds(self) -> float:
        """Time to expect."""
        return sum(each.seconds for each in self.widths)


#: Memory of the device whose speed is assumed, in bytes.
ASSUMED_MEMORY = 80 * 2**30


def plan_study(
    config: StudyConfig, *, workers: int | None = None, tflops: float | None = None
) -> StudyPlan:
    """Plan a study on this machine without a study directory; nothing is written to one.

    The speed of each width is measured once per machine, in seconds.

    Parameters
    ----------
    config : StudyConfig
        The study, from `load_study` or `parse_study`.
    workers : int, optional
        Groups trained at a time. Default: one per core, or one on a GPU.
    tflops : float, optional
        Plan for devices that are not at hand, each with 80 GiB of memory, that train at so many
        TFLOP/s: nothing is measured, and no text is read. `workers` is then their number,
        by default one.

    Returns
    -------
    StudyPlan
        Of an adaptive study the first round, and a bound on what follows.

    Raises
    ------
    ConfigError
        If one run of a width needs more memory than this machine has.
    DataError
        If the text cannot be read or is too short.

    Examples
    --------
    >>> from hptransfer.study import load_study, plan_study
    >>> plan = plan_study(load_study("studies/embedding.toml"), tflops=1.0, workers=2)
    >>> plan.trials, plan.runs
    (320, 272)
    """
    engine = _AssumedDevices(tflops) if tflops else LocalEngine()
    machine = engine.describe(workers=workers)
    num_train_tokens = None
    if not tflops:
        require_memory(config, config.widths, machine)
        data = open_checked_data(config)
        num_train_tokens = len(data.train) if isinstance(data, TokenData) else None
    trials, bound = list_trials(config), None
    if config.sweep.is_adaptive:
        # Statistics are imported where they are needed: a grid is planned without them.
        from hptransfer.study.adaptive import SearchBound, search_study

        first = [point for each in search_study(config, None) for point in each.points]
        trials, bound = list_trials(config, first), SearchBound.find(config)
    groups = plan_groups(config, trials, machine, engine=engine)
    widths = []
    for width in sorted({trial.width for trial in trials}):
        own = [group for group in groups if group.width == width]
        stacked = max(len(group.runs) for group in own)
        widths.append(
            WidthPlan(
                width=width,
                params=num_params(config, width),
                trials=sum(len(group.trial_ids) for group in own),
                runs=sum(len(group.runs) for group in own),
                groups=len(own),
                stacked=stacked,
                precision=own[0].precision,
                mode=own[0].mode,
                steps=num_steps(config, width),
                tokens_per_run=num_tokens(config, width),
                epochs_per_run=num_train_tokens and num_tokens(config, width) / num_train_tokens,
                flops=num_flops(config, width) * sum(len(group.runs) for group in own),
                memory_bytes=max(group.memory for group in own),
                seconds=sum(group.seconds for group in own) / machine.workers,
            )
        )
    return StudyPlan(
        study=config.name,
        machine=machine,
        widths=tuple(widths),
        equal=_find_equal(trials, groups),
        bound=bound,
        notes=tuple(
            dict.fromkeys(f"width {each.width}: {each.note}" for each in groups if each.note)
        ),
    )


class _AssumedDevices(LocalEngine):
    """Devices that are not at hand, each with 80 GiB of memory, of so many TFLOP/s."""

    def __init__(self, tflops: float) -> None:
        self._tflops = tflops

    def describe(self, *, workers: int | None = None) -> Machine:
        """Return so many devices."""
        return Machine(
            device="cuda",
            name=f"devices of {self._tflops:g} TFLOP/s, as assumed",
            memory=ASSUMED_MEMORY * (workers or 1),
            workers=workers or 1,
            threads=1,
        )

    def measure(
        self, config: StudyConfig, num_runs: Mapping[int, int], machine: Machine
    ) -> dict[int, Speed]:
        """Return what each width takes at that speed; nothing is measured."""
        precision: Precision = "fp32" if config.train.precision == "fp32" else "bf16"
        seconds = {
            width: num_flops(config, width) / num_steps(config, width) / (self._tflops * 1e12)
            for width in num_runs
        }
        return {width: Speed(precision=precision, seconds=seconds[width]) for width in seconds}


def _find_equal(
    trials: Sequence[Trial], groups: Sequence[StackedGroup]
) -> tuple[tuple[str, ...], ...]:
    """Return the names of parameterizations that share a run, in the order of the trials."""
    rule = {trial.id: trial.parameterization for trial in trials}
    same = {
        run[0]: tuple(dict.fromkeys(rule[trial] for trial in run))
        for group in groups
        for run in group.runs
    }
    equal = dict.fromkeys(same[trial.id] for trial in trials if trial.id in same)
    return tuple(names for names in equal if len(names) > 1)
