"""Search for learning rates with your own training job: where to measure next, run and recorded.

The search file names the widths, the command that trains one trial, and where its loss is read. A
rerun of the same command goes on; several of them, on machines with a shared folder, share the
work. Each trial's logs lie in its folder, under trials/.
"""

import argparse
import math
import shlex
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from hptransfer.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from hptransfer.search.job_runner import SearchEvent
    from hptransfer.search.search_file import SearchConfig

#: Seconds between lines where the output is no terminal.
LOG_INTERVAL = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("search", type=Path, metavar="SEARCH.toml", help="the search file")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="DIR",
        help="the search's folder (default: the search's name, here)",
    )  # fmt: skip
    parser.add_argument(
        "--parallel", type=int, metavar="N", help="trials at a time, in place of the file's"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--ask", type=int, metavar="N",
        help="print commands that run the next trials, N at most, one a line, and exit",
    )  # fmt: skip
    which.add_argument("--trial", metavar="ID", help="run one trial that --ask has named")
    which.add_argument(
        "--tell", metavar="ID=LOSS",
        help="record the loss of a trial that was run in another way; 'diverged' where it did",
    )  # fmt: skip
    parser.add_argument(
        "--json", action="store_true", help="with --ask: trials and their own commands as JSON"
    )


def run(args: argparse.Namespace) -> int:
    """Run, ask or tell."""
    from hptransfer.search.search_file import load_search

    for name in ("ask", "parallel"):
        number = getattr(args, name)
        if number is not None and number < 1:
            raise ConfigError(f"--{name}: expected 1 or more, found {number}")
    if args.json and args.ask is None:
        raise ConfigError("--json: expected --ask N with it, found none")
    config = load_search(args.search)
    directory = args.output or Path(config.name)
    if args.ask is not None:
        return _ask(config, directory, args)
    if args.tell is not None:
        return _tell(config, directory, args.tell)
    return _run(config, directory, args)


def _run(config: "SearchConfig", directory: Path, args: argparse.Namespace) -> int:
    from rich.console import Console

    from hptransfer.search.job_runner import run_search

    with SearchProgress(Console(stderr=True)) as progress:
        search = run_search(
            config, directory, on_event=progress, parallel=args.parallel, only=args.trial
        )
    print(progress.summary(), file=sys.stderr)
    if args.trial is not None:
        return 0
    for each in search.optima:
        rate = f"2^{each.optimum:.2f}" if math.isfinite(each.optimum) else "not found"
        name = "".join(f"{key} {value}, " for key, value in each.group.items())
        print(f"{name}width {each.width:g}: lr {rate}, {each.state} ({each.reason})")
    print(f"next: hptransfer recommend {directory} --width {4 * max(search.widths):g}")
    return 0


def _ask(config: "SearchConfig", directory: Path, args: argparse.Namespace) -> int:
    from hptransfer.cli._print import print_json
    from hptransfer.search.job_runner import HANDOFF_LEASE, list_commands, open_search

    search = open_search(config, directory, lease=HANDOFF_LEASE)
    trials = search.ask(args.ask, wait=False, handoff=True)
    listed = list_commands(config, directory, trials)
    if args.json:
        print_json({"schema": 1, "done": search.is_done, "trials": listed})
        return 0
    for each in listed:
        ours = ["hptransfer", "search", str(args.search), "-o", str(directory), "--trial"]
        print(f"{shlex.join([*ours, str(each['trial'])])}  # {shlex.join(each['command'])}")  # type: ignore[arg-type]
    if not trials:
        said = "the search is done" if search.is_done else "what is left is being run"
        print(f"nothing to run: {said}", file=sys.stderr)
    return 0


def _tell(config: "SearchConfig", directory: Path, text: str) -> int:
    from hptransfer.search.job_runner import open_search

    name, equals, loss = text.rpartition("=")
    if not equals:
        raise ConfigError(f"--tell: expected ID=LOSS, found {text!r}")
    try:
        value = None if loss == "diverged" else float(loss)
    except ValueError:
        raise ConfigError(f"--tell: expected a loss or 'diverged', found {loss!r}") from None
    open_search(config, directory).tell(name, value)
    return 0


class SearchProgress:
    """Show what happens in a search: bars on a terminal, lines elsewhere.

    Parameters
    ----------
    console : Console
        Where to show it, usually on stderr.
    """

    def __init__(self, console: "Console") -> None:
        from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

        self._console = console
        self._counts = {"completed": 0, "diverged": 0, "failed": 0}
        self._rows: dict[str, TaskID] = {}
        self._start = self._logged = time.monotonic()
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._all = self._bars.add_task("search", total=None, detail="")

    def __enter__(self) -> "SearchProgress":
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def __call__(self, event: "SearchEvent") -> None:
        """Show one event."""
        name = "" if event.trial is None else event.trial.id
        if event.kind in ("note", "place", "again", "failed"):
            after = {"again": "; it runs again", "failed": "; set aside"}.get(event.kind, "")
            self._console.print(
                f"{event.message}{after}", markup=False, highlight=False, soft_wrap=True
            )
        if event.kind == "start":
            self._rows[name] = self._bars.add_task(name, total=None, detail="")
        elif event.kind == "loss" and name in self._rows:
            step = "" if event.step is None else f" at step {event.step}"
            self._bars.update(self._rows[name], detail=f"loss {event.loss:.3f}{step}")
        elif event.kind in self._counts:
            self._counts[event.kind] += 1
            if name in self._rows:
                self._bars.remove_task(self._rows.pop(name))
            due = time.monotonic() - self._logged > LOG_INTERVAL
            if not self._console.is_terminal and due:
                self._logged = time.monotonic()
                self._console.print(self.summary(), markup=False, highlight=False)
        self._bars.update(self._all, detail=self.summary())

    def summary(self) -> str:
        """Return the run so far in one line."""
        minutes, seconds = divmod(round(time.monotonic() - self._start), 60)
        counts = ", ".join(f"{count} {kind}" for kind, count in self._counts.items() if count)
        return f"{counts or 'no trial to run'} in {minutes}:{seconds:02d}"
