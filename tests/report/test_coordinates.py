from typing import Any

import pytest

from hptransfer.report._figures import draw_coordinates
from hptransfer.report._page import _list_modules, _render_table, render_page
from hptransfer.report._svg import Line


def lines(document: dict[str, Any]) -> list[Line]:
    panels, _ = draw_coordinates(document)
    return [mark for mark in panels[0].marks if isinstance(mark, Line)]


def test_a_line_per_module_and_what_fails_in_colour(coordinates: dict[str, Any]) -> None:
    panels, legend = draw_coordinates(coordinates)
    assert len(panels) == 2
    *passing, token = lines(coordinates)
    assert len(passing) == 2
    assert [x for x, _ in token.points] == [32, 64, 128, 256]
    assert [y for _, y in token.points] == pytest.approx([0.1, 0.05, 0.025, 0.0125])
    assert token.color not in {line.color for line in passing}
    assert "token" in legend
    assert "passes" in legend


def test_what_is_not_finite_is_a_gap(coordinates: dict[str, Any]) -> None:
    coordinates["modules"][0]["rms_change"][-1][1] = [0.1, None]
    coordinates["modules"][0]["rms_change"][-1][2] = [0.1, 0.0]
    assert [x for x, _ in lines(coordinates)[-1].points] == [32, 256]


def test_a_readout_s_slope_is_that_which_is_judged(coordinates: dict[str, Any]) -> None:
    coordinates["modules"][2]["own_change"] = {"value": -0.43, "low": -0.44, "high": -0.42}
    coordinates["modules"][1]["own_change"] = None
    shown = _render_table(_list_modules(coordinates))
    assert "[−0.440, −0.420]" in shown
    assert shown.count("[−0.010, 0.010]") == 3  # at init of both, and the change of the other


def test_the_page_shows_figure_table_and_verdict(coordinates: dict[str, Any]) -> None:
    page = render_page([], [coordinates, coordinates])
    assert "<title>2 coordinate checks" in page
    assert page.count("<section ") == 2
    assert "FAIL: 1 of 3<br>the embedding shrinks" in page
    assert "fail: change shrinks" in page
    assert "not identified: zero or not finite" in page
    assert "<b>sp" not in page
