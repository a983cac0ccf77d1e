"""Draw panels as inline SVG: axes, lines, points with intervals and native tooltips, no script."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape

#: Size of a panel in its own units, and the margins around its axes.
WIDTH, HEIGHT = 380, 270
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 26, 40


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line through points (x, y), in data units, and what its tooltip says."""

    points: Sequence[tuple[float, float]]
    color: str
    width: float = 1.6
    dash: str = ""
    opacity: float = 1.0
    title: str = ""


@dataclass(frozen=True, kw_only=True)
class Dot:
    """A point with its intervals along x and y, its shape, and what its tooltip says."""

    x: float
    y: float
    color: str
    size: float = 3.0
    shape: str = "dot"
    title: str = ""
    across: tuple[float, float] | None = None
    along: tuple[float, float] | None = None
    opacity: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Label:
    """Text beside a point, in data units."""

    x: float
    y: float
    text: str
    color: str


@dataclass(kw_only=True)
class Panel:
    """One panel: its axes and what is drawn in them.

    Attributes
    ----------
    title, x_title, y_title : str
        Texts; may be empty.
    x_range, y_range : (float, float)
        Ends of the axes, in data units.
    x_log, y_log : bool
        Whether an axis is logarithmic.
    x_ticks : sequence of (float, str)
        Where the ticks are and what they say; by default as of `ticks`, as on the y axis.
    marks : list
        Lines, points and labels, drawn in order.
    right : float
        Room for labels at the right.
    """

    title: str = ""
    x_title: str = ""
    y_title: str = ""
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    x_log: bool = False
    y_log: bool = False
    x_ticks: Sequence[tuple[float, str]] = ()
    marks: list[Line | Dot | Label] = field(default_factory=list)
    right: float = RIGHT

    def trace(self, dots: Sequence[Dot], *, width: float = 1.6) -> None:
        """Add dots, and below them a line through them in the colour of the first."""
        points = [(dot.x, dot.y) for dot in dots]
        self.marks += [Line(points=points, color=dots[0].color, width=width)] if dots else []
        self.marks += dots

    def render(self) -> str:
        """Return the panel as an SVG element."""
        name = escape(self.title or self.y_title, quote=True)
        parts = [
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}">',
            f'<text x="{LEFT}" y="16" class="t">{escape(self.title)}</text>' * bool(self.title),
            *self._axes(),
            *(self._draw(mark) for mark in self.marks),
            "</svg>",
        ]
        return "".join(parts)

    def _x(self, value: float) -> float:
        return LEFT + _place(value, self.x_range, self.x_log) * (WIDTH - LEFT - self.right)

    def _y(self, value: float) -> float:
        return HEIGHT - BOTTOM - _place(value, self.y_range, self.y_log) * (HEIGHT - TOP - BOTTOM)

    def _axes(self) -> Iterable[str]:
        left, right = LEFT, WIDTH - self.right
        low, high = HEIGHT - BOTTOM, TOP
        for value, text in ticks(self.y_range, self.y_log):
            y = self._y(value)
            yield f'<path d="M{left} {y:.1f}H{right}" class="g"/>'
            yield f'<text x="{left - 6}" y="{y + 4:.1f}" class="e">{escape(text)}</text>'
        for value, text in self.x_ticks or ticks(self.x_range, self.x_log):
            x = self._x(value)
            yield f'<path d="M{x:.1f} {low}v4" class="a"/>'
            yield f'<text x="{x:.1f}" y="{low + 17}" class="m">{escape(text)}</text>'
        yield f'<path d="M{left} {high}V{low}H{right}" class="a"/>'
        if self.x_title:
            middle = 0.5 * (left + right)
            yield f'<text x="{middle:.0f}" y="{HEIGHT - 6}" class="m">{escape(self.x_title)}</text>'
        if self.y_title:
            yield (
                f'<text transform="translate(12 {0.5 * (low + high):.0f}) rotate(-90)" class="m">'
                f"{escape(self.y_title)}</text>"
            )

    def _draw(self, mark: Line | Dot | Label) -> str:
        if isinstance(mark, Line):
            return self._draw_line(mark)
        if isinstance(mark, Label):
            return (
                f'<text x="{self._x(mark.x) + 6:.1f}" y="{self._y(mark.y) + 4:.1f}" '
                f'style="fill:{mark.color}">{escape(mark.text)}</text>'
            )
        return self._draw_dot(mark)

    def _draw_line(self, line: Line) -> str:
        inside = [(x, y) for x, y in line.points if math.isfinite(x) and math.isfinite(y)]
        if len(inside) < 2:
            return ""
        path = "L".join(f"{self._x(x):.1f} {self._y(y):.1f}" for x, y in inside)
        dash = f' stroke-dasharray="{line.dash}"' if line.dash else ""
        drawn = (
            f'<path d="M{path}" fill="none" stroke="{line.color}" stroke-width="{line.width:g}" '
            f'opacity="{line.opacity:g}"{dash}/>'
        )
        return f"<g>{drawn}<title>{escape(line.title)}</title></g>" if line.title else drawn

    def _draw_dot(self, dot: Dot) -> str:
        x, y, size = self._x(dot.x), self._y(dot.y), dot.size
        bars = ""
        if dot.along is not None:
            low, high = (self._y(end) for end in dot.along)
            bars += f'<path d="M{x:.1f} {low:.1f}V{high:.1f}" stroke="{dot.color}"/>'
        if dot.across is not None:
            low, high = (self._x(end) for end in dot.across)
            bars += f'<path d="M{low:.1f} {y:.1f}H{high:.1f}" stroke="{dot.color}"/>'
        shape = {
            "dot": f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:g}" fill="{dot.color}"/>',
            "open": f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:g}" fill="none" '
            f'stroke="{dot.color}" stroke-width="1.6"/>',
            "cross": f'<path d="M{x - size:.1f} {y - size:.1f}l{2 * size:g} {2 * size:g}'
            f'm0 {-2 * size:g}l{-2 * size:g} {2 * size:g}" stroke="{dot.color}" '
            'stroke-width="1.6" fill="none"/>',
            "triangle": f'<path d="M{x:.1f} {y - size:.1f}l{size:g} {2 * size:g}h{-2 * size:g}z" '
            f'fill="none" stroke="{dot.color}" stroke-width="1.4"/>',
            "diamond": f'<path d="M{x:.1f} {y - size:.1f}l{size:g} {size:g}l{-size:g} {size:g}'
            f'l{-size:g} {-size:g}z" fill="{dot.color}" class="h"/>',
        }[dot.shape]
        title = f"<title>{escape(dot.title)}</title>" if dot.title else ""
        return f'<g opacity="{dot.opacity:g}">{bars}{shape}{title}</g>'


