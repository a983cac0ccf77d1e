"""Run a study: open its directory, complete the plan, train what is missing."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from hptransfer._atomic import require_writable
from hptransfer.errors import ConfigError, HptransferError
from hptransfer.study._executor import index_trials, open_data
from hptransfer.study._local_engine import LOCAL_ENGINE, LocalEngine, OnEvent
from hptransfer.study._own_model import OwnBatches
from hptransfer.study._plan import Machine, Plan, StackedGroup, make_groups, require_memory
from hptransfer.study._trial import Trial, list_trials, merge_by_width
from hptransfer.study.config import StudyConfig
from hptransfer.study.events import DEFAULT_CHECKPOINT_SECONDS, EngineName, Event
from hptransfer.study.store import GROUPS_FOLDER, ReadTrials, recover_finished, sweep_leftovers
from hptransfer.study.study_settings import SETTINGS_FILE, open_study, read_config, read_settings
from hptransfer.train._batches import require_batch, validation_windows
from hptransfer.train._tokens import TokenData

#: Of a text's tokens, what a study directory records beside how many there are.
_RECORDED = (
    "data_hash", "vocab_size", "num_ids", "num_documents", "unigram_entropy", "bigram_entropy",
)  # fmt: skip
#: Seconds between looks at what other shards have finished.
WAIT_SECONDS = 5.0


@contextmanager
def open_engine(name: EngineName, *, address: str | None = None) -> Iterator[LocalEngine]:
    """Open an engine: with ``ray``, connect to the cluster at `address` or start a Ray here.

    Raises
    ------
    ConfigError
        If Ray is not installed, or no cluster answers at the address.
    """
    if name == "local":
        yield LocalEngine()
        return
    from hptransfer.study._ray_cluster import open_ray
    from hptransfer.study._ray_engine import RayEngine

    with open_ray(address) as ray:
        yield RayEngine(ray)


class RunError(HptransferError):
    """Some groups failed; what the others finished is stored."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Share `index` (1-based) of `count` equal shares of a study's groups.

    Examples
    --------
    >>> first, second = (Shard(index=index, count=2) for index in (1, 2))
    >>> second
    Shard(index=2, count=2)
    """

    index: int = 1
    count: int = 1


@dataclass(frozen=True, kw_only=True)
class MissingWork:
    """The groups that are still to be trained, and what else opening a study has found.

    Attributes
    ----------
    groups : tuple of StackedGroup
        Still to train, in this shard, in order.
    num_trials : int
        Trials that they cover.
    num_finished : int
        Trials of the grid that are stored already.
    damaged : tuple of (Path, str)
        Results files that could not be read and were set aside, and why; their trials train again.
    foreign : tuple of (Path, str)
        Files in the folder of results that are no group's of the plan, left alone, and why.
    elsewhere : int
        Groups still to train in other shards; an adaptive study goes on when they are done.
    round : int
        Number of the plan's last round.
    notes : tuple of str
        What an adaptive search is about, in words, and what is not known of stored trials.
    """

    groups: tuple[StackedGroup, ...]
    num_trials: int
    num_finished: int
    damaged: tuple[tuple[Path, str], ...]
    foreign: tuple[tuple[Path, str], ...] = ()
    elsewhere: int = 0
    round: int = 0
    notes: tuple[str, ...] = ()


def open_checked_data(config: StudyConfig) -> TokenData | OwnBatches:
    """Return what a study trains on, once it is sure that a batch can be had from it.

    Raises
    ------
    DataError
        If the text cannot be read or is too short.
    """
    data = open_data(config)
    if not isinstance(data, OwnBatches):
        require_batch(data.train, context=config.model.context, batch=config.train.batch)
        validation_windows(data.val, config.model.context, config.train.eval_tokens)
    return data


def plan_groups(
    config: StudyConfig,
    trials: Sequence[Trial],
    machine: Machine,
    *,
    engine: LocalEngine = LOCAL_ENGINE,
    num_shards: int = 1,
) -> tuple[StackedGroup, ...]:
    """Return the groups that would train `trials` on `machine` by an engine, as it measures.

    With several shards they are for as many such machines, so that each has groups to train.

    Raises
    ------
    ConfigError
        If one run of a width needs more memory than the machine has.
    """
    require_memory(config, {trial.width for trial in trials}, machine)
    runs = merge_by_width(config, trials)
    num_runs = {width: len(each) for width, each in runs.items()}
    return make_groups(
        config,
        runs,
        machine=replace(
            machine, workers=machine.workers * num_shards, memory=machine.memory * num_shards
        ),
        speeds=engine.measure(config, num_runs, machine),
    )


def prepare_run(
    config: StudyConfig,
    directory: Path,
    *,
    workers: int | None = None,
    shard: Shard | None = None,
    engine: LocalEngine = LOCAL_ENGINE,
    new_code: bool = False,
) -> MissingWork:
    """Open or create the study directory, complete its plan, and list what is missing.

    The plan is for the machine or the cluster of `engine`.

    Raises
    ------
    StoreError
        If the directory belongs to another study, or the text or the user's code has changed since
        its first run.
    DataError
        If the text cannot be read or is too short.
    OSError
        If the directory cannot be written and something is to be trained.
    """
    shard = shard or Shard()
    machine = engine.describe(workers=workers)
    require_memory(config, config.widths, machine)
    data = open_checked_data(config)
    code = None if config.own_model is None else config.own_model.code
    is_old = code is not None and (directory / SETTINGS_FILE).exists()
    is_old = is_old and "code" not in read_settings(directory)
    open_study(directory, config, data=describe_data(config, data), code=code, new_code=new_code)
    make = partial(plan_groups, config, machine=machine, engine=engine, num_shards=shard.count)
    plan = Plan.read(directory)
    trials = list_trials(config, plan.points)
    while missing := _find_missing(plan, trials):
        plan = plan.add_round(make(missing), machine=machine)
        if config.sweep.is_adaptive:  # another process may have placed points meanwhile
            trials = list_trials(config, plan.points)
    # With values that the file no longer has, or that another process knew before its round.
    known = read_config(directory, root=config.root)
    index_trials(plan, trials if known == config else list_trials(known, plan.points))
    stored = recover_finished(directory, plan.by_name)
    notes: tuple[str, ...] = ()
    if config.sweep.is_adaptive:
        plan, notes = _place_round(config, plan, stored, machine, make)
        trials = list_trials(config, plan.points)
    if is_old and stored.ids:
        unknown = "this directory records no code: that of its stored trials is not known"
        notes = (unknown, *notes)
    parts = [
        # A shard's share stays what it was when a group is split.
        (position % shard.count == shard.index - 1, part)
        for position, group in enumerate(plan.groups)
        for part in plan.list_parts(group)
    ]
    shares = [(own, part) for own, part in parts if not stored.ids.issuperset(part.trial_ids)]
    waiting = {part.name for _, part in shares}
    sweep_leftovers(directory, {part.name for _, part in parts} - waiting | plan.splits.keys())
    todo = tuple(group for own, group in shares if own)
    if todo:  # or hours of training would end with results that nobody can write
        require_writable(directory / GROUPS_FOLDER)
    return MissingWork(
        groups=todo,
        num_trials=sum(len(group.trial_ids) for group in todo),
        num_finished=sum(trial.id in stored.ids for trial in trials),
        damaged=stored.damaged,
        foreign=stored.foreign,
        elsewhere=len(shares) - len(todo),
        round=max(0, len(plan.rounds) - 1),
        notes=notes,
    )


def _find_missing(plan: Plan, trials: Iterable[Trial]) -> list[Trial]:
    """Return those of `trials` that no group of the plan covers, in order."""
    return [trial for trial in trials if trial.id not in plan.trial_ids]


def _place_round(
    config: StudyConfig,
    plan: Plan,
    stored: ReadTrials,
    machine: Machine,
    make: Callable[[Sequence[Trial]], tuple[StackedGroup, ...]],
) -> tuple[Plan, tuple[str, ...]]:
    """Add the round that follows from the finished ones, once they are all finished.

    Returns the plan, and what the search says: of the round under way, or how it ended.
    """
    # Statistics are imported where they are needed: a grid starts without them.
    from hptransfer.study.adaptive import search_study

    if stored.ids >= plan.trial_ids:
        found = search_study(config, stored if plan.rounds else None)
        points = [point for each in found for point in each.points]
        if not points:
            return plan, tuple(each.describe(width) for each in found for width in each.widths)
        plan = plan.add_round(
            make(_find_missing(plan, list_trials(config, points))),
            machine=machine,
            points=points,
            reasons=[each.describe(w) for each in found for w in each.widths if w.points],
        )
    return plan, plan.rounds[-1].reasons


def describe_data(config: StudyConfig, tokens: TokenData | OwnBatches) -> dict[str, object]:
    """Return what a study directory records of its text or batches."""
    if isinstance(tokens, OwnBatches):
        return {"batches": config.data.batches, "data_hash": tokens.data_hash}
    about = {name: getattr(tokens, name) for name in _RECORDED}
    sizes = {"num_train_tokens": len(tokens.train), "num_val_tokens": len(tokens.val)}
    return {"text": config.data.text, **about, **sizes}


def run_groups(
    config: StudyConfig,
    directory: Path,
    groups: Sequence[StackedGroup],
    *,
    on_event: OnEvent,
    workers: int | None = None,
    checkpoint_interval: float = DEFAULT_CHECKPOINT_SECONDS,
    engine: LocalEngine = LOCAL_ENGINE,
) -> None:
    """Train `groups` on an engine and store their results.

    Groups under way are saved every `checkpoint_interval` seconds and when Ctrl-C or SIGTERM
    ends the run; the next run goes on from there with the same bits.

    Raises
    ------
    RunError
        If a group failed; the others are trained and stored first, unless results cannot be
        written at all.
    """
    failures: list[Event] = []

    def watch(event: Event) -> None:
        if event.kind == "failed":
            failures.append(event)
        on_event(event)
        if event.fatal:
            raise RunError(
                f"stopped at group {event.group}: {event.message}; what is stored is kept, "
                "the same command resumes"
            )

    engine.train(
        config, directory, groups, watch, workers=workers, checkpoint_interval=checkpoint_interval
    )
    if failures:
        first = failures[0]
        raise RunError(
            f"{len(failures)} of {len(groups)} groups failed, {first.group} first: "
            f"{first.message}; the rest is stored, the same command tries again"
        )


@dataclass(frozen=True, kw_only=True)
class RoundEvent:
    """A progress event of a whole round of a study; a grid has one round.

    Attributes
    ----------
    kind : str
        ``start``: groups of the round start training; ``end``: they are trained; ``wait``: what
        is left of the round is other shards'; ``finished``: nothing of the study is missing.
    work : MissingWork
        What was missing when the study was looked at.
    """

    kind: Literal["start", "end", "wait", "finished"]
    work: MissingWork


@dataclass(frozen=True, kw_only=True)
class RunOutcome:
    """How a run of a study ended.

    Attributes
    ----------
    directory : Path
        The study's.
    num_trained : int
        Trials that this run has trained.
    num_finished : int
        Trials of the study that are stored, with those.
    elsewhere : int
        Groups of other shards that were still missing at the last look.
    """

    directory: Path
    num_trained: int
    num_finished: int
    elsewhere: int


def run_study(
    config: StudyConfig,
    directory: Path | str,
    *,
    on_event: Callable[[Event | RoundEvent], None] | None = None,
    workers: int | None = None,
    engine: EngineName = "local",
    address: str | None = None,
    checkpoint_interval: float = DEFAULT_CHECKPOINT_SECONDS,
    shard: Shard | None = None,
    wait: bool = False,
    new_code: bool = False,
) -> RunOutcome:
    """Train what is missing of a study, and store it in its directory.

    Run again, it trains what is missing then: after a kill, after a grid has grown, or nothing.
    An adaptive study is trained round by round. A shard with nothing left in a round returns, or
    with `wait` looks again until the other shards are done.

    Parameters
    ----------
    config : StudyConfig
        The study, from `load_study` or `parse_study`.
    directory : Path or str
        The study directory; made where it is missing.
    on_event : callable, optional
        Called with each `Event` of a group and each `RoundEvent`.
    workers : int, optional
        Groups trained at a time. Default: one per core, or one on a GPU.
    engine : str
        ``local`` or ``ray``.
    address : str, optional
        Of a Ray cluster, as ``HOST:PORT`` or ``auto``. Default: a Ray is started here.
    checkpoint_interval : float
        Seconds between checkpoints of a group in training.
    shard : Shard, optional
        The share of the groups to train. Default: all of them.
    wait : bool
        Whether a shard waits for others where an adaptive study's round is theirs to finish.
    new_code : bool
        Whether to go on where the code of a model of one's own has changed since the first run.

    Returns
    -------
    RunOutcome
        How many trials were trained and are stored.

    Raises
    ------
    ConfigError
        If `config` is no study, Ray is not installed, or no cluster answers at the address.
    DataError
        If the text cannot be read or is too short.
    StoreError
        If the directory belongs to another study, or the text has changed since its first run.
    RunError
        If groups failed; what the others finished is stored.
    OSError
        If the directory cannot be written and something is to be trained.

    Examples
    --------
    >>> from hptransfer.study import load_study, run_study
    >>> outcome = run_study(load_study("tiny.toml"), "tiny", workers=2)  # doctest: +SKIP
    >>> outcome.num_finished  # doctest: +SKIP
    126
    """
    if not isinstance(config, StudyConfig):
        raise ConfigError(f"run_study: expected a study, load_study(FILE), found {config!r}")
    directory = Path(directory)
    tell = on_event or (lambda event: None)
    num_trained = 0

    def count(event: Event) -> None:
        nonlocal num_trained
        num_trained += event.completed + event.diverged
        tell(event)

    with open_engine(engine, address=address) as opened:
        while True:
            work = prepare_run(
                config, directory, workers=workers, shard=shard, engine=opened, new_code=new_code
            )
            before = num_trained
            if work.groups:
                tell(RoundEvent(kind="start", work=work))
                run_groups(
                    config,
                    directory,
                    work.groups,
                    on_event=count,
                    workers=workers,
                    checkpoint_interval=checkpoint_interval,
                    engine=opened,
                )
                tell(RoundEvent(kind="end", work=work))
                if config.sweep.is_adaptive:
                    continue
            elif work.elsewhere:
                tell(RoundEvent(kind="wait", work=work))
                if config.sweep.is_adaptive and wait:
                    time.sleep(WAIT_SECONDS)
                    continue
            else:
                tell(RoundEvent(kind="finished", work=work))
            return RunOutcome(
                directory=directory,
                num_trained=num_trained,
                num_finished=work.num_finished + num_trained - before,
                elsewhere=work.elsewhere,
            )
