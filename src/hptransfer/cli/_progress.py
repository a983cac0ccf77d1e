"""Live progress of a run or a search: what is done, current losses, speed and time left."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from hptransfer.cli._print import say_clock, say_measuring, wrap
from hptransfer.study import Event, RoundEvent, StackedGroup, StudyConfig, num_tokens

if TYPE_CHECKING:
    from hptransfer.search.job_runner import SearchEvent

#: Seconds between lines where the output is no terminal.
LOG_INTERVAL = 30.0


@contextmanager
def report_run(
    config: StudyConfig, *, shard: str | None = None
) -> Iterator[Callable[[Event | RoundEvent], None]]:
    """Yield what shows a run of a study on stderr: pass it to `run_study` as ``on_event``.

    Parameters
    ----------
    config : StudyConfig
        The study.
    shard : str, optional
        The share that is trained, as ``I/N``, for messages.
    """
    console, is_adaptive = Console(stderr=True), config.sweep.is_adaptive
    progress: RoundProgress | None = None

    def show(event: Event | RoundEvent) -> None:
        nonlocal progress
        if isinstance(event, Event):
            assert progress is not None, "a round has started"
            progress(event)
            return
        stack.close()  # of the bars of a round, or of the notice before the first
        work = event.work
        if event.kind == "end":
            assert progress is not None, "a round has started"
            _print_line(progress.summary())
            return
        for path, _ in work.damaged:
            _print_line(f"hptransfer: {path}: damaged, set aside; its trials train again")
        for path, reason in work.foreign:
            _print_line(f"hptransfer: {path}: no results of this plan, left alone ({reason})")
        if event.kind == "wait" and is_adaptive:
            _print_line(
                f"round {work.round} waits for {work.elsewhere} groups of other shards; the same "
                "command goes on when they are done (or with --wait)"
            )
            return
        if event.kind == "wait":
            _print_line(
                f"{work.num_finished} trials are finished; nothing is left for shard {shard}, "
                f"{work.elsewhere} groups of other shards are missing"
            )
            return
        start = f"round {work.round}: " if event.kind == "start" and is_adaptive else ""
        for note in work.notes:
            _print_line(start + note)
        if event.kind == "finished":
            _print_line(f"{work.num_finished} trials are finished, nothing is missing")
            return
        progress = RoundProgress(
            config, work.groups, num_finished=work.num_finished, num_trials=work.num_trials,
            console=console,
        )  # fmt: skip
        stack.enter_context(progress)

    with ExitStack() as stack:
        stack.enter_context(say_measuring())
        yield show


def _print_line(text: str) -> None:
    print(wrap(text), file=sys.stderr)


class _CaptionedProgress(Progress):
    """Bars below a line of text, which wraps where a column of a table would be cut."""

    caption = ""

    def get_renderables(self) -> Iterator[RenderableType]:
        """Yield the caption, then the bars."""
        yield Text(self.caption)
        yield self.make_tasks_table(self.tasks)


class _Bars:
    """Bars on a terminal, one for each thing under way below that of the whole.

    Elsewhere there are lines: what is said, and `summary` every `LOG_INTERVAL` seconds. Use as a
    context manager.
    """

    def __init__(self, console: Console, name: str, *, total: float | None = None) -> None:
        self._console = console
        self._start = self._logged = time.monotonic()
        self._rows: dict[str, TaskID] = {}
        self._bars = _CaptionedProgress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            *([] if total is None else [TextColumn("{task.percentage:>3.0f} %")]),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._all = self._bars.add_task(name, total=total, detail="")

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._bars.stop()

    def summary(self) -> str:
        """Return the run so far in one line."""
        raise NotImplementedError

    def _show(self, row: str, name: str, detail: str, **progress: float | None) -> None:
        if row not in self._rows:
            self._rows[row] = self._bars.add_task(name, detail=detail, **progress)  # type: ignore[arg-type]
        self._bars.update(self._rows[row], description=name, detail=detail, **progress)  # type: ignore[arg-type]

    def _end(self, row: str) -> None:
        if row in self._rows:
            self._bars.remove_task(self._rows.pop(row))
        if not self._console.is_terminal and time.monotonic() - self._logged > LOG_INTERVAL:
            self._logged = time.monotonic()
            self._say(self.summary())

    def _say(self, text: str) -> None:
        self._console.print(wrap(text), markup=False, highlight=False, soft_wrap=True)


class RoundProgress(_Bars):
    """Shows the events of one round of a study: use as a context manager, call with each event.

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
        self._groups = {group.name: group for group in groups}
        self._work = sum(group.seconds for group in groups)
        super().__init__(console, "trials", total=self._work)
        self._config = config
        self._total = num_finished + num_trials
        self._done = num_finished
        self._diverged = 0
        # Shares of each group: what was found done, by an earlier run, and what is done now.
        self._before: dict[str, float] = {}
        self._shares: dict[str, float] = {}

    def __call__(self, event: Event) -> None:
        """Show one event."""
        name, group = event.group, self._groups[event.group]
        if event.kind == "note":
            self._say(f"group {name}: {event.message}")
        elif event.is_last:
            self._shares[name] = 1.0
            self._before.setdefault(name, 0.0)
            if event.kind == "failed":
                self._say(f"group {name} failed: {event.message}")
            self._done += event.completed + event.diverged
            self._diverged += event.diverged
            self._end(name)
        else:
            self._shares[name] = event.step / event.steps
            if event.kind == "start":
                self._before[name] = self._shares[name]
                detail = f"starting at step {event.step:,}" if event.step else "starting"
            elif event.kind == "evaluate":
                detail = "final evaluation"
            else:
                detail = _describe_losses(event)
            title = f"width {group.width} × {len(group.runs)}"
            self._show(name, title, detail, completed=event.step, total=event.steps)
        self._bars.caption = self.summary()
        self._bars.update(self._all, completed=self._sum(self._shares))

    def summary(self) -> str:
        """Return the run so far in one line: rate and time left are those of this run."""
        elapsed = time.monotonic() - self._start
        own = {name: share - self._before.get(name, 0.0) for name, share in self._shares.items()}
        worked = self._sum(own)
        if worked > 0:
            left = self._work - self._sum(self._shares)
            tokens = sum(
                num_tokens(self._config, self._groups[name].width)
                * len(self._groups[name].runs)
                * share
                for name, share in own.items()
            )
            pace = f"{tokens / elapsed:,.0f} tokens/s, {say_clock(elapsed * left / worked)} left"
        else:
            pace = "starting" if self._work else "nothing to train"
        diverged = f" ({self._diverged} diverged)" if self._diverged else ""
        return f"{self._done}/{self._total} trials{diverged}, {pace}"

    def _sum(self, shares: Mapping[str, float]) -> float:
        return sum(self._groups[name].seconds * share for name, share in shares.items())


