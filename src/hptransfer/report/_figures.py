"""The figures of a report: gaps, losses by learning rate, optima by width, coordinate checks."""

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from hptransfer.report._svg import (
    Dot,
    Label,
    Line,
    Panel,
    pad_range,
)
from hptransfer.report.words import say, say_rate, say_width, with_names
from hptransfer.stats import Estimate, LossTable, Recommendation, TransferFit
from hptransfer.stats.estimate import BasinFit
from hptransfer.stats.loss_table import Ints

if TYPE_CHECKING:
    from hptransfer.tables import LossCurve

# Okabe and Ito's colours that read on white and on black, told apart by colour-blind readers too.
_KINDS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6d00", "#56b4e9", "#7a5195", "#808080")
# Viridis between ends that vanish neither on black nor on white.
_VIRIDIS = ("#46327e", "#365c8d", "#277f8e", "#1fa187", "#4ac16d", "#9fbf26")
_LN2 = math.log(2.0)
#: Points that a loss curve is drawn through, about.
MOST_POINTS = 100
#: A table with more trials than this shows means alone.
MOST_DOTS = 3000


def color_group(index: int) -> str:
    """Return the colour of the group at a place; they repeat after eight."""
    return _KINDS[index % len(_KINDS)]


def color_widths(widths: Sequence[float]) -> dict[float, str]:
    """Return a colour for each width, darker for narrower."""
    last = len(_VIRIDIS) - 1
    steps = max(len(widths) - 1, 1)
    return {
        width: _VIRIDIS[round(last * index / steps)] for index, width in enumerate(sorted(widths))
    }


def shorten_name(text: str, most: int = 40) -> str:
    """Return a name from a user, cut where it is overlong; not escaped."""
    return text if len(text) <= most else text[: most - 1] + "…"


def render_legend(names: Sequence[str], colors: Sequence[str]) -> str:
    """Return a legend as HTML: a coloured mark and a name each."""
    items = "".join(
        f'<span><i style="background:{color}"></i>{escape(shorten_name(name))}</span>'
        for name, color in zip(names, colors, strict=True)
    )
    return f'<p class="legend">{items}</p>'


def draw_gaps(
    gaps: Mapping[str, Mapping[float, Estimate]], reference: str, colors: Mapping[str, str]
) -> Panel:
    """Draw each group's best loss less the reference's, by width, with 90 % intervals."""
    known = {
        name: there
        for name, each in gaps.items()
        if (there := {n: e for n, e in each.items() if e.value is not None})
    }
    found = [e for each in known.values() for e in each.values()]
    widths = sorted({width for each in known.values() for width in each})
    y_range = pad_range([v for e in found for v in (e.value, e.low, e.high, 0.0) if v is not None])
    panel = _make_panel(widths, y_range=y_range, right=78)
    start, end = panel.x_range
    zero = colors[reference]
    panel.marks = [
        Line(points=[(start, 0), (end, 0)], color=zero, width=2),
        Label(x=end, y=0, text=shorten_name(reference, 10), color=zero),
    ]
    taken = [0.0]
    for index, (name, each) in enumerate(known.items()):
        shift, color = 1.0 + 0.012 * index, colors[name]
        dots = [
            Dot(x=n * shift, y=e.value, color=color, size=4, along=_bounds(e),
                title=f"{name} less {reference} at width {say_width(n)}: {say(e, 'nats')}")
            for n, e in each.items() if e.value is not None
        ]  # fmt: skip
        panel.trace(dots, width=2)
        taken.append(_free_place(dots[-1].y, taken, 0.07 * (y_range[1] - y_range[0])))
        panel.marks.append(Label(x=end, y=taken[-1], text=shorten_name(name, 10), color=color))
    return panel


def _free_place(y: float, taken: Sequence[float], room: float) -> float:
    """Return the place nearest to y at which a label covers none of those there."""
    tried = (y + sign * k * 0.25 * room for k in range(200) for sign in (1, -1))
    return next(p for p in tried if all(abs(p - other) >= room for other in taken))


