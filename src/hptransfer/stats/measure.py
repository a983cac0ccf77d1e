"""Measuring the seed noise of groups whose trials are paired by seed.

Shape letters: C cells.
"""

from collections.abc import Sequence

import numpy as np

from hptransfer.stats.cells import DEFAULT_WINDOW, Bools, Cells
from hptransfer.stats.neighbourhood import find_neighbourhood, sweep_of
from hptransfer.stats.noise import Noise, shared_fractions
from hptransfer.stats.trend import Trend, fit_trend

#: Which cells lie near the minima depends on which are unsettled, and the other way round.
MOST_ROUNDS = 4


def mark_neighbourhoods(cells: Cells, unsettled: Bools | None = None) -> Bools:
    """Mark the cells that any width's basin is fitted to, shape (C,)."""
    marks = np.zeros(len(cells), dtype=bool)
    loose = np.zeros(len(cells), dtype=bool) if unsettled is None else unsettled
    for width in cells.widths:
        rows = cells.at(width)
        marks[rows[find_neighbourhood(sweep_of(cells, rows, loose)).points]] = True
    return marks


def _measure(cells: Cells, window: float) -> tuple[Trend, Bools]:
    """Fit the trend of a group and mark the settled cells near its minima."""
    inside = cells.in_window(window)
    near = mark_neighbourhoods(cells)
    trend = fit_trend(cells, near, inside)
    for _ in range(MOST_ROUNDS):
        again = mark_neighbourhoods(cells, trend.unsettled)
        if np.array_equal(again, near):
            break
        near = again
        trend = fit_trend(cells, near, inside)
    return trend, near & ~trend.unsettled


def measure_noise(groups: Sequence[Cells], *, window: float = DEFAULT_WINDOW) -> list[Noise]:
    """Estimate the seed noise of groups whose trials are paired by seed, one `Noise` each."""
    measured = [_measure(cells, window) for cells in groups]
    trends = [trend for trend, _ in measured]
    near = [marks for _, marks in measured]
    _, common, _ = shared_fractions(groups, [trend.sigma for trend in trends], near)
    out = []
    for cells, trend, marks in zip(groups, trends, near, strict=True):
        shared, _, shared_dof = shared_fractions([cells], [trend.sigma], [marks])
        out.append(
            Noise(
                sigma=trend.sigma,
                dof=trend.dof,
                shared=shared,
                common=min(common, shared),
                shared_dof=shared_dof,
                variance=trend.variance,
                tilt=trend.tilt,
                unsettled=trend.unsettled,
            )
        )
    return out
