"""Train one group of the plan and store its results."""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from hptransfer._atomic import atomic_write
from hptransfer._messages import describe_error
from hptransfer.errors import HptransferError
from hptransfer.model import GPTShape
from hptransfer.study import DEFAULT_CHECKPOINT_SECONDS
from hptransfer.study.config import StudyConfig, num_steps, parse_study
from hptransfer.study.events import Event
from hptransfer.study.plan import Group, join_groups, join_points, read_rounds
from hptransfer.study.rows import make_row
from hptransfer.study.settings import read_settings, require_text
from hptransfer.study.signals import HeldSignals, hold_signals
from hptransfer.study.split import find_stored, halve_group, read_splits, write_split
from hptransfer.study.store import checkpoint_path, read_states, write_group
from hptransfer.study.trial import Trial, TrialState, list_trials, resolve_trial
from hptransfer.train.batches import Batches, validation_windows
from hptransfer.train.calibrate import DTYPES
from hptransfer.train.device import (
    free_memory,
    is_out_of_memory,
    set_determinism,
)
from hptransfer.train.ensemble import Ensemble, Run
from hptransfer.train.tokens import TokenData, prepare_tokens
from hptransfer.train.trainer import CheckpointError, Training, TrainSettings

#: Seconds between reports of a group in training.
REPORT_INTERVAL = 0.5


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


class _TooLargeError(HptransferError):
    """One run alone does not fit into memory."""


class _Checkpoint:
    """Where a group under way is saved; a save that fails is told once, and training goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._troubled = False

    def save(self, training: Training) -> str | None:
        """Save the training; return what is to be told the user where that fails."""
        try:
            with atomic_write(self.path) as tmp:
                training.snapshot(copy=False).write(tmp)
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
        for halves in read_splits(directory).values():
            self._groups |= {half.name: half for half in halves}

    @classmethod
    def open(cls, directory: Path, *, root: Path, checkpoint_interval: float) -> "Executor":
        """Return the executor of the study that a directory records; `root` is its file's folder.

        Raises
        ------
        StoreError
            If the directory is no study's.
        """
        document = read_settings(directory)["config"]
        config = parse_study(document, source=str(directory), root=root)
        return cls(config, directory, checkpoint_interval=checkpoint_interval)

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
                states = self._train_parts(self._groups[name], report, held)
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

    def _train_parts(
        self, group: Group, report: Callable[[Event], None], held: HeldSignals
    ) -> list[TrialState]:
        """Train a group, in halves where memory runs out, and store it."""
        states: list[TrialState] = []
        waiting, num_done = deque([group]), 0
        while waiting and held.received is None:
            part = waiting.popleft()
            splits = read_splits(self._directory)
            if part.name in splits:
                waiting.extendleft(reversed(splits[part.name]))
                continue
            if (stored := find_stored(self._directory, part.name, splits)) is not None:
                states += read_states(self._directory, stored, part.trial_ids)
                num_done += len(part.runs)
                continue

            def report_part(event: Event, part: Group = part, num_done: int = num_done) -> None:
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

    def _split(self, part: Group, error: Exception) -> Event:
        """Split a group in the plan; return what the user is told."""
        if len(part.runs) == 1:
            raise _TooLargeError(
                f"out of memory with a single run of width {part.width} ({describe_error(error)}); "
                "it needs more memory, fewer --workers, or a smaller batch or context"
            ) from None
        write_split(self._directory, part)
        checkpoint_path(self._directory, part.name).unlink(missing_ok=True)
        sizes = " and ".join(str(len(half.runs)) for half in halve_group(part))
        return Event(
            kind="note",
            group=part.name,
            message=f"out of memory with {len(part.runs)} runs stacked, halved: {sizes} start anew",
        )

    def _train(
        self, group: Group, report: Callable[[Event], None], held: HeldSignals
    ) -> list[TrialState] | None:
        """Train a group and store it.

        Returns no states where a signal ended it early, and None where another process has split
        the group meanwhile: results are then those of its halves.
        """
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
                        losses=tuple(
                            float(loss)
                            for run, loss in enumerate(losses)
                            if run not in training.watch.diverged
                        ),
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
            make_row(
                self._config,
                trial,
                group,
                result,
                trained_as=run[0].id,
                seconds=seconds,
                data_hash=self._tokens.data_hash,
            )
            for run, result in zip(runs, results, strict=True)
            for trial in run
        ]
        splits = read_splits(self._directory)
        if group.name in splits:
            checkpoint.path.unlink(missing_ok=True)
            return None
        try:
            if find_stored(self._directory, group.name, splits) in (None, group.name):
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
