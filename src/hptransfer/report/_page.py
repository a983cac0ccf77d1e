"""Write one self-contained HTML page of results: opens from disk, runs no script, loads nothing."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from hptransfer._atomic import atomic_write
from hptransfer._version import __version__
from hptransfer.errors import DataError
from hptransfer.report._figures import (
    color_group,
    color_widths,
    draw_best_losses,
    draw_coordinates,
    draw_curves,
    draw_gaps,
    draw_losses,
    draw_optima,
    render_legend,
)
from hptransfer.report._svg import Panel
from hptransfer.report._tables import (
    render_asymptotics,
    render_basins,
    render_coordinates,
    render_metrics,
    render_notes,
    render_reasons,
    render_recommendations,
    render_settings,
    render_stability,
)
from hptransfer.report.answer import Answer, canonical_name, make_answer
from hptransfer.report.words import name_groups, say_width
from hptransfer.stats._stability import ProbedTrial, Stability, summarise_stability
from hptransfer.stats.loss_table import LossTable
from hptransfer.stats.results import Recommendation

if TYPE_CHECKING:
    from hptransfer.stats import TableFit
    from hptransfer.tables import LoadedTable, LossCurve

#: A report answers for this many times the widest width that was trained.
TARGET_RATIO = 4
_SHOWN_APART = ("name", "axis", "data", "versions", "rows_chosen")


@dataclass(frozen=True, kw_only=True)
class ReportSource:
    """One section of a report.

    Attributes
    ----------
    title : str
        Heading: the study's name or the table's path.
    table : LossTable
        The losses.
    fits : TableFit
        The fits of its groups.
    recommendations : sequence of Recommendation
        One for each group, for `TARGET_RATIO` times the widest width.
    settings : mapping
        Contents of the study's ``study.json``; empty for a plain table.
    damaged, notes : tuple of str
        Files that could not be read; rows that were left out.
    stability : sequence of Stability
        How stable training was near each optimum; empty without probes.
    curves : sequence of LossCurve
        Training losses by step; empty where they are not stored.
    """

    title: str
    table: LossTable
    fits: "TableFit"
    recommendations: Sequence[Recommendation] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    damaged: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    stability: Sequence[Stability] = ()
    curves: Sequence["LossCurve"] = ()

    @property
    def answer(self) -> Answer:
        """What the fits answer, in words."""
        return make_answer(self.fits, self.recommendations, self.settings)


def analyse(
    study: "LoadedTable",
    *,
    reference: str | None = None,
    width: float | None = None,
    probes: Sequence[ProbedTrial] = (),
    curves: Sequence["LossCurve"] = (),
) -> ReportSource:
    """Fit a table once and collect what a report says about it.

    Parameters
    ----------
    study : LoadedTable
        The table, grouped by all of its group columns.
    reference : str, optional
        The group that R is measured against; by default SP where the table has it.
    width : float, optional
        Width to recommend for; by default `TARGET_RATIO` times the widest.
    probes : sequence of ProbedTrial
        What `hptransfer.tables.read_probes` found beside the table.
    curves : sequence of LossCurve
        What `hptransfer.tables.read_curves` found beside it.

    Raises
    ------
    FitError
        If the table holds nothing to fit.
    """
    # Imported here: SciPy is most of the start of a command that may only print its help.
    from hptransfer.report.words import describe_note, tell_doubts
    from hptransfer.stats import fit_table

    table = study.table
    fits = fit_table(table, reference=reference or find_sp(table))
    target = TARGET_RATIO * float(table.width.max()) if width is None else width
    return ReportSource(
        title=str(study.settings.get("name") or table.source),
        table=table,
        fits=fits,
        recommendations=tell_doubts(fits.recommend(width=target)),
        settings=study.settings,
        damaged=study.damaged,
        notes=tuple(map(describe_note, study.notes)),
        stability=summarise_stability(probes, fits),
        curves=curves,
    )


def find_sp(table: LossTable) -> str | None:
    """Return how a table spells SP, where it compares parameterizations and has it; else None."""
    column = table.groups.get("parameterization")
    if column is None:
        return None
    return next((str(v) for v in column if canonical_name({"parameterization": v}) == "sp"), None)


_CHECK_SCHEMA = 1
_CHECK_KEYS = ("name", "widths", "seeds", "steps", "tolerance", "passed", "verdict", "modules")


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
    inner = document.get("recommended_lr") if isinstance(document, dict) else None
    for check in (document, *([] if inner is None else [inner])):
        missing = [key for key in _CHECK_KEYS if not isinstance(check, dict) or key not in check]
        if missing:
            raise DataError(f"{path}: expected a coordinate check, found no key {missing[0]!r}")
        if check.get("schema") != _CHECK_SCHEMA:
            found = check.get("schema")
            raise DataError(
                f"{path}: expected schema {_CHECK_SCHEMA} of a coordinate check, found {found!r}"
            )
    return document


def write_report(
    sources: Sequence[ReportSource],
    path: Path | str,
    *,
    coordinates: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write the page, one section for each source and then for each coordinate check.

    Parameters
    ----------
    sources : sequence of ReportSource
        What `analyse` returns.
    path : Path or str
        The file; it is there whole or not at all.
    coordinates : sequence of mapping
        Coordinate checks, as `read_coordinates` returns them.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    with atomic_write(Path(path)) as tmp:
        tmp.write_text(render_page(sources, coordinates), encoding="utf-8")


def render_page(
    sources: Sequence[ReportSource], coordinates: Sequence[Mapping[str, Any]] = ()
) -> str:
    """Return the page's HTML."""
    assert sources or coordinates, "a report needs a source"
    template = Template(files("hptransfer.report").joinpath("page.html").read_text("utf-8"))
    titles = [source.title for source in sources] + [_name(check) for check in coordinates]
    kind = "studies" if sources else "coordinate checks"
    title = titles[0] if len(titles) == 1 else f"{len(sources or coordinates)} {kind}"
    sections = [_render_section(source, index) for index, source in enumerate(sources)]
    sections += [_render_check(check) for check in coordinates]
    if len(sections) > 1:
        links = "".join(
            f'<li><a href="#s{k}">{escape(title)}</a></li>' for k, title in enumerate(titles)
        )
        contents = f'<nav class="contents"><h2>Contents</h2><ol>{links}</ol></nav>'
        marked = (each.replace("<section>", f'<section id="s{k}">', 1) for k, each in
                  enumerate(sections))  # fmt: skip
        sections = [contents, *marked]
    return template.substitute(
        title=escape(title), body="\n".join(sections), version=escape(__version__)
    )


