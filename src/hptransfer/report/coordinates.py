"""A coordinate check in the report: its file, its figure, its table. Plain data, no models."""

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hptransfer.errors import DataError
from hptransfer.report.style import apply_style, color_group, label
from hptransfer.report.tables import render_cell, render_table
from hptransfer.stats.estimate import Estimate
from hptransfer.stats.reasons import Reason

if TYPE_CHECKING:
    import plotly.graph_objects as go

_SCHEMA = 1
_PANELS = (("rms_change", "change after the last step"), ("rms_activation", "output at that step"))
_SLOPES = ("change", "init", "final")
_PASSED = "#8a939c"
_KEYS = ("name", "widths", "seeds", "steps", "tolerance", "passed", "verdict", "modules")


def read_coordinates(path: Path) -> dict[str, Any]:
    """Return a coordinate check that was written as JSON (``CoordinateCheck.to_dict``).

    Raises
    ------
    DataError
        If the file holds no such document.
    OSError
        If it cannot be read.
    """
    try:
        document: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except ValueError:
        raise DataError(f"{path}: expected a coordinate check's JSON, found other text") from None
    missing = [key for key in _KEYS if not isinstance(document, dict) or key not in document]
    if missing:
        raise DataError(f"{path}: expected a coordinate check, found no key {missing[0]!r}")
    if document.get("schema") != _SCHEMA:
        found = document.get("schema")
        raise DataError(f"{path}: expected schema {_SCHEMA} of a coordinate check, found {found!r}")
    return document


def draw_coordinates(document: Mapping[str, Any]) -> "go.Figure":
    """Draw RMS of the change and of the output against width, both on log axes.

    One line per module: grey where it passes, in a colour of its own where it fails.

    Parameters
    ----------
    document : mapping
        What ``CoordinateCheck.to_dict`` gives; ``read_coordinates`` reads it from a file.
    """
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    figure = make_subplots(
        rows=1, cols=2, subplot_titles=[title for _, title in _PANELS], horizontal_spacing=0.1
    )
    widths = document["widths"]
    failed = [module["name"] for module in document["modules"] if not module["passed"]]
    grey_shown = False
    for module in document["modules"]:
        passed = module["passed"]
        color = _PASSED if passed else color_group(failed.index(module["name"]))
        for column, (key, _) in enumerate(_PANELS, start=1):
            figure.add_trace(
                go.Scatter(
                    x=widths,
                    y=[_geometric_mean(seeds) for seeds in module[key][-1]],
                    mode="lines+markers",
                    name="passes" if passed else label(module["name"]),
                    legendgroup="passes" if passed else module["name"],
                    showlegend=column == 1 and not (passed and grey_shown),
                    line={"color": color, "width": 1 if passed else 2},
                    marker={"size": 5 if passed else 7},
                    text=label(module["name"]),
                    hovertemplate="width %{x}: %{y:.4g}<extra>%{text}</extra>",
                ),
                row=1,
                col=column,
            )
        grey_shown = grey_shown or passed
    apply_style(figure, height=400)
    figure.update_layout(margin={"t": 76})
    figure.update_xaxes(type="log", title_text="width", tickvals=widths, ticktext=widths)
    figure.update_yaxes(type="log", title_text="RMS", col=1)
    figure.update_yaxes(type="log", col=2)
    return figure


def render_coordinates(document: Mapping[str, Any]) -> str:
    """Return the modules as a table: slopes with their intervals, and the verdict of each."""
    head = ["module", "type", "slope of the change", "of the output at init", "at the end",
            "verdict"]  # fmt: skip
    rows = []
    for module in document["modules"]:
        slopes = "".join(render_cell(_read_slope(module[key])) for key in _SLOPES)
        verdict = "pass" if module["passed"] else f"fail: {module['reason']}"
        rows.append(
            f"<th scope=row>{escape(module['name'])}</th><td>{escape(module['kind'])}</td>"
            f"{slopes}<td class=words>{escape(verdict)}</td>"
        )
    return render_table(head, rows)


def _read_slope(document: Mapping[str, Any]) -> Estimate:
    numbers = {key: value for key, value in document.items() if key != "reason"}
    words = document.get("reason")
    return Estimate(**numbers, reasons=(Reason("text", text=words),) if words else ())


def _geometric_mean(values: Sequence[float | None]) -> float | None:
    """Return the mean on a log axis; None where a value is missing or 0."""
    if not all(values):
        return None
    return math.exp(sum(math.log(value) for value in values if value) / len(values))
