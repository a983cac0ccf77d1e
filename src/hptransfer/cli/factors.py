"""Print what each of the lattice's four switches does to a table of metrics.

TABLE has a row for each parameterization and setting (such as a weight decay): a column
parameterization with names such as sp+embd, and columns of metrics such as E, R_inf and kappa.
CSV, Parquet, or what hptransfer fit --json printed. Two rows that differ in one switch alone are
a pair; the effect is the median over the pairs.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import cast, get_args

from hptransfer.cli._arguments import parse_columns, parse_where, split_list
from hptransfer.cli._print import align, tell, wrap
from hptransfer.errors import ConfigError
from hptransfer.report.words import say_number
from hptransfer.stats.switch_effects import (
    EFFECTS,
    Effect,
    Factor,
    MetricsTable,
    compute_factors,
    find_bounds,
)
from hptransfer.tables.metrics import OURS, read_metrics

OPTIONS = (
    ("table", "TABLE", Path, ..., "a table of metrics"),
    ("--metric", "NAME[=ratio|difference],…", split_list, None,
     "columns to look at (default: those of E, E_out, R_inf and kappa that are there); a ratio, on "
     "over off, is for positive ones such as E"),
    ("--by", "COLUMN,…", split_list, None,
     "columns of the setting beside weight_decay (default: all that are neither a switch nor a "
     "metric)"),
    ("--columns", "OURS=THEIRS,…", list, None,
     "the table's own column names: parameterization=rule,E=fit_error"),
    ("--where", "COLUMN=VALUE", list, None,
     "use only the rows in which a column has this value; several must all hold"),
)  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Read the table, pair its rows and print the effects; return 0."""
    metrics = parse_metrics(args.metric)
    known = [*dict.fromkeys((*OURS, *metrics))]
    columns = parse_columns(args.columns, known, example="E=fit_error")
    table, notes = read_metrics(
        args.table, columns=columns, metrics=metrics, by=args.by, where=parse_where(args.where)
    )
    factors = compute_factors(table)
    notes = (*notes, *_note_bounds(table))
    for note in notes if args.json else ():
        print(f"hptransfer: note: {args.table}: {note}", file=sys.stderr)
    document = {
        "schema": 1, "setting": list(table.setting), "factors": factors, "notes": notes,
    }  # fmt: skip
    return tell(args, document, _describe(table, factors, notes))


def parse_metrics(texts: Iterable[str]) -> dict[str, Effect]:
    """Return the metrics that ``--metric E,score=ratio`` asks for, each with its effect.

    A metric of ours has the effect of `EFFECTS`, any other the difference unless it says
    ``=ratio``.

    Raises
    ------
    ConfigError
        If a name is empty or an effect is neither ``ratio`` nor ``difference``.
    """
    metrics: dict[str, Effect] = {}
    for part in texts:
        name, _, effect = (piece.strip() for piece in part.rpartition("="))
        if not name:
            name, effect = part, EFFECTS.get(part, "difference")
        if not name or name.startswith("="):
            raise ConfigError(f"--metric: expected a column such as E, found {part!r}")
        if effect not in get_args(Effect):
            raise ConfigError(f"--metric: {name}: expected =ratio or =difference, found {effect!r}")
        metrics[name] = cast(Effect, effect)
    return metrics


def _note_bounds(table: MetricsTable) -> list[str]:
    return [
        f"{name}: {value:g} stands {count} times and nothing lies beyond it, as where a fit hits "
        f"its bound; these rows are left out of the effects on {name}"
        for name, values in table.metrics.items()
        if table.effects[name] == "difference"
        for value, count in find_bounds(values).items()
    ]


def _describe(table: MetricsTable, factors: Sequence[Factor], notes: Sequence[str]) -> str:
    lines = ["effect of each switch: median over matched pairs, 90 % interval"]
    head = ("switch", "median", "90 % interval", "pairs", "fall", "rise", "left out", "p",
            "in words")  # fmt: skip
    for metric, members in groupby(factors, key=lambda factor: factor.metric):
        rows = []
        for factor in members:
            size = factor.size
            # The median of these pairs is a fact of the table, so it has its three digits.
            shown = ["" if x is None else say_number(x) for x in (size.value, size.low, size.high)]
            rows.append((
                factor.switch,
                shown[0],
                f"[{shown[1]}, {shown[2]}]" if shown[1] else "",
                *map(str, (factor.pairs, factor.falling, factor.rising)),
                str(factor.absent + factor.at_bound),
                f"{factor.p_value:.2g}",
                factor.direction if shown[1] else "not identified",
            ))  # fmt: skip
        lines.append(f"\n{metric}, {'on / off' if factor.effect == 'ratio' else 'on − off'}")
        lines.append(align(head, rows))
    setting = ", ".join(f"{name} ({len(set(values))})" for name, values in table.setting.items())
    lines.append(wrap(f"{len(table)} rows; setting: {setting or 'none'}"))
    bases = dict.fromkeys(map(_describe_basis, factors))
    return "\n".join([*lines, *map(wrap, (*bases, *(f"note: {note}" for note in notes)))])


def _describe_basis(factor: Factor) -> str:
    """Return what a factor's interval rests on."""
    if factor.size.low is None:
        return f"no interval: {factor.size.reason}"
    if factor.unit == "pair":
        return f"intervals and p may be too small: {factor.size.reason}"
    return (
        f"intervals and p from a sign test that flips all pairs of one {factor.unit} together, "
        "since they are not independent"
    )
