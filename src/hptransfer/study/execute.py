"""Train one group of the plan and store its results."""

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hptransfer._version import __version__
from hptransfer.model import GPTShape
from hptransfer.study import DEFAULT_CHECKPOINT_SECONDS
from hptransfer.study.config import StudyConfig, num_params, num_steps, num_tokens
from hptransfer.study.cost import num_flops
from hptransfer.study.events import Event, describe_error
from hptransfer.study.plan import Group, join_groups, join_points, read_rounds
from hptransfer.study.result import TrialResult
from hptransfer.study.signals import HeldSignals, hold_signals
from hptransfer.study.store import checkpoint_path, read_settings, require_text, write_group
from hptransfer.study.trial import Trial, TrialState, list_trials, resolve_trial
from hptransfer.study.whole import write_whole
from hptransfer.train.batches import Batches, validation_windows
from hptransfer.train.calibrate import DTYPES
from hptransfer.train.device import describe_device, set_determinism
from hptransfer.train.ensemble import Ensemble, Run
from hptransfer.train.tokens import TokenData, prepare_tokens
from hptransfer.train.trainer import CheckpointError, RunResult, Training, TrainSettings

#: Seconds between reports of a group in training.
REPORT_INTERVAL = 0.5
#: Points that a stored loss curve keeps at most.
MAX_CURVE_POINTS = 256


def make_shape(config: StudyConfig, width: int) -> GPTShape:
    """Return the GPT's shape at a width of the study."""
    return GPTShape(
        width=width,
        num_layers=config.model.num_layers,
        head_size=config.model.head_size_at(width),
        context=config.model.context,
        vocab_size=config.data.vocab_size,
    )


class _UnstoredError(Exception):
    """A group is trained, and its results cannot be written."""


