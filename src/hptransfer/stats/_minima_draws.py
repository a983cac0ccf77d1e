"""Resample minima: how far noise, and what is not known of the basins' shape, would move them.

Shape letters: W sizes, N points, A axes, R resamples.
"""

from typing import NamedTuple

import numpy as np

from hptransfer.stats.loss_table import Floats
from hptransfer.stats.minima import Minima


class MinimaDraws(NamedTuple):
    """Resamples of minima; NaN at sizes without one.

    Attributes
    ----------
    x, loss, curvature : ndarray, shape (R, W)
    slopes : ndarray, shape (R, A)
        Of ln C.
    skew : ndarray, shape (R,)
    cubic : bool
        Whether the basins are cubics.
    """

    x: Floats
    loss: Floats
    curvature: Floats
    slopes: Floats
    skew: Floats
    cubic: bool = False


def resample_minima(
    minima: Minima,
    noise: Floats | None,
    unit: Floats,
    rng: np.random.Generator,
    least: Floats | float = 0.0,
) -> MinimaDraws | None:
    """Move a fit with its points and with the means of its priors, as if both were drawn again.

    To first order (randomised maximum likelihood: Oliver et al. 1996).

    Parameters
    ----------
    minima : Minima
        The fit.
    noise : ndarray, shape (R, N), or None
        What seeds make of the points, in nats; None where seeds measured nothing.
    unit : ndarray, shape (R, N)
        Standard normal draws, for what the points scatter beyond that.
    rng : Generator
        Draws the priors, and a noise that few points tell: apart for each group.
    least : ndarray, shape (N,), or float
        Variance in nats² that a point has at least.

    Returns
    -------
    MinimaDraws or None
        None where there is no minimum, or nothing to judge the noise by.
    """
    fit = minima.linear
    if fit is None:
        return None
    num, rows = len(unit), fit.basins.rows
    there = rows >= 0
    if noise is None and np.sum(there) <= 3 * len(fit.use):
        return None
    scale = np.where(there, fit.scale, 1.0)
    square = np.maximum(scale**2, np.broadcast_to(least, unit.shape[1:])[rows])
    error = unit[:, rows] * np.sqrt(np.maximum(square - fit.basins.variance, 0.0))
    if noise is not None:
        error = error + noise[:, rows]
    elif np.isfinite(fit.freedom):
        # Student-like where few points, and no prior, tell the noise.
        error = error * np.sqrt(fit.freedom / rng.chisquare(fit.freedom, num))[:, None, None]
    moved = np.zeros((num, *fit.problem.residual.shape))
    moved[:, :, :-1] = np.where(there, error / scale, 0.0)
    moved[:, :, -1] = rng.standard_normal(moved.shape[:2])
    doubt = np.sqrt(fit.basins.tight)
    doubt = doubt * rng.standard_normal((num, len(doubt)))
    own, shared = fit.step.move(fit.problem, moved, doubt)
    own = own * fit.stretch

    def put(values: Floats) -> Floats:
        out = np.full((num, len(minima.size)), np.nan)
        out[:, fit.use] = values
        return out

    grown = np.exp(np.clip(own[:, :, 2], -30.0, 30.0))
    return MinimaDraws(
        x=put(minima.x[fit.use] + own[:, :, 1]),
        loss=put(minima.loss[fit.use] + fit.basins.unit * own[:, :, 0]),
        curvature=put(minima.curvature[fit.use] * grown),
        slopes=minima.slopes + shared[:, 1:-1],
        skew=minima.skew + shared[:, -1],
        cubic=minima.cubic,
    )
