"""Print what each of the lattice's four switches does to a table of metrics.

TABLE has a row for each parameterization and setting (such as a weight decay): a column
parameterization with names such as sp+embd, or 0/1 columns embd, ln, attn and last; and columns
of metrics such as E, R_inf and kappa. CSV, Parquet, or what hptransfer fit --json printed. Two
rows that differ in one switch alone are a pair; the effect is the median over the pairs.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from hptransfer.cli._arguments import parse_mapping, parse_where, split_list
from hptransfer.cli._print import align, print_json, wrap
from hptransfer.errors import ConfigError

if TYPE_CHECKING:
    from hptransfer.stats.switch_effects import Effect, Factor, MetricsTable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("table", type=Path, metavar="TABLE", help="a table of metrics")
    parser.add_argument(
        "--metric", action="append", default=[], metavar="NAME[=ratio|difference],…",
        help="columns to look at (default: those of E, E_out, R_inf and kappa that are there); "
        "a ratio, on over off, is for positive ones such as E",
    )  # fmt: skip
    parser.add_argument(
        "--by", type=split_list, action="extend", default=[], metavar="COLUMN,…",
        help="columns of the setting beside weight_decay (default: all that are neither a "
        "switch nor a metric)",
    )  # fmt: skip
    parser.add_argument(
        "--columns", action="append", default=[], metavar="OURS=THEIRS,…",
        help="the table's own column names: embd=embedding,E=fit_error",
    )  # fmt: skip
    parser.add_argument(
        "--where", action="append", default=[], metavar="COLUMN=VALUE",
        help="use only the rows in which a column has this value; several must all hold",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Read the table, pair its rows and print the effects; return 0."""
    from hptransfer.stats.switch_effects import compute_factors
    from hptransfer.tables.metrics import read_metrics

    metrics = parse_metrics(args.metric)
    columns = parse_metric_columns(args.columns, metrics)
    table, notes = read_metrics(
        args.table, columns=columns, metrics=metrics, by=args.by, where=parse_where(args.where)
    )
    factors = compute_factors(table)
    notes = (*notes, *_note_bounds(table))
    if args.json:
        for note in notes:
            print(f"hptransfer: note: {args.table}: {note}", file=sys.stderr)
        print_json({
            "schema": 1, "setting": list(table.setting),
            "factors": [factor.to_dict() for factor in factors], "notes": list(notes),
        })  # fmt: skip
    else:
        _print_factors(table, factors, notes)
    return 0


def parse_metrics(texts: Iterable[str]) -> "dict[str, Effect]":
    """Return the metrics that ``--metric E,score=ratio`` asks for, each with its effect.

    A metric of ours has the effect of `EFFECTS`, any other the difference unless it says
    ``=ratio``.

    Raises
    ------
    ConfigError
        If a name is empty or an effect is neither ``ratio`` nor ``difference``.
    """
    from hptransfer.stats.switch_effects import EFFECTS

    metrics: dict[str, Effect] = {}
    for part in (part.strip() for text in texts for part in text.split(",")):
        name, _, effect = (piece.strip() for piece in part.rpartition("="))
        if not name:
            name, effect = part, EFFECTS.get(part, "difference")
        if not name or name.startswith("="):
            raise ConfigError(f"--metric: expected a column such as E, found {part!r}")
        if effect == "ratio":
            metrics[name] = "ratio"
        elif effect == "difference":
            metrics[name] = "difference"
        else:
            raise ConfigError(f"--metric: {name}: expected =ratio or =difference, found {effect!r}")
    return metrics


def parse_metric_columns(texts: Iterable[str], metrics: Iterable[str] = ()) -> dict[str, str]:
    """Return the mapping that ``--columns embd=embedding,E=fit_error`` asks for.

    Raises
    ------
    ConfigError
        If a part is not ``OURS=THEIRS``, or its left side is no column of ours.
    """
    from hptransfer.tables.metrics import OURS

    known = [*dict.fromkeys((*OURS, *metrics))]
    return parse_mapping(texts, known=known, listed=known, example="embd=embedding_lr")


def _note_bounds(table: "MetricsTable") -> list[str]:
    from hptransfer.stats.switch_effects import find_bounds

    return [
        f"{name}: {value:g} stands {count} times and nothing lies beyond it, as where a fit hits "
        f"its bound; these rows are left out of the effects on {name}"
        for name, values in table.metrics.items()
        if table.effects[name] == "difference"
        for value, count in find_bounds(values).items()
    ]


def _print_factors(
    table: "MetricsTable", factors: "Sequence[Factor]", notes: Sequence[str]
) -> None:
    from hptransfer.report.words import say_number

    print("effect of each switch: median over matched pairs, 90 % interval")
    head = ("switch", "median", "90 % interval", "pairs", "fall", "rise", "left out", "p",
            "in words")  # fmt: skip
    for metric, members in groupby(factors, key=lambda factor: factor.metric):
        rows = []
        for factor in members:
            size = factor.size
            # The median of these pairs is a fact of the table, so it has its three digits.
            low, high = (None if end is None else say_number(end) for end in (size.low, size.high))
            rows.append((
                factor.switch,
                "" if size.value is None else say_number(size.value),
                "" if low is None else f"[{low}, {high}]",
                str(factor.pairs),
                str(factor.falling),
                str(factor.rising),
                str(factor.absent + factor.at_bound),
                f"{factor.p_value:.2g}",
                factor.direction if low is not None else "not identified",
            ))  # fmt: skip
        print(f"\n{metric}, {'on / off' if factor.effect == 'ratio' else 'on − off'}")
        print(align(head, rows))
    setting = ", ".join(f"{name} ({len(set(values))})" for name, values in table.setting.items())
    print(wrap(f"{len(table)} rows; setting: {setting or 'none'}"))
    for line in (*_describe_units(factors), *(f"note: {note}" for note in notes)):
        print(wrap(line))


def _describe_units(factors: "Iterable[Factor]") -> list[str]:
    """Return what the intervals rest on, each sentence once."""
    said: dict[str, None] = {}
    for factor in factors:
        if factor.size.low is None:
            text = f"no interval: {factor.size.reason}"
        elif factor.unit == "pair":
            text = f"intervals and p may be too small: {factor.size.reason}"
        else:
            text = (
                f"intervals and p from a sign test that flips all pairs of one {factor.unit} "
                f"together, since they are not independent"
            )
        said[text] = None
    return list(said)
