"""Fit the joint model to a group: starting points, solutions, misfit, refits to resamples.

Shape letters: C cells, K starts, N points, R problems or resamples, W widths.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import numpy as np

from hptransfer.stats._joint_model import (
    ALPHA,
    BETA,
    EXPONENT_BOUNDS,
    LOG_C,
    SKEW,
    D,
    Data,
    JointFit,
    P,
    predict,
)
from hptransfer.stats._least_squares import solve_batch
from hptransfer.stats._misfit import LEVEL as MISFIT_LEVEL
from hptransfer.stats._misfit import Misfit, cell_variances, judge_misfit, rounding_of
from hptransfer.stats.basin import BasinSet
from hptransfer.stats.cells import Bools, Cells, Floats
from hptransfer.stats.group_data import GroupData
from hptransfer.stats.identifiability import f_limit
from hptransfer.stats.resampling import balance, covariance_of
from hptransfer.stats.results import Form
from hptransfer.stats.seed_noise import Noise, shared_covariance

#: Level of the test that keeps the skew; one overlooked moves x* further than intervals know.
SKEW_LEVEL = 0.05
ALPHA_STARTS = (0.15, 0.5, 1.2)
BETA_STARTS = (0.2, 0.7, 1.8)


def _bounds() -> tuple[Floats, Floats]:
    lower, upper = np.full(9, -1e6), np.full(9, 1e6)
    for k, (low, high) in EXPONENT_BOUNDS.items():
        lower[k], upper[k] = low, high
    lower[D] = 0.0
    lower[LOG_C], upper[LOG_C] = -30.0, 30.0
    return lower, upper


def _solve(
    fit: JointFit,
    starts: Floats,
    losses: Floats,
    *,
    skewed: bool,
    max_steps: int,
    keep_alpha: bool = False,
) -> JointFit:
    """Solve from `starts` (R, K, 9) for `losses` (R, N); keep the best start of each problem.

    With `keep_alpha` each start's alpha stays.
    """
    num, several, _ = starts.shape
    lower, upper = _bounds()
    zero = -fit.loss_mean / fit.loss_scale
    scaled = (losses - fit.loss_mean) / fit.loss_scale
    frozen = np.zeros(9, dtype=bool)
    frozen[BETA] = fit.form == "power"
    frozen[SKEW] = not skewed
    frozen[ALPHA] = keep_alpha
    if not skewed:
        starts = starts.copy()
        starts[:, :, SKEW] = 0.0
    theta, cost = solve_batch(
        lambda p: predict(p, fit.data, fit.form, None),
        starts.reshape(-1, 9),
        np.repeat(scaled, several, axis=0),
        fit.data.weights,
        lower=lower,
        upper=upper,
        frozen=frozen,
        max_steps=max_steps,
    )
    pick = np.argmin(cost.reshape(num, several), axis=1)
    rows = np.arange(num)
    theta = theta.reshape(num, several, 9)[rows, pick]
    cost = cost.reshape(num, several)[rows, pick]
    floored = theta[:, P] - theta[:, D] / theta[:, ALPHA] < zero
    if np.any(floored):
        frozen[D] = True
        lower[P] = zero
        again = theta[floored]
        if not keep_alpha:
            slope = again[:, D] / np.maximum(again[:, P] - zero, 1e-12)
            again[:, ALPHA] = np.clip(slope, *EXPONENT_BOUNDS[ALPHA])
        again, cost[floored] = solve_batch(
            lambda p: predict(p, fit.data, fit.form, zero),
            again,
            scaled[floored],
            fit.data.weights,
            lower=lower,
            upper=upper,
            frozen=frozen,
            max_steps=max_steps,
        )
        again[:, D] = again[:, ALPHA] * (again[:, P] - zero)
        theta[floored] = again
    return replace(fit, theta=theta, cost=cost, floored=floored, skewed=skewed)


def _first_guesses(t: Floats, basins: Floats, form: Form) -> Floats:
    """Starts (K, 9) from basins (W, 4) of t and scaled (x*, L*, C)."""
    x_star, best, log_c = basins.T
    out = []

    def line(h: Floats, y: Floats) -> Floats:
        design = np.stack([h, np.ones_like(h)], axis=1)
        return np.asarray(np.linalg.lstsq(design, y, rcond=None)[0], dtype=np.float64)

    tilt = line(t, log_c)
    for alpha in ALPHA_STARTS:
        level = line(np.expm1(-alpha * t) / alpha, best)
        for beta in BETA_STARTS if form == "converging" else (1.0,):
            h = -t if form == "power" else np.expm1(-beta * t) / beta
            drift = line(h, x_star)
            out.append(
                [level[1], max(level[0], 0.0), alpha, tilt[1], tilt[0], drift[1], drift[0], beta, 0]
            )
    return np.array(out, dtype=np.float64)


def fit_joint(
    width: Floats,
    x: Floats,
    losses: Floats,
    weights: Floats,
    *,
    basins: Floats,
    form: Form,
) -> JointFit:
    """Fit the joint model to cell means.

    Parameters
    ----------
    width, x, losses, weights : ndarray, shape (N,)
        Width, ln(lr), mean loss in nats, and relative weight of each cell.
    basins : ndarray, shape (W, 4)
        Width, x*, L* and C of three or more widths' basins, for the starting points.
    form : Form
        Form of the optimum.

    Returns
    -------
    JointFit
        With R = 1. The shared skew is kept when an F test at `SKEW_LEVEL` asks for it.
    """
    log_width = float(np.mean(np.log(basins[:, 0])))
    x_mean = float(np.mean(x))
    loss_mean, loss_scale = float(np.mean(losses)), float(np.std(losses))
    data = Data(np.log(width) - log_width, x - x_mean, weights)
    blank = JointFit(
        theta=np.zeros((1, 9)),
        cost=np.zeros(1),
        floored=np.zeros(1, dtype=bool),
        form=form,
        skewed=False,
        log_width=log_width,
        x_mean=x_mean,
        loss_mean=loss_mean,
        loss_scale=loss_scale,
        data=data,
    )
    scaled = np.stack(
        [
            basins[:, 1] - x_mean,
            (basins[:, 2] - loss_mean) / loss_scale,
            np.log(basins[:, 3] / loss_scale),
        ],
        axis=1,
    )
    starts = _first_guesses(np.log(basins[:, 0]) - log_width, scaled, form)[None]
    plain = _solve(blank, starts, losses[None, :], skewed=False, max_steps=200)
    spare = len(losses) - plain.num_parameters - 1
    if spare < 1 or plain.cost[0] <= len(losses) * 1e-18:
        return plain
    seeds = np.concatenate([plain.theta[:, None, :]] * 3, axis=1)
    seeds[0, :, SKEW] = [0.0, 0.2, -0.2]
    bent = _solve(blank, seeds, losses[None, :], skewed=True, max_steps=200)
    drop = float(plain.cost[0] - bent.cost[0])
    if drop > f_limit(SKEW_LEVEL, 1, spare) * float(bent.cost[0]) / spare:
        return bent
    return plain


def refit_joint(fit: JointFit, losses: Floats, *, keep: Bools | None = None) -> JointFit:
    """Refit to resampled losses (R, N), or to those of the points in `keep`, from a warm start.

    Besides the point fit, two starts with other exponents guard against local minima.
    """
    if keep is not None:
        data = Data(fit.data.t[keep], fit.data.x[keep], fit.data.weights[keep])
        fit = replace(fit, data=data)
        losses = losses[:, keep]
    starts = np.tile(fit.theta[:1, None, :], (len(losses), 3, 1))
    starts[:, 1, ALPHA], starts[:, 1, BETA] = ALPHA_STARTS[0], BETA_STARTS[0]
    starts[:, 2, ALPHA], starts[:, 2, BETA] = ALPHA_STARTS[2], BETA_STARTS[2]
    return _solve(fit, starts, losses, skewed=fit.skewed, max_steps=60)


def hold_alpha(fit: JointFit, losses: Floats, alpha: Floats) -> JointFit:
    """Refit each problem of `fit` to its losses (R, N) with alpha (R,) held, from a warm start."""
    starts = fit.theta[:, None, :].copy()
    starts[:, 0, ALPHA] = alpha
    return _solve(fit, starts, losses, skewed=fit.skewed, max_steps=60, keep_alpha=True)


def hold_loss_inf(fit: JointFit, losses: Floats, loss_inf: Floats) -> JointFit:
    """Refit each problem of `fit` to its losses (R, N) with L∞ (R,), in nats, held."""
    lower, upper = _bounds()
    frozen = np.zeros(9, dtype=bool)
    frozen[D] = True
    frozen[BETA] = fit.form == "power"
    frozen[SKEW] = not fit.skewed
    zero = (loss_inf - fit.loss_mean) / fit.loss_scale
    starts = fit.theta.copy()
    slope = starts[:, D] / np.maximum(starts[:, P] - zero, 1e-12)
    starts[:, ALPHA] = np.clip(slope, *EXPONENT_BOUNDS[ALPHA])
    # The variant of fixed L∞ has no use for D, whose place carries each problem's own zero.
    starts[:, D] = zero
    theta, cost = solve_batch(
        lambda p: predict(p, fit.data, fit.form, p[:, D : D + 1]),
        starts,
        (losses - fit.loss_mean) / fit.loss_scale,
        fit.data.weights,
        lower=lower,
        upper=upper,
        frozen=frozen,
        max_steps=60,
    )
    theta[:, D] = theta[:, ALPHA] * (theta[:, P] - zero)
    return replace(fit, theta=theta, cost=cost, floored=np.asarray(loss_inf <= 0.0))


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


def solve_joint(data: GroupData, basins: BasinSet, points: Bools, *, form: Form) -> Solution:
    """Fit the joint model to the cells `points` (C,) and to resamples of them."""
    cells = data.cells
    starts = _starts(basins)
    width, x, losses = cells.width[points], cells.x[points], cells.mean[points]
    joint, misfit, samples, resampled = solve_points(
        data,
        points,
        lambda weights: fit_joint(width, x, losses, weights, basins=starts, form=form),
        refit_joint,
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
    data: GroupData,
    points: Bools,
    fit: Callable[[Floats], Model],
    refit: Callable[[Model, Floats], Model],
) -> tuple[Model, Misfit, Model | None, Floats | None]:
    """Fit any joint model to the cells `points` (C,), judge its misfit, and refit it to resamples.

    `fit` makes the point fit from weights (N,), `refit` refits it to losses (R, N). Returns the
    point fit, its misfit, the refits and the losses they saw; None where no noise is known.
    """
    cells, noise, draws = data.cells, data.noise, data.draws
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
    extra = misfit.draw(draws.unit[:, points], cells.count[points], data.seed + 1)
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
