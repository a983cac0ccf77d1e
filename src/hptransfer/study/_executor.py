"""Train one group of the plan in this process, and store its results."""

import hashlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from hptransfer._documents import canonical_json
from hptransfer._messages import describe_error
from hptransfer._trial_state import TrialState
from hptransfer._version import __version__
from hptransfer.errors import HptransferError, StoreError
from hptransfer.model import GPTShape
from hptransfer.study._checkpoint import Checkpoint, defer_signals
from hptransfer.study._own_model import DEFAULT_EVAL_BATCHES, OwnBatches
from hptransfer.study._plan import Plan, StackedGroup, halve_group, write_split
from hptransfer.study._trial import (
    Trial,
    list_trials,
    num_flops,
    num_params,
    num_steps,
    num_tokens,
    require_equal,
    resolve_trial,
)
from hptransfer.study.config import StudyConfig
from hptransfer.study.events import DEFAULT_CHECKPOINT_SECONDS, Event
from hptransfer.study.store import (
    ARROW_SCHEMA,
    PLAN_FOLDER,
    Row,
    checkpoint_path,
    name_context,
    read_states,
    write_group,
)
from hptransfer.study.study_settings import read_config, read_settings, require_code, require_text
from hptransfer.train._batches import Batches, validation_windows
from hptransfer.train._calibrate import DTYPES
from hptransfer.train._device import describe_device, free_memory, is_out_of_memory, set_determinism
from hptransfer.train._ensemble import Ensemble, Run, TrainSettings
from hptransfer.train._probes import Probes, find_spikes
from hptransfer.train._program import Mode
from hptransfer.train._tokens import TokenData, prepare_tokens
from hptransfer.train._trainer import RunResult, Training

#: Seconds between reports of a group in training.
REPORT_INTERVAL = 0.5
#: Points that a stored loss curve keeps at most.
MAX_CURVE_POINTS = 256

MakeTraining = Callable[
    [StudyConfig, StackedGroup, Sequence[Trial], TokenData | OwnBatches], Training
]
"""Function that returns a group's training before its first step, one run per given trial."""


def make_shape(config: StudyConfig, width: int) -> GPTShape:
    """Return the GPT's shape at a width of the study."""
    return GPTShape(
        width=width,
        num_layers=config.model.num_layers or 1,
        head_size=config.model.head_size_at(width),
        context=config.model.context,
        vocab_size=config.data.vocab_size,
    )


def open_data(config: StudyConfig) -> TokenData | OwnBatches:
    """Return what a study trains on: its tokens, or the batches of the user's own function.

    Raises
    ------
    DataError
        If the text cannot be read.
    """
    if config.own_model is not None and config.own_model.batches is not None:
        batches: OwnBatches = config.own_model.batches
        return batches
    assert config.data.text is not None, "checked with the study file"
    return prepare_tokens(config.data.text, vocab_size=config.data.vocab_size, root=config.root)


def make_training(
    config: StudyConfig, group: StackedGroup, trials: Sequence[Trial], data: TokenData | OwnBatches
) -> Training:
    """Return the training of a group before its first step, one stacked run for each trial."""
    train, own, dtype = config.train, config.own_model, DTYPES[group.precision]
    trials = [*trials, *[trials[-1]] * group.num_padding]
    ensemble: Ensemble
    if own is not None:
        ensemble = own.make_ensemble(trials, device=group.device, precision=dtype, mode=group.mode)
    else:
        runs = [Run(seed=t.seed, resolved=resolve_trial(config, t)) for t in trials]
        shape = make_shape(config, group.width)
        ensemble = Ensemble(shape, runs, device=group.device, compute_dtype=dtype)
    validation: Any
    if isinstance(data, OwnBatches):
        batches = cast(Batches, data)  # of which a user's own model asks for `batch` alone
        validation = data.validation(train.eval_batches or DEFAULT_EVAL_BATCHES)
    else:
        batches = Batches(data.train, context=config.model.context)
        validation = validation_windows(data.val, config.model.context, train.eval_tokens)
    beta1, beta2 = train.betas
    settings = TrainSettings(
        batch=train.batch,
        steps=num_steps(config, group.width),
        warmup=train.warmup,
        decay=train.decay,
        beta1=beta1,
        beta2=beta2,
    )
    probes = None
    if config.has_probes:
        probes = Probes(ensemble, batches=batches, settings=settings, every=config.probes.every)
    return Training(
        ensemble,
        batches=batches,
        validation=validation,
        settings=settings,
        probes=probes,
        mode=cast(Mode, group.mode),
        num_padding=group.num_padding,
    )