def _render_section(source: ReportSource, index: int) -> str:
    answer = source.answer
    parts = [f"<h1>{escape(source.title)}</h1>", f'<p class="facts">{escape(answer.facts)}</p>']
    if source.damaged:
        lines = "".join(f"<li>{escape(line)}</li>" for line in source.damaged)
        parts.append(f'<div class="damaged">Not everything could be read:<ul>{lines}</ul></div>')
    if answer.warning:
        parts.append(f'<p class="summary">{escape(answer.warning)}</p>')
    parts += [
        '<div class="cards">',
        _render_verdict(source, answer),
        _render_rates(answer),
        "</div>",
    ]
    evidence = _list_evidence(source)
    links = " · ".join(f'<a href="#e{index}-{k}">{h}</a>' for k, (h, _) in enumerate(evidence))
    parts.append(f'<nav class="facts">Evidence: {links}</nav>')
    parts += [
        f'<h2 id="e{index}-{k}">{heading}</h2>{body}' for k, (heading, body) in enumerate(evidence)
    ]
    return f"<section>{''.join(parts)}</section>"


def _render_verdict(source: ReportSource, answer: Answer) -> str:
    """Return the first card: the surest finding, and the figure that shows it."""
    parts = []
    names = name_groups([fit.group for fit in source.fits])
    for verdict in answer.embedding:
        word = {"yes": "Yes.", "no": "No.", "can't tell": "Can't tell."}[verdict.kind]
        good = "ok" if verdict.kind == "yes" else "plain"
        many = len(answer.embedding) > 1
        where = f" <small>{escape(names[verdict.sp])}</small>" if many else ""
        parts.append(
            f"<h2>Is the embedding layer held back?{where}</h2>"
            f'<p class="big"><span class="{good}">{word}</span> {escape(verdict.text)}</p>'
        )
    if answer.embedding:
        parts.append(_render_gaps(source, answer.embedding[0].sp))
    items = "".join(
        f'<li><b class="{"ok" if kind == "yes" else "plain"}">{escape(kind)}</b> '
        f"{escape(text)}</li>"
        for kind, text in answer.transfer[:6]
    )
    more = len(answer.transfer) - 6
    items += f"<li>and {more} more, in the tables</li>" if more > 0 else ""
    heading = "May the narrowest width's rate be kept at the widest, for 0.02 nats?"
    parts.append(f'<h2>{heading}</h2><ul class="answers">{items}</ul>')
    if not answer.embedding:
        parts.append(_embed([draw_optima(source.fits, source.recommendations)]))
        parts.append(_legend_groups(source))
    return f'<div class="card">{"".join(parts)}</div>'


