"""From real text to a transfer report in one command, in ./hptransfer-demo/.

Trains SP, SP+Embd and µP at several widths, learning rates and seeds on English Wikipedia
summaries, fits the transfer metrics and writes a report. Run again, it resumes. With --recorded
it trains nothing, and reads a sweep of ours on an H100 that comes with the package.
"""

import argparse
from dataclasses import replace
from importlib.resources import as_file, files
from pathlib import Path

from hptransfer.cli._answers import describe_answer
from hptransfer.cli._arguments import WORKERS, check_workers
from hptransfer.cli._print import tell
from hptransfer.errors import ConfigError
from hptransfer.report import analyse, write_report
from hptransfer.tables import LoadedTable, attach_rates, read_curves, read_source

DIRECTORY = Path("hptransfer-demo")
#: What is known of the recorded sweep beside its losses.
RECORDED = {
    "name": "recorded sweep on an H100",
    "axis": "hidden-aligned",
    "config": {
        "sweep": {"base_width": 64},
        "model": {"num_layers": 3, "head_size": 32, "context": 128},
        "train": {"steps": 500, "batch": 32},
        "data": {
            "text": "Wikipedia summaries and State of the Union addresses",
            "vocab_size": 4096,
        },
    },
}


OPTIONS = (
    WORKERS,
    ("--recorded", None, bool, None, "read a recorded sweep in place of training one"),
)


def run(args: argparse.Namespace) -> int:
    """Train or read, fit, report; the answer goes to stdout, progress to stderr."""
    check_workers(args.workers)
    if DIRECTORY.exists() and not DIRECTORY.is_dir():
        raise ConfigError(f"{DIRECTORY}: expected a folder or a new one, found a file")
    DIRECTORY.mkdir(exist_ok=True)
    study = _read_recorded() if args.recorded else _train(args.workers)
    page = DIRECTORY / ("recorded.html" if args.recorded else "report.html")
    source = analyse(study, curves=() if args.recorded else read_curves(DIRECTORY / "study"))
    write_report([source], page)
    document = {**source.fits.to_dict(), "recommendations": source.recommendations, "report": page}
    return tell(args, document, f"{describe_answer(source.fits, source.answer)}\nreport: {page}")


def _read_recorded() -> LoadedTable:
    with as_file(files("hptransfer.cli").joinpath("h100_embedding.csv")) as path:
        loaded = read_source(path)
    table = replace(loaded.table, axis="hidden-aligned", source="h100_embedding.csv")
    return replace(loaded, table=attach_rates(table, RECORDED), settings=RECORDED)


def _train(workers: int | None) -> LoadedTable:
    from hptransfer.cli._progress import report_run
    from hptransfer.study import load_study, run_study

    study_file = DIRECTORY / "demo.toml"
    study_file.write_bytes(files("hptransfer.cli").joinpath("demo.toml").read_bytes())
    config = load_study(study_file)
    with report_run(config) as show:
        run_study(config, DIRECTORY / "study", on_event=show, workers=workers)
    return read_source(DIRECTORY / "study")
