"""Show what a study directory holds and what is missing, by width and parameterization."""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

    from hptransfer.study.config import StudyConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("directory", type=Path, metavar="DIR", help="a study directory")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")


def run(args: argparse.Namespace) -> int:
    """Count the trials; 2 if a results file was damaged."""
    from hptransfer.study.config import parse_study
    from hptransfer.study.plan import join_points, read_rounds
    from hptransfer.study.result import TABLE_COLUMNS
    from hptransfer.study.settings import read_settings
    from hptransfer.study.store import read_trials
    from hptransfer.study.trial import list_trials

    settings = read_settings(args.directory)
    config = parse_study(settings["config"], source=str(args.directory))
    stored = read_trials(args.directory, TABLE_COLUMNS)
    ids, states, losses = (stored.rows.column(name).to_pylist() for name in ("id", "state", "loss"))
    found = dict(zip(ids, zip(states, losses, strict=True), strict=True))
    counts: dict[tuple[int, str], Counter[str]] = {}
    best: dict[tuple[int, str], float] = {}
    rounds = read_rounds(args.directory)
    for trial in list_trials(config, join_points(rounds)):
        key = (trial.width, trial.parameterization)
        state, loss = found.get(trial.id, ("pending", None))
        counts.setdefault(key, Counter())[state] += 1
        if loss is not None:
            best[key] = min(loss, best.get(key, loss))
    document = {
        "schema": 1,
        "study": config.name,
        "trials": sum(map(Counter.total, counts.values())),
        "pending": sum(count["pending"] for count in counts.values()),
        "unigram_entropy": settings["data"].get("unigram_entropy"),
        "groups": [
            {
                "width": width,
                "parameterization": name,
                **{state: count[state] for state in ("completed", "diverged", "pending")},
                "best_loss": best.get((width, name)),
            }
            for (width, name), count in counts.items()
        ],
        "damaged": [str(path) for path, _ in stored.damaged],
    }
    if config.sweep.is_adaptive:
        document["round"] = max(0, len(rounds) - 1)
        document["search"] = _describe_search(config, stored.rows)
    for path, reason in stored.damaged:
        print(f"hptransfer: {path}: damaged ({reason}); a rerun trains it again", file=sys.stderr)
    if args.json:
        print(json.dumps(document, ensure_ascii=False, indent=2))
    else:
        _print_status(document)
    return 2 if stored.damaged else 0


def _describe_search(config: "StudyConfig", rows: "pa.Table") -> list[str]:
    """Return how far the search of each parameterization and width is."""
    from hptransfer.study.adaptive import search_study

    return [each.describe(width) for each in search_study(config, rows) for width in each.widths]


def _print_status(document: dict[str, Any]) -> None:
    from rich.table import Table

    from hptransfer.cli._print import make_console

    console = make_console()
    table = Table(title=f"study {document['study']}", title_justify="left")
    for heading in ("width", "parameterization", "completed", "diverged", "pending", "best loss"):
        table.add_column(heading, justify="left" if heading == "parameterization" else "right")
    for group in document["groups"]:
        loss = group["best_loss"]
        table.add_row(
            str(group["width"]),
            group["parameterization"],
            *(str(group[state]) for state in ("completed", "diverged", "pending")),
            "" if loss is None else f"{loss:.4f}",
        )
    console.print(table)
    entropy = document["unigram_entropy"]
    if entropy is not None:
        console.print(f"unigram entropy of the held-out text: {entropy:.4f} nats per token")
    for line in document.get("search", ()):
        console.print(line, highlight=False, markup=False)
    done = document["trials"] - document["pending"]
    console.print(f"{done} of {document['trials']} trials are finished")
