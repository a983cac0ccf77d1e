"""Printing fits and recommendations of a table with a token axis."""

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from hptransfer.cli._print import make_advice, make_console, print_json
from hptransfer.cli._table_options import load
from hptransfer.errors import ConfigError

if TYPE_CHECKING:
    from hptransfer.stats import LossTable, TokenFit

_NAMES = {
    "alpha": ("α, loss by width", ""),
    "delta": ("δ, loss by tokens", ""),
    "b": ("b, drift by width", ""),
    "c": ("c, drift by tokens", ""),
    "gamma": ("γ, curvature", ""),
    "loss_inf": ("L∞", "nats"),
}


def _fit_groups(table: "LossTable") -> "Iterator[tuple[dict[str, object], TokenFit]]":
    """Fit each group of a table, in order of first appearance."""
    from dataclasses import replace

    from hptransfer.stats import fit_tokens
    from hptransfer.stats.group_data import split_table

    assert table.tokens is not None
    for group in split_table(table, tuple(table.groups)).groups:
        rows = group.rows
        part = replace(
            table,
            width=table.width[rows],
            lr=table.lr[rows],
            loss=table.loss[rows],
            seed=table.seed[rows],
            tokens=table.tokens[rows],
            groups={},
        )
        yield dict(group.key), fit_tokens(part)


def print_token_fits(args: argparse.Namespace) -> int:
    """Fit the source along its token axis and print what was found; 2 if a file was damaged."""
    for option in ("reference", "share"):
        if getattr(args, option) is not None:
            raise ConfigError(f"--{option}: expected it left out with --token-axis")
    study = load(args.sources, args, token_axis=True)
    found = list(_fit_groups(study.table))
    if args.json:
        fits: list[dict[str, Any]] = [
            {"group": group, "axis": study.table.axis, **fit.to_dict()} for group, fit in found
        ]
        print_json({"schema": 1, "fits": fits})
        return 2 if study.damaged else 0

    from rich.table import Table

    from hptransfer.report.words import list_flags, name_groups, say, say_log2, say_width

    console = make_console()
    for name, (_, fit) in zip(name_groups([g for g, _ in found]), found, strict=True):
        console.print(f"\n{name or 'all trials'}", style="bold")
        console.print(f"axis {study.table.axis}, form power in width and tokens", style="dim")
        rows = Table(show_header=False)
        rows.add_column(overflow="fold")
        rows.add_column(overflow="fold")
        for key, (words, unit) in _NAMES.items():
            rows.add_row(words, say(fit.exponents[key], unit))
        rows.add_row("E, fit error", say(fit.error, "nats²"))
        console.print(rows)
        basins = Table()
        for heading in ("width", "tokens", "lr*", "log2 lr*", "L* (nats)", "points", "flags"):
            basins.add_column(heading, overflow="fold")
        for item in fit.basins:
            basin = item.basin
            optimum = (
                (say(basin.lr), say_log2(basin.lr)) if basin.bracketed else ("at the edge", "")
            )
            basins.add_row(
                say_width(item.width), f"{item.tokens:.4g}", *optimum, say(basin.loss),
                str(basin.num_points), "; ".join(list_flags(basin)),
            )  # fmt: skip
        console.print(basins)
        for note in fit.notes:
            console.print(f"note: {note}")
    return 2 if study.damaged else 0


def print_token_advice(args: argparse.Namespace, regrets: dict[str, str]) -> int:
    """Print a learning rate at a width and a token budget for each group; 2 if damaged."""
    study = load(args.sources, args, token_axis=True)
    from hptransfer.report.table_notes import cap_verdicts

    fits = list(_fit_groups(study.table))
    advice = [fit.recommend(width=args.width, tokens=args.tokens) for _, fit in fits]
    found = list(zip((group for group, _ in fits), cap_verdicts(advice, study.notes), strict=True))
    if args.json:
        items = [{"group": group, **item.to_dict()} for group, item in found]
        print_json({"schema": 1, "recommendations": items})
        return 2 if study.damaged else 0

    from hptransfer.report.words import name_groups, say_width

    console = make_console()
    at = f"learning rate at width {say_width(args.width)} and {args.tokens:.4g} tokens"
    for name, (_, item) in zip(name_groups([g for g, _ in found]), found, strict=True):
        rows = make_advice(name, item, regrets)
        console.print(f"{at}, axis {study.table.axis}", style="dim")
        console.print(rows)
    return 2 if study.damaged else 0
