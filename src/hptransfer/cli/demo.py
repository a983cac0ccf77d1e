"""From real text to a transfer report in one command, in ./hptransfer-demo/.

Trains SP, SP+Embd and µP at several widths, learning rates and seeds on English Wikipedia
summaries, fits the transfer metrics and writes a report. Run again, it resumes.
"""

import argparse
from importlib.resources import files
from pathlib import Path

DIRECTORY = Path("hptransfer-demo")
REFERENCE = "mup"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--workers", type=int, metavar="N", help="groups trained at a time")


def run(args: argparse.Namespace) -> int:
    """Train, fit, report; the answer goes to stdout, progress to stderr."""
    from hptransfer.cli._print import make_console, print_metrics
    from hptransfer.cli._progress import RunReporter
    from hptransfer.report import analyse, summarise, write_report
    from hptransfer.study import load_study, run_study
    from hptransfer.tables import read_study

    DIRECTORY.mkdir(exist_ok=True)
    study_file = DIRECTORY / "demo.toml"
    study_file.write_bytes(files("hptransfer.cli").joinpath("demo.toml").read_bytes())
    results, page = DIRECTORY / "study", DIRECTORY / "report.html"
    config = load_study(study_file)
    with RunReporter(config) as reporter:
        run_study(config, results, on_event=reporter, workers=args.workers)

    source = analyse(read_study(results), reference=REFERENCE)
    write_report([source], page)
    console = make_console()
    print_metrics(console, source.fits)
    console.print(f"\n{summarise(source.fits, source.settings)}\n")
    console.print(f"report: {page.resolve()}", soft_wrap=True)
    return 0
