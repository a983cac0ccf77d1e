"""Write one self-contained HTML page of results: opens from disk, runs no script, loads nothing."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from hptransfer._atomic import atomic_write
from hptransfer._version import __version__
from hptransfer.errors import ConfigError, DataError
from hptransfer.report import _figures as figures
from hptransfer.report import words
from hptransfer.report._svg import Panel
from hptransfer.report.answer import (
    EMBEDDING_QUESTION,
    KEEP_QUESTION,
    Answer,
    RateRow,
    make_answer,
)
from hptransfer.stats import Estimate, Reason, Recommendation, TableFit, fit_table
from hptransfer.stats._stability import ProbedTrial, Stability, summarise_stability

if TYPE_CHECKING:
    from hptransfer.tables import LoadedTable, LossCurve

#: A report answers for this many times the widest width that was trained.
TARGET_RATIO = 4
#: Groups of which the first card tells whether the rate may be kept.
_MOST_TOLD = 6
_SHOWN_APART = ("name", "axis", "data", "versions", "rows_chosen")
_VERDICTS = ("usable", "risky", "unusable")
#: Letters from which a cell's text has a wide column.
_LONG_TEXT = 24


@dataclass(frozen=True, kw_only=True)
class ReportSource:
    """One section of a report.

    Attributes
    ----------
    title : str
        Heading: the study's name or the table's path.
    fits : TableFit
        The table's groups and their fits.
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
    fits: TableFit
    recommendations: Sequence[Recommendation] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    damaged: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    stability: Sequence[Stability] = ()
    curves: Sequence["LossCurve"] = ()

    @cached_property
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
    table = study.table
    fits = fit_table(table, reference=reference)
    target = TARGET_RATIO * float(table.width.max()) if width is None else width
    return ReportSource(
        title=str(study.settings.get("name") or table.source),
        fits=fits,
        recommendations=words.tell_doubts(fits.recommend(width=target)),
        settings=study.settings,
        damaged=study.damaged,
        notes=tuple(map(words.describe_note, study.notes)),
        stability=summarise_stability(probes, fits),
        curves=curves,
    )


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
    except FileNotFoundError:
        wanted = "what coordinate-check -o writes"
        raise DataError(f"{path}: no such file; expected {wanted}") from None
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
    ConfigError
        If there is nothing to show.
    OSError
        If the file cannot be written.
    """
    with atomic_write(Path(path)) as tmp:
        tmp.write_text(render_page(sources, coordinates), encoding="utf-8")


def render_page(
    sources: Sequence[ReportSource], coordinates: Sequence[Mapping[str, Any]] = ()
) -> str:
    """Return the page's HTML."""
    if not (sources or coordinates):
        raise ConfigError("report: expected a study, a table or a coordinate check, found none")
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
    evidence = _list_evidence(source)
    links = " · ".join(f'<a href="#e{index}-{k}">{h}</a>' for k, (h, _) in enumerate(evidence))
    parts = [f"<section><h1>{escape(source.title)}</h1><p class=facts>{escape(answer.facts)}</p>"]
    if source.damaged:
        parts.append(
            f"<div class=damaged>Not everything could be read:{_list(source.damaged)}</div>"
        )
    if answer.warning:
        parts.append(f"<p class=summary>{escape(answer.warning)}</p>")
    parts += [
        f"<div class=cards>{_render_verdict(source)}{_render_rates(answer)}</div>",
        f"<nav class=facts>Evidence: {links}</nav>",
    ]
    parts += [
        f'<h2 id="e{index}-{k}">{heading}</h2>{body}' for k, (heading, body) in enumerate(evidence)
    ]
    return f"{''.join(parts)}</section>"


def _list(lines: Iterable[str], kind: str = "") -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul{f' class={kind}' * bool(kind)}>{items}</ul>"


def _render_verdict(source: ReportSource) -> str:
    """Return the first card: the surest finding, and the figure that shows it."""
    answer, parts = source.answer, []
    for verdict in answer.embedding:
        good = "ok" if verdict.kind == "yes" else "plain"
        many = len(answer.embedding) > 1
        where = f" <small>{escape(answer.names[verdict.sp])}</small>" if many else ""
        parts.append(
            f"<h2>{EMBEDDING_QUESTION}{where}</h2><p class=big>"
            f"<span class={good}>{verdict.kind.capitalize()}.</span> {escape(verdict.text)}</p>"
        )
    if answer.embedding:
        parts.append(_render_gaps(source, answer.embedding[0].sp))
    items = [
        f"<li><b class={'ok' if kind == 'yes' else 'plain'}>{escape(kind)}</b> {escape(text)}</li>"
        for kind, text in answer.transfer[:_MOST_TOLD]
    ]
    if (more := len(answer.transfer) - _MOST_TOLD) > 0:
        items.append(f"<li>and {more} more, in the tables</li>")
    parts.append(f"<h2>{KEEP_QUESTION}</h2><ul class=answers>{''.join(items)}</ul>")
    if not answer.embedding:
        parts.append(_embed([figures.draw_optima(source.fits, source.recommendations)]))
        parts.append(_legend_groups(source))
    return f"<div class=card>{''.join(parts)}</div>"


