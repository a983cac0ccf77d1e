"""Write one HTML page of studies, loss tables and coordinate checks; it opens offline."""

import argparse
from pathlib import Path

from hptransfer.cli._arguments import add_source_arguments, find_results, load
from hptransfer.cli._print import EXIT_DAMAGED, print_json
from hptransfer.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "sources", nargs="*", metavar="DIR|TABLE", help="studies or loss tables, a section each"
    )
    parser.add_argument(
        "--coordinates", type=Path, action="append", default=[], metavar="FILE.json",
        help="a coordinate check to show too: the JSON of CoordinateCheck.to_dict()",
    )  # fmt: skip
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("report.html"),
        metavar="report.html",
        help="the page to write (default: %(default)s)",
    )
    parser.add_argument(
        "--width", type=float, metavar="N",
        help="width to recommend for (default: four times the widest)",
    )  # fmt: skip
    add_source_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Write the page; 3 if a file of a source was damaged, the rest being in the page."""
    if args.output.is_dir() or not args.output.parent.is_dir():
        raise ConfigError(
            f"--output: expected a file in a directory that exists, found {args.output}"
        )

    if not (args.sources or args.coordinates):
        raise ConfigError("report: expected a study or a loss table, or --coordinates, found none")

    from hptransfer.report import analyse, read_coordinates, write_report
    from hptransfer.tables import read_curves, read_probes

    found = [read_coordinates(path) for path in args.coordinates]
    # A check at the recommended learning rate lies in the first.
    checks = [each for one in found for each in (one, one.get("recommended_lr")) if each]
    studies = [load(path, args) for path in args.sources]
    sources = [
        analyse(
            study, reference=args.reference, width=args.width, probes=read_probes(path),
            curves=read_curves(path),
        )
        for path, study in zip(map(find_results, args.sources), studies, strict=True)
    ]  # fmt: skip
    write_report(sources, args.output, coordinates=checks)
    if args.json:
        told = [
            {"title": each.title, "facts": each.answer.facts, "damaged": list(each.damaged)}
            for each in sources
        ]
        print_json({"schema": 1, "report": args.output, "sources": told})
    else:
        print(args.output)
    return EXIT_DAMAGED if any(study.damaged for study in studies) else 0
