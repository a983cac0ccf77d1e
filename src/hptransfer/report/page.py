"""One self-contained HTML page of results: opens from disk, loads nothing from anywhere."""

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from hptransfer._atomic import atomic_write
from hptransfer._version import __version__
from hptransfer.report.source import TARGET_RATIO, ReportSource
from hptransfer.report.summary import summarise
from hptransfer.report.tables import (
    render_basins,
    render_metrics,
    render_notes,
    render_recommendations,
    render_settings,
)
from hptransfer.report.words import say_width

if TYPE_CHECKING:
    import plotly.graph_objects as go

_SHOWN_APART = ("name", "axis", "data", "versions")


def write_report(
    sources: Sequence[ReportSource], path: Path, *, coordinates: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Write the page, one section for each source and then for each coordinate check.

    The file is written beside its place and renamed into it, so that it is there whole or not
    at all.

    Raises
    ------
    OSError
        If it cannot be written.
    """
    page = render_page(sources, coordinates)
    with atomic_write(path) as tmp:
        tmp.write_text(page, encoding="utf-8")


def render_page(
    sources: Sequence[ReportSource], coordinates: Sequence[Mapping[str, Any]] = ()
) -> str:
    """Return the page's HTML, with plotly.js in it once."""
    from plotly.offline import get_plotlyjs

    assert sources or coordinates, "a report needs a source"
    template = Template(files("hptransfer.report").joinpath("page.html").read_text("utf-8"))
    titles = [source.title for source in sources] + [_name(check) for check in coordinates]
    kind = "studies" if sources else "coordinate checks"
    title = titles[0] if len(titles) == 1 else f"{len(sources or coordinates)} {kind}"
    sections = [_render_section(source, index) for index, source in enumerate(sources)]
    sections += [_render_check(check, index) for index, check in enumerate(coordinates)]
    return template.substitute(
        title=escape(title),
        plotly=get_plotlyjs(),
        body="\n".join(sections),
        version=escape(__version__),
    )


def _render_section(source: ReportSource, index: int) -> str:
    from hptransfer.report.figures import draw_best_losses, draw_optima
    from hptransfer.report.panels import draw_losses

    parts = [f"<h1>{escape(source.title)}</h1>", f"<p class=facts>{escape(_state(source))}</p>"]
    if source.damaged:
        lines = "".join(f"<li>{escape(line)}</li>" for line in source.damaged)
        parts.append(f"<div class=damaged>Not everything could be read:<ul>{lines}</ul></div>")
    parts.append(f"<p class=summary>{escape(summarise(source.fits, source.settings))}</p>")
    parts += [
        "<h2>Metrics</h2>",
        render_metrics(source.fits),
        "<p class=key>Small print is the 90&nbsp;% interval. √E: error of the joint fit; √E_out: "
        "the same at the widest width, left out of the fit; κ below 0: the price of transfer "
        "vanishes with width; R: loss given up against the reference, at infinite width and at a "
        "trained one; price of transfer: what the narrowest width's best learning rate costs at "
        "the widest; "
        "L∞ + A·n<sup>−α</sup> is the best loss, β the drift of the optimum, γ the growth of the "
        "curvature.</p>",
        render_notes(source.fits, source.notes),
        "<h2>Loss against learning rate</h2>",
        _embed(draw_losses(source.table, source.fits), f"losses-{index}"),
        "<p class=key>Dots: seeds; dotted line: their mean; thick line: fitted basin over its "
        "window; diamond: optimum with its 90&nbsp;% interval; × at the top edge: a trial "
        "diverged; open triangle: a loss above the axis.</p>",
        "<h2>Optimum against width</h2>",
        _embed(draw_optima(source.fits), f"optima-{index}"),
        "<p class=key>Level: the learning rate transfers as it is. Dotted: the joint fit, on to "
        f"{TARGET_RATIO} times the widest width. An open marker lies at the edge of the swept "
        "range: no optimum. Groups stand a little apart to show their intervals.</p>",
        "<h2>Best loss against width</h2>",
        _embed(draw_best_losses(source.fits), f"best-{index}"),
        "<h2>Basins</h2>",
        render_basins(source.fits),
    ]
    if source.recommendations:
        width = say_width(source.recommendations[0].width)
        parts += [
            f"<h2>Recommended at width {width}</h2>",
            f"<p class=key>{TARGET_RATIO} times the widest width, on the table's axis "
            f"({escape(source.table.axis)}).</p>",
            render_recommendations(source.recommendations),
        ]
    parts.append(_render_study(source))
    return f"<section>{''.join(parts)}</section>"


def _render_check(check: Mapping[str, Any], index: int) -> str:
    from hptransfer.report.coordinates import draw_coordinates, render_coordinates

    facts = (
        f"widths {', '.join(map(say_width, check['widths']))} · {len(check['seeds'])} seed(s) · "
        f"{check['steps']} step(s) · tolerance ±{check['tolerance']:g}"
    )
    verdict = "<br>".join(escape(line) for line in str(check["verdict"]).splitlines())
    return (
        f"<section><h1>{escape(_name(check))}</h1><p class=facts>{escape(facts)}</p>"
        f"<p class=summary>{verdict}</p>"
        f"{_embed(draw_coordinates(check), f'coordinates-{index}')}"
        "<p class=key>Level: the module's outputs change by the same amount at every width. Grey: "
        "modules that pass. Means over seeds.</p>"
        f"{render_coordinates(check)}"
        "<p class=key>Slopes of ln(RMS) against ln(width); small print is the 90&nbsp;% interval. "
        "µP's logits are expected to go as width<sup>−1/2</sup> at init.</p></section>"
    )


def _name(check: Mapping[str, Any]) -> str:
    return f"Coordinate check of {check['name']}"


def _render_study(source: ReportSource) -> str:
    """Return what a study says of itself: text and entropies, settings, versions."""
    rest = {k: v for k, v in source.settings.items() if k not in _SHOWN_APART}
    config = rest.pop("config", {})
    parts = []
    for heading, settings in (
        ("Text", source.settings.get("data", {})),
        ("Settings", config),
        ("Versions", source.settings.get("versions", {})),
        ("Recorded choices", rest),
    ):
        if table := render_settings(settings if isinstance(settings, dict) else {"": settings}):
            open_ = " open" if heading in ("Text", "Settings") else ""
            parts.append(f"<details{open_}><summary>{heading}</summary>{table}</details>")
    return f"<h2>The study</h2>{''.join(parts)}" if parts else ""


def _state(source: ReportSource) -> str:
    """Return the table's size in one line."""
    table = source.table
    widths = sorted({float(width) for width in table.width})
    diverged = sum(1 for loss in table.loss if loss != loss)
    parts = [
        f"{len(table)} trials, {diverged} of them diverged",
        f"widths {', '.join(say_width(width) for width in widths)}",
        f"{len(set(table.lr.tolist()))} learning rates",
        f"{len(set(table.seed.tolist()))} seed(s)",
        f"learning-rate axis: {table.axis}",
    ]
    if (entropies := source.settings.get("data")) and isinstance(entropies, dict):
        parts += [
            f"{name} entropy {entropies[f'{name}_entropy']:.3f} nats"
            for name in ("unigram", "bigram")
            if isinstance(entropies.get(f"{name}_entropy"), float | int)
        ]
    return " · ".join(parts)


def _embed(figure: "go.Figure", name: str) -> str:
    """Return a figure as HTML that counts on plotly.js being in the page."""
    import plotly.io as pio

    config: dict[str, Any] = {
        "displaylogo": False,
        # On by default: a button that would upload the user's losses.
        "showSendToCloud": False,
        "displayModeBar": "hover",
        "responsive": True,
        "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"],
    }
    html: str = pio.to_html(
        figure, include_plotlyjs=False, full_html=False, include_mathjax=False, div_id=name,
        config=config, default_height=f"{figure.layout.height}px",
    )  # fmt: skip
    return f"<div class=figure>{html}</div>"
