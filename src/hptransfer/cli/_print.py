"""What the reading commands share: sources in, tables and JSON out, notes to stderr."""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from hptransfer.stats import Estimate, Recommendation, TransferFit

#: Exit code of a command that has answered, and met a damaged file.
EXIT_DAMAGED = 3

# Quantities of the metrics table: attribute, key, how it is called, its unit.
_QUANTITIES = (
    ("metrics", "E", "E, fit error", "nats²"),
    ("metrics", "E_out", "E_out, widest left out", "nats²"),
    ("metrics", "kappa", "κ, robustness", ""),
    ("metrics", "R_inf", "R(∞), degradation", "nats"),
    ("exponents", "alpha", "α, loss", ""),
    ("exponents", "beta", "β, drift", ""),
    ("exponents", "b", "b, drift", ""),
    ("exponents", "gamma", "γ, curvature", ""),
    ("exponents", "loss_inf", "L∞", "nats"),
)


def print_json(document: Mapping[str, Any]) -> None:
    """Print one JSON document; what is no finite number is null."""
    print(json.dumps(_clean(document), ensure_ascii=False, allow_nan=False, indent=2))


def make_console() -> "Console":
    """Return a console on stdout that prints names as they are, never as markup."""
    from rich.console import Console

    wide = None if sys.stdout.isatty() else 120
    return Console(file=sys.stdout, markup=False, highlight=False, emoji=False, width=wide)


def print_metrics(console: "Console", fits: Sequence["TransferFit"]) -> None:
    """Print the metrics of all groups, one row each."""
    from rich.table import Table

    from hptransfer.report.compare import headline
    from hptransfer.report.words import name_groups, say, shorten

    columns = headline(fits)
    table = Table(title="transfer metrics, 90 % intervals", title_justify="left", expand=False)
    table.add_column("group", overflow="fold")
    for name, unit, _ in columns:
        table.add_column(f"{name} ({unit})" if unit else name, overflow="fold")
    for index, name in enumerate(name_groups([fit.group for fit in fits])):
        estimates = [estimates[index] for _, _, estimates in columns]
        table.add_row(name, *("the reference" if e is None else say(shorten(e)) for e in estimates))
    console.print(table)


def print_fit(console: "Console", fit: "TransferFit") -> None:
    """Print one group: its metrics and exponents, then its basin at each width."""
    from rich.table import Table

    from hptransfer.report.compare import is_reference
    from hptransfer.report.words import (
        list_flags,
        say,
        say_interval,
        say_log2,
        say_number,
        say_status,
        say_value,
        say_width,
        take_root,
        tell_once,
    )

    console.print(f"\n{fit.name or 'all trials'}", style="bold")
    console.print(f"axis {fit.axis}, form {fit.form}", style="dim")
    metrics = Table()
    for heading in ("quantity", "value", "90 % interval", "unit", "in words"):
        metrics.add_column(heading, overflow="fold")

    def add(name: str, estimate: "Estimate", unit: str) -> None:
        shown = bool(say_value(estimate))
        interval, unit = (say_interval(estimate), unit) if shown else ("", "")
        metrics.add_row(name, say_value(estimate), interval, unit, say_status(estimate))

    for attribute, key, name, unit in _QUANTITIES:
        estimate = getattr(fit, attribute).get(key)
        if estimate is None:
            continue
        if key == "R_inf" and is_reference(fit):
            metrics.add_row(name, "", "", "", "this is the reference")
            continue
        add(name, estimate, unit)
        if key == "E" and say_value(estimate):
            add("√E", take_root(estimate), "nats")
    if fit.noise_floor is not None:
        metrics.add_row("s²/S, noise floor", say_number(fit.noise_floor), "", "nats²", "")
    console.print(metrics)

    basins = Table()
    for heading in ("width", "lr*", "log2 lr*", "L* (nats)", "curvature", "points", "flags"):
        basins.add_column(heading, overflow="fold")
    for basin in fit.basins:
        # An optimum outside the swept range is no number to print.
        optimum = (say(basin.lr), say_log2(basin.lr)) if basin.bracketed else ("at the edge", "")
        basins.add_row(
            say_width(basin.width), *optimum, say(tell_once(basin, basin.loss)),
            say(tell_once(basin, basin.curvature)), str(basin.num_points),
            "; ".join(list_flags(basin)),
        )  # fmt: skip
    console.print(basins)
    for note in fit.notes:
        console.print(f"note: {note}")


def make_advice(name: str, item: "Recommendation", regrets: Mapping[str, str]) -> "Table":
    """Return a recommendation as a table of two columns; `regrets` says each choice in words."""
    from rich.table import Table

    from hptransfer.report.words import say, say_log2

    rows = Table(title=f"{name}: {item.verdict}", title_justify="left", show_header=False)
    rows.add_column(overflow="fold")
    rows.add_column(overflow="fold")
    is_multiple = getattr(item, "axis", "") == "multiplier"
    rows.add_row("multiple of the given rate" if is_multiple else "learning rate", say(item.lr))
    rows.add_row("its log2", say_log2(item.lr) or "–")
    for words, value in _say_law(item):
        rows.add_row(words, value)
    rows.add_row("expected loss", say(item.loss, "nats"))
    for key, words in regrets.items():
        if key in item.regret:
            rows.add_row(words, say(item.regret[key], "nats"))
    rows.add_row("because", item.because)
    return rows


def _say_law(item: "Recommendation") -> list[tuple[str, str]]:
    """Return the rows that say what to type, and which forms and prior the rate rests on."""
    rows = []
    if item.lr_by_role:
        rates: dict[float, list[str]] = {}
        for role, rate in item.lr_by_role.items():
            rates.setdefault(rate, []).append(role)
        said = "; ".join(f"{', '.join(roles)} {rate:.3g}" for rate, roles in rates.items())
        rows.append(("to type, by role", said))
    if item.forms:
        parts = sorted(item.forms.items(), key=lambda pair: -pair[1])
        said = ", ".join(f"{name} {weight:.2g}" for name, weight in parts if weight >= 0.05)
        rows.append(("forms that carry it", said))
        rows.append(("scatter, prior", f"{item.scatter:.2g} in ln lr; {item.prior}"))
    return rows


def _clean(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            str(key): _whole(item) if key == "width" else _clean(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    if hasattr(value, "item"):  # a NumPy scalar
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _whole(width: Any) -> Any:
    width = _clean(width)
    return int(width) if isinstance(width, float) and width.is_integer() else width