def _place(value: float, ends: tuple[float, float], log: bool) -> float:
    low, high = ends
    if log:
        value, low, high = math.log(value), math.log(low), math.log(high)
    share = (value - low) / (high - low) if high > low else 0.5
    return min(max(share, -0.02), 1.02)


def pad_range(values: Iterable[float], *, log: bool = False) -> tuple[float, float]:
    """Return the ends of an axis that holds the finite values with room to spare.

    Returns
    -------
    (float, float)
        (0, 1), or (0.5, 2) on a logarithmic axis, where no value is finite.
    """
    found = [v for v in values if math.isfinite(v) and (v > 0 or not log)]
    if not found:
        return (0.5, 2.0) if log else (0.0, 1.0)
    low, high = (math.log(min(found)), math.log(max(found))) if log else (min(found), max(found))
    room = 0.06 * (high - low) or (0.7 if log else max(0.05 * abs(high), 0.05))
    low, high = low - room, high + room
    return (math.exp(low), math.exp(high)) if log else (low, high)


def ticks(ends: tuple[float, float], log: bool = False) -> list[tuple[float, str]]:
    """Return ticks between two ends, each with its text: at round numbers, or at powers of two.

    Examples
    --------
    >>> [text for _, text in ticks((-0.1, 0.01))]
    ['−0.10', '−0.08', '−0.06', '−0.04', '−0.02', '0.00']
    """
    low, high = ends
    if log:
        first, last = math.ceil(math.log2(low) - 1e-9), math.floor(math.log2(high) + 1e-9)
        stride = max(1, math.ceil((last - first + 1) / 8))
        return [(2.0**k, f"2^{k}".replace("-", "−")) for k in range(first, last + 1, stride)]
    most = 6
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    step *= next(k for k in (1, 2, 5, 10) if (high - low) / (k * step) <= most)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    values = [k * step for k in range(first, last + 1)]
    return [(v, f"{v + 0.0:.{digits}f}".replace("-", "−")) for v in values]