class SearchProgress(_Bars):
    """Shows what happens in a search: use as a context manager, call with each event.

    Parameters
    ----------
    console : Console
        Where to show it, usually on stderr.
    """

    def __init__(self, console: Console) -> None:
        super().__init__(console, "search")
        self._counts = {"completed": 0, "diverged": 0, "failed": 0}

    def __call__(self, event: "SearchEvent") -> None:
        """Show one event."""
        name = "" if event.trial is None else event.trial.id
        if event.kind in ("note", "place", "again", "failed"):
            after = {"again": "; it runs again", "failed": "; set aside"}.get(event.kind, "")
            self._say(f"{event.message}{after}")
        if event.kind == "start":
            self._show(name, name, "", total=None)
        elif event.kind == "loss":  # of a job that an earlier command left, too
            step = "" if event.step is None else f" at step {event.step}"
            self._show(name, name, f"loss {event.loss:.3f}{step}", total=None)
        elif event.kind in self._counts:
            self._counts[event.kind] += 1
            self._end(name)
        elif event.kind == "note":
            self._end(name)
        self._bars.caption = self.summary()
        self._bars.update(self._all)

    def summary(self) -> str:
        """Return the run so far in one line."""
        counts = ", ".join(f"{count} {kind}" for kind, count in self._counts.items() if count)
        return f"{counts or 'no trial to run'} in {say_clock(time.monotonic() - self._start)}"


def _describe_losses(event: Event) -> str:
    if not event.losses:
        return "all diverged"
    low, high = min(event.losses), max(event.losses)
    return f"loss {low:.3f}" if low == high else f"loss {low:.3f} to {high:.3f}"