def _render_gaps(source: ReportSource, reference: int) -> str:
    fits, names = source.fits, source.answer.names
    members = next(m for m in fits.settings() if reference in m)
    gaps = {
        names[k]: {n: fits.gap(k, reference, width=n) for n in fits.groups[k].usable}
        for k in members
        if k != reference
    }
    colors = {names[k]: figures.color_group(k) for k in members}
    panel = figures.draw_gaps(gaps, names[reference], colors)
    return _embed([panel], "gap") + _key(
        f"Best loss less that of {names[reference]} at each trained width, in nats: below 0 is "
        "better. Paired by seed; 90 % intervals."
    )


def _render_rates(answer: Answer) -> str:
    """Return the second card: rates to type, what would make them surer, what is not known."""
    parts = []
    if answer.target is not None:
        rows = "".join(
            f"<tr><th scope=row>{escape(row.name)}</th><td>{_render_rate(row)}</td>"
            f"<td>{escape(row.factor) or '–'}</td><td>{escape(row.price) or '–'}</td>"
            f"{_render_cell(row.verdict)}</tr>"
            for row in answer.rates
        )
        parts.append(
            f"<h2>Which learning rate at width {words.say_width(answer.target)}?</h2>"
            "<div class=scroll><table><thead><tr><th></th><th>type this into the optimizer</th>"
            "<th>known to a factor of</th><th>if wrong, at most</th><th></th></tr></thead>"
            f"<tbody>{rows}</tbody></table></div>"
            f"<p class=key>{escape(answer.reach)} <code>hptransfer recommend … --width N</code> "
            "answers for another.</p>"
        )
    if answer.surer:
        parts.append(
            f"<h2>What would make this surer?</h2>{_list(answer.surer, 'answers')}<p class=key>"
            "<code>hptransfer recommend … --write-next FILE</code> writes these trials for "
            "<code>hptransfer run</code>.</p>"
        )
    if answer.unknown:
        missing, known = answer.counts
        help_ = f" What would help: {answer.help_unknown}." if answer.help_unknown else ""
        parts.append(
            f"<h2>What it cannot say <small>({missing} of {known} numbers)</small></h2>"
            + _key(f"{', '.join(answer.unknown)}: {answer.why_unknown}{help_}")
        )
    return f"<div class=card>{''.join(parts)}</div>" if parts else ""


def _render_rate(row: RateRow) -> str:
    if not row.rates:
        return "no answer"
    lines = [f"{escape(who)} <b>{escape(rate)}</b>".strip() for who, rate in row.rates]
    return "<br>".join([*lines, *([f"<small>{escape(row.note)}</small>"] if row.note else [])])


def _list_evidence(source: ReportSource) -> list[tuple[str, str]]:
    """Return the headings and bodies of what the answer rests on."""
    fits, items = source.fits, source.recommendations
    widths = sorted({float(width) for width in fits.table.width})
    out = [
        (
            "Loss against learning rate",
            _embed(figures.draw_losses(fits.table, fits, [fit.data.rows for fit in fits.groups]))
            + _legend_widths(widths)
            + _key(
                "Dots: trials, which say their rate and seed under the mouse; dotted line: their "
                "mean; thick line: fitted basin over its window; diamond: optimum with its 90 % "
                "interval; × at the top edge: a trial diverged; triangle: a loss above the axis."
            ),
        ),
        (
            "Optimum and best loss against width",
            _embed([figures.draw_optima(fits, items), figures.draw_best_losses(fits, items)])
            + _legend_groups(source)
            + _key(
                "A level line: the rate transfers as it is. Diamonds: what is recommended, and the "
                "loss expected there, where the table predicts one. An open marker lies at the "
                "edge of the swept range: no optimum. Groups stand a little apart to show their "
                "intervals."
            ),
        ),
    ]
    results = words.list_results(fits, source.stability)
    out += [(table.title, _render_table(table)) for table in results if not table.minor]
    if drawn := figures.draw_curves(source.curves, fits):
        key = _key(
            "Losses of the batches at the swept rate nearest each optimum, a line a seed, which "
            "says its rate under the mouse."
        )
        out.append(("Loss against step", _embed(drawn) + _legend_widths(widths) + key))
    if items:
        advice = words.list_recommendations(items)
        out.append((advice.title, _render_table(advice)))
    minor = [*(table for table in results if table.minor), words.list_reasons(fits)]
    folded = "".join(_fold(table.title, _render_table(table)) for table in minor)
    out.append(("Notes", _list(words.list_notes(fits, source.notes)) + folded))
    if study := _render_study(source):
        out.append(("The study", study))
    return out


