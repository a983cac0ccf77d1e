"""Balancing resampled noise, so that few resamples give the spread of many.

Of R draws the mean is off by 1/√R and the spread by 1/√(2R), and a fixed seed makes that error
the same for every table of one layout. What moves a fit, to first order, is the noise along its
tangent: a few directions, in which the draws can be given exactly the mean of 0 and the
covariance they were drawn with (moment matching, a control variate with known moments). Beyond
the tangent the draws are left as they are.

Shape letters: C cells, R resamples, N points, K directions.
"""

import numpy as np

from hptransfer.stats._misfit import Misfit
from hptransfer.stats.cells import Cells, Floats
from hptransfer.stats.seed_noise import Noise, shared_covariance

#: Below this many degrees of freedom draws have tails too long for a covariance to describe.
LEAST_DOF = 10
#: Degrees of freedom that the shared part of the noise counts with at least, while it is small.
LEAST_SHARED_DOF = 5
#: The shared part of the variance up to which it is small.
SMALL_SHARE = 0.2
#: Resamples per direction that a covariance needs.
DRAWS_PER_DIRECTION = 4
#: Smallest ratio of variances between directions that is balanced.
SMALLEST_RATIO = 1e-12


def _heaviness(dof: int) -> float:
    """Variance of a Student variable of `dof` degrees of freedom."""
    return dof / (dof - 2.0)


def covariance_of(cells: Cells, noise: Noise, misfit: Misfit) -> Floats | None:
    """Return the covariance (C, C) that resampled cell means are drawn with, in nats².

    None where a part of it is known from fewer than `LEAST_DOF` degrees of freedom.
    """
    count = np.maximum(cells.count, 1).astype(np.float64)
    total = np.zeros((len(cells), len(cells)))
    if noise.known:
        shared_dof = max(noise.shared_dof, 1)
        if noise.dof < LEAST_DOF or (noise.shared > SMALL_SHARE and shared_dof < LEAST_DOF):
            return None
        shared_dof = max(shared_dof, LEAST_SHARED_DOF)
        own = (1.0 - noise.shared) * (noise.sigma / count) ** 2 * cells.count
        total += _heaviness(noise.dof) * np.diag(own)
        if noise.shared > 0.0:
            total += _heaviness(shared_dof) * shared_covariance(cells, noise)
        # The mean of exp(ξ·tilt) for the slope that the noise's trend was drawn with.
        total *= np.exp(0.125 * (noise.tilt[:, None] + noise.tilt[None, :]) ** 2)
    if misfit.sigma > 0.0:
        if misfit.dof < LEAST_DOF:
            return None
        per = count if misfit.only_source else np.ones(len(count))
        total += np.diag(misfit.sigma**2 * _heaviness(misfit.dof) / per)
    return total


def balance(draws: Floats, design: Floats, weights: Floats, covariance: Floats | None) -> Floats:
    """Give draws the mean 0 and their own covariance along the tangent of a fit.

    Parameters
    ----------
    draws : ndarray, shape (R, N)
        Noise of the points.
    design : ndarray, shape (N, K)
        What the fit, linearised, is free to move along; may be rank deficient.
    weights : ndarray, shape (N,)
        Weights of the fit.
    covariance : ndarray, shape (N, N), or None
        Of the draws; None leaves them as they are.

    Returns
    -------
    ndarray, shape (R, N)
    """
    if covariance is None:
        return draws
    root = np.sqrt(weights / weights.max())
    tangent = design * root[:, None]
    tangent = tangent / np.maximum(np.linalg.norm(tangent, axis=0), 1e-300)
    left, sizes, _ = np.linalg.svd(tangent, full_matrices=False)
    left = left[:, sizes > 1e-10 * sizes.max(initial=0.0)]
    project = left.T * root
    if len(draws) < DRAWS_PER_DIRECTION * max(len(project), 1):
        return draws
    found = draws @ project.T
    centred = found - found.mean(axis=0)
    wanted = project @ covariance @ project.T
    seen = centred.T @ centred / len(draws)
    moved = _transport(seen, wanted)
    if moved is None:
        return draws
    return np.asarray(draws + (centred @ moved - found) @ (left / root[:, None]).T)


def _transport(seen: Floats, wanted: Floats) -> Floats | None:
    """Return the smallest linear map from one covariance (K, K) to another; None if there is none.

    S^-½·(S^½·W·S^½)^½·S^-½, the optimal transport between normal distributions, which does not
    depend on the basis that the directions are written in.
    """

    def power(matrix: Floats, exponent: float) -> Floats | None:
        values, vectors = np.linalg.eigh(matrix)
        if values.min(initial=np.inf) <= SMALLEST_RATIO * values.max(initial=0.0):
            return None
        return np.asarray((vectors * values**exponent) @ vectors.T)

    up, down = power(seen, 0.5), power(seen, -0.5)
    if up is None or down is None:
        return None
    middle = power(up @ wanted @ up, 0.5)
    return None if middle is None else np.asarray(down @ middle @ down)
