"""Misfit: scatter around a fit beyond what seed noise explains.

Shape letters: C cells, N points of a fit, P parameters, R resamples.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import special

from hptransfer.stats.cells import Cells, Floats, Ints
from hptransfer.stats.seed_noise import Noise

#: Level of the test that calls a misfit.
LEVEL = 0.01


@dataclass(frozen=True, kw_only=True)
class Misfit:
    """Scatter around a fit beyond what seed noise explains.

    Attributes
    ----------
    sigma : float
        Its standard deviation for a cell in nats; 0 if seed noise suffices. Where no seed noise
        is known: the standard deviation of one trial.
    dof : int
        Degrees of freedom of the residuals.
    only_source : bool
        True when no seed noise is known, so that the scatter is all there is to judge by.
    chance : float
        With which seed noise alone would scatter as much; 1 where no seed noise is known.
    """

    sigma: float
    dof: int
    only_source: bool
    chance: float = 1.0

    @property
    def known(self) -> bool:
        """Whether there is any measure of noise."""
        return not self.only_source or self.dof > 0

    @property
    def variance(self) -> float:
        """Variance in nats² that a cell's mean has beyond its seed noise; 0 if none is known."""
        return 0.0 if self.only_source else self.sigma**2

    def draw(self, unit: Floats, count: Ints, seed: int) -> Floats:
        """Scale unit draws (R, C) for cells of `count` trials (C,).

        Student-like for few degrees of freedom.
        """
        if self.sigma == 0.0:
            return np.zeros_like(unit)
        rng = np.random.default_rng([seed, 3])
        scale = np.sqrt(self.dof / rng.chisquare(self.dof, len(unit)))
        each = np.sqrt(np.maximum(count, 1)) if self.only_source else np.ones(len(count))
        return np.asarray(self.sigma * scale[:, None] * unit / each)


def rounding_of(cells: Cells) -> float:
    """Size in nats below which residuals of these losses are rounding."""
    clean = cells.clean
    return 1e-12 * float(np.abs(cells.mean[clean]).max()) if np.any(clean) else 0.0


def cell_variances(cells: Cells, noise: Noise) -> Floats:
    """Variance of cell means that fits weigh them by, shape (C,).

    In nats², without what all learning rates of a width share, which no basin's shape sees.
    Where no noise is known, or it is rounding, 1/trials.
    """
    count = np.maximum(cells.count, 1)
    if not noise.known or float(noise.variance.max()) <= rounding_of(cells) ** 2:
        return np.asarray(1.0 / count)
    own = np.where(noise.unsettled, 1.0, 1.0 - noise.shared)
    # A shared fraction near 1 leaves nothing to weigh by; a thousandth is as good as nothing.
    return np.asarray(noise.variance * np.maximum(own, 1e-3) / count)


class _Scatter(NamedTuple):
    """Weighted squares around a fit, with the mean and variance that the noise gives them."""

    squares: float
    mean: float
    variance: float


def _scatter(
    residuals: Floats, design: Floats, variance: Floats, shared: Floats | None
) -> _Scatter:
    """Project residuals (N,) off a design (N, P), weighted by `variance` (N,).

    `shared` (N, N) is what the noise's covariance holds besides the diagonal `variance`.
    """
    root = 1.0 / np.sqrt(variance)
    x = design * root[:, None]
    x = x / np.maximum(np.linalg.norm(x, axis=0), 1e-300)
    left, sizes, _ = np.linalg.svd(x, full_matrices=False)
    left = left[:, sizes > 1e-10 * sizes.max(initial=0.0)]
    y = residuals * root
    squares = float(np.sum((y - left @ (left.T @ y)) ** 2))
    num = float(len(y) - left.shape[1])
    if shared is None:
        return _Scatter(squares, num, 2.0 * num)
    # Off the design, the whitened covariance is a projection plus the projected shared part.
    off = root[:, None] * shared * root
    off = off - left @ (left.T @ off)
    off = off - (off @ left) @ left.T
    more = float(np.trace(off))
    return _Scatter(squares, num + more, 2.0 * (num + 2.0 * more + float(np.sum(off**2))))


def judge_misfit(
    residuals: Floats,
    design: Floats,
    variance: Floats,
    dof: int,
    noise: Noise,
    *,
    rounding: float = 0.0,
    shared: Floats | None = None,
) -> Misfit:
    """Compare the residuals of a fit with the seed variance they should show.

    Without seed noise the residual variance is the noise. With it, an F test at `LEVEL` decides
    whether the residuals hold more; the excess is then the variance that, added to every cell's,
    makes the weighted residual squares as large as expected (Paule & Mandel 1982). What a
    width's learning rates share is in the expectation, by its mean and variance (Satterthwaite
    1946).

    Parameters
    ----------
    residuals : ndarray, shape (N,)
        In nats.
    design : ndarray, shape (N, P)
        What the fit, linearised, is free to move along.
    variance : ndarray, shape (N,)
        `cell_variances` of the points.
    dof : int
        Points less parameters.
    rounding : float
        Residuals below this, in nats, count as none.
    shared : ndarray, shape (N, N), or None
        `noise.shared_covariance` of the points; None where no noise is shared.
    """
    if dof <= 0:
        return Misfit(sigma=0.0, dof=0, only_source=not noise.known)
    silent = noise.known and float(noise.variance.max()) <= rounding**2
    if not noise.known or silent:
        # The variances are 1/trials here.
        found = _scatter(residuals, design, variance, None).squares / dof
        found = 0.0 if found <= rounding**2 else found
        if silent:
            found *= float(np.mean(variance))
        return Misfit(sigma=float(np.sqrt(found)), dof=dof, only_source=not noise.known)
    if noise.shared == 0.0:
        shared = None
    scatter = _scatter(residuals, design, variance, shared)
    ratio = scatter.squares / scatter.mean if scatter.mean > 0.0 else 0.0
    freedom = 2.0 * scatter.mean**2 / scatter.variance if scatter.variance > 0.0 else 1.0
    chance = float(special.fdtrc(freedom, noise.dof, ratio))
    worst = float(np.sum(residuals**2))
    if chance >= LEVEL or worst <= dof * rounding**2:
        return Misfit(sigma=0.0, dof=dof, only_source=False, chance=chance)
    low, high = np.log(float(variance.min()) * 1e-6), np.log(max(worst, float(variance.min())))
    for _ in range(40):
        middle = 0.5 * (low + high)
        again = _scatter(residuals, design, variance + float(np.exp(middle)), shared)
        low, high = (middle, high) if again.squares > again.mean else (low, middle)
    sigma = float(np.exp(0.25 * (low + high)))
    return Misfit(sigma=sigma, dof=dof, only_source=False, chance=chance)