def start_group(
    config: StudyConfig,
    group: StackedGroup,
    trials: Mapping[str, Trial],
    data: TokenData | OwnBatches,
    make: MakeTraining = make_training,
) -> tuple[list[tuple[Trial, ...]], Training]:
    """Return the trials that each run of a group serves, and its training before its first step.

    Raises
    ------
    StoreError
        If trials that the plan merged are no longer one run.
    """
    set_determinism(threads=group.threads)
    if group.device != "cpu":  # the group before holds on to what it had
        free_memory()
    runs = [tuple(trials[trial] for trial in run) for run in group.runs]
    require_equal(config, group.name, runs)
    return runs, make(config, group, [run[0] for run in runs], data)


def index_trials(plan: Plan, trials: Iterable[Trial]) -> dict[str, Trial]:
    """Return all trials of a study by id.

    Raises
    ------
    StoreError
        If the plan has groups of other trials, or of another width than theirs.
    """
    by_id = {trial.id: trial for trial in trials}
    for group in plan.by_name.values():
        for trial in group.trial_ids:
            if trial not in by_id or by_id[trial].width != group.width:
                found = "another study's" if trial not in by_id else by_id[trial].width
                raise StoreError(
                    f"{plan.directory / PLAN_FOLDER}: expected trials of width {group.width} "
                    f"in group {group.name}, found {found} (trial {trial}): the plan is damaged"
                )
    return by_id


class _UnstoredError(Exception):
    """A group is trained, and its results cannot be written."""


class _TooLargeError(HptransferError):
    """One run alone does not fit into memory."""


