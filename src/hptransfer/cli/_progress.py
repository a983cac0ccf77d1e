"""Live progress of a run: trials done, tokens per second, current losses, time left."""

import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from hptransfer.study import Event, RoundEvent, StackedGroup, StudyConfig, num_tokens

#: Seconds between lines where the output is no terminal.
LOG_INTERVAL = 30.0


class RunReporter:
    """Shows a run of a study on stderr: pass it to `run_study` as ``on_event``.

    Use as a context manager, so that bars end with the run.

    Parameters
    ----------
    config : StudyConfig
        The study.
    shard : str, optional
        The share that is trained, as ``I/N``, for messages.
    """

    def __init__(self, config: StudyConfig, *, shard: str | None = None) -> None:
        self._config = config
        self._shard = shard
        self._console = Console(stderr=True)
        self._stack = ExitStack()
        self._progress: RoundProgress | None = None

    def __enter__(self) -> "RunReporter":
        return self

    def __exit__(self, *raised: object) -> None:
        self._stack.close()

    def __call__(self, event: Event | RoundEvent) -> None:
        """Show one event."""
        if isinstance(event, Event):
            assert self._progress is not None, "a round has started"
            self._progress(event)
            return
        work = event.work
        if event.kind != "end":
            for path in work.damaged:
                _print_line(f"hptransfer: {path}: damaged, set aside; its trials train again")
            for path, reason in work.foreign:
                _print_line(f"hptransfer: {path}: no results of this plan, left alone ({reason})")
        if event.kind == "start":
            for note in work.notes:
                _print_line(f"round {work.round}: {note}")
            self._progress = self._stack.enter_context(
                RoundProgress(
                    self._config,
                    work.groups,
                    num_finished=work.num_finished,
                    num_trials=work.num_trials,
                    console=self._console,
                )
            )
        elif event.kind == "end":
            assert self._progress is not None, "a round has started"
            self._stack.close()
            _print_line(self._progress.summary())
        elif event.kind == "wait" and self._config.sweep.is_adaptive:
            _print_line(
                f"round {work.round} waits for {work.elsewhere} groups of other shards; the same "
                "command goes on when they are done (or with --wait)"
            )
        elif event.kind == "wait":
            _print_line(
                f"{work.num_finished} trials are finished; nothing is left for shard "
                f"{self._shard}, {work.elsewhere} groups of other shards are missing"
            )
        else:
            for note in work.notes:
                _print_line(note)
            _print_line(f"{work.num_finished} trials are finished, nothing is missing")


def _print_line(text: str) -> None:
    print(text, file=sys.stderr)


class RoundProgress:
    """Shows the events of one round: bars on a terminal, a line now and then elsewhere.

    Use as a context manager, and call it with each event.

    Parameters
    ----------
    config : StudyConfig
        The study.
    groups : sequence of StackedGroup
        What is to be trained.
    num_finished, num_trials : int
        Trials stored before, and trials to train now.
    console : Console
        Where to show it, usually on stderr.
    """

    def __init__(
        self,
        config: StudyConfig,
        groups: tuple[StackedGroup, ...],
        *,
        num_finished: int,
        num_trials: int,
        console: Console,
    ) -> None:
        self._config = config
        self._groups = {group.name: group for group in groups}
        self._total = num_finished + num_trials
        self._done = num_finished
        self._diverged = 0
        self._console = console
        self._work = sum(group.seconds for group in groups)
        self._fractions: dict[str, float] = {}
        self._start = self._logged = time.monotonic()
        self._rows: dict[str, TaskID] = {}
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._all = self._bars.add_task("trials", total=self._work, detail="")

    def __enter__(self) -> "RoundProgress":
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        group = self._groups[event.group]
        if event.kind == "step":
            self._fractions[event.group] = event.step / event.steps
            if event.group not in self._rows:
                self._rows[event.group] = self._bars.add_task("", total=event.steps, detail="")
            self._bars.update(
                self._rows[event.group],
                description=f"width {group.width} × {len(group.runs)}",
                completed=event.step,
                detail=_describe_losses(event),
            )
        elif event.kind == "note":
            self._say(f"group {event.group}: {event.message}")
        else:
            self._fractions[event.group] = 1.0
            if event.group in self._rows:
                self._bars.remove_task(self._rows.pop(event.group))
            if event.kind == "failed":
                self._say(f"group {event.group} failed: {event.message}")
            self._done += event.completed + event.diverged
            self._diverged += event.diverged
        self._bars.update(self._all, completed=self._worked(), detail=self.summary())
        due = event.is_last and time.monotonic() - self._logged > LOG_INTERVAL
        if not self._console.is_terminal and due:
            self._logged = time.monotonic()
            self._say(self.summary())

    def summary(self) -> str:
        """Return the run so far in one line."""
        elapsed = time.monotonic() - self._start
        share = self._worked() / self._work if self._work else 1.0
        left = f"{_clock(elapsed * (1 - share) / share)} left" if share > 0 else "starting"
        rate = self._tokens() / elapsed if elapsed > 0 else 0.0
        diverged = f" ({self._diverged} diverged)" if self._diverged else ""
        return f"{self._done}/{self._total} trials{diverged}, {rate:,.0f} tokens/s, {left}"

    def _worked(self) -> float:
        return sum(self._groups[name].seconds * share for name, share in self._fractions.items())

    def _tokens(self) -> float:
        return _sum_tokens(self._config, self._groups, self._fractions)

    def _say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def _sum_tokens(
    config: StudyConfig, groups: Mapping[str, StackedGroup], fractions: Mapping[str, float]
) -> float:
    return sum(
        num_tokens(config, groups[name].width) * len(groups[name].runs) * share
        for name, share in fractions.items()
    )


def _describe_losses(event: Event) -> str:
    if not event.losses:
        return "all diverged"
    low, high = min(event.losses), max(event.losses)
    return f"loss {low:.3f}" if low == high else f"loss {low:.3f} to {high:.3f}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
