"""A joint fit to some cells of a group, with its misfit and its resamples.

Shape letters: C cells, N points, R resamples, W widths.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np

from hptransfer.stats.balance import balance, covariance_of
from hptransfer.stats.basins import BasinSet, Draws
from hptransfer.stats.cells import Bools, Cells, Floats
from hptransfer.stats.joint import fit_joint, refit_joint
from hptransfer.stats.joint_model import JointFit
from hptransfer.stats.judge import f_limit
from hptransfer.stats.misfit import LEVEL as MISFIT_LEVEL
from hptransfer.stats.misfit import Misfit, cell_variances, judge_misfit, rounding_of
from hptransfer.stats.noise import Noise, shared_covariance
from hptransfer.stats.results import Form

#: Level of the test that calls the model's shape wrong across the window where seed noise is
#: known. Far stricter than a misfit's own, since what follows costs most of what is known of γ,
#: and a misfit that seed noise could nearly hide is scatter like any other.
SHAPE_LEVEL = 1e-3


class Solvable(Protocol):
    """What a joint model must offer to be solved with its misfit and resamples."""

    @property
    def num_parameters(self) -> int:
        """Free parameters."""

    def predicted(self) -> Floats:
        """Losses of the fit's points in nats, shape (R, N)."""

    def jacobian(self) -> Floats:
        """Derivatives of the first solution's losses in its free parameters, shape (N, P)."""


Model = TypeVar("Model", bound=Solvable)


@dataclass(frozen=True, kw_only=True)
class Solution:
    """A joint fit to some cells: data of shape (N,), point fit, misfit, resamples (R, N)."""

    width: Floats
    x: Floats
    losses: Floats
    joint: JointFit
    misfit: Misfit
    samples: JointFit | None
    resampled: Floats | None


def solve_joint(
    cells: Cells,
    noise: Noise,
    draws: Draws,
    basins: BasinSet,
    points: Bools,
    *,
    form: Form,
    seed: int,
) -> Solution:
    """Fit the joint model to the cells `points` (C,) and to resamples of them."""
    starts = _starts(basins)
    width, x, losses = cells.width[points], cells.x[points], cells.mean[points]
    joint, misfit, samples, resampled = solve_points(
        cells,
        noise,
        draws,
        points,
        lambda weights: fit_joint(width, x, losses, weights, basins=starts, form=form),
        refit_joint,
        seed=seed,
    )
    return Solution(
        width=width,
        x=x,
        losses=losses,
        joint=joint,
        misfit=misfit,
        samples=samples,
        resampled=resampled,
    )


def solve_points(
    cells: Cells,
    noise: Noise,
    draws: Draws,
    points: Bools,
    fit: Callable[[Floats], Model],
    refit: Callable[[Model, Floats], Model],
    *,
    seed: int,
) -> tuple[Model, Misfit, Model | None, Floats | None]:
    """Fit any joint model to the cells `points` (C,), judge its misfit, and refit it to resamples.

    `fit` makes the point fit from weights (N,), `refit` refits it to losses (R, N). Returns the
    point fit, its misfit, the refits and the losses they saw; None where no noise is known.
    """
    losses = cells.mean[points]
    variance, rounding = cell_variances(cells, noise)[points], rounding_of(cells)
    shared = shared_covariance(cells, noise)[np.ix_(points, points)]
    weights = 1.0 / variance
    joint = fit(weights)
    misfit = _misfit_of(joint, losses, variance, noise, rounding, shared)
    if misfit.variance > 0.0:
        # Where the model's shape is wrong, no cell is as precise as its seeds say.
        weights = 1.0 / (variance + misfit.variance)
        joint = fit(weights)
        misfit = _misfit_of(joint, losses, variance, noise, rounding, shared)
    if not misfit.known:
        return joint, misfit, None, None
    extra = misfit.draw(draws.unit[:, points], cells.count[points], seed + 1)
    covariance = covariance_of(cells, noise, misfit)
    shaken = balance(
        draws.seeds[:, points] + extra,
        joint.jacobian(),
        weights,
        None if covariance is None else covariance[np.ix_(points, points)],
    )
    resampled = joint.predicted() + shaken
    return joint, misfit, refit(joint, resampled), resampled


def _starts(basins: BasinSet) -> Floats:
    """Width, x*, L* and C of the usable basins, shape (W, 4)."""
    return np.array(
        [[b.width, *b.coefficients[:3]] for b in basins.basins if b.width in basins.usable]
    )


def refit_form(joint: JointFit, losses: Floats, basins: BasinSet, form: Form) -> JointFit:
    """Fit another form of the optimum to the points, losses (N,) and weights of a joint fit."""
    width = np.exp(joint.data.t + joint.log_width)
    x = joint.data.x + joint.x_mean
    weights = joint.data.weights
    return fit_joint(width, x, losses, weights, basins=_starts(basins), form=form)


def near_minima(cells: Cells, basins: BasinSet) -> Bools:
    """Mark the cells that the basins were fitted to, shape (C,)."""
    marks = np.zeros(len(cells), dtype=bool)
    for width, fit in basins.fits.items():
        marks[cells.at(width)[fit.near.points]] = True
    return marks


def shape_fails(joint: Misfit, local: Misfit) -> bool:
    """Whether the joint model misses by more than the basins of single widths do.

    A misfit of shape is common to all widths, so that resampling it cell by cell says little
    about exponents; near the minima a parabola holds. Without seed noise the scatter of the
    basins stands in for it.
    """
    if not joint.only_source:
        return joint.chance < SHAPE_LEVEL and joint.sigma > local.sigma
    if joint.dof <= 0 or local.dof <= 0 or joint.sigma == 0.0:
        return False
    return joint.sigma**2 > f_limit(MISFIT_LEVEL, joint.dof, local.dof) * local.sigma**2


def _misfit_of(
    joint: Solvable,
    losses: Floats,
    variance: Floats,
    noise: Noise,
    rounding: float,
    shared: Floats,
) -> Misfit:
    """Judge the scatter of cell means (N,) around a joint fit."""
    return judge_misfit(
        losses - joint.predicted()[0],
        joint.jacobian(),
        variance,
        len(losses) - joint.num_parameters,
        noise,
        rounding=rounding,
        shared=shared,
    )
