"""Search for learning rates with your own training job: where to measure next, run and recorded.

The search file names the widths, the command that trains one trial, and where its loss is read. A
rerun of the same command goes on; several of them, on machines with a shared folder, share the
work. Each trial's logs lie in its folder, under trials/.
"""

import argparse
import math
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hptransfer.cli._arguments import positive_count
from hptransfer.cli._print import tell, wrap
from hptransfer.errors import ConfigError

if TYPE_CHECKING:
    from hptransfer.search.search_file import SearchConfig


OPTIONS = (
    ("search", "SEARCH.toml", Path, ..., "the search file"),
    ("-o --output", "DIR", Path, None, "the search's folder (default: the search's name, here)"),
    [
        ("--ask", "N", positive_count, None,
         "print commands that run the next trials, N at most, one a line, and exit"),
        ("--trial", "ID", str, None, "run one trial that --ask has named"),
        ("--tell", "ID=LOSS", str, None,
         "record the loss of a trial that was run in another way; 'diverged' where it did"),
    ],
)  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Run, ask or tell."""
    from hptransfer.search.search_file import load_search

    config = load_search(args.search)
    directory = args.output or Path(config.name)
    if args.ask is not None:
        return _ask(config, directory, args)
    if args.tell is not None:
        return _tell(config, directory, args)
    return _run(config, directory, args)


def _run(config: "SearchConfig", directory: Path, args: argparse.Namespace) -> int:
    from rich.console import Console

    from hptransfer.cli._progress import SearchProgress
    from hptransfer.search.job_runner import run_search

    with SearchProgress(Console(stderr=True)) as progress:
        search = run_search(config, directory, on_event=progress, only=args.trial)
    print(progress.summary(), file=sys.stderr)
    optima = [
        {
            "group": each.group, "width": each.width, "log2_lr": each.optimum,
            "state": each.state, "reason": each.reason,
        }
        for each in search.optima
    ]  # fmt: skip
    lines = []
    for each in search.optima:
        rate = f"2^{each.optimum:.2f}" if math.isfinite(each.optimum) else "not found"
        name = "".join(f"{key} {value}, " for key, value in each.group.items())
        lines.append(wrap(f"{name}width {each.width:g}: lr {rate}, {each.state} ({each.reason})"))
    folder = shlex.quote(str(directory))
    lines.append(f"next: hptransfer recommend {folder} --width {4 * max(search.widths):g}")
    done = search.is_done and not search.failed
    document = {"schema": 1, "directory": directory, "done": done, "optima": optima}
    return tell(args, document, "" if args.trial else "\n".join(lines))


def _ask(config: "SearchConfig", directory: Path, args: argparse.Namespace) -> int:
    from hptransfer.search.job_runner import HANDOFF_LEASE, list_commands, open_search

    search = open_search(config, directory, lease=HANDOFF_LEASE)
    trials = search.ask(args.ask, wait=False, handoff=True)
    listed = list_commands(config, directory, trials)
    ours = ["hptransfer", "search", str(args.search), "-o", str(directory), "--trial"]
    lines = [
        f"{shlex.join([*ours, each['trial']])}  # {shlex.join(each['command'])}" for each in listed
    ]
    failed = [*search.failed]
    if not trials and not args.json:
        said = "the search is done" if search.is_done else "what is left is being run"
        if search.is_done and failed:
            again = shlex.join(ours[:-1])
            said = (
                f"{len(failed)} failed and stand aside, {failed[0]} first; {again} runs them again"
            )
        print(f"nothing to run: {said}", file=sys.stderr)
    done = search.is_done and not failed
    document = {"schema": 1, "done": done, "failed": failed, "trials": listed}
    return tell(args, document, "\n".join(lines))


def _tell(config: "SearchConfig", directory: Path, args: argparse.Namespace) -> int:
    from hptransfer.search.job_runner import open_search

    name, equals, loss = args.tell.rpartition("=")
    if not equals:
        raise ConfigError(f"--tell: expected ID=LOSS, found {args.tell!r}")
    try:
        value = None if loss == "diverged" else float(loss)
    except ValueError:
        raise ConfigError(f"--tell: expected a loss or 'diverged', found {loss!r}") from None
    open_search(config, directory).tell(name, value)
    return tell(args, {"schema": 1, "trial": name, "loss": value}, "")
