"""Show what a study directory holds and what is missing, by width and parameterization."""

import argparse
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hptransfer.cli._arguments import find_results, positive_number
from hptransfer.cli._print import align, say_clock, tell, wrap
from hptransfer.errors import ConfigError
from hptransfer.study import StudyStatus, read_status

OPTIONS = (
    ("directory", "DIR", Path, ..., "a study directory, or its study file"),
    ("--watch", "SECONDS", {"type": positive_number, "nargs": "?", "const": 5.0}, None,
     "look again every so often (default: every 5 seconds) until all is trained"),
)  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Count the trials; 3 if a results file was damaged."""
    directory, said = Path(find_results(args.directory)), dict[str, None]()
    is_search = (directory / "search.jsonl").is_file() and not (directory / "study.json").exists()
    if directory.is_file() or is_search:
        kind = "a file" if directory.is_file() else "a search's folder"
        raise ConfigError(
            f"{directory}: expected a study directory, found {kind}; what it holds, hptransfer fit "
            f"{shlex.quote(str(directory))} says"
        )
    while True:
        status = read_status(directory)
        fresh = dict.fromkeys(line for line in _list_troubles(status) if line not in said)
        said |= fresh
        if args.watch is not None and not args.json and sys.stdout.isatty():
            print("\x1b[H\x1b[2J", end="")  # the cursor to the top, and all below it gone
        code = tell(args, _make_document(status), _describe(status), damaged=bool(status.damaged))
        for line in fresh:
            print(f"hptransfer: {line}", file=sys.stderr)
        sys.stdout.flush()
        if args.watch is None or status.is_done:
            return code
        time.sleep(args.watch)
        print()


def _list_troubles(status: StudyStatus) -> Iterator[str]:
    for path, reason in status.damaged:
        yield f"{path}: damaged ({reason}); a rerun trains it again"
    for path, reason in status.foreign:
        yield f"{path}: foreign, left alone ({reason})"
    if status.num_unchecked:
        yield (
            f"note: {status.num_unchecked} results files of an older version carry no digest, and "
            "are unchecked"
        )
    if len(status.codes) > 1:
        from hptransfer.report.words import say_codes

        yield f"note: {say_codes(status.codes)}"
    if status.num_resumed:
        yield (
            f"note: {status.num_resumed} trial(s) were begun by another version or device "
            "(resumed_from): their bits may differ"
        )


def _make_document(status: StudyStatus) -> dict[str, Any]:
    document: dict[str, Any] = {
        "schema": 1,
        "study": status.study,
        "trials": status.num_trials,
        "pending": status.num_pending,
        "unigram_entropy": status.unigram_entropy,
        "groups": status.cells,
        "devices": status.devices,
        "under_way": status.under_way,
        "damaged": [path for path, _ in status.damaged],
    }
    if status.round is not None:
        document |= {"round": status.round, "search": status.search}
    return document


def _describe(status: StudyStatus) -> str:
    rows = [
        (
            str(cell.width),
            cell.parameterization,
            *map(str, (cell.completed, cell.diverged, cell.pending)),
            "" if cell.best_loss is None else f"{cell.best_loss:.4f}",
        )
        for cell in status.cells
    ]
    head = ("width", "parameterization", "completed", "diverged", "pending", "best loss")
    lines = [f"study {status.study}", align(head, rows)]
    if status.unigram_entropy is not None:
        entropy = f"{status.unigram_entropy:.4f} nats per token"
        lines.append(f"unigram entropy of the held-out text: {entropy}")
    lines += map(wrap, status.search)
    if status.devices:
        lines.append(wrap(f"planned for {', '.join(status.devices)}"))
    lines += [
        f"under way: width {each.width} × {each.runs}, at step {each.step:,} of {each.steps:,}, "
        f"saved {say_clock(each.seconds)} ago"
        for each in status.under_way
    ]
    done = status.num_trials - status.num_pending
    seen = {cell.width for cell in status.cells if cell.completed + cell.diverged}
    empty = dict.fromkeys(str(cell.width) for cell in status.cells if cell.width not in seen)
    missing = f"; width {', '.join(empty)}: none" if empty else ""
    lines.append(wrap(f"{done} of {status.num_trials} trials are finished{missing}"))
    return "\n".join(lines)
