"""Print the transfer metrics of a study or of any loss table, with 90 % intervals.

A table is a CSV, TSV, JSON or Parquet file, several of them, or a directory of a tracker's runs.
Its columns are width, lr and loss and, optionally, parameterization, weight_decay, seed, params,
tokens and state, by these names or by trackers' own; a missing loss is a diverged trial.
"""

import argparse

from hptransfer.cli._print import EXIT_DAMAGED, make_console, print_fit, print_json, print_metrics
from hptransfer.cli._table_options import add_source_arguments, add_sources, load
from hptransfer.cli._tokens import print_token_fits


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_sources(parser)
    add_source_arguments(parser)
    parser.add_argument(
        "--form", choices=("converging", "power"), default="converging",
        help="form of the optimum against width (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--share", choices=("alpha", "loss_inf"),
        help="what parameterizations of one setting have in common by assumption: alpha makes "
        "L∞ and R(∞) more precise, loss_inf makes R(∞) 0",
    )  # fmt: skip
    parser.add_argument(
        "--token-axis", action="store_true",
        help="fit training tokens (column tokens) as an axis beside width, form power in both",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")


def run(args: argparse.Namespace) -> int:
    """Fit the source and print what was found; 3 if a file of it was damaged."""
    if args.token_axis:
        return print_token_fits(args)
    study = load(args.sources, args)

    from hptransfer.stats import fit_table

    table = study.table
    fits = fit_table(
        table,
        reference=args.reference,
        form=args.form,
        share=args.share,
    )
    if args.json:
        print_json(fits.to_dict())
    else:
        console = make_console()
        print_metrics(console, fits)
        for fit in fits:
            print_fit(console, fit)
    return EXIT_DAMAGED if study.damaged else 0
