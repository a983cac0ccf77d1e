"""Small line charts as SVG text, the same bytes for the same numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#555555", "#000000")
PANEL = (300, 220)
MARGIN = {"left": 58, "right": 12, "top": 30, "bottom": 44}


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line: its points, and where they are known their intervals."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One chart: a title and its lines; x is drawn as given, so take its log before."""

    title: str
    lines: Sequence[Line]
    x_label: str
    y_label: str
    x_ticks: Sequence[tuple[float, str]]
    y_limits: tuple[float, float] | None = None


def draw(panels: Sequence[Panel], *, columns: int) -> str:
    """Return panels side by side, with one legend below, as an SVG document."""
    names = list(dict.fromkeys(line.name for panel in panels for line in panel.lines))
    colour = {name: COLOURS[k % len(COLOURS)] for k, name in enumerate(names)}
    rows = math.ceil(len(panels) / columns)
    width, height = PANEL[0] * min(columns, len(panels)), PANEL[1] * rows + 26
    body = []
    for k, panel in enumerate(panels):
        left, top = PANEL[0] * (k % columns), PANEL[1] * (k // columns)
        body.append(f'<g transform="translate({left},{top})">{_draw_panel(panel, colour)}</g>')
    place = 10.0
    for name in names:
        y = height - 10
        body.append(
            f'<line x1="{place:.0f}" x2="{place + 18:.0f}" y1="{y - 4}" y2="{y - 4}" '
            f'stroke="{colour[name]}" stroke-width="2"/>'
            f'<text x="{place + 23:.0f}" y="{y}">{escape(name)}</text>'
        )
        place += 40 + 7 * len(name)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{max(width, round(place))}" '
        f'height="{height}" font-family="sans-serif" font-size="11">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(body)}</svg>\n'
    )


def _draw_panel(panel: Panel, colour: dict[str, str]) -> str:
    inner = PANEL[0] - MARGIN["left"] - MARGIN["right"], PANEL[1] - MARGIN["top"] - MARGIN["bottom"]
    xs = [x for x, _ in panel.x_ticks] + [x for line in panel.lines for x in line.x]
    ys = [
        y
        for line in panel.lines
        for values in (line.y, line.low or (), line.high or ())
        for y in values
        if math.isfinite(y)
    ]
    x_low, x_high = min(xs), max(xs)
    y_low, y_high = panel.y_limits or _widen(min(ys, default=0.0), max(ys, default=1.0))

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / ((x_high - x_low) or 1.0)
        up = (min(max(y, y_low), y_high) - y_low) / (y_high - y_low)
        return MARGIN["left"] + inner[0] * across, MARGIN["top"] + inner[1] * (1 - up)

    out = [
        f'<text x="{MARGIN["left"]}" y="18" font-weight="bold">{escape(panel.title)}</text>',
        f'<rect x="{MARGIN["left"]}" y="{MARGIN["top"]}" width="{inner[0]}" height="{inner[1]}" '
        'fill="none" stroke="#999"/>',
        f'<text x="{MARGIN["left"] + inner[0] / 2:.0f}" y="{PANEL[1] - 10}" '
        f'text-anchor="middle">{escape(panel.x_label)}</text>',
        f'<text transform="translate(12,{MARGIN["top"] + inner[1] / 2:.0f}) rotate(-90)" '
        f'text-anchor="middle">{escape(panel.y_label)}</text>',
    ]
    for x, label in panel.x_ticks:
        px, py = at(x, y_low)
        out.append(f'<text x="{px:.1f}" y="{py + 15:.1f}" text-anchor="middle">{label}</text>')
    for y in _ticks(y_low, y_high):
        px, py = at(x_low, y)
        far = px + inner[0]
        out.append(
            f'<line x1="{px:.1f}" x2="{far:.1f}" y1="{py:.1f}" y2="{py:.1f}" stroke="#eee"/>'
            f'<text x="{px - 4:.1f}" y="{py + 4:.1f}" text-anchor="end">{y:g}</text>'
        )
    for line in panel.lines:
        points = [at(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        stroke = f'stroke="{colour[line.name]}"'
        out.append(f'<polyline points="{path}" fill="none" {stroke} stroke-width="1.6"/>')
        out += [
            f'<circle cx="{px:.1f}" cy="{py:.1f}" r="2.4" fill="{colour[line.name]}"/>'
            for px, py in points
        ]
        for x, low, high in zip(line.x, line.low or (), line.high or (), strict=False):
            (px, py), (_, qy) = at(x, low), at(x, high)
            out.append(f'<line x1="{px:.1f}" x2="{px:.1f}" y1="{py:.1f}" y2="{qy:.1f}" {stroke}/>')
    return "".join(out)


def _widen(low: float, high: float) -> tuple[float, float]:
    room = 0.06 * ((high - low) or 1.0)
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    """Return about five round numbers between two."""
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    step *= next(k for k in (1, 2, 5, 10) if (high - low) / (k * step) <= 6)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]