def draw_losses(table: LossTable, fits: Sequence[TransferFit], rows: Sequence[Ints]) -> list[Panel]:
    """Draw loss against log2 lr: a panel for each group of rows, a colour for each width.

    Small dots are trials, the dotted line runs through their means, the thick line is the fitted
    basin over its window, and the diamond is the optimum with its 90 % interval. Rates at which a
    trial diverged are crosses at the top edge, losses above the axis are triangles there.
    """
    colors = color_widths(np.unique(table.width).tolist())
    low, high = find_loss_range(table, rows)
    x_range = pad_range(np.log2(table.lr).tolist())
    panels = []
    for (name, fit), own in zip(with_names(fits), rows, strict=True):
        panel = Panel(
            title=shorten_name(name), x_title="log2 lr", x_range=x_range, y_title="loss (nats)",
            y_range=(low, high),
        )  # fmt: skip
        basins = {basin.width: basin for basin in fit.basins}
        for width, color in colors.items():
            here = own[table.width[own] == width]
            panel.marks += _mark_width(
                table, here, width, basins.get(width), color=color, high=high
            )
        panels.append(panel)
    return panels


def find_loss_range(table: LossTable, rows: Sequence[Ints]) -> tuple[float, float]:
    """Return the ends of the loss axis: every basin is seen, no huge loss flattens them."""
    best, above = [], []
    for own in rows:
        for width in np.unique(table.width[own]):
            losses = table.loss[own[table.width[own] == width]]
            losses = losses[np.isfinite(losses)]
            if len(losses):
                best.append(losses.min())
                above.extend(losses - losses.min())
    if not best:
        return 0.0, 1.0
    low, worst = float(min(best)), float(max(best))
    # Three quarters of the points lie below this height over the worst of the best losses.
    high = min(float(np.nanmax(table.loss)), worst + max(float(np.quantile(above, 0.75)), 0.05))
    pad = 0.06 * max(high - low, 1e-3)
    return low - pad, high + 2 * pad


def _mark_width(
    table: LossTable,
    rows: Ints,
    width: float,
    basin: BasinFit | None,
    *,
    color: str,
    high: float,
) -> list[Line | Dot | Label]:
    marks: list[Line | Dot | Label] = []
    logs, loss, seed = np.log2(table.lr[rows]), table.loss[rows], table.seed[rows]
    finite = np.isfinite(loss)
    where = f"width {say_width(width)}"
    if len(table) <= MOST_DOTS:
        for x, y, s in zip(logs, loss, seed, strict=True):
            said = f"{where}, lr {say_rate(2.0**x)} (2^{x:.4g}), seed {s}: "
            dot = Dot(x=x, y=y, color=color, size=2, opacity=0.5, title=f"{said}{y:.4f} nats")
            if not y <= high:
                shape, said = ("triangle", dot.title) if y > high else ("cross", f"{said}diverged")
                dot = Dot(x=x, y=high, color=color, shape=shape, title=said)
            marks.append(dot)
    # A rate at which any seed diverged has no mean: the others alone would flatter it.
    whole = [float(x) for x in np.unique(logs) if finite[logs == x].all()]
    means = [(x, min(float(loss[logs == x].mean()), high)) for x in whole]
    marks.append(Line(points=means, color=color, width=1, dash="2 3", opacity=0.6))
    if basin is None:
        return marks
    if basin.has_curve:
        x = np.linspace(basin.x_low, basin.x_high, 40)
        curve = basin.curve(x)
        seen = np.isfinite(curve) & (curve <= high)
        points = list(zip((x[seen] / _LN2).tolist(), curve[seen].tolist(), strict=True))
        marks.append(Line(points=points, color=color, width=2.4))
    if basin.lr.value and basin.loss.value is not None and basin.bracketed:
        place = basin.lr.transform(math.log2)
        assert place.value is not None
        marks.append(
            Dot(x=place.value, y=basin.loss.value, color=color, size=5, shape="diamond",
                across=_bounds(place),
                title=f"{where}: optimum {say(basin.lr)}, {say(basin.loss, 'nats')}")
        )  # fmt: skip
    return marks