def _key(text: str) -> str:
    return f"<p class=key>{escape(text)}</p>"


def _render_table(table: words.ResultTable) -> str:
    """Return a table as HTML, what is to know of it below; "" without rows."""
    if not table.rows:
        return ""
    heads = (cell.partition(", ") for cell in table.head)
    head = "".join(
        f"<th scope=col>{escape(name)}{f' <small>{escape(unit)}</small>' * bool(unit)}</th>"
        for name, _, unit in heads
    )
    body = "".join(
        f"<tr><th scope=row>{escape(str(name))}</th>{''.join(map(_render_cell, cells))}</tr>"
        for name, *cells in table.rows
    )
    return (
        f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        f"</div>{_key(table.key) if table.key else ''}"
    )


def _render_cell(cell: str | Estimate) -> str:
    """Return a table cell: text, or a value, its interval below, and what to know about it."""
    if isinstance(cell, str):
        kind = f"verdict-{cell}" if cell in _VERDICTS else "words" * (len(cell) > _LONG_TEXT)
        return f"<td{f' class={kind}' * bool(kind)}>{escape(cell)}</td>"
    brief = words.shorten(cell)
    if not words.say_value(cell):
        return f"<td class=weak>{escape(words.say(brief))}</td>"
    parts = [escape(words.say_value(cell))]
    if interval := words.say_interval(cell):
        parts.append(f"<small>{escape(interval)}</small>")
    if status := words.say_status(brief):
        parts.append(f"<small class=weak>{escape(status)}</small>")
    return f"<td>{'<br>'.join(parts)}</td>"


def _legend_widths(widths: Sequence[float]) -> str:
    colors = figures.color_widths(widths)
    return figures.render_legend(
        [f"width {words.say_width(w)}" for w in widths], [colors[w] for w in widths]
    )


def _legend_groups(source: ReportSource) -> str:
    names = source.answer.names
    return figures.render_legend(names, [figures.color_group(k) for k in range(len(names))])


def _render_check(check: Mapping[str, Any]) -> str:
    facts = (
        f"widths {', '.join(map(words.say_width, check['widths']))} · {len(check['seeds'])} seed(s)"
        f" · {check['steps']} step(s) · tolerance ±{check['tolerance']:g}"
    )
    verdict = "<br>".join(escape(line) for line in str(check["verdict"]).splitlines())
    panels, legend = figures.draw_coordinates(check)
    return (
        f'<section><h1>{escape(_name(check))}</h1><p class="facts">{escape(facts)}</p>'
        f'<p class="summary">{verdict}</p>{_embed(panels)}{legend}'
        + _key(
            "Level: the module's outputs change by the same amount at every width. Grey: modules "
            "that pass. Means over seeds."
        )
        + f"{_render_table(_list_modules(check))}</section>"
    )


def _list_modules(check: Mapping[str, Any]) -> words.ResultTable:
    """Return a coordinate check's modules: slopes with their intervals, and their verdicts."""
    rows = []
    for module in check["modules"]:
        # Of a readout what its own update adds is judged.
        judged = module.get("own_change") or module["change"]
        slopes = (_read_slope(each) for each in (judged, module["init"], module["final"]))
        verdict = "pass" if module["passed"] else f"fail: {module['reason']}"
        rows.append([module["name"], module["kind"], *slopes, verdict])
    head = ["module", "type", "slope of the change", "of the output at init", "at the end",
            "verdict"]  # fmt: skip
    key = (
        "Slopes of ln(RMS) against ln(width); small print is the 90 % interval. A readout's change "
        "is what its own update adds. µP's logits are expected to go as width^−1/2 at init."
    )
    return words.ResultTable("Modules", head, rows, key)


def _read_slope(document: Mapping[str, Any]) -> Estimate:
    numbers = {key: value for key, value in document.items() if key != "reason"}
    words = document.get("reason")
    return Estimate(**numbers, reasons=(Reason("text", text=words),) if words else ())


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
        rows = [*_flatten(settings)]
        parts.append(
            _fold(heading, _render_table(words.ResultTable(heading, ["setting", "value"], rows)))
        )
    return "".join(parts)


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield the values of nested settings, each after its dotted key."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flatten(item, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list | tuple) and any(isinstance(each, Mapping) for each in value):
        for index, item in enumerate(value):
            yield from _flatten(item, f"{prefix}[{index}]")
    else:
        items = value if isinstance(value, list | tuple) else [value]
        yield prefix, ", ".join(f"{v:.6g}" if isinstance(v, float) else str(v) for v in items)


def _fold(heading: str, body: str) -> str:
    return f"<details><summary>{heading}</summary>{body}</details>" if body else ""


def _embed(panels: Sequence[Panel], kind: str = "") -> str:
    """Return panels side by side, as many to a row as fit the screen."""
    drawn = "".join(f"<div>{panel.render()}</div>" for panel in panels)
    return f'<div class="panels {kind}">{drawn}</div>'
