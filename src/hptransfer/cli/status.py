"""Show what a study directory holds and what is missing, by width and parameterization."""

import argparse
import sys
from pathlib import Path
from typing import Any

from hptransfer.cli._arguments import find_results
from hptransfer.cli._print import EXIT_DAMAGED, make_console, print_json
from hptransfer.study import StudyStatus, read_status


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("directory", type=Path, metavar="DIR", help="a study directory")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")


def run(args: argparse.Namespace) -> int:
    """Count the trials; 3 if a results file was damaged."""
    status = read_status(Path(find_results(args.directory)))
    for path, reason in status.damaged:
        print(f"hptransfer: {path}: damaged ({reason}); a rerun trains it again", file=sys.stderr)
    for path, reason in status.foreign:
        print(f"hptransfer: {path}: foreign, left alone ({reason})", file=sys.stderr)
    if status.num_unchecked:
        print(
            f"hptransfer: note: {status.num_unchecked} results files of an older version carry no "
            "digest, and are unchecked",
            file=sys.stderr,
        )
    if args.json:
        print_json(_make_document(status))
    else:
        _print_status(status)
    return EXIT_DAMAGED if status.damaged else 0


def _make_document(status: StudyStatus) -> dict[str, Any]:
    document: dict[str, Any] = {
        "schema": 1,
        "study": status.study,
        "trials": status.num_trials,
        "pending": status.num_pending,
        "unigram_entropy": status.unigram_entropy,
        "groups": [vars(cell) for cell in status.cells],
        "devices": list(status.devices),
        "damaged": [str(path) for path, _ in status.damaged],
    }
    if status.round is not None:
        document |= {"round": status.round, "search": list(status.search)}
    return document


def _print_status(status: StudyStatus) -> None:
    from rich.table import Table

    console = make_console()
    table = Table(title=f"study {status.study}", title_justify="left")
    for heading in ("width", "parameterization", "completed", "diverged", "pending", "best loss"):
        table.add_column(heading, justify="left" if heading == "parameterization" else "right")
    for cell in status.cells:
        table.add_row(
            str(cell.width),
            cell.parameterization,
            *map(str, (cell.completed, cell.diverged, cell.pending)),
            "" if cell.best_loss is None else f"{cell.best_loss:.4f}",
        )
    console.print(table)
    if status.unigram_entropy is not None:
        console.print(
            f"unigram entropy of the held-out text: {status.unigram_entropy:.4f} nats per token"
        )
    for line in status.search:
        console.print(line)
    if status.devices:
        console.print(f"planned for {', '.join(status.devices)}")
    done = status.num_trials - status.num_pending
    console.print(f"{done} of {status.num_trials} trials are finished")
