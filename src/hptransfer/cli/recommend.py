"""Print the learning rate to use at a width, what it costs, its risk, and what to run next.

What next: the further trials (seeds, learning rates, widths) that would narrow the learning rate's
interval most for their compute; without an answer, the points that one needs.
"""

import argparse
import math

from hptransfer.cli._answer_text import describe_advice, describe_rates
from hptransfer.cli._print import EXIT_DAMAGED, add_output_arguments, print_json
from hptransfer.cli._table_options import add_source_arguments, add_sources, load
from hptransfer.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_sources(parser)
    parser.add_argument("--width", type=float, required=True, metavar="N", help="the target width")
    parser.add_argument(
        "--tokens", type=float, metavar="T", help="training tokens of the target: column tokens "
        "is then an axis beside width",
    )  # fmt: skip
    parser.add_argument(
        "--batch", type=float, metavar="B", help="batch of the target, as column batch counts it "
        "(tokens, or sequences with a column context): an axis too",
    )  # fmt: skip
    parser.add_argument(
        "--form", metavar="F", help="the form of lr* against width that answers alone: same, "
        "constant, power, converging or drift; by default all are averaged",
    )  # fmt: skip
    parser.add_argument(
        "--scatter", type=float, metavar="S", help="standard deviation of ln lr* from width to "
        "width about the law; by default found; 0 takes law and basins to hold exactly",
    )  # fmt: skip
    known = parser.add_mutually_exclusive_group()
    known.add_argument("--priors", metavar="FILE", help="priors by kind of sweep, in place of ours")
    known.add_argument("--no-prior", action="store_true", help="use no prior of how lr* moves")
    add_source_arguments(parser, reference=False)
    add_output_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print one recommendation for each group; 3 if a file of the source was damaged."""
    if not (math.isfinite(args.width) and args.width > 0):
        raise ConfigError(f"--width: expected a positive width, found {args.width:g}")
    asked = {"tokens": args.tokens, "batch": args.batch}
    for name, value in asked.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise ConfigError(f"--{name}: expected a positive number, found {value:g}")
    axes = [name for name, value in asked.items() if value is not None]
    if axes and args.form is not None:
        raise ConfigError(f"--form: expected it left out with --{axes[0]}, found {args.form}")
    study = load(args.sources, args, axes=axes)

    from pathlib import Path

    from hptransfer.report.table_notes import cap_verdicts
    from hptransfer.stats import fit_axes, fit_table
    from hptransfer.stats.priors import PRIORS, read_priors

    table = study.table
    known = PRIORS if args.priors is None else read_priors(Path(args.priors))
    priors = None if args.no_prior else known
    if axes:
        # The batch is asked for as the table counts it; the law counts tokens.
        batch = None if args.batch is None else args.batch * table.batch_unit
        advice = fit_axes(table).recommend(
            width=args.width, tokens=args.tokens, batch=batch, scatter=args.scatter, priors=priors
        )
    else:
        advice = fit_table(table).recommend(
            width=args.width, form=args.form, scatter=args.scatter, priors=priors
        )
    found = cap_verdicts(advice, study.notes)
    if args.json:
        print_json({"schema": 1, "recommendations": [item.to_dict() for item in found]})
        return EXIT_DAMAGED if study.damaged else 0
    from hptransfer.report.words import name_groups

    place = "".join(f", {name} {asked[name]:.4g}" for name in axes)
    print(describe_rates(table, found, place=place))
    if args.verbose:
        names = name_groups([item.group for item in found])
        print("\n".join(map(describe_advice, names, found)))
    return EXIT_DAMAGED if study.damaged else 0
