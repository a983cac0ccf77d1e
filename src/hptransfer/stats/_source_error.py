"""Compute E and E_out as their source defines them: how well one joint model fits every width.

    L(n, x) = L*(n) + ½·C(n)·(u² + skew·u³),  u = x − x*(n)
    L*(n) = L∞ + A·n^-α,  C(n) = C₀·n^γ
    x*(n) = x∞ + B·n^-β  (converging)  or  a − b·ln n  (power)

fitted by least squares to the means over seeds of all points whose loss is within the window of
their width's best (Kalra & Barkeshli 2026). E is the mean squared residual, E_out that at the
widest width of the fit to all others. Nothing else comes from this fit.

It is solved in t = ln(n / geometric mean) with X = L*(0) − L∞, c = ln C(0), q = x*(0) and
G = −dx*/dt(0), so that L* = L∞ + X·e^(−αt) and x* = q + G·h(β, t), h(k, t) = (e^(−kt) − 1)/k: the
power form is the limit β → 0, bounds are those of single parameters, and shifts of x and scalings
of n and L leave the problem as it is.

Shape letters: S starts, R draws, N points, P parameters, W widths.
"""

from typing import NamedTuple

import numpy as np

from hptransfer.stats._power_laws import EXPONENT_BOUNDS
from hptransfer.stats.estimate import Estimate, f_limit, judge, refuse
from hptransfer.stats.loss_table import Bools, Floats
from hptransfer.stats.minima import Minima
from hptransfer.stats.reasons import Reason, Reasons
from hptransfer.stats.results import Form

LIMIT, EXCESS, ALPHA, LOG_C, GAMMA, Q, G, BETA, SKEW = range(9)

#: Widths that the joint model needs, and those that a fit without the widest does.
WIDTHS_FOR_JOINT = 3
WIDTHS_FOR_OUT = WIDTHS_FOR_JOINT + 1
#: Level of the test that keeps the skew.
_SKEW_LEVEL = 0.05
_ALPHA_STARTS = (0.15, 0.5, 1.2)
_BETA_STARTS = (0.2, 0.7, 1.8)
#: Bounds of the parameters, scaled; L∞ ≥ 0 too.
_LOWER = np.array(
    [-np.inf, 0.0, EXPONENT_BOUNDS[0], -30.0, -3.0, -1e6, -1e6, EXPONENT_BOUNDS[0], -1e6]
)
_UPPER = np.array([1e6, 1e6, EXPONENT_BOUNDS[1], 30.0, 3.0, 1e6, 1e6, EXPONENT_BOUNDS[1], 1e6])
#: Steps of the solver at most, and the gain, as a share of the cost, at which it ends.
_MOST_STEPS, _TOLERANCE = 200, 1e-14
#: Draws of the scatter behind the intervals.
_NUM_DRAWS = 200


def power_law(k: Floats, t: Floats) -> tuple[Floats, Floats]:
    """Return h(k, t) = (e^(−kt) − 1)/k and its derivative in k."""
    h = np.expm1(-k * t) / k
    return h, (-t * np.exp(-k * t) - h) / k


def predict(theta: Floats, t: Floats, x: Floats, form: Form) -> tuple[Floats, Floats]:
    """Return losses (S, N) of the joint model and their Jacobian (S, N, 9)."""
    limit, excess, alpha, log_c, gamma, q, g, beta, skew = (theta[:, k : k + 1] for k in range(9))
    decay = np.exp(-alpha * t)
    h, slope = (-t, np.zeros_like(t)) if form == "power" else power_law(beta, t)
    u = x - q - g * h
    half = 0.5 * np.exp(log_c + gamma * t)
    rise = half * u**2 * (1.0 + skew * u)
    steer = -half * u * (2.0 + 3.0 * skew * u)
    columns = (
        np.ones_like(rise), decay, -excess * t * decay, rise, t * rise,
        steer, steer * h, steer * g * slope, half * u**3,
    )  # fmt: skip
    return limit + excess * decay + rise, np.stack(columns, axis=2)


class _Solution(NamedTuple):
    """One solution in scaled units: parameters (9,), cost, and which are free, (9,)."""

    theta: Floats
    cost: float
    free: Bools

    @property
    def skewed(self) -> bool:
        """Whether it has a skew."""
        return bool(self.free[SKEW])


