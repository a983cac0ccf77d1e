"""Render the tables of a report as HTML; every text from outside is escaped."""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from hptransfer.report.answer import is_reference, measure_price
from hptransfer.report.words import (
    list_flags,
    name_groups,
    say,
    say_interval,
    say_log2,
    say_number,
    say_status,
    say_value,
    say_width,
    shorten,
    take_root,
    tell_once,
)
from hptransfer.stats._stability import Stability
from hptransfer.stats.estimate import Estimate, refuse
from hptransfer.stats.reasons import Reason
from hptransfer.stats.results import Recommendation, TransferFit

_REGRETS = {
    "recommended": "price of using it",
    "same_lr": "of the proxy's rate, unchanged on the axis",
    "inverse_width": "of the proxy's rate, over the width ratio",
}
_LIMITS = {
    "kappa": "κ",
    "R_inf": "R(∞) <small>nats</small>",
    "loss_inf": "L∞ <small>nats</small>",
    "alpha": "α",
    "beta": "β",
    "b": "b",
    "gamma": "γ",
}


def render_metrics(fits: Sequence[TransferFit]) -> str:
    """Return what is nearly always known: one row for each group, intervals below values."""
    columns = list_metrics(fits)
    head = [
        "group",
        *(f"{name} <small>{unit}</small>" if unit else name for name, unit, _ in columns),
    ]
    rows = []
    for index, name in enumerate(name_groups([fit.group for fit in fits])):
        cells = [f"<th scope=row>{escape(name)}</th>"]
        for _, _, estimates in columns:
            estimate = estimates[index]
            cells.append("<td>the reference</td>" if estimate is None else render_cell(estimate))
        rows.append("".join(cells))
    return render_table(head, rows)


def render_asymptotics(fits: Sequence[TransferFit]) -> str:
    """Return exponents and limits: one row for each group."""
    found = [{**fit.metrics, **fit.exponents} for fit in fits]
    keys = [key for key in _LIMITS if any(key in each for each in found)]
    rows = []
    names = name_groups([fit.group for fit in fits])
    for name, fit, each in zip(names, fits, found, strict=True):
        cells = [
            "<td>the reference</td>"
            if key == "R_inf" and is_reference(fit)
            else render_cell(each.get(key))
            for key in keys
        ]
        rows.append(f"<th scope=row>{escape(name)}</th>{''.join(cells)}")
    return render_table(["group", *(_LIMITS[key] for key in keys)], rows)


def render_reasons(fits: Sequence[TransferFit]) -> str:
    """Return why numbers are not known and what would help, one row for each; "" without any."""
    members: dict[tuple[str, str], list[str]] = {}
    for name, fit in zip(name_groups([fit.group for fit in fits]), fits, strict=True):
        for width, quantity, _, estimate in fit.quantities():
            if estimate.status != "identified" and estimate.reasons:
                what = quantity + ("" if width is None else f" at width {say_width(width)}")
                members.setdefault((what, estimate.reason), []).append(name)
    rows = [
        f"<th scope=row>{escape(what)}</th><td>{escape(', '.join(who))}</td>"
        f"<td class=words>{escape(reason)}</td>"
        for (what, reason), who in members.items()
    ]
    return render_table(["quantity", "group", "reason"], rows) if rows else ""


def list_metrics(fits: Sequence[TransferFit]) -> list[tuple[str, str, list[Estimate | None]]]:
    """Return the metrics that small studies identify: name, unit, and one estimate for each fit.

    Errors are given as their roots; None stands for the reference's own gap.
    """
    columns: list[tuple[str, str, list[Estimate | None]]] = [
        ("√E", "nats", [take_root(fit.metrics["E"]) for fit in fits]),
        ("√E_out", "nats", [take_root(fit.metrics["E_out"]) for fit in fits]),
    ]
    widest = max((width for fit in fits for width in fit.gaps), default=None)
    if widest is not None:
        gaps = [
            None if is_reference(fit) else fit.gaps.get(widest, refuse(Reason("no_gap")))
            for fit in fits
        ]
        columns.append((f"R({say_width(widest)})", "nats", gaps))
    columns.append(("price of transfer", "nats", [measure_price(fit) for fit in fits]))
    return columns


def render_basins(fits: Sequence[TransferFit]) -> str:
    """Return the basin table: one row for each group and width."""
    head = ["group", "width", "lr*", "log2 lr*", "L* <small>nats</small>",
            "curvature <small>nats</small>", "points", "flags"]  # fmt: skip
    rows = []
    for name, fit in zip(name_groups([fit.group for fit in fits]), fits, strict=True):
        for basin in fit.basins:
            edge = "<td colspan=2>at the edge of the swept range</td>"
            optimum = f"{render_cell(basin.lr)}<td>{escape(say_log2(basin.lr))}</td>"
            rows.append(
                f"<th scope=row>{escape(name)}</th><td>{say_width(basin.width)}</td>"
                f"{optimum if basin.bracketed else edge}{render_cell(tell_once(basin, basin.loss))}"
                f"{render_cell(tell_once(basin, basin.curvature))}<td>{basin.num_points}</td>"
                f"<td>{escape('; '.join(list_flags(basin)))}</td>"
            )
    return render_table(head, rows)


