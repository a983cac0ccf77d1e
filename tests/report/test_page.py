"""The page: complete, closed, escaped, and drawn from the numbers."""

import html
import json
import math
import os
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from hptransfer.report import ReportSource, analyse, write_report
from hptransfer.report._figures import (
    color_group,
    color_widths,
    draw_best_losses,
    draw_gaps,
    draw_losses,
    draw_optima,
    find_loss_range,
)
from hptransfer.report._page import _render_table, render_page
from hptransfer.report._svg import Dot, Line, Panel, pad_range, ticks
from hptransfer.report.words import list_recommendations, say_rate
from hptransfer.stats import Estimate, LossTable
from hptransfer.tables import LoadedTable, LossCurve, TableNote

EVIL = "<script>alert('x')</script>"


class Reader(HTMLParser):
    """Tags, text, ids, and every address an element would load."""

    VOID = frozenset({"meta", "br", "link", "img", "path", "circle"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag != "script"
        found = dict(attrs)
        self.loads += [found[k] or "" for k in ("src", "href", "action", "srcset") if k in found]
        self.ids += [found["id"] or ""] if "id" in found else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in self.VOID

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def test_one_self_contained_page(tiny: ReportSource, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report([replace(tiny, damaged=("g.parquet: damaged",), notes=("a row left",))], str(path))
    page = path.read_text(encoding="utf-8")
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert len(page) < 400_000
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src" in page
    reader = read(page)
    # Links lead to places in the page, each of which is there.
    assert {link.removeprefix("#") for link in reader.loads} <= set(reader.ids)
    assert len(set(reader.ids)) == len(reader.ids)
    text = re.sub(r"\s+", " ", " ".join(reader.text))
    for expected in (
        "Is the embedding layer held back?", "Yes.", "Which learning rate at width 1024?",
        "type this into the optimizer", "if wrong, at most", "May the narrowest",
        "g.parquet: damaged", "a row left", "126 trials", "usable", "2.13.0", "rounds[0].n",
    ):  # fmt: skip
        assert expected in text, expected
    # The answer stands before the evidence.
    assert text.index("type this") < text.index("Loss against learning rate")


def test_text_from_users_is_escaped(studies) -> None:  # type: ignore[no-untyped-def]
    source = replace(
        studies(groups={EVIL: {}, "mup": {}}),
        title=EVIL,
        damaged=(EVIL,),
        notes=(EVIL,),
        settings={EVIL: EVIL, "config": {EVIL: [EVIL]}, "data": {"text": EVIL}},
    )
    items = [replace(item, because=EVIL) for item in source.recommendations]
    page = render_page([replace(source, recommendations=items)])
    assert "<script" not in page
    assert EVIL in "".join(read(page).text)


def test_several_sources_are_several_sections(tiny: ReportSource) -> None:
    page = render_page([replace(tiny, title="one"), replace(tiny, title="two")])
    assert page.count("<section ") == 2
    assert "<title>2 studies" in page
    ids = read(page).ids
    assert len(set(ids)) == len(ids)


def test_a_plain_table_has_no_study_part(tiny: ReportSource) -> None:
    page = render_page([replace(tiny, recommendations=(), settings={})])
    assert "The study" not in page
    assert "Which learning rate" not in page


def test_a_failed_write_leaves_nothing(tiny: ReportSource, tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    target.mkdir()
    with pytest.raises(OSError, match="directory"):
        write_report([tiny], target)
    assert list(tmp_path.iterdir()) == [target]


def dots(panels: list[Panel], shape: str) -> list[Dot]:
    return [m for p in panels for m in p.marks if isinstance(m, Dot) and m.shape == shape]


def test_every_trial_is_drawn_and_says_its_rate_and_seed(studies) -> None:  # type: ignore[no-untyped-def]
    source = studies(groups={"sp": {}, "sp+embd": {}}, noise=0.01, diverged=2.0**-6.5, seed=60)
    table = replace(source.fits.table, loss=source.fits.table.loss.copy())
    table.loss[np.flatnonzero(np.isfinite(table.loss))[0]] = 1e6
    rows = [fit.data.rows for fit in source.fits.groups]
    panels = draw_losses(table, source.fits, rows)
    assert [panel.title for panel in panels] == ["sp", "sp+embd"]
    low, high = find_loss_range(table, rows)
    assert low < np.nanmin(table.loss) < high < 1e6
    assert len(dots(panels, "cross")) == np.sum(~np.isfinite(table.loss)) > 0
    above = dots(panels, "triangle")
    assert len(above) == np.sum(np.isfinite(table.loss) & (table.loss > high))
    assert any(dot.title.endswith("1000000.0000 nats") for dot in above)
    assert len(dots(panels, "dot")) == np.sum(table.loss <= high)
    assert all(re.search(r"lr [\d.e-]+ \(2\^.*\), seed \d", d.title) for d in dots(panels, "dot"))
    bracketed = sum(b.bracketed for fit in source.fits for b in fit.basins)
    assert len(dots(panels, "diamond")) == bracketed


def test_a_table_of_diverged_trials_draws(tiny: ReportSource) -> None:
    dead = replace(tiny.fits.table, loss=np.full(len(tiny.fits.table), np.nan))
    rows = [tiny.fits.groups[0].data.rows]
    assert find_loss_range(dead, rows) == (0.0, 1.0)
    basin = replace(tiny.fits[0].basins[0], coefficients=(math.nan,) * 4, lr=Estimate(value=None))
    draw_losses(dead, [replace(tiny.fits[0], basins=(basin,))], rows)


def test_the_gap_is_drawn_with_its_interval(tiny: ReportSource) -> None:
    gap = Estimate(value=-0.1, low=-0.2, high=-0.05)
    colors = {"x": "#000", "y": "#000", "sp": "#111"}
    panel = draw_gaps({"x": {64.0: gap}, "y": {64.0: gap}}, "sp", colors)
    drawn = dots([panel], "dot")
    assert [(d.y, d.along) for d in drawn] == [(-0.1, (-0.2, -0.05))] * 2
    texts = re.findall(r'y="([\d.]+)" style=[^>]*>(\w+)<', panel.render())
    assert len(texts) == 3
    # Labels of equal lines stand apart.
    places = sorted(float(y) for y, _ in texts)
    assert min(np.diff(places)) > 10


def test_the_recommendation_is_drawn_at_its_width(tiny: ReportSource) -> None:
    optima = dots([draw_optima(tiny.fits, tiny.recommendations)], "diamond")
    assert [d.y for d in optima] == [item.lr.value for item in tiny.recommendations]
    assert [d.along for d in optima] == [(i.lr.low, i.lr.high) for i in tiny.recommendations]
    assert dots([draw_optima(tiny.fits)], "diamond") == []


def test_no_line_extrapolates_a_loss_that_the_table_refuses(tiny: ReportSource) -> None:
    def dashed(items) -> int:  # type: ignore[no-untyped-def]
        marks = draw_best_losses(tiny.fits, items).marks
        return sum(isinstance(m, Line) and bool(m.dash) for m in marks)

    known = [item.loss.status != "not identified" for item in tiny.recommendations]
    assert dashed(tiny.recommendations) == sum(known)
    refused = replace(tiny.recommendations[0].loss, status="not identified")
    assert dashed([replace(i, loss=refused) for i in tiny.recommendations]) == 0


def test_an_open_marker_is_no_optimum(studies) -> None:  # type: ignore[no-untyped-def]
    fits = studies(groups={"sp": {}}, drift=3.0, x_inf=-7.5, centre=-4.5, beta=0.9).fits
    inside = sum(b.bracketed for b in fits[0].basins)
    assert inside < 3
    assert len(dots([draw_optima(fits)], "open")) == 3 - inside


def test_axes_and_colours() -> None:
    assert len(set(color_widths([1, 2, 3]).values())) == 3
    assert len(color_widths([64])) == 1
    assert color_group(0) == color_group(8) != color_group(1)
    assert pad_range([]) == (0.0, 1.0)
    assert pad_range([math.nan, -1.0], log=True) == (0.5, 2.0)
    for values in ([3.0], [1.0, 5.0], [-2.0, 1e-3]):
        low, high = pad_range(values)
        assert low < min(values) <= max(values) < high
        places = [v for v, _ in ticks((low, high))]
        assert 2 <= len(places) <= 7
        assert low <= places[0] < places[-1] <= high + 1e-9
    assert [text for _, text in ticks((0.2, 1.1), log=True)] == ["2^−2", "2^−1", "2^0"]


def test_tables_of_nothing() -> None:
    assert _render_table(list_recommendations([])) == ""


def test_analyse_fits_once_and_recommends(lone_table: LossTable, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    from hptransfer.stats import _group_fit

    calls = []
    fit_group = _group_fit.fit_group
    monkeypatch.setattr(
        _group_fit, "fit_group", lambda *a, **kw: calls.append(1) or fit_group(*a, **kw)
    )
    note = TableNote(kind="repeated", values={"count": 2})
    found = analyse(LoadedTable(table=lone_table, settings={}, notes=(note,)))
    assert found.title == lone_table.source
    assert found.notes == ("2 repeated row(s) left out",)
    assert [item.width for item in found.recommendations] == [1024]
    assert "May the narrowest width's rate be kept" in render_page([found])
    assert len(calls) == 1


BROWSER = shutil.which("chromium")
#: What the page itself forbids: a script that measures it, in a copy without the policy.
PROBE = """<script>
  const boxes = s => [...document.querySelectorAll(s)].map(e => e.getBoundingClientRect());
  const low = s => Math.max(...boxes(s).map(box => box.bottom));
  const rgb = c => c.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const light = c => rgb(c).map(v => v / 255).map(
    v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4
  ).reduce((sum, v, k) => sum + v * [0.2126, 0.7152, 0.0722][k], 0);
  const style = getComputedStyle(document.body);
  const [ink, back] = [style.color, style.backgroundColor].map(light);
  parent.document.body.setAttribute("data-seen", JSON.stringify({
    wide: document.documentElement.scrollWidth, screen: window.innerWidth,
    gap: low(".panels.gap"), rate: low(".card tbody"), price: low(".card tbody td:nth-child(4)"),
    right: Math.max(...boxes("td, th, svg").map(box => box.right)),
    card: Math.max(...boxes(".card td, .card th").map(box => box.right)),
    folded: [...document.querySelectorAll("details table")].filter(
      e => !e.checkVisibility()).length,
    cut: [...document.querySelectorAll(".scroll")].filter(
      e => e.scrollWidth > e.clientWidth + 1).length,
    sideways: [...document.querySelectorAll(".card .scroll")].filter(
      e => e.scrollWidth > e.clientWidth + 1).length,
    back: back, contrast: (Math.max(ink, back) + 0.05) / (Math.min(ink, back) + 0.05)}));
</script></body>"""


def look(page: str, folder: Path, size: tuple[int, int]) -> dict[str, float]:
    """Open a page from disk with the network cut, and measure it; a console message is an error."""
    if BROWSER is None:
        # Where everything is to be tested the browser is part of it: .ci/run installs it.
        assert os.environ.get("CI") != "true", "chromium is not installed"
        pytest.skip("chromium is not installed")
    policy = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
    probed = html.escape(policy.sub("", page).replace("</body>", PROBE))
    path = folder / "probed.html"
    # A frame may be narrower than any window of the browser.
    path.write_text(
        f'<!doctype html><meta charset="utf-8"><body><iframe width="{size[0]}" height="{size[1]}" '
        f'style="border: 0" srcdoc="{probed}"></iframe></body>',
        encoding="utf-8",
    )
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
         "--proxy-server=127.0.0.1:9", "--window-size=2600,1300",
         f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", path.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr
    seen = re.search(r'data-seen="([^"]*)"', done.stdout)
    assert seen is not None
    found = json.loads(html.unescape(seen[1]))
    return {key: float(value) for key, value in found.items() if value is not None}


@pytest.fixture
def long_page(tiny: ReportSource) -> str:
    """A page of two studies, one with a name that no screen is wide enough for."""
    worst = [replace(item, verdict="unusable") for item in tiny.recommendations]
    return render_page([tiny, replace(tiny, title="a-name-" + "x" * 200, recommendations=worst)])


@pytest.mark.parametrize("size", [(1280, 800), (400, 800), (2500, 1200)])
def test_the_page_fits_the_screen(long_page: str, tmp_path: Path, size: tuple[int, int]) -> None:
    found = look(long_page, tmp_path, size)
    assert found["screen"] == size[0]
    assert found["wide"] <= found["screen"] + 1
    # Verdict and price are seen without scrolling.
    assert (found["card"] <= found["screen"], found["sideways"]) == (True, 0)
    assert found["contrast"] >= 7


def test_the_first_screen_holds_rate_gap_and_price(tiny: ReportSource, tmp_path: Path) -> None:
    found = look(render_page([tiny]), tmp_path, (1280, 800))
    assert max(found["gap"], found["rate"], found["price"]) <= 800


def test_the_page_reads_in_the_dark(long_page: str, tmp_path: Path) -> None:
    dark = long_page.replace("(prefers-color-scheme: dark)", "all")
    found = look(dark, tmp_path, (1280, 800))
    assert found["back"] < 0.05
    assert found["contrast"] >= 7


def test_no_column_is_cut_in_print_and_what_is_folded_is_printed(
    long_page: str, tmp_path: Path
) -> None:
    """A4 upright less its margins is 718 of the browser's pixels wide."""
    on_screen = look(long_page, tmp_path, (718, 800))
    assert min(on_screen["folded"], on_screen["cut"]) > 0
    printed = long_page.replace("@media print", "@media all")
    found = look(printed, tmp_path, (718, 800))
    assert max(found["right"], found["wide"]) <= 718
    assert found["cut"] == found["folded"] == 0


def test_the_page_opens_under_its_own_policy(tiny: ReportSource, tmp_path: Path) -> None:
    """Unchanged, it loads nothing and says nothing in the console."""
    if BROWSER is None:
        look("", tmp_path, (1, 1))
    page = tmp_path / "report.html"
    write_report([tiny], page)
    done = subprocess.run(
        [str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
         "--proxy-server=127.0.0.1:9", f"--user-data-dir={tmp_path / 'profile'}",
         "--enable-logging=stderr", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr
    assert "Which learning rate at width" in done.stdout


def test_loss_curves_are_drawn_where_they_are_stored(tiny: ReportSource) -> None:
    """Those at the swept rate nearest each optimum, a line a seed; no others, and none without."""
    assert "Loss against step" not in render_page([tiny])
    rates = {k: 2.0**k for k in (-9, -7, -5, -3)}
    curves = [
        LossCurve(
            group={"parameterization": "sp", "weight_decay": 0.0}, width=64, lr=lr, seed=seed,
            steps=(0, 5, 10), losses=(8.0, 4.0, 3.0),
        )
        for lr in rates.values() for seed in (0, 1)
    ]  # fmt: skip
    page = render_page([replace(tiny, curves=curves)])
    assert "Loss against step" in page
    titles = re.findall(r"<title>width 64, lr ([\d.]+), seed (\d)</title>", page)
    assert len(titles) == 2
    [sp] = [fit for fit in tiny.fits if fit.group["parameterization"] == "sp"]
    best = math.log2(sp.basins[0].lr.value or 1.0)
    nearest = min(rates, key=lambda k: abs(k - best))
    assert {lr for lr, _ in titles} == {say_rate(rates[nearest])}
    assert {seed for _, seed in titles} == {"0", "1"}


def test_several_sections_have_a_list_of_contents(tiny: ReportSource) -> None:
    assert "Contents" not in render_page([tiny])
    page = render_page([tiny, replace(tiny, title="second <one>")])
    found = read(page)
    targets = [load.removeprefix("#") for load in found.loads if load.startswith("#")]
    assert {"s0", "s1"} <= set(targets)
    assert set(targets) <= set(found.ids)
    assert '<a href="#s1">second &lt;one&gt;</a>' in page


def test_stability_is_shown_where_it_was_probed(study_file, tmp_path):
    from hptransfer.cli.main import main
    from study.training import complete

    grid = study_file.read_text().replace("log2_lr = [-7, -5, 6]", "log2_lr = [-9, -7, -5, -3, -1]")
    study_file.write_text(grid)
    complete(study_file, tmp_path / "plain")
    study_file.write_text(grid + "\n[probes]\nevery = 3\n")
    complete(study_file, tmp_path / "probed")
    for name, shown in (("plain", False), ("probed", True)):
        assert main(["report", str(tmp_path / name), "-o", str(tmp_path / "page.html")]) == 0
        page = (tmp_path / "page.html").read_text(encoding="utf-8")
        assert (">Stability</h2>" in page) == shown