class _Checkpoint:
    """Where a group under way is saved; a save that fails is told once, and training goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._troubled = False

    def save(self, training: Training) -> str | None:
        """Save the training; return what is to be told the user where that fails."""
        try:
            with write_whole(self.path) as beside:
                beside.write_bytes(training.dump())
        except (OSError, MemoryError) as error:
            told, self._troubled = self._troubled, True
            if told:
                return None
            return (
                f"no checkpoint at step {training.step}, training goes on: {describe_error(error)}"
            )
        self._troubled = False
        return None


class Executor:
    """Trains groups of one study directory, one at a time, in this process.

    Parameters
    ----------
    config : StudyConfig
        The study.
    directory : Path
        Its directory, with a plan.
    checkpoint_interval : float
        Seconds between checkpoints.
    """

    def __init__(
        self,
        config: StudyConfig,
        directory: Path,
        *,
        checkpoint_interval: float = DEFAULT_CHECKPOINT_SECONDS,
    ) -> None:
        self._config = config
        self._directory = directory
        self._checkpoint_interval = checkpoint_interval
        rounds = read_rounds(directory)
        trials = list_trials(config, join_points(rounds))
        self._trials = {trial.id: trial for trial in trials}
        self._groups = {group.name: group for group in join_groups(rounds)}

    @cached_property
    def _tokens(self) -> TokenData:
        data = self._config.data
        tokens = prepare_tokens(data.text, vocab_size=data.vocab_size, root=self._config.root)
        # On another machine, or since the run began, the same path may hold other text.
        require_text(self._directory, read_settings(self._directory), tokens.data_hash)
        return tokens

    def execute(self, name: str, report: Callable[[Event], None]) -> None:
        """Train the group called `name` and store it; a failure is an event, not an exception."""
        try:
            with hold_signals() as held:
                states = self._train(self._groups[name], report, held)
        except _UnstoredError as error:
            report(Event(kind="failed", group=name, message=str(error), fatal=True))
            return
        except Exception as error:  # whatever it was, the other groups go on
            report(Event.from_error(name, error))
            return
        report(
            Event(
                kind="done",
                group=name,
                completed=states.count(TrialState.COMPLETED),
                diverged=states.count(TrialState.DIVERGED),
            )
        )

    def _train(
        self, group: Group, report: Callable[[Event], None], held: HeldSignals
    ) -> list[TrialState]:
        """Train a group and store it; return no states where a signal ended it early."""
        set_determinism(threads=group.threads)
        runs = [tuple(self._trials[trial] for trial in run) for run in group.runs]
        training = self._prepare(group, [run[0] for run in runs])
        checkpoint = _Checkpoint(checkpoint_path(self._directory, group.name))
        # One that cannot be used costs its group the time to train anew, and nothing else.
        with contextlib.suppress(CheckpointError):
            training.restore(checkpoint.path)
        reported = saved = start = time.monotonic()
        while not training.done:
            losses = training.advance()
            now = time.monotonic()
            if now - reported >= REPORT_INTERVAL:
                reported = now
                report(
                    Event(
                        kind="step",
                        group=group.name,
                        step=training.step,
                        steps=num_steps(self._config, group.width),
                        losses=tuple(map(float, losses)),
                    )
                )
            if held.received is not None or now - saved >= self._checkpoint_interval:
                saved = now
                if (trouble := checkpoint.save(training)) is not None:
                    report(Event(kind="note", group=group.name, message=trouble))
            if held.received is not None:
                return []
        results = training.finish()
        seconds = (time.monotonic() - start) / len(runs)
        rows = [
            self._make_row(trial, group, result, trained_as=run[0].id, seconds=seconds)
            for run, result in zip(runs, results, strict=True)
            for trial in run
        ]
        try:
            write_group(self._directory, group.name, rows)
        except OSError as error:
            checkpoint.save(training)  # if that can be written, the next run need not train
            raise _UnstoredError(
                f"its results cannot be written: {describe_error(error)}"
            ) from error
        checkpoint.path.unlink(missing_ok=True)
        return [TrialState(row.state) for row in rows]

    def _prepare(self, group: Group, trials: Sequence[Trial]) -> Training:
        """Return the group's training before its first step."""
        config, train = self._config, self._config.train
        return Training(
            Ensemble(
                make_shape(config, group.width),
                [Run(seed=t.seed, resolved=resolve_trial(config, t)) for t in trials],
                device=group.device,
                compute_dtype=DTYPES[group.precision],
            ),
            batches=Batches(self._tokens.train, context=config.model.context),
            validation=validation_windows(
                self._tokens.val, config.model.context, train.eval_tokens
            ),
            settings=TrainSettings(
                batch=train.batch,
                steps=num_steps(config, group.width),
                warmup=train.warmup,
                decay=train.decay,
                beta1=train.beta1,
                beta2=train.beta2,
            ),
        )

    def _make_row(
        self, trial: Trial, group: Group, result: RunResult, *, trained_as: str, seconds: float
    ) -> TrialResult:
        config, width = self._config, trial.width
        resolved = resolve_trial(config, trial)
        steps = _thin(result.curve)
        return TrialResult(
            id=trial.id,
            identity=trial.identity,
            parameterization=trial.parameterization,
            width=width,
            base_lr=trial.base_lr,
            log2_lr=math.log2(trial.base_lr),
            weight_decay=trial.weight_decay,
            seed=trial.seed,
            state=result.state,
            loss=result.loss,
            init_loss=float(result.curve[0]),
            diverged_step=result.diverged_step,
            base_width=config.sweep.base_width,
            axis=config.sweep.axis,
            weight_decay_mode=config.sweep.weight_decay_mode,
            arch=config.model.arch,
            num_layers=config.model.num_layers,
            head_size=resolved.head_size,
            base_head_size=resolved.base_head_size,
            context=config.model.context,
            text=config.data.text,
            vocab_size=config.data.vocab_size,
            batch=config.train.batch,
            steps=num_steps(config, width),
            warmup=config.train.warmup,
            decay=config.train.decay,
            beta1=config.train.beta1,
            beta2=config.train.beta2,
            eps=config.train.eps,
            eval_tokens=config.train.eval_tokens,
            num_params=num_params(config, width),
            tokens=num_tokens(config, width),
            flops=num_flops(config, width),
            loss_curve=result.curve[steps].tolist(),
            curve_steps=steps.tolist(),
            seconds=seconds,
            group=group.name,
            num_stacked=len(group.runs),
            trained_as=trained_as,
            precision=group.precision,
            device=describe_device(group.device),
            threads=group.threads,
            package_version=__version__,
            torch_version=torch.__version__,
            data_hash=self._tokens.data_hash,
        )


def _thin(curve: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the steps that a stored curve keeps: finite, evenly spread, both ends among them."""
    finite = np.flatnonzero(np.isfinite(curve))
    count = min(len(finite), MAX_CURVE_POINTS)
    return finite[np.unique(np.linspace(0, len(finite) - 1, count).round().astype(np.int64))]