def draw_curves(curves: "Sequence[LossCurve]", fits: Sequence[TransferFit]) -> list[Panel]:
    """Draw training loss against step, of the trials at the swept rate nearest each optimum.

    Returns
    -------
    list of Panel
        One for each group that has curves; empty without.
    """
    colors = color_widths(sorted({float(curve.width) for curve in curves}))
    chosen = [list(_choose_curves(curves, fit)) for fit in fits]
    losses = [
        loss
        for curve in (each for members in chosen for each in members)
        for step, loss in zip(curve.steps, curve.losses, strict=True)
        if step >= 0.05 * curve.steps[-1]
    ]
    if not losses:
        return []
    y_range = pad_range(losses)
    last = max(curve.steps[-1] for members in chosen for curve in members)
    panels = []
    for (name, _), members in zip(with_names(fits), chosen, strict=True):
        panel = Panel(
            title=shorten_name(name), x_title="step", x_range=(0, last), y_range=y_range,
            y_title="training loss (nats)",
        )  # fmt: skip
        for curve in members:
            points = list(zip(curve.steps, curve.losses, strict=True))
            points = points[:: math.ceil(len(points) / MOST_POINTS)] + points[-1:]
            said = f"width {curve.width}, lr {say_rate(curve.lr)}, seed {curve.seed}"
            panel.marks.append(
                Line(points=[(x, y) for x, y in points if y <= y_range[1]],
                     color=colors[float(curve.width)], width=1.2, opacity=0.8, title=said)
            )  # fmt: skip
        if members:
            panels.append(panel)
    return panels


def _choose_curves(curves: "Sequence[LossCurve]", fit: TransferFit) -> "Iterator[LossCurve]":
    """Yield a fit's trials at the rate nearest the optimum of each width that has a minimum."""
    own = [
        curve
        for curve in curves
        if all(str(curve.group.get(k, v)) == str(v) for k, v in fit.group.items())
    ]
    for basin in fit.basins:
        here = [curve for curve in own if curve.width == basin.width]
        if here and basin.bracketed and basin.lr.value:
            best = math.log(basin.lr.value)
            near = min((curve.lr for curve in here), key=lambda lr: abs(math.log(lr) - best))
            yield from (curve for curve in here if curve.lr == near)


def draw_optima(
    fits: Sequence[TransferFit], recommendations: Sequence[Recommendation] = ()
) -> Panel:
    """Draw the best learning rate against width, on to the rates recommended at the target.

    An open marker is not bracketed: the best rate lies at or beyond the edge of the swept range.
    """
    optima = [[(b, b.lr) for b in fit.basins if (b.lr.value or 0) > 0] for fit in fits]
    advised = [item.lr for item in recommendations]
    panel = _draw_by_width("best learning rate", optima, recommendations, advised, "recommended")
    seen = [
        end
        for e in [*(e for each in optima for _, e in each), *advised]
        for end in (e.value, e.low, e.high)
        if end is not None and end > 0
    ]
    # An interval of many powers of two would flatten the rest.
    values = [e.value for each in optima for _, e in each if e.value]
    if values:
        seen = [min(max(v, min(values) / 16), max(values) * 16) for v in seen]
    panel.y_log, panel.y_range = True, pad_range(seen, log=True)
    return panel


def draw_best_losses(
    fits: Sequence[TransferFit], recommendations: Sequence[Recommendation] = ()
) -> Panel:
    """Draw the best loss against width, on to the target where the table predicts it there."""
    losses = [[(b, b.loss) for b in fit.basins if b.loss.value is not None] for fit in fits]
    predicted = [
        Estimate(value=None) if item.loss.status == "not identified" else item.loss
        for item in recommendations
    ]
    panel = _draw_by_width("best loss (nats)", losses, recommendations, predicted, "expected")
    ends = [*(e for each in losses for _, e in each), *predicted]
    panel.y_range = pad_range([e.value for e in ends if e.value is not None])
    return panel


