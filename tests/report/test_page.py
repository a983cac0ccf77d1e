import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from hptransfer.report import analyse, write_report
from hptransfer.report.figures import draw_best_losses, draw_optima
from hptransfer.report.page import render_page
from hptransfer.report.panels import draw_losses, find_loss_range, select
from hptransfer.report.style import color_group, color_widths, label
from hptransfer.report.tables import render_recommendations, render_settings
from hptransfer.stats import Estimate, LossTable
from hptransfer.tables import LoadedTable
from hptransfer.tables.notes import note

EVIL = "<script>alert('x')</script>"


class Reader(HTMLParser):
    """Tags, text outside scripts, and every address an element would load."""

    VOID = frozenset({"meta", "br", "link", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.scripts = 0
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [v or "" for k, v in attrs if k in ("src", "href", "action", "srcset")]
        self.scripts += tag == "script"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "script" not in self.open:
            self.text.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def test_one_self_contained_page(fit, source, settings, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    fits = [fit("sp", outside=[32.0]), fit("mup", reference="mup", gaps={32.0: Estimate(value=0)})]
    path = tmp_path / "report.html"
    write_report(
        [source(fits, settings=settings, damaged=("g.parquet: damaged",), notes=("a row left",))],
        path,
    )
    page = path.read_text(encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert page.count("plotly.js v") == 1
    reader = read(page)
    assert reader.loads == []
    assert "default-src 'none'" in page
    assert len(re.findall(r'"showSendToCloud":\s*false', page)) == 3
    # plotly.js, the page's own, and one for each figure.
    assert reader.scripts == 2 + 3
    text = " ".join(reader.text)
    for expected in (
        "tiny", "Does the learning rate transfer", "the reference", "not bracketed",
        "at the edge of the swept range", "g.parquet: damaged", "a row left", "sp, mup: a note",
        "Recommended at width 512", "risky", "it is far", "sweep.log2_lr", "-8, -7.5", "2.13.0",
        "unigram entropy 6.500 nats", "fp32", "rounds[0].n", "12 of them diverged",
    ):  # fmt: skip
        assert re.sub(r"\s+", " ", expected) in re.sub(r"\s+", " ", text), expected


def test_text_from_users_is_escaped(fit, source) -> None:  # type: ignore[no-untyped-def]
    fits = [fit(EVIL), fit("mup")]
    clean = read(render_page([source([fit("sp"), fit("mup")])])).scripts
    evil = source(
        fits,
        title=EVIL,
        damaged=(EVIL,),
        notes=(EVIL,),
        settings={EVIL: EVIL, "config": {EVIL: [EVIL]}, "data": {"text": EVIL}},
    )
    evil = replace(
        evil, recommendations=[replace(item, because=EVIL) for item in evil.recommendations]
    )
    page = render_page([evil])
    assert "<script>alert" not in page
    reader = read(page)
    assert reader.scripts == clean
    assert EVIL in "".join(reader.text)


def test_several_sources_are_several_sections(fit, source) -> None:  # type: ignore[no-untyped-def]
    page = render_page([source([fit()], title="one"), source([fit()], title="two")])
    assert page.count("plotly.js v") == 1
    assert page.count("<section>") == 2
    assert "<title>2 studies" in page
    names = re.findall(r'<div id="([^"]+)" class="plotly-graph-div"', page)
    assert len(set(names)) == len(names) == 6


def test_a_plain_table_has_no_study_part(fit, source) -> None:  # type: ignore[no-untyped-def]
    page = render_page([source([fit()], recommendations=())])
    assert "<h2>The study</h2>" not in page
    assert "Recommended" not in page


def test_a_failed_write_leaves_nothing(fit, source, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    target = tmp_path / "report.html"
    target.mkdir()
    with pytest.raises(OSError, match="directory"):
        write_report([source([fit()])], target)
    assert list(tmp_path.iterdir()) == [target]


def test_loss_panels(fit, table) -> None:  # type: ignore[no-untyped-def]
    fits = [fit("sp"), fit("mup"), fit("ntk", outside=[32.0]), fit("x")]
    losses = table(fits)
    figure = draw_losses(losses, fits)
    low, high = find_loss_range(losses)
    assert low < 4.0
    assert 5.0 < high < 7.0
    assert figure.layout.yaxis.range == (low, high)
    shown = [trace for trace in figure.data if trace.marker.symbol == "diamond"]
    assert len(shown) == 4 * 3 - 1
    crosses = [trace for trace in figure.data if trace.marker.symbol == "x-thin"]
    assert all(set(trace.y) == {high} for trace in crosses)
    above = [trace for trace in figure.data if trace.marker.symbol == "triangle-up-open"]
    assert any(1e6 in trace.customdata for trace in above)
    legend = [trace.name for trace in figure.data if trace.showlegend is not False]
    assert legend == ["width 32", "width 64", "width 128"]
    # Seeds of every group and width that lie inside the axis are there.
    dots = [trace for trace in figure.data if trace.opacity == 0.4]
    assert sum(len(trace.x) for trace in dots) == int(np.sum(losses.loss <= high))
    json.loads(figure.to_json())


def test_a_table_of_diverged_trials_draws(fit, table) -> None:  # type: ignore[no-untyped-def]
    fits = [fit()]
    losses = table(fits)
    dead = replace(losses, loss=np.full(len(losses), np.nan))
    flat = replace(fits[0].basins[0], coefficients=(np.nan,) * 4, lr=Estimate(value=None))
    assert find_loss_range(dead) == (0.0, 1.0)
    draw_losses(dead, [replace(fits[0], basins=(flat,))])
    lone = replace(losses, groups={})
    assert select(lone, replace(fits[0], group={})).all()
    low, high = find_loss_range(lone)
    assert low < high


def test_figures_against_width(fit) -> None:  # type: ignore[no-untyped-def]
    gaps = {64.0: Estimate(value=0.5, low=0.4, high=0.7)}
    fits = [fit("sp", outside=[32.0], gaps=gaps), fit("mup")]
    optima = draw_optima(fits)
    symbols = [trace.marker.symbol for trace in optima.data]
    assert symbols == ["circle", "circle-open", "circle"]
    solid = optima.data[0]
    np.testing.assert_allclose(solid.error_y.array, 0.01 * 0.05)
    assert optima.layout.yaxis.type == "log"
    assert "2<sup>−7</sup>" in optima.layout.yaxis.ticktext
    best = draw_best_losses(fits)
    gap = [trace for trace in best.data if trace.xaxis == "x2"]
    assert len(gap) == 1
    assert gap[0].error_y.array == pytest.approx((0.2,))
    assert gap[0].error_y.arrayminus == pytest.approx((0.1,))
    assert len(draw_best_losses([fit()]).layout.annotations) == 1
    assert not draw_optima([]).data


def test_style() -> None:
    assert len(set(color_widths([1, 2, 3]).values())) == 3
    assert len(color_widths([64])) == 1
    assert color_group(0) == color_group(8) != color_group(1)
    assert label("<b>" + "x" * 90) == "&lt;b&gt;" + "x" * 56 + "…"


def test_tables_of_nothing() -> None:
    assert render_settings({}) == ""
    assert "<tbody></tbody>" in render_recommendations([])


def test_analyse_fits_and_recommends() -> None:
    rng = np.random.default_rng(0)
    grid = [(n, k, s) for n in (32, 64, 128, 256) for k in range(-9, -2) for s in (0, 1)]
    width, log2_lr, seed = (np.array(column) for column in zip(*grid, strict=True))
    u = (log2_lr + 6) * np.log(2)
    loss = 3 + 8 / np.sqrt(width) + 0.05 * u**2 + rng.normal(0, 0.003, len(u))
    table = LossTable(
        width=width.astype(float), lr=2.0**log2_lr, loss=loss, seed=seed, source="t.csv"
    )
    found = analyse(LoadedTable(table=table, settings={}, notes=(note("repeated", count=2),)))
    assert found.title == "t.csv"
    assert found.notes == ("2 repeated row(s) left out",)
    assert [item.width for item in found.recommendations] == [1024]
    assert len(found.fits[0].basins) == 4
    page = render_page([found])
    assert "With all trials, yes." in page
    assert draw_optima(found.fits).data[-1].line.dash == "dot"
    assert draw_best_losses(found.fits).data[-1].line.dash == "dot"
