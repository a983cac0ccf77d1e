"""The figures against width: the best learning rate, the best loss, the gap."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hptransfer.report.source import TARGET_RATIO
from hptransfer.report.style import apply_style, color_group, draw_intervals, label
from hptransfer.report.words import name_groups, say, say_width
from hptransfer.stats.estimate import Estimate
from hptransfer.stats.results import TransferFit

if TYPE_CHECKING:
    import plotly.graph_objects as go

Floats = NDArray[np.float64]

_HEIGHT = 400


def draw_optima(fits: Sequence[TransferFit]) -> "go.Figure":
    """Draw the best learning rate against width, both on log axes, with 90 % intervals.

    The dotted line is the joint model, on to the recommendation's width. An open marker is not
    bracketed: the best learning rate lies at or beyond the edge of the swept range.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    seen: list[float] = []
    for index, (name, fit) in enumerate(_named(fits)):
        optima = {b.width: b.lr for b in fit.basins if b.lr.value is not None and b.lr.value > 0}
        for trace in _trace_group(name, fit, optima, index, len(fits)):
            figure.add_trace(trace)
        if fit.model is not None:
            widths = _extend([basin.width for basin in fit.basins])
            values = np.exp(fit.model.optimum(widths))
            figure.add_trace(_trace_model(widths, values, index))
            seen += [float(values.min()), float(values.max())]
        seen += [e.value for e in optima.values() if e.value is not None]
    apply_style(figure, height=_HEIGHT)
    _set_width_axis(figure, fits)
    if seen:
        powers = range(math.floor(math.log2(min(seen))), math.ceil(math.log2(max(seen))) + 1)
        figure.update_yaxes(
            type="log",
            title_text="best learning rate",
            tickvals=[2.0**k for k in powers],
            ticktext=[f"2<sup>{k}</sup>".replace("-", "−") for k in powers],
            range=[math.log10(2.0 ** (end + pad)) for end, pad in
                   ((powers[0], -0.25), (powers[-1], 0.25))],
        )  # fmt: skip
    return figure


def draw_best_losses(fits: Sequence[TransferFit]) -> "go.Figure":
    """Draw the best loss against width and, beside it, the gap to the reference.

    The dotted line is the joint model, an open marker a width that is not bracketed.
    """
    from plotly.subplots import make_subplots

    titles = ["best loss"] + ["gap to the reference"] * any(fit.gaps for fit in fits)
    figure = make_subplots(rows=1, cols=len(titles), subplot_titles=titles, horizontal_spacing=0.1)
    for index, (name, fit) in enumerate(_named(fits)):
        losses = {b.width: b.loss for b in fit.basins if b.loss.value is not None}
        for trace in _trace_group(name, fit, losses, index, len(fits)):
            figure.add_trace(trace, row=1, col=1)
        if fit.model is not None:
            widths = _extend([basin.width for basin in fit.basins])
            model = _trace_model(widths, fit.model.best_loss(widths), index)
            figure.add_trace(model, row=1, col=1)
        gaps = {width: gap for width, gap in fit.gaps.items() if gap.value is not None}
        for trace in _trace_group(name, fit, gaps, index, len(fits)):
            figure.add_trace(trace.update(showlegend=False), row=1, col=len(titles))
    apply_style(figure, height=_HEIGHT)
    figure.update_layout(margin={"t": 76})
    _set_width_axis(figure, fits)
    figure.update_yaxes(title_text="nats")
    return figure


def _named(fits: Sequence[TransferFit]) -> "zip[tuple[str, TransferFit]]":
    return zip(name_groups([fit.group for fit in fits]), fits, strict=True)


def _trace_group(
    name: str, fit: TransferFit, values: Mapping[float, Estimate], index: int, count: int
) -> "list[go.Scatter]":
    """Return a group's values by width: a line through the bracketed ones, the others open."""
    import plotly.graph_objects as go

    bracketed = {basin.width for basin in fit.basins if basin.bracketed}
    traces: list[go.Scatter] = []
    for inside in (True, False):
        shown = {n: e for n, e in values.items() if (n in bracketed) == inside}
        if not shown:
            continue
        # A little apart, so that the intervals of several groups do not overlap.
        shift = 2 ** (0.05 * (index - (count - 1) / 2) / max(count / 4, 1))
        traces.append(
            go.Scatter(
                x=[width * shift for width in shown],
                y=[e.value for e in shown.values()],
                error_y=draw_intervals(list(shown.values())) if inside else None,
                mode="lines+markers" if inside else "markers",
                name=label(name),
                legendgroup=str(index),
                # A group without any bracketed width stays in the legend.
                showlegend=inside or not traces,
                line={"color": color_group(index), "width": 1.5},
                marker={"size": 8, "symbol": "circle" if inside else "circle-open"},
                customdata=[
                    [say_width(n), label(say(e) if inside else "not bracketed")]
                    for n, e in shown.items()
                ],
                hovertemplate="width %{customdata[0]}: %{customdata[1]}"
                "<extra>%{fullData.name}</extra>",
            )
        )
    return traces


def _trace_model(
    widths: NDArray[np.float64], values: NDArray[np.float64], index: int
) -> "go.Scatter":
    import plotly.graph_objects as go

    return go.Scatter(
        x=widths,
        y=values,
        mode="lines",
        hoverinfo="skip",
        showlegend=False,
        legendgroup=str(index),
        line={"color": color_group(index), "width": 1, "dash": "dot"},
    )


def _extend(widths: Sequence[float]) -> Floats:
    """Return widths for a smooth curve, from the narrowest to the recommendation's."""
    return np.geomspace(min(widths), TARGET_RATIO * max(widths), 60)


def _set_width_axis(figure: "go.Figure", fits: Sequence[TransferFit]) -> None:
    widths = sorted({basin.width for fit in fits for basin in fit.basins})
    marks = [*widths, TARGET_RATIO * widths[-1]] if widths else []
    figure.update_xaxes(
        type="log", title_text="width", tickvals=marks, ticktext=[say_width(n) for n in marks]
    )
