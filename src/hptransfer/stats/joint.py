"""Fitting the joint model of `joint_model`: starting points, solutions, refits to resamples.

Shape letters: R problems, K starts, N points, W widths.
"""

from dataclasses import replace

import numpy as np

from hptransfer.stats.cells import Bools, Floats
from hptransfer.stats.joint_model import (
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
from hptransfer.stats.judge import f_limit
from hptransfer.stats.least_squares import solve_batch
from hptransfer.stats.results import Form

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
