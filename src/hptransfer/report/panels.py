"""The loss against the learning rate: a panel for each group, a curve for each width."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hptransfer.report.style import apply_style, color_widths, draw_intervals, label
from hptransfer.report.words import name_groups, say, say_width, transform
from hptransfer.stats.loss_table import LossTable
from hptransfer.stats.results import BasinFit, TransferFit

if TYPE_CHECKING:
    import plotly.graph_objects as go

_LN2 = math.log(2.0)
_COLUMNS = 3
_PANEL_HEIGHT = 330


def draw_losses(table: LossTable, fits: Sequence[TransferFit]) -> "go.Figure":
    """Draw loss against log2 lr: a panel for each group, a colour for each width.

    Small dots are seeds, the line runs through their means, the thick line is the fitted basin
    over its window, and the diamond is the optimum with its 90 % interval. Learning rates at
    which a trial diverged are crosses at the top edge, losses above the axis are triangles there.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    widths = sorted({float(width) for width in table.width})
    colors = color_widths(widths)
    columns = min(_COLUMNS, max(len(fits), 1))
    rows = math.ceil(max(len(fits), 1) / columns)
    names = name_groups([fit.group for fit in fits])
    figure = make_subplots(
        rows=rows, cols=columns, shared_yaxes=True, shared_xaxes="all",
        subplot_titles=[label(name, 40) for name in names],
        horizontal_spacing=0.02, vertical_spacing=min(0.09, 0.3 / rows),
    )  # fmt: skip
    low, high = find_loss_range(table)
    for index, fit in enumerate(fits):
        place = {"row": index // columns + 1, "col": index % columns + 1}
        inside = select(table, fit)
        for width in widths:
            rows_here = inside & (table.width == width)
            basin = next((b for b in fit.basins if b.width == width), None)
            for trace in _trace_width(table, rows_here, basin, color=colors[width], high=high):
                figure.add_trace(trace, **place)
    for width in widths:
        figure.add_trace(
            go.Scatter(
                x=[None], y=[None], mode="lines+markers", name=f"width {say_width(width)}",
                legendgroup=say_width(width), line={"color": colors[width], "width": 2.5},
            ),
            row=1, col=1,
        )  # fmt: skip
    apply_style(figure, height=_PANEL_HEIGHT * rows + 90)
    figure.update_layout(margin={"t": 76})
    figure.update_yaxes(range=[low, high])
    figure.update_xaxes(title_text="log2 lr", row=rows)
    # A last row that is not full leaves panels above it at the bottom of their columns.
    for column in range((len(fits) - 1) % columns + 2, columns + 1):
        figure.update_xaxes(title_text="log2 lr", showticklabels=True, row=rows - 1, col=column)
    figure.update_yaxes(title_text="loss (nats)", col=1)
    return figure


def find_loss_range(table: LossTable) -> tuple[float, float]:
    """Return the ends of the loss axis: every basin is seen, no huge loss flattens them."""
    finite = np.isfinite(table.loss)
    if not finite.any():
        return 0.0, 1.0
    keys = [tuple(map(str, key)) for key in zip(*table.groups.values(), strict=True)]
    groups = np.unique(keys, axis=0, return_inverse=True)[1] if keys else np.zeros(len(table))
    best, above = [], []
    for group in np.unique(groups):
        for width in np.unique(table.width):
            losses = table.loss[finite & (groups.ravel() == group) & (table.width == width)]
            if len(losses):
                best.append(losses.min())
                above.extend(losses - losses.min())
    low, worst = float(min(best)), float(max(best))
    # Three quarters of the points lie below this height over the worst of the best losses.
    high = min(float(table.loss[finite].max()), worst + max(float(np.quantile(above, 0.75)), 0.05))
    pad = 0.06 * max(high - low, 1e-3)
    return low - pad, high + 2 * pad


def select(table: LossTable, fit: TransferFit) -> NDArray[np.bool_]:
    """Return which rows of the table belong to a fit's group, shape (rows,)."""
    inside = np.ones(len(table), dtype=bool)
    for name, value in fit.group.items():
        inside &= np.array([str(cell) == str(value) for cell in table.groups[name]], dtype=bool)
    return inside


def _trace_width(
    table: LossTable,
    rows: NDArray[np.bool_],
    basin: BasinFit | None,
    *,
    color: str,
    high: float,
) -> "list[go.Scatter]":
    """Return the traces of one width in one panel."""
    import plotly.graph_objects as go

    width = say_width(basin.width) if basin else ""
    traces = []

    def add(x: Any, y: Any, **style: Any) -> None:
        traces.append(
            go.Scatter(x=x, y=y, showlegend=False, legendgroup=width or None, **style)
        )  # fmt: skip

    log2_lr, loss = np.log2(table.lr[rows]), table.loss[rows]
    finite = np.isfinite(loss)
    shown = finite & (loss <= high)
    extra = f"<extra>width {width}</extra>" if width else "<extra></extra>"
    place = "log2 lr %{x:.2f}, loss %{y:.4f}" + extra
    add(log2_lr[shown], loss[shown], mode="markers", opacity=0.4, hovertemplate=place,
        marker={"color": color, "size": 4})  # fmt: skip
    grid = np.unique(log2_lr)
    # A learning rate at which any seed diverged has no mean: the others alone would flatter it.
    whole = [x for x in grid if finite[log2_lr == x].all()]
    means = [float(loss[log2_lr == x].mean()) for x in whole]
    add(whole, means, mode="lines", opacity=0.55, hoverinfo="skip",
        line={"color": color, "width": 1, "dash": "dot"})  # fmt: skip
    if (finite & ~shown).any():
        huge = finite & ~shown
        add(log2_lr[huge], np.full(int(huge.sum()), high), mode="markers", cliponaxis=False,
            marker={"color": color, "size": 7, "symbol": "triangle-up-open"},
            customdata=loss[huge][:, None],
            hovertemplate="log2 lr %{x:.2f}, loss %{customdata[0]:.4g}, above the axis"
            + extra)  # fmt: skip
    if (~finite).any():
        lost = np.unique(log2_lr[~finite])
        add(lost, np.full(len(lost), high), mode="markers", cliponaxis=False,
            marker={"color": color, "size": 8, "symbol": "x-thin", "line": {"color": color,
                                                                         "width": 1.8}},
            hovertemplate="log2 lr %{x:.2f}: diverged" + extra)  # fmt: skip
    if basin is None:
        return traces
    x = np.linspace(basin.x_low, basin.x_high, 60)
    curve = basin.curve(x)
    seen = np.isfinite(curve) & (curve <= high)
    if basin.has_curve:
        add(x[seen] / _LN2, curve[seen], mode="lines", hoverinfo="skip",
            line={"color": color, "width": 2.5})  # fmt: skip
    if basin.lr.value and basin.loss.value is not None and basin.bracketed:
        logs = transform(basin.lr, math.log2)
        add([logs.value], [basin.loss.value], mode="markers", error_x=draw_intervals([logs]),
            marker={"color": color, "size": 10, "symbol": "diamond",
                    "line": {"color": "white", "width": 1}},
            hovertemplate=f"optimum {label(say(basin.lr))}, {label(say(basin.loss))} nats"
            + extra)  # fmt: skip
    return traces
