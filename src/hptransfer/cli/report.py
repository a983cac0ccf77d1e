"""Write one HTML page of studies, loss tables and coordinate checks; it opens offline."""

import argparse
from pathlib import Path

from hptransfer.cli._arguments import (
    READING,
    REFERENCE,
    check_output,
    choose_reading,
    find_results,
    positive_number,
)
from hptransfer.cli._print import tell, tell_reading
from hptransfer.errors import ConfigError
from hptransfer.report import analyse, read_coordinates, write_report
from hptransfer.tables import read_curves, read_probes, read_source

OPTIONS = (
    ("sources", "DIR|TABLE", {"nargs": "*"}, None, "studies or loss tables, a section each"),
    ("-o --output", "report.html", Path, "report.html", "the page to write (default: %(default)s)"),
    ("--coordinates", "FILE.json", list, None,
     "a coordinate check to show too: what coordinate-check -o writes"),
    ("--width", "N", positive_number, None,
     "width to recommend for (default: four times the widest)"),
    REFERENCE, *READING,
)  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Write the page; 3 if a file of a source was damaged, the rest being in the page."""
    check_output("--output", args.output)
    if not (args.sources or args.coordinates):
        raise ConfigError("report: expected a study or a loss table, or --coordinates, found none")
    found = [read_coordinates(path) for path in args.coordinates]
    # A check at the recommended learning rate lies in the first.
    checks = [each for one in found for each in (one, one.get("recommended_lr")) if each]
    paths = [find_results(source) for source in args.sources]
    studies = []
    for path in paths:
        studies.append(study := read_source(path, **choose_reading(args)))
        tell_reading(study.table.source, study.notes, study.damaged)
    sources = [
        analyse(
            study, reference=args.reference, width=args.width, probes=read_probes(path),
            curves=read_curves(path),
        )
        for path, study in zip(paths, studies, strict=True)
    ]  # fmt: skip
    write_report(sources, args.output, coordinates=checks)
    told = [
        {"title": each.title, "facts": each.answer.facts, "damaged": each.damaged}
        for each in sources
    ]
    document = {"schema": 1, "report": args.output, "sources": told}
    damaged = any(study.damaged for study in studies)
    return tell(args, document, str(args.output), damaged=damaged)