def render_recommendations(items: Sequence[Recommendation]) -> str:
    """Return the recommendations: learning rate, loss, regrets, verdict and its reason."""
    head = ["group", "learning rate", "loss <small>nats</small>",
            *(f"{words} <small>nats</small>" for words in _REGRETS.values()),
            "verdict", "because"]  # fmt: skip
    rows = []
    for name, item in zip(name_groups([item.group for item in items]), items, strict=True):
        regrets = "".join(render_cell(item.regret.get(key)) for key in _REGRETS)
        rows.append(
            f"<th scope=row>{escape(name)}</th>{render_cell(item.lr)}{render_cell(item.loss)}"
            f"{regrets}"
            f"<td class=verdict-{escape(item.verdict)}>{escape(item.verdict)}</td>"
            f"<td class=words>{escape(item.because)}</td>"
        )
    return render_table(head, rows)


def render_notes(fits: Sequence[TransferFit], notes: Iterable[str]) -> str:
    """Return what the fits and the reading of the table note, as a list; "" without any."""
    names = name_groups([fit.group for fit in fits])
    members: dict[str, list[str]] = {}
    for name, fit in zip(names, fits, strict=True):
        for note in fit.notes:
            members.setdefault(note, []).append(name)
    lines = [*notes, *(f"{', '.join(who)}: {note}" for note, who in members.items())]
    floors = [
        f"{name} {say_number(fit.noise_floor)}"
        for name, fit in zip(names, fits, strict=True)
        if fit.noise_floor is not None
    ]
    if floors:
        lines.append(f"noise floor s²/S of E, in nats²: {', '.join(floors)}")
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def render_settings(settings: Mapping[str, Any]) -> str:
    """Return nested settings as a table of dotted keys; "" without any."""
    rows = [
        f"<th scope=row>{escape(key)}</th><td class=words>{escape(value)}</td>"
        for key, value in _flatten(settings)
    ]
    return render_table(["setting", "value"], rows) if rows else ""


def _flatten(value: Any, prefix: str = "") -> Iterable[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flatten(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list | tuple) and not any(isinstance(v, Mapping) for v in value):
        yield prefix, ", ".join(_show(item) for item in value)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _flatten(item, f"{prefix}[{index}]")
    else:
        yield prefix, _show(value)


def _show(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def render_cell(estimate: Estimate | None) -> str:
    """Return a table cell: the value, its interval below, and what to know about it."""
    if estimate is None:
        return "<td></td>"
    brief = shorten(estimate)
    if not say_value(estimate):
        return f"<td class=weak>{escape(say(brief))}</td>"
    parts = [escape(say_value(estimate))]
    if interval := say_interval(estimate):
        parts.append(f"<small>{escape(interval)}</small>")
    if status := say_status(brief):
        parts.append(f"<small class=weak>{escape(status)}</small>")
    return f"<td>{'<br>'.join(parts)}</td>"


def render_stability(stability: Sequence[Stability]) -> str:
    """Return how stable training was near each optimum: one row for each group and width."""
    head = [
        "group", "width", "log2 lr", "η/η<sub>c</sub>", "spikes a trial",
        "highest <small>nats</small>", "|g| embedding", "|g| hidden", "logits", "entropy",
    ]  # fmt: skip
    rows = []
    for name, each in zip(name_groups([s.group for s in stability]), stability, strict=True):
        numbers = (
            each.edge, each.spikes, each.spike_size, each.grad_norm.get("embedding"),
            each.grad_norm.get("hidden"), each.logit_scale, each.attention_entropy,
        )  # fmt: skip
        cells = [say_width(each.width), f"{math.log2(each.lr):.3g}".replace("-", "−")]
        cells += ["" if value is None else f"{value:.3g}" for value in numbers]
        body = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f"<th scope=row>{escape(name)}</th>{body}")
    return render_table(head, rows)


def render_table(head: Sequence[str], rows: Sequence[str]) -> str:
    """Return a table of headings and of rows of cells, both HTML already."""
    heads = "".join(f"<th scope=col>{cell}</th>" for cell in head)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f"<div class=scroll><table><thead><tr>{heads}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def render_coordinates(document: Mapping[str, Any]) -> str:
    """Return the modules as a table: slopes with their intervals, and the verdict of each."""
    head = ["module", "type", "slope of the change", "of the output at init", "at the end",
            "verdict"]  # fmt: skip
    rows = []
    for module in document["modules"]:
        # Of a readout what its own update adds is judged.
        judged = module.get("own_change") or module["change"]
        slopes = "".join(
            render_cell(_read_slope(each)) for each in (judged, module["init"], module["final"])
        )
        verdict = "pass" if module["passed"] else f"fail: {module['reason']}"
        rows.append(
            f"<th scope=row>{escape(module['name'])}</th><td>{escape(module['kind'])}</td>"
            f"{''.join(slopes)}<td class=words>{escape(verdict)}</td>"
        )
    return render_table(head, rows)


def _read_slope(document: Mapping[str, Any]) -> Estimate:
    numbers = {key: value for key, value in document.items() if key != "reason"}
    words = document.get("reason")
    return Estimate(**numbers, reasons=(Reason("text", text=words),) if words else ())