class Executor:
    """Trains groups of one study directory, one at a time, in this process.

    Parameters
    ----------
    directory : Path
        The study directory, with a plan.
    root : Path
        The folder of the study file, which ``data.text`` globs start from.
    checkpoint_interval : float
        Seconds between checkpoints.
    make_training : callable
        Makes a group's training.

    Raises
    ------
    StoreError
        If the directory is no study's, or its plan is damaged.
    """

    def __init__(
        self,
        directory: Path,
        *,
        root: Path,
        checkpoint_interval: float = DEFAULT_CHECKPOINT_SECONDS,
        make_training: MakeTraining = make_training,
    ) -> None:
        self._directory = directory
        self._checkpoint_interval = checkpoint_interval
        self._make_training = make_training
        self._plan = Plan.read(directory)
        # After the plan: a grid grows before the round that trains it is added.
        self._config = read_config(directory, root=root)
        self._trials = index_trials(self._plan, list_trials(self._config, self._plan.points))

    @cached_property
    def _data(self) -> TokenData | OwnBatches:
        data = open_data(self._config)
        # On another machine, or since the run began, the same path may hold other text.
        settings = read_settings(self._directory)
        require_text(self._directory, settings, data.data_hash)
        if self._config.own_model is not None:
            require_code(self._directory, settings, self._config.own_model.code)
        return data

    def execute(self, name: str, report: Callable[[Event], None]) -> Event:
        """Train the group called `name` and store it; return its last event, which is not reported.

        A failure is an event, not an exception.
        """
        try:
            with defer_signals() as held:
                states = self._train_parts(self._plan.by_name[name], report, held)
        except _UnstoredError as error:
            return Event(kind="failed", group=name, message=str(error), fatal=True)
        except Exception as error:  # whatever it was, the other groups go on
            return Event.from_error(name, error)
        completed = states.count(TrialState.COMPLETED)
        diverged = states.count(TrialState.DIVERGED)
        return Event(kind="done", group=name, completed=completed, diverged=diverged)

    def _train_parts(
        self, group: StackedGroup, report: Callable[[Event], None], held: Sequence[int]
    ) -> list[TrialState]:
        """Train a group, in halves where memory runs out, and store it."""
        states: list[TrialState] = []
        waiting, num_done = deque([group]), 0
        while waiting and not held:
            part = waiting.popleft()
            plan = self._plan.read_splits()
            if part.name in plan.splits:
                waiting.extendleft(reversed(plan.splits[part.name]))
                continue
            if (stored := plan.find_stored(part.name)) is not None:
                states += read_states(self._directory, stored, part.trial_ids)
                num_done += len(part.runs)
                continue

            def report_part(
                event: Event, part: StackedGroup = part, num_done: int = num_done
            ) -> None:
                steps = num_done * event.steps + len(part.runs) * event.step
                report(replace(event, group=group.name, step=steps // len(group.runs)))

            try:
                found = self._train(part, report_part, held)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                found = None
                report_part(self._split(part, error))
            if found is None:
                # Outside the handler, whose error holds on to the group's tensors.
                free_memory()
                waiting.appendleft(part)
            else:
                states += found
                num_done += len(part.runs)
        return states

    def _split(self, part: StackedGroup, error: Exception) -> Event:
        """Split a group in the plan; return what the user is told."""
        if len(part.runs) == 1:
            raise _TooLargeError(
                f"out of memory with a single run of width {part.width} ({describe_error(error)}); "
                "it needs more memory, fewer --workers, or a smaller batch or context"
            ) from None
        write_split(self._directory, part)
        self._open_checkpoint(part).remove()
        sizes = " and ".join(str(len(half.runs)) for half in halve_group(part))
        message = f"out of memory with {len(part.runs)} runs stacked, halved: {sizes} start anew"
        return Event(kind="note", group=part.name, message=message)

    def _open_checkpoint(self, group: StackedGroup, *, num_bytes: int = 0) -> Checkpoint:
        return Checkpoint(
            checkpoint_path(self._directory, group.name),
            self._checkpoint_interval,
            num_bytes=num_bytes,
            context=name_context(self._config.identity(), group.name),
            made_by=_describe_maker(group),
            code=hash_own_code(self._config),
        )

    def _train(
        self, group: StackedGroup, report: Callable[[Event], None], held: Sequence[int]
    ) -> list[TrialState] | None:
        """Train a group and store it.

        Returns no states where a signal ended it early, and None where another process has split
        the group meanwhile: results are then those of its halves.
        """
        runs, training = start_group(
            self._config, group, self._trials, self._data, self._make_training
        )
        checkpoint = self._open_checkpoint(group, num_bytes=training.state_bytes)
        steps = num_steps(self._config, group.width)
        progress = partial(Event, group=group.name, steps=steps)

        def note(message: str) -> None:
            if message:
                report(Event(kind="note", group=group.name, message=message))

        # One that cannot be used costs its group the time to train anew, and nothing else.
        note(checkpoint.restore(training))
        report(progress(kind="start", step=training.step))
        reported = start = time.monotonic()
        told = ""
        while not training.done:
            losses = training.advance()
            now = time.monotonic()
            if now - reported >= REPORT_INTERVAL:
                reported = now
                diverged = training.watch.diverged
                alive = tuple(float(x) for run, x in enumerate(losses) if run not in diverged)
                report(progress(kind="step", step=training.step, losses=alive))
            if training.problem != told:
                told = training.problem
                note(f"{told}; training goes on")
            ends = bool(held)
            note(checkpoint.save_if_due(training, at_once=ends))
            if ends:
                return []
        report(progress(kind="evaluate", step=training.step))
        rows = make_rows(
            self._config,
            group,
            runs,
            training.finish(),
            training.probes,
            seconds=(time.monotonic() - start) / len(runs),
            data_hash=self._data.data_hash,
            resumed_from="; ".join(checkpoint.makers[:-1]) or None,
        )
        plan = self._plan.read_splits()
        if group.name in plan.splits:
            checkpoint.remove()
            return None
        try:
            if plan.find_stored(group.name) in (None, group.name):
                write_group(self._directory, group.name, rows)
        except OSError as error:
            checkpoint.save(training)  # if that can be written, the next run need not train
            raise _UnstoredError(
                f"its results cannot be written: {describe_error(error)}"
            ) from error
        checkpoint.remove()
        return [TrialState(row["state"]) for row in rows]


def make_rows(
    config: StudyConfig,
    group: StackedGroup,
    runs: Sequence[Sequence[Trial]],
    results: Sequence[RunResult],
    probes: Probes | None = None,
    *,
    seconds: float,
    data_hash: str,
    resumed_from: str | None = None,
) -> list[Row]:
    """Return the results rows of a trained group, one for each trial of each run.

    Parameters
    ----------
    config : StudyConfig
        The study.
    group : StackedGroup
        The group.
    runs : sequence of sequence of Trial
        Trials that each stacked run serves; all of them have its result.
    results : sequence of RunResult
        How each run ended.
    probes : Probes, optional
        What was measured on the way.
    seconds : float
        Wall time of the group over its stacked runs.
    data_hash : str
        Hash of the text.
    resumed_from : str, optional
        What else has trained the group.
    """
    width = group.width
    sections: dict[str, Any] = {}
    for section in (config.data, config.model, config.sweep, config.train):
        sections |= section.model_dump()
    shared = {name: sections[name] for name in ARROW_SCHEMA.names if name in sections} | {
        **_describe_heads(config, width),
        "steps": num_steps(config, width),
        "num_params": num_params(config, width),
        "tokens": num_tokens(config, width),
        "flops": num_flops(config, width),
        "seconds": seconds,
        "group": group.name,
        "num_stacked": len(group.runs),
        "precision": group.precision,
        "device": describe_device(group.device),
        "threads": group.threads,
        "package_version": __version__,
        "torch_version": torch.__version__,
        "data_hash": data_hash,
        "code_hash": hash_own_code(config),
        "resumed_from": resumed_from,
    }
    return [
        {
            **shared,
            **vars(trial),
            "id": trial.id,
            "log2_lr": math.log2(trial.base_lr),
            "trained_as": run[0].id,
            **_describe_result(result),
            **(probes.describe(place, result.diverged_step) if probes else {}),
        }
        for place, (run, result) in enumerate(zip(runs, results, strict=True))
        for trial in run
    ]


def hash_own_code(config: StudyConfig) -> str | None:
    """Return one hash of all source files of the user's own; None for the GPT."""
    if config.own_model is None:
        return None
    return hashlib.sha256(canonical_json(config.own_model.code).encode()).hexdigest()


def _describe_maker(group: StackedGroup) -> str:
    """Return what the bits of a group depend on beside the plan and the code, in a line."""
    device = describe_device(group.device)
    return f"hptransfer {__version__}, torch {torch.__version__}, {device}, {group.precision}"


def _describe_heads(config: StudyConfig, width: int) -> dict[str, int]:
    """Return the columns of the GPT's head sizes; a user's own model says them itself."""
    model = config.model
    if model.factory is not None:
        return {}
    base = model.base_head_size or model.head_size_at(config.sweep.base_width)
    return {"head_size": model.head_size_at(width), "base_head_size": base}


def _describe_result(result: RunResult) -> Mapping[str, Any]:
    """Return the columns of a row that say how its run ended."""
    steps = _thin(result.curve)
    spikes = find_spikes(result.curve)
    return {
        "state": result.state.value,
        "loss": result.loss,
        "init_loss": float(result.curve[0]),
        "diverged_step": result.diverged_step,
        "loss_curve": result.curve[steps].tolist(),
        "curve_steps": steps.tolist(),
        "spikes": spikes.count,
        "spike_size": spikes.size,
    }


def _thin(curve: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the steps that a stored curve keeps: finite, evenly spread, both ends among them."""
    finite = np.flatnonzero(np.isfinite(curve))
    count = min(len(finite), MAX_CURVE_POINTS)
    return finite[np.unique(np.linspace(0, len(finite) - 1, count).round().astype(np.int64))]
