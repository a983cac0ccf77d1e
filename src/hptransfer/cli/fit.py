"""Print the transfer metrics of a study or of any loss table, with 90 % intervals.

A table is a CSV, TSV, JSON or Parquet file, several of them, or a directory of a tracker's runs.
Its columns are width, lr and loss and, optionally, parameterization, weight_decay, seed, params,
tokens and state, by these names or by trackers' own; a missing loss is a diverged trial.
"""

import argparse
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hptransfer.cli._arguments import add_source_arguments, add_sources, find_results, load
from hptransfer.cli._print import (
    EXIT_DAMAGED,
    add_verbose,
    align,
    describe_fit,
    describe_fits,
    print_json,
    wrap,
)

if TYPE_CHECKING:
    from hptransfer.stats import TransferFit
    from hptransfer.stats._stability import Stability


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
    add_verbose(parser)


def run(args: argparse.Namespace) -> int:
    """Fit the source and print what was found; 3 if a file of it was damaged."""
    study = load(args.sources, args)

    from hptransfer.report.words import describe_missing
    from hptransfer.stats import fit_table

    table = study.table
    fits = fit_table(
        table,
        reference=args.reference,
        form=args.form,
        share=args.share,
    )
    stability = _find_stability(args.sources, fits)
    if args.json:
        document = fits.to_dict()
        if stability:
            document["stability"] = [each.to_dict() for each in stability]
        if missing := describe_missing(table, study.settings):
            document["incomplete"] = missing
        print_json(document)
        return EXIT_DAMAGED if study.damaged else 0
    from hptransfer.report import make_answer

    print(describe_fits(fits, make_answer(fits, settings=study.settings)))
    if args.verbose:
        print("\n".join(describe_fit(fit) for fit in fits))
        if stability:
            print(_describe_stability(stability))
    return EXIT_DAMAGED if study.damaged else 0


def _find_stability(
    sources: Sequence[str], fits: "Sequence[TransferFit]"
) -> "tuple[Stability, ...]":
    """Return how stable training was, where the one source of the fits says."""
    if len(sources) != 1:
        return ()

    from hptransfer.stats._stability import summarise_stability
    from hptransfer.tables import read_probes

    return summarise_stability(read_probes(find_results(sources[0])), fits)


def _describe_stability(stability: "Sequence[Stability]") -> str:
    from hptransfer.report.words import name_groups

    head = ["group", "width", "log2 lr", "η/η_c", "spikes", "highest", "|g| emb", "|g| hid",
            "logits", "entropy"]  # fmt: skip
    rows = []
    for name, each in zip(name_groups([s.group for s in stability]), stability, strict=True):
        numbers = (
            each.edge, each.spikes, each.spike_size, each.grad_norm.get("embedding"),
            each.grad_norm.get("hidden"), each.logit_scale, each.attention_entropy,
        )  # fmt: skip
        shown = ["" if value is None else f"{value:.3g}" for value in numbers]
        rows.append([name, f"{each.width:g}", f"{math.log2(each.lr):.3g}", *shown])
    return "\n".join(
        [
            "\nstability at the swept rate nearest each optimum, median after the warm-up",
            align(head, rows),
            wrap(
                "η_c: the smallest rate along the optimizer's step that raises the batch's loss. "
                "Spikes of the loss a trial, and the highest in nats. |g|: norm of the gradient. "
                "Logits: their root mean square. Entropy of attention: 1 where it is even."
            ),
        ]
    )
