"""Print the learning rate to use at a width, what it costs, its risk, and what to run next.

What next: the further trials (seeds, learning rates, widths) that would narrow the learning rate's
interval most for their compute; without an answer, the points that one needs.
"""

import argparse
import math
from typing import TYPE_CHECKING

from hptransfer.cli._print import EXIT_DAMAGED, make_advice, make_console, print_json
from hptransfer.cli._table_options import add_source_arguments, add_sources, load
from hptransfer.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from hptransfer.stats import Proposal


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
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")


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
    from hptransfer.report.words import name_groups, say_width
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
    console = make_console()
    places = "".join(f", {name} {asked[name]:.4g}" for name in axes)
    title = f"learning rate at width {say_width(args.width)}{places}, axis {table.axis}"
    for name, item in zip(name_groups([item.group for item in found]), found, strict=True):
        rows = make_advice(name, item, _REGRETS)
        console.print(title, style="dim")
        console.print(rows)
        if item.next is not None:
            _print_next(console, item.next)
    return EXIT_DAMAGED if study.damaged else 0


def _print_next(console: "Console", proposal: "Proposal") -> None:
    """Print what to run next: ranked trials, or the points that an answer needs."""
    from rich.table import Table

    if proposal.missing or proposal.half_width is None or not proposal.steps:
        console.print(f"what next: {proposal}\n")
        return
    factor = math.exp(proposal.half_width)
    table = Table(
        title=f"what next: lr* is known to a factor of {factor:.3g} (90 %); these would narrow it "
        "most for their compute",
        title_justify="left",
    )
    for heading in ("trials (×how many each)", "compute", "then a factor of", "gain"):
        table.add_column(heading, overflow="fold")
    for step in proposal.steps:
        table.add_row(
            step.describe(),
            f"{100 * step.cost:.2g} %",
            f"{math.exp(step.half_width):.3g}",
            f"{step.gain:.2g}",
        )
    console.print(table)
    console.print(
        "compute: % of that of the group's trials, by "
        f"{proposal.cost_basis}; gain: % narrower per % of compute; each line counts on those "
        "above\n",
        style="dim",
    )


_REGRETS = {
    "recommended": "regret of using it",
    "same_lr": "regret of the proxy's optimum unchanged",
    "inverse_width": "regret of the proxy's optimum over the width ratio",
}