class _Points:
    """Points of the joint fit, (N,), scaled: t = ln n, x = ln(lr) and losses about their means."""

    def __init__(self, width: Floats, x: Floats, losses: Floats, form: Form) -> None:
        self.centre, self.middle = float(np.mean(np.log(np.unique(width)))), float(np.mean(x))
        self.mean, self.scale = float(np.mean(losses)), float(np.std(losses)) or 1.0
        self.t, self.x, self.form = np.log(width) - self.centre, x - self.middle, form
        self.y = (losses - self.mean) / self.scale

    def num_parameters(self, skewed: bool) -> int:
        """Free parameters."""
        return 8 - (self.form == "power") + skewed

    def solve(self, starts: Floats, *, skewed: bool, keep: Bools | None = None) -> _Solution:
        """Solve from `starts` (S, 9) for the points `keep`; the best of them.

        Levenberg-Marquardt (Marquardt 1963) with an active set: a parameter at a bound whose
        gradient points outward is held for that step.
        """
        keep = np.ones(len(self.t), dtype=bool) if keep is None else keep
        t, x, y = self.t[keep], self.x[keep], self.y[keep]
        free = np.ones(9, dtype=bool)
        free[BETA], free[SKEW] = self.form == "converging", skewed
        lower, upper = _LOWER.copy(), _UPPER
        lower[LIMIT] = -self.mean / self.scale
        theta = np.where(free | (np.arange(9) == BETA), np.clip(starts, lower, upper), 0.0)
        losses, slope = predict(theta, t, x, self.form)
        residual = losses - y
        cost = np.sum(residual**2, axis=1)
        damping, quiet = np.full(len(theta), 1e-3), np.zeros(len(theta), dtype=np.int64)
        for _ in range(_MOST_STEPS):
            gradient = np.einsum("rnp,rn->rp", slope, residual)
            normal = np.matmul(slope.transpose(0, 2, 1), slope)
            diagonal = np.einsum("rpp->rp", normal)
            floor = 1e-12 * diagonal.max(axis=1, keepdims=True) + 1e-300
            held = ~free | ((theta <= lower) & (gradient > 0.0))
            held |= (theta >= upper) & (gradient < 0.0)
            system = normal + np.eye(9) * (damping[:, None] * diagonal + floor)[:, None, :]
            system = np.where(held[:, :, None] | held[:, None, :], np.eye(9), system)
            step = np.linalg.solve(system, np.where(held, 0.0, gradient)[:, :, None])[:, :, 0]
            tried = np.where(free, np.clip(theta - step, lower, upper), theta)
            losses, jacobian = predict(tried, t, x, self.form)
            moved = np.sum((losses - y) ** 2, axis=1)
            better = moved < cost
            quiet = np.where(better & (cost - moved <= _TOLERANCE * cost), quiet + 1, 0)
            took = better[:, None]
            theta, residual = np.where(took, tried, theta), np.where(took, losses - y, residual)
            slope, cost = np.where(better[:, None, None], jacobian, slope), np.fmin(moved, cost)
            damping = np.clip(np.where(better, 0.2, 6.0) * damping, 1e-12, 1e14)
            if np.all((quiet >= 2) | (damping >= 1e12) | (cost <= 0.0)):
                break
        best = int(np.argmin(cost))
        found = theta[best]
        return _Solution(found, float(cost[best]), free & (found > lower) & (found < upper))

    def tangent(self, found: _Solution) -> tuple[Floats, Floats]:
        """Losses (N,) of a solution, and their derivatives in what is free, (N, P)."""
        losses, full = predict(found.theta[None], self.t, self.x, self.form)
        return losses[0], full[0][:, found.free]


def _start(points: _Points, minima: Minima) -> Floats:
    """Starts (S, 9) from the minima's x*, L* and C."""
    ok = minima.found
    t, x_star = np.log(minima.size[ok]) - points.centre, minima.x[ok] - points.middle
    best = (minima.loss[ok] - points.mean) / points.scale
    log_c = np.log(minima.curvature[ok] / points.scale)

    def line(h: Floats, y: Floats) -> Floats:
        design = np.stack([h, np.ones_like(h)], axis=1)
        return np.asarray(np.linalg.lstsq(design, y, rcond=None)[0], dtype=np.float64)

    out, tilt = [], line(t, log_c)
    for alpha in _ALPHA_STARTS:
        level = line(np.expm1(-alpha * t) / alpha, best)
        for beta in _BETA_STARTS if points.form == "converging" else (1.0,):
            h = -t if points.form == "power" else np.expm1(-beta * t) / beta
            drift = line(h, x_star)
            excess = max(level[0], 0.0) / alpha
            out.append(
                [level[1] - excess, excess, alpha, tilt[1], tilt[0], drift[1], drift[0], beta, 0.0]
            )
    return np.array(out, dtype=np.float64)