def _draw_by_width(
    title: str,
    found: Sequence[Sequence[tuple[BasinFit, Estimate]]],
    recommendations: Sequence[Recommendation],
    goals: Sequence[Estimate],
    word: str,
) -> Panel:
    """Draw an estimate of each group's basins against width, on to a goal at the target's."""
    widths = {basin.width for each in found for basin, _ in each}
    known = any(goal.value is not None for goal in goals)
    ends = sorted(widths | ({recommendations[0].width} if known else set())) or [1.0]
    panel = _make_panel(ends, title=title, y_range=(0.0, 1.0))
    for index, each in enumerate(found):
        # Groups are drawn a little apart.
        color, shift = color_group(index), math.exp(0.02 * (index - 0.5 * (len(found) - 1)))
        dots = [
            Dot(x=b.width * shift, y=e.value, color=color, size=4,
                shape="dot" if b.bracketed else "open", along=_bounds(e),
                title=f"width {say_width(b.width)}: {say(e)}")
            for b, e in each if e.value is not None
        ]  # fmt: skip
        panel.trace(dots)
        goal = goals[index] if goals else Estimate(value=None)
        if goal.value is not None:
            width = recommendations[index].width
            last = [(dot.x, dot.y) for dot in dots[-1:]]
            panel.marks += [
                Line(points=[*last, (width * shift, goal.value)], color=color, dash="3 3"),
                Dot(x=width * shift, y=goal.value, color=color, size=5, shape="diamond",
                    along=_bounds(goal), title=f"{word} at {say_width(width)}: {say(goal)}"),
            ]  # fmt: skip
    return panel


def _make_panel(widths: Sequence[float], **options: Any) -> Panel:
    """Return a panel over these widths, ascending, on a log axis.

    Each has a tick, but none that stands so near to the one before that texts collide.
    """
    ticks: list[tuple[float, str]] = []
    span = math.log(widths[-1] / widths[0]) if len(widths) > 1 else 1.0
    for width in widths:
        if not ticks or math.log(width / ticks[-1][0]) > 0.08 * span:
            ticks.append((width, say_width(width)))
    x_range = pad_range(widths, log=True)
    return Panel(x_title="width", x_log=True, x_range=x_range, x_ticks=ticks, **options)


def _bounds(estimate: Estimate) -> tuple[float, float] | None:
    if estimate.low is None or estimate.high is None:
        return None
    return estimate.low, estimate.high


_PANELS = (("rms_change", "change after the last step"), ("rms_activation", "output at that step"))
_PASSED = "#8a939c"


def draw_coordinates(document: Mapping[str, Any]) -> tuple[list[Panel], str]:
    """Draw RMS of the change and of the output against width, both on log axes.

    One line per module: grey where it passes, in a colour of its own where it fails.

    Parameters
    ----------
    document : mapping
        What ``CoordinateCheck.to_dict`` gives; ``read_coordinates`` reads it from a file.

    Returns
    -------
    panels : list of Panel
    legend : str
        As HTML.
    """
    widths = [float(width) for width in document["widths"]]
    failed = [module["name"] for module in document["modules"] if not module["passed"]]
    colors = {name: color_group(index) for index, name in enumerate(failed)}
    panels = []
    for key, title in _PANELS:
        lines = {
            module["name"]: [_geometric_mean(seeds) for seeds in module[key][-1]]
            for module in document["modules"]
        }
        values = [value for line in lines.values() for value in line if value]
        y_range = pad_range(values, log=True)
        panel = _make_panel(widths, title=title, y_title="RMS", y_log=True, y_range=y_range)
        # What fails is drawn last, above what passes.
        for name in sorted(lines, key=lambda name: name in colors):
            color = colors.get(name, _PASSED)
            dots = [
                Dot(x=n, y=v, color=color, title=f"{name}, width {n:g}: {v:.4g}")
                for n, v in zip(widths, lines[name], strict=True)
                if v
            ]
            panel.trace(dots, width=2 if name in colors else 1)
        panels.append(panel)
    passing = len(failed) < len(document["modules"])
    names = [*failed, *(["passes"] if passing else [])]
    return panels, render_legend(names, [*colors.values(), *([_PASSED] if passing else [])])


def _geometric_mean(values: Sequence[float | None]) -> float | None:
    """Return the mean on a log axis; None where a value is missing or 0."""
    if not all(values):
        return None
    return math.exp(sum(math.log(value) for value in values if value) / len(values))
