"""What a search sees of the finished trials: the fits and standard errors that a report gives."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hptransfer.stats.basins import BasinSet, draw, fit_basins
from hptransfer.stats.cells import Cells
from hptransfer.stats.judge import interval
from hptransfer.stats.measure import measure_noise
from hptransfer.stats.neighbourhood import Sweep, sweep_of
from hptransfer.stats.power import NORMAL_90

OCTAVE = float(np.log(2.0))

#: Resamples behind a standard error; its own error is then about 5 %.
NUM_RESAMPLES = 200


@dataclass(frozen=True, kw_only=True)
class SearchFit:
    """What the search sees of the finished trials.

    Attributes
    ----------
    sweeps : mapping of float to Sweep
        Cells by width.
    basins : BasinSet
        Basins with resamples.
    optima : mapping of float to (float, float)
        log2(lr*) by width and its standard error, a normal's of equal 90 % interval; NaN and inf
        where there is none.
    """

    sweeps: Mapping[float, Sweep]
    basins: BasinSet
    optima: Mapping[float, tuple[float, float]]


def fit_for_search(cells: Cells) -> SearchFit:
    """Fit the basins of one group's finished trials."""
    (noise,) = measure_noise([cells])
    basins = fit_basins(cells, noise, draw(cells, noise, num_resamples=NUM_RESAMPLES, seed=0))
    widths = cells.widths.tolist()
    return SearchFit(
        sweeps={w: sweep_of(cells, cells.at(w), noise.unsettled) for w in widths},
        basins=basins,
        optima={w: _optimum_at(w, basins) for w in widths},
    )


def _optimum_at(width: float, basins: BasinSet) -> tuple[float, float]:
    """Return log2(lr*) and its standard error: a normal's, of equal 90 % interval."""
    if width not in basins.usable:
        return float("nan"), float("inf")
    basin = next(each for each in basins.basins if each.width == width)
    optimum = basin.coefficients[0] / OCTAVE
    samples = basins.samples.get(width)
    if samples is None:
        return optimum, float("inf")
    x = samples[:, 0]
    if np.mean(np.isfinite(x)) < 0.5:
        return optimum, float("inf")
    low, high = interval(x)
    return optimum, (high - low) / (2.0 * NORMAL_90 * OCTAVE)