def measure_errors(
    width: Floats,
    x: Floats,
    losses: Floats,
    minima: Minima,
    *,
    form: Form,
) -> tuple[dict[str, Estimate], float, int]:
    """Estimate E and E_out, in nats²; their intervals are those of scatter as large as was found.

    Parameters
    ----------
    width, x, losses : ndarray, shape (N,)
        Width, ln(lr) and mean loss of the points in the window, of widths with a minimum.
    minima : Minima
        Starting points.
    form : Form
        Form of the optimum.

    Returns
    -------
    dict of str to Estimate
        ``E`` and ``E_out``.
    float, int
        Standard deviation of the residuals, in nats, and its degrees of freedom.
    """
    points = _Points(width, x, losses, form)
    found = points.solve(_start(points, minima), skewed=False)
    spare = len(losses) - points.num_parameters(True)
    if spare >= 1 and found.cost > len(losses) * 1e-18:
        seeds = np.tile(found.theta, (3, 1))
        seeds[:, SKEW] = [0.0, 0.2, -0.2]
        bent = points.solve(seeds, skewed=True)
        if found.cost - bent.cost > f_limit(_SKEW_LEVEL, 1, spare) * bent.cost / spare:
            found = bent
    predicted, tangent = points.tangent(found)
    left = points.y - predicted
    freedom = len(left) - tangent.shape[1]
    sigma = float(np.sqrt(np.sum(left**2) / freedom)) if freedom > 0 else 0.0
    drawn: Floats | None = None
    if freedom > 0:
        drawn = sigma * np.random.default_rng([0, 7]).standard_normal((_NUM_DRAWS, len(left)))
    problem: Reasons = ()
    if len(losses) <= points.num_parameters(found.skewed):
        sizes = {"points": len(losses), "parameters": points.num_parameters(found.skewed)}
        problem = (Reason("no_residual", **sizes),)
    residuals = None
    if drawn is not None:
        # What a refit would leave of the scatter, to first order.
        span = np.linalg.qr(tangent)[0]
        residuals = np.mean((drawn - (drawn @ span) @ span.T) ** 2, axis=1)
    out = {
        "E": _square_error(float(np.mean(left**2)), residuals, points.scale, problem=problem),
        "E_out": _leave_out(points, found, drawn, width),
    }
    return out, points.scale * sigma, freedom


def _leave_out(points: _Points, found: _Solution, drawn: Floats | None, width: Floats) -> Estimate:
    """Refit without the widest width and score the fit there."""
    widths = np.unique(width)
    if len(widths) < WIDTHS_FOR_OUT:
        return refuse(Reason("few_widths_out", needed=WIDTHS_FOR_OUT, found=len(widths)))
    out = width == widths[-1]
    if int(np.sum(~out)) < points.num_parameters(found.skewed):
        return refuse(Reason("few_points_out"))
    starts = np.tile(found.theta, (3, 1))
    for k in (1, 2):
        starts[k, ALPHA], starts[k, BETA] = _ALPHA_STARTS[k - 2], _BETA_STARTS[k - 2]
    again = points.solve(starts, skewed=found.skewed, keep=~out)
    predicted, tangent = points.tangent(again)
    left = (points.y - predicted)[out]
    misses = None
    if drawn is not None:
        gain = np.linalg.pinv(tangent[~out]) @ drawn[:, ~out].T
        misses = np.mean((drawn[:, out] - (tangent[out] @ gain).T) ** 2, axis=1)
    return _square_error(float(np.mean(left**2)), misses, points.scale)


def _square_error(
    value: float, drawn: Floats | None, scale: float, *, problem: Reasons = ()
) -> Estimate:
    """Judge a mean squared error, in units of `scale`², by the half-width of its root in nats."""
    roots = None if drawn is None else scale * np.sqrt(drawn)
    root = judge(scale * float(np.sqrt(value)), roots, "error", problem=problem)
    return root.transform(lambda end: end**2)
