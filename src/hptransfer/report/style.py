"""Colours and layout that the figures share: widths are a sequence, groups are kinds."""

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from hptransfer.stats.estimate import Estimate

if TYPE_CHECKING:
    import plotly.graph_objects as go

# Okabe and Ito's colours that read on white and on black, told apart by colour-blind readers too.
_KINDS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#8c6d00", "#56b4e9", "#7a5195", "#808080")
# The ends of viridis vanish, one on black and one on white.
_VIRIDIS_SPAN = (0.22, 0.82)


def color_widths(widths: Sequence[float]) -> dict[float, str]:
    """Return a colour for each width, darker for narrower."""
    from plotly.colors import sample_colorscale

    low, high = _VIRIDIS_SPAN
    steps = max(len(widths) - 1, 1)
    at = [low + (high - low) * index / steps for index in range(len(widths))]
    return dict(zip(sorted(widths), sample_colorscale("Viridis", at), strict=True))


def color_group(index: int) -> str:
    """Return the colour of the group at a place; they repeat after eight."""
    return _KINDS[index % len(_KINDS)]


def label(text: str, most: int = 60) -> str:
    """Return a name from a user as Plotly may show it: escaped, and not overlong."""
    short = text if len(text) <= most else text[: most - 1] + "…"
    return escape(short)


def apply_style(figure: "go.Figure", *, height: int, **layout: Any) -> None:
    """Set the layout that all figures share; colours of text and grid come from the page."""
    figure.update_layout(
        template="none",
        height=height,
        autosize=True,
        margin={"l": 64, "r": 16, "t": 44, "b": 52},
        font={"family": "system-ui, -apple-system, Segoe UI, Roboto, sans-serif", "size": 12},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "y": 1, "yref": "container", "yanchor": "top", "x": 0,
                "itemsizing": "constant"},
        hovermode="closest",
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": "#8a939c", "activecolor": "#5d6670"},
        **layout,
    )  # fmt: skip
    line = {"showline": True, "linewidth": 1, "zeroline": False, "ticks": "outside", "ticklen": 4,
            "showgrid": True, "automargin": True}  # fmt: skip
    figure.update_xaxes(**line)
    figure.update_yaxes(**line)


def draw_intervals(estimates: Sequence[Estimate]) -> dict[str, Any]:
    """Return Plotly's error bars of 90 % intervals; none where there is no bound."""

    def reach(one: float | None, other: float | None) -> float:
        return 0.0 if one is None or other is None else max(one - other, 0.0)

    return {
        "type": "data", "symmetric": False, "thickness": 1.3, "width": 3,
        "array": [reach(e.high, e.value) for e in estimates],
        "arrayminus": [reach(e.value, e.low) for e in estimates],
    }  # fmt: skip
