"""Show what a study directory holds and what is missing, by width and parameterization."""

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hptransfer.cli._arguments import find_results, positive_number
from hptransfer.cli._print import EXIT_DAMAGED, align, print_json, say_clock, wrap
from hptransfer.study import StudyStatus, read_status


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("directory", type=Path, metavar="DIR", help="a study directory")
    parser.add_argument(
        "--watch", type=positive_number, nargs="?", const=5.0, metavar="SECONDS",
        help="look again every so often (default: every 5 seconds) until all is trained",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Count the trials; 3 if a results file was damaged."""
    directory, said = Path(find_results(args.directory)), dict[str, None]()
    while True:
        status = read_status(directory)
        fresh = dict.fromkeys(line for line in _list_troubles(status) if line not in said)
        said |= fresh
        if args.json:
            print_json(_make_document(status))
        else:
            if args.watch is not None and sys.stdout.isatty():
                print("\x1b[H\x1b[2J", end="")  # the cursor to the top, and all below it gone
            _print_status(status)
        for line in fresh:
            print(f"hptransfer: {line}", file=sys.stderr)
        sys.stdout.flush()
        if args.watch is None or status.is_done:
            return EXIT_DAMAGED if status.damaged else 0
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


def _make_document(status: StudyStatus) -> dict[str, Any]:
    document: dict[str, Any] = {
        "schema": 1,
        "study": status.study,
        "trials": status.num_trials,
        "pending": status.num_pending,
        "unigram_entropy": status.unigram_entropy,
        "groups": [vars(cell) for cell in status.cells],
        "devices": list(status.devices),
        "under_way": [vars(each) for each in status.under_way],
        "damaged": [str(path) for path, _ in status.damaged],
    }
    if status.round is not None:
        document |= {"round": status.round, "search": list(status.search)}
    return document


def _print_status(status: StudyStatus) -> None:
    print(f"study {status.study}")
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
    print(align(head, rows))
    if status.unigram_entropy is not None:
        print(f"unigram entropy of the held-out text: {status.unigram_entropy:.4f} nats per token")
    for line in status.search:
        print(wrap(line))
    if status.devices:
        print(wrap(f"planned for {', '.join(status.devices)}"))
    for each in status.under_way:
        print(
            f"under way: width {each.width} × {each.runs}, at step {each.step:,} of "
            f"{each.steps:,}, saved {say_clock(each.seconds)} ago"
        )
    done = status.num_trials - status.num_pending
    empty = [
        str(width)
        for width in dict.fromkeys(cell.width for cell in status.cells)
        if not any(c.completed + c.diverged for c in status.cells if c.width == width)
    ]
    missing = f"; width {', '.join(empty)}: none" if empty else ""
    print(wrap(f"{done} of {status.num_trials} trials are finished{missing}"))
