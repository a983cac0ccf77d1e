"""Transfer regret: what a small width's optimal learning rate costs at a larger one.

It comes from the basins and the measured losses alone, so it holds where the joint model does
not. Shape letters: R resamples, L learning rates of a width.
"""

from typing import NamedTuple

import numpy as np

from hptransfer.stats.basins import BasinSet
from hptransfer.stats.cells import Cells, Floats
from hptransfer.stats.estimate import Estimate
from hptransfer.stats.judge import judge, refuse


class Price(NamedTuple):
    """A price in nats, and its resamples (R,), NaN where one failed; None where there is none."""

    estimate: Estimate
    drawn: Floats | None


def price_transfer(cells: Cells, basins: BasinSet) -> dict[float, Price]:
    """Price, at each usable width, the optimum of the narrowest usable width, in nats.

    Within the points that a width's basin was fitted to, the price is the basin's curve above
    its minimum; beyond them it is interpolated linearly between the measured means, which on a
    convex loss errs on the high side.

    Returns
    -------
    dict of float to Price
        By width, ascending; the narrowest itself has price 0 and is included.
    """
    usable = basins.usable
    if not usable:
        return {}
    source = usable[0]
    x_point = float(_point(basins, source)[0])
    drawn = basins.samples.get(source)
    none = None if drawn is None else np.zeros(len(drawn))
    out = {source: Price(Estimate(value=0.0, low=0.0, high=0.0), none)}
    for width in usable[1:]:
        point = _point(basins, width)
        local = basins.samples.get(width)
        rows = cells.at(width)
        clean = rows[cells.clean[rows]]
        x, mean = cells.x[clean], cells.mean[clean]
        bad = cells.x[rows][cells.diverged[rows] > 0]
        beyond = float(bad[bad > point[0]].min()) if np.any(bad > point[0]) else np.inf
        if x_point >= beyond:
            said = "a trial diverged at that learning rate or below it"
            out[width] = Price(refuse(said), None)
            continue
        if not x[0] <= x_point <= x[-1]:
            said = "that learning rate lies outside those measured at this width"
            out[width] = Price(refuse(said), None)
            continue
        ends = (float(basins.fits[width].x[0]), float(basins.fits[width].x[-1]))
        value = _price(np.array([x_point]), point[None, :], x, mean, ends)[0]
        samples = None
        if drawn is not None and local is not None:
            samples = _price(drawn[:, 0], local, x, mean, ends)
        out[width] = Price(judge(float(value), samples, "regret"), samples)
    return out


def _point(basins: BasinSet, width: float) -> Floats:
    basin = next(b for b in basins.basins if b.width == width)
    return np.array(basin.coefficients)


def _price(x0: Floats, basin: Floats, x: Floats, mean: Floats, ends: tuple[float, float]) -> Floats:
    """Loss at x0 (R,) above each minimum of `basin` (R, 4), in nats, shape (R,)."""
    u = x0 - basin[:, 0]
    local = 0.5 * basin[:, 2] * u**2 + basin[:, 3] * u**3
    # np.interp maps NaN to NaN, so that failed resamples stay failed.
    measured = np.interp(x0, x, mean) - basin[:, 1]
    inside = (x0 >= ends[0]) & (x0 <= ends[1])
    price = np.where(inside, local, measured)
    return np.where(np.isfinite(price), np.maximum(price, 0.0), np.nan)
