from typing import Any

import pytest

from hptransfer.report import draw_coordinates
from hptransfer.report.page import render_page


def test_a_line_per_module_and_what_fails_in_colour(coordinates: dict[str, Any]) -> None:
    figure = draw_coordinates(coordinates)
    assert len(figure.data) == 2 * 3
    change = figure.data[0]
    assert tuple(change.x) == (32, 64, 128, 256)
    assert list(change.y) == pytest.approx([0.1, 0.05, 0.025, 0.0125])
    shown = [trace.name for trace in figure.data if trace.showlegend]
    assert shown == ["token", "passes"]
    colors = {trace.name: trace.line.color for trace in figure.data}
    assert colors["token"] != colors["passes"]


def test_what_is_not_finite_is_a_gap(coordinates: dict[str, Any]) -> None:
    coordinates["modules"][0]["rms_change"][-1][1] = [0.1, None]
    coordinates["modules"][0]["rms_change"][-1][2] = [0.1, 0.0]
    values = draw_coordinates(coordinates).data[0].y
    assert [value is None for value in values] == [False, True, True, False]


def test_the_page_shows_figure_table_and_verdict(coordinates: dict[str, Any]) -> None:
    page = render_page([], [coordinates, coordinates])
    assert "<title>2 coordinate checks" in page
    assert page.count("<section>") == 2
    assert 'id="coordinates-1"' in page
    assert "FAIL: 1 of 3<br>the embedding shrinks" in page
    assert "fail: change shrinks" in page
    assert "not identified: zero or not finite" in page
    assert "<b>sp" not in page
