"""The joint model of the source: how well it fits every width, and what a grid would tell of it.

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

What a grid of trials would tell is known before it is run: standard errors follow from the model's
Jacobian at assumed parameters and the noise of a trial (Fisher information of Gaussian data), and
no unbiased estimate does better (the Cramér-Rao bound).

Shape letters: S starts, R draws, N points, P parameters, W widths, L learning rates.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from hptransfer.errors import ConfigError
from hptransfer.stats._power_laws import EXPONENT_BOUNDS
from hptransfer.stats.estimate import (
    NORMAL_90,
    THRESHOLDS,
    Estimate,
    Status,
    f_limit,
    grade,
    judge,
    refuse,
)
from hptransfer.stats.loss_table import DEFAULT_WINDOW, Bools, Floats
from hptransfer.stats.minima import Minima
from hptransfer.stats.reasons import Reason, Reasons
from hptransfer.stats.results import Form, TransferModel

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


#: Directions whose information is below this share of the largest are not seen by the data.
_BLIND = 1e-13
#: Part of a quantity's gradient along unseen directions from which its error is infinite.
_LEAST_PART = 1e-6
#: Decay rate below which a converging drift is its limit, a line in ln n.
_SMALLEST_RATE = 1e-9
#: The quantities that are sums of parameters.
_SUMS: Mapping[str, Mapping[int, float]] = {
    "alpha": {ALPHA: 1.0},
    "beta": {BETA: 1.0},
    "gamma": {GAMMA: 1.0},
    "b": {G: 1.0},
    "kappa": {ALPHA: 1.0, BETA: -2.0, GAMMA: 1.0},
    "loss_inf": {LIMIT: 1.0},
}
#: Those that the power form lacks.
_CONVERGING = ("beta", "kappa")


def _theta(model: TransferModel, centre: float) -> Floats:
    """Internal parameters (1, 9) of a model around ln(width) = `centre`, in nats."""
    excess = model.A * np.exp(-model.alpha * centre)
    log_c = np.log(model.C0) + model.gamma * centre
    beta = max(model.beta, _SMALLEST_RATE)
    reach = model.B * np.exp(-model.beta * centre)
    drift = (model.x_inf + reach, model.beta * reach, beta)
    if model.form == "power":
        drift = (model.x_inf - model.B * centre, model.B, 1.0)
    head = (model.loss_inf, excess, model.alpha, log_c, model.gamma)
    return np.array([[*head, *drift, model.skew]], dtype=np.float64)


class Information:
    """Fisher information of trials about the joint model, and the standard errors it allows.

    Parameters
    ----------
    model : TransferModel
        Parameters to assume; its form is the form that is fitted.
    width, x : array, shape (N,)
        Width and ln(lr) of the points; arrays that broadcast together will do.
    sigma : array, shape (N,)
        Standard deviation of each point's mean loss in nats.

    Attributes
    ----------
    centre : float
        Mean ln(width), which `theta` refers to.
    theta : ndarray, shape (1, 9)
        The parameters, as `predict` orders them.
    covariance : ndarray, shape (9, 9)
        Lowest covariance of an unbiased estimate of `theta`, along the directions that the data
        see; 0 for parameters that are not fitted.
    blind : ndarray, shape (9, M)
        Directions that the data do not see.

    Raises
    ------
    ConfigError
        A width or standard deviation is not positive.

    Notes
    -----
    The information is Jᵀ·V⁻¹·J with the Jacobian J of the model and the variances V of the
    means; a quantity g of the parameters has variance ∇gᵀ·(Jᵀ·V⁻¹·J)⁻¹·∇g at least (Cramér 1946,
    Rao 1945).
    """

    def __init__(
        self, model: TransferModel, *, width: ArrayLike, x: ArrayLike, sigma: ArrayLike
    ) -> None:
        both = np.broadcast_arrays(width, x, sigma)
        width, x, sigma = (np.asarray(each, dtype=np.float64).reshape(-1) for each in both)
        for name, array in (("width", width), ("sigma", sigma)):
            bad = ~(np.isfinite(array) & (array > 0))
            if np.any(bad):
                raise ConfigError(f"{name}: expected positive numbers, found {array[bad][0]:g}")
        self.model, self.centre = model, float(np.mean(np.log(np.unique(width))))
        self.theta = _theta(model, self.centre)
        free = np.ones(9, dtype=bool)
        free[BETA], free[SKEW] = model.form == "converging", False
        slopes = predict(self.theta, np.log(width) - self.centre, x, model.form)[1][0]
        jacobian = slopes / sigma[:, None]
        self.covariance, self.blind = _invert(jacobian.T @ jacobian, free)

    def propagate(self, parts: Mapping[int, float]) -> float:
        """Standard error of a quantity with this gradient in `theta`; inf if unseen."""
        gradient = np.zeros(9)
        gradient[list(parts)] = list(parts.values())
        size = float(np.abs(gradient).max())
        if np.abs(gradient @ self.blind).max(initial=0.0) > _LEAST_PART * size:
            return float("inf")
        return float(np.sqrt(max(float(gradient @ self.covariance @ gradient), 0.0)))

    def error(self, name: str) -> float:
        """Standard error of an exponent, ``kappa`` or ``loss_inf``; inf where there is none.

        ``b`` is −dx*/d ln n at the widths' geometric mean.
        """
        if self.model.form == "power" and name in _CONVERGING:
            return float("inf")
        return self.propagate(_SUMS[name])

    def optimum(self, width: float) -> float:
        """Standard error of x* at a width, measured or not, in ln(lr)."""
        t = np.array([np.log(width) - self.centre])
        if self.model.form == "power":
            return self.propagate({Q: 1.0, G: -float(t[0])})
        h, slope = power_law(self.theta[0, BETA], t)
        return self.propagate({Q: 1.0, G: float(h[0]), BETA: float(self.theta[0, G] * slope[0])})


def _invert(total: Floats, free: Bools) -> tuple[Floats, Floats]:
    """Return the covariance (9, 9) and the unseen directions (9, M) of an information matrix."""
    # Parameters are scaled to unit information first, so that units do not decide what is unseen.
    rows = np.flatnonzero(free)
    scale = np.sqrt(np.diag(total))[rows]
    unit = 1.0 / np.where(scale > 0.0, scale, 1.0)
    values, vectors = np.linalg.eigh(total[np.ix_(rows, rows)] * np.outer(unit, unit))
    span = np.zeros((9, len(rows)))
    span[rows] = vectors * unit[:, None]
    good = values > _BLIND * values.max()
    blind = span[:, ~good] / np.linalg.norm(span[:, ~good], axis=0)
    return (span[:, good] / values[good]) @ span[:, good].T, blind


#: What a study without a forerunner is judged at: the best loss of the narrowest width lies
#: `excess` nats above L∞ and falls with α; the curvature there, in nats per (ln lr)², grows with
#: γ; the optimum has `drift` to go, in ln(lr), and decays with β. `noise` is one trial's standard
#: deviation in nats.
STATED: Mapping[str, float] = MappingProxyType(
    {
        "loss_inf": 2.0,
        "excess": 0.7,
        "alpha": 0.5,
        "curvature": 0.05,
        "gamma": 0.1,
        "drift": 0.5,
        "beta": 0.7,
        "noise": 0.005,
    }
)


#: What is expected of a grid, by the kind of its threshold, in the order in which it is told.
_EXPECTED = {"x_star": "log_lr"} | {
    name: name for name in ("kappa", "R_inf", "loss_inf", "alpha", "beta", "gamma")
}


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """The standard error to expect of one quantity, and what it would be called.

    Attributes
    ----------
    name : str
        ``x_star`` (at the target width, in ln(lr)), ``kappa``, ``R_inf`` and ``loss_inf`` (nats),
        ``alpha``, ``beta`` or ``gamma``.
    standard_error : float
        The Cramér-Rao bound: no unbiased estimate does better; inf where the grid cannot tell.
    status : Status
        By the thresholds of `estimate`, were the bound reached.
    """

    name: str
    standard_error: float
    status: Status


def state_model(widths: ArrayLike, x: ArrayLike) -> TransferModel:
    """Return the model of `STATED` on a grid, its optimum in the middle of the learning rates.

    Parameters
    ----------
    widths : array, shape (W,)
        Model widths.
    x : array, shape (L,)
        ln(lr).
    """
    narrowest = float(np.min(np.asarray(widths, dtype=np.float64)))
    places = np.asarray(x, dtype=np.float64)
    middle = 0.5 * float(places.min() + places.max())
    return TransferModel(
        form="converging",
        loss_inf=STATED["loss_inf"],
        A=STATED["excess"] * narrowest ** STATED["alpha"],
        alpha=STATED["alpha"],
        C0=STATED["curvature"] * narrowest ** -STATED["gamma"],
        gamma=STATED["gamma"],
        x_inf=middle - 0.5 * STATED["drift"],
        B=STATED["drift"] * narrowest ** STATED["beta"],
        beta=STATED["beta"],
    )


def expect_errors(
    model: TransferModel,
    *,
    widths: ArrayLike,
    x: ArrayLike,
    noise: float,
    num_seeds: int,
) -> tuple[Expectation, ...]:
    """Return what a grid would tell of a parameterization, were `model` the truth.

    x* is that of four times the widest width. Points outside the window of the joint fit tell
    nothing.

    Parameters
    ----------
    model : TransferModel
        From `state_model`, or from the fit of an earlier study.
    widths : array, shape (W,)
        Model widths of the grid.
    x : array, shape (L,)
        ln(lr) of the grid.
    noise : float
        Standard deviation of one trial's loss, in nats.
    num_seeds : int
        Seeds of each point.

    Raises
    ------
    ConfigError
        If a number is not positive.

    Notes
    -----
    R(∞) is the difference of two L∞ known equally well and independently, an upper bound where
    trials are paired by seed.
    """
    for name, value in (("noise", noise), ("num_seeds", num_seeds)):
        if value <= 0:
            raise ConfigError(f"{name}: expected a positive number, found {value:g}")
    n, at = np.meshgrid(np.asarray(widths, dtype=np.float64), x, indexing="ij")
    best, u = model.best_loss(n), at - model.optimum(n)
    seen = 0.5 * model.curvature(n) * (u**2 + model.skew * u**3) <= (DEFAULT_WINDOW - 1.0) * best
    known = Information(model, width=n[seen], x=at[seen], sigma=noise / np.sqrt(num_seeds))
    errors = {"x_star": known.optimum(4.0 * float(n.max()))}
    errors |= {name: known.error(name) for name in ("kappa", "loss_inf", "alpha", "beta", "gamma")}
    errors["R_inf"] = float(np.sqrt(2.0)) * errors["loss_inf"]
    return tuple(
        Expectation(
            name=name,
            standard_error=errors[name],
            status=grade(NORMAL_90 * errors[name], THRESHOLDS[kind]),
        )
        for name, kind in _EXPECTED.items()
        if model.form == "converging" or name not in _CONVERGING
    )