def _render_gaps(source: ReportSource, reference: int) -> str:
    fits = source.fits
    names = name_groups([fit.group for fit in fits])
    members = next(m for m in fits.split.settings() if reference in m)
    gaps = {
        names[k]: {
            width: gap
            for width in fits.groups[k].usable
            if (gap := fits.gap(k, reference, width=width)).value is not None
        }
        for k in members
        if k != reference
    }
    colors = {names[k]: color_group(k) for k in members}
    panel = draw_gaps({n: g for n, g in gaps.items() if g}, names[reference], colors)
    return (
        _embed([panel], "gap")
        + f'<p class="key">Best loss less that of {escape(names[reference])} at each trained '
        "width, in nats: below 0 is better. Paired by seed; 90 % intervals.</p>"
    )


def _render_rates(answer: Answer) -> str:
    """Return the second card: rates to type, what would make them surer, what is not known."""
    parts = []
    if answer.target is not None:
        rows = "".join(
            f"<tr><th scope=row>{escape(row.name)}</th><td>{_render_rate(row.rates, row.note)}</td>"
            f"<td>{escape(row.factor) or '–'}</td>"
            f"<td>{f'{escape(row.price)} nats' if row.price else '–'}</td>"
            f'<td class="verdict-{row.verdict}">{row.verdict}</td></tr>'
            for row in answer.rates
        )
        parts.append(
            f"<h2>Which learning rate at width {say_width(answer.target)}?</h2>"
            '<div class="scroll"><table><thead><tr><th></th><th>type this into the optimizer</th>'
            "<th>known to a factor of</th><th>if wrong, at most</th><th></th></tr></thead>"
            f"<tbody>{rows}</tbody></table></div>"
            f'<p class="key">{escape(answer.reach)} <code>hptransfer recommend … --width N</code> '
            "answers for another.</p>"
        )
    if answer.surer:
        lines = "".join(f"<li>{escape(line)}</li>" for line in answer.surer)
        parts.append(
            f'<h2>What would make this surer?</h2><ul class="answers">{lines}</ul>'
            '<p class="key"><code>hptransfer recommend … --write-next FILE</code> writes these '
            "trials for <code>hptransfer run</code>.</p>"
        )
    if answer.unknown:
        missing, known = answer.counts
        help_ = f" What would help: {answer.help_unknown}." if answer.help_unknown else ""
        parts.append(
            f"<h2>What it cannot say <small>({missing} of {known} numbers)</small></h2>"
            f'<p class="key">{", ".join(answer.unknown)}: '
            f"{escape(answer.why_unknown)}{escape(help_)}</p>"
        )
    return f'<div class="card">{"".join(parts)}</div>' if parts else ""


def _render_rate(rates: Sequence[tuple[str, str]], note: str) -> str:
    if not rates:
        return "no answer"
    lines = "<br>".join(f"{escape(who)} <b>{escape(rate)}</b>".strip() for who, rate in rates)
    return f"{lines}<br><small>{escape(note)}</small>" if note else lines


