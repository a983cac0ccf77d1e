"""Show a coordinate check in the report: its file, its figure, its table. Plain data."""

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from hptransfer.errors import DataError
from hptransfer.report._svg import Dot, Line, Panel, binary_ticks, pad_range
from hptransfer.report.figures import color_group, render_legend
from hptransfer.report.tables import render_cell, render_table
from hptransfer.stats.estimate import Estimate
from hptransfer.stats.reasons import Reason

_SCHEMA = 1
_PANELS = (("rms_change", "change after the last step"), ("rms_activation", "output at that step"))
_SLOPES = ("change", "init", "final")
_PASSED = "#8a939c"
_KEYS = ("name", "widths", "seeds", "steps", "tolerance", "passed", "verdict", "modules")


def read_coordinates(path: Path | str) -> dict[str, Any]:
    """Return a coordinate check that was written as JSON (``CoordinateCheck.to_dict``).

    Raises
    ------
    DataError
        If the file holds no such document.
    OSError
        If it cannot be read.
    """
    try:
        document: dict[str, Any] = json.loads(Path(path).read_text("utf-8"))
    except ValueError:
        raise DataError(f"{path}: expected a coordinate check's JSON, found other text") from None
    missing = [key for key in _KEYS if not isinstance(document, dict) or key not in document]
    if missing:
        raise DataError(f"{path}: expected a coordinate check, found no key {missing[0]!r}")
    if document.get("schema") != _SCHEMA:
        found = document.get("schema")
        raise DataError(f"{path}: expected schema {_SCHEMA} of a coordinate check, found {found!r}")
    return document


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
        panel = Panel(
            title=title, x_title="width", y_title="RMS", x_log=True, y_log=True, y_range=y_range,
            x_range=pad_range(widths, log=True), x_ticks=[(n, f"{n:g}") for n in widths],
            y_ticks=binary_ticks(y_range),
        )  # fmt: skip
        # What fails is drawn last, above what passes.
        for name in sorted(lines, key=lambda name: name in colors):
            color = colors.get(name, _PASSED)
            points = [(n, v) for n, v in zip(widths, lines[name], strict=True) if v]
            panel.marks.append(Line(points=points, color=color, width=2 if name in colors else 1))
            panel.marks += [
                Dot(x=n, y=v, color=color, title=f"{name}, width {n:g}: {v:.4g}") for n, v in points
            ]
        panels.append(panel)
    passing = len(failed) < len(document["modules"])
    names = [*failed, *(["passes"] if passing else [])]
    return panels, render_legend(names, [*colors.values(), *([_PASSED] if passing else [])])


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