def _list_evidence(source: ReportSource) -> list[tuple[str, str]]:
    """Return the headings and bodies of what the answer rests on."""
    fits, items = source.fits, source.recommendations
    widths = sorted({float(width) for width in source.table.width})
    out = [
        (
            "Loss against learning rate",
            _embed(draw_losses(source.table, fits))
            + _legend_widths(widths)
            + '<p class="key">Dots: trials, which say their rate and seed under the mouse; dotted '
            "line: their mean; thick line: fitted basin over its window; diamond: optimum with its "
            "90&nbsp;% interval; × at the top edge: a trial diverged; triangle: a loss above the "
            "axis.</p>",
        ),
        (
            "Optimum and best loss against width",
            _embed([draw_optima(fits, items), draw_best_losses(fits, items)])
            + _legend_groups(source)
            + '<p class="key">A level line: the rate transfers as it is. Diamonds: what is '
            "recommended, and the loss expected there, where the table predicts one. An open "
            "marker lies at the edge of the swept range: no optimum. Groups stand a little apart "
            "to show their intervals.</p>",
        ),
        (
            "Fit and transfer",
            render_metrics(fits)
            + '<p class="key">Small print is the 90&nbsp;% interval. √E: error of the joint fit; '
            "√E_out: the same at the widest width, left out of the fit; R: loss given up against "
            "the reference at a trained width; price of transfer: what the narrowest width's best "
            "rate costs at the widest.</p>"
            + _fold(
                "Exponents and limits: κ, R(∞), L∞, α, β, γ",
                render_asymptotics(fits)
                + '<p class="key">κ below 0: the price of transfer vanishes with width; '
                "L∞ + A·n<sup>−α</sup> is the best loss, β the drift of the optimum, γ the growth "
                "of the curvature.</p>",
            ),
        ),
        ("Basins", render_basins(fits)),
    ]
    if drawn := draw_curves(source.curves, fits):
        key = (
            '<p class="key">Losses of the batches at the swept rate nearest each optimum, a line a '
            "seed, which says its rate under the mouse.</p>"
        )
        out.append(("Loss against step", _embed(drawn) + _legend_widths(widths) + key))
    if source.stability:
        key = (
            '<p class="key">At the swept rate nearest each optimum, median after the warm-up. η_c: '
            "the smallest rate along the optimizer's step that raises the loss of its batch; "
            "entropy of attention: 1 where it is even.</p>"
        )
        out.append(("Stability", render_stability(source.stability) + key))
    if items:
        width = say_width(items[0].width)
        out.append((f"Recommended at width {width}", render_recommendations(items)))
    notes = render_notes(fits, source.notes) + _fold(
        "Reasons in full, and the data that would help", render_reasons(fits)
    )
    out.append(("Notes", notes))
    if study := _render_study(source):
        out.append(("The study", study))
    return out


def _legend_widths(widths: Sequence[float]) -> str:
    colors = color_widths(widths)
    return render_legend([f"width {say_width(w)}" for w in widths], [colors[w] for w in widths])


def _legend_groups(source: ReportSource) -> str:
    names = name_groups([fit.group for fit in source.fits])
    return render_legend(names, [color_group(k) for k in range(len(names))])


def _render_check(check: Mapping[str, Any]) -> str:
    facts = (
        f"widths {', '.join(map(say_width, check['widths']))} · {len(check['seeds'])} seed(s) · "
        f"{check['steps']} step(s) · tolerance ±{check['tolerance']:g}"
    )
    verdict = "<br>".join(escape(line) for line in str(check["verdict"]).splitlines())
    panels, legend = draw_coordinates(check)
    return (
        f'<section><h1>{escape(_name(check))}</h1><p class="facts">{escape(facts)}</p>'
        f'<p class="summary">{verdict}</p>{_embed(panels)}{legend}'
        '<p class="key">Level: the module\'s outputs change by the same amount at every width. '
        "Grey: modules that pass. Means over seeds.</p>"
        f"{render_coordinates(check)}"
        '<p class="key">Slopes of ln(RMS) against ln(width); small print is the 90&nbsp;% '
        "interval. A readout's change is what its own update adds. µP's logits are expected to go "
        "as width<sup>−1/2</sup> at init.</p></section>"
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
            parts.append(_fold(heading, table))
    return "".join(parts)


def _fold(heading: str, body: str) -> str:
    return f"<details><summary>{heading}</summary>{body}</details>" if body else ""


def _embed(panels: Sequence[Panel], kind: str = "") -> str:
    """Return panels side by side, as many to a row as fit the screen."""
    drawn = "".join(f"<div>{panel.render()}</div>" for panel in panels)
    return f'<div class="panels {kind}">{drawn}</div>'
