"""Estimate the exponents and metrics of a joint fit, and the price of a transferred optimum.

An estimate rests on parameters; where one of them sits at a bound, in the point fit or in more
than a few per cent of the resamples, it is not identified, whatever its interval says. The
price comes from the basins and the measured losses alone, so it holds where the joint model does
not.

Shape letters: N points, R resamples, L learning rates of a width.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from hptransfer.stats._joint_model import EXPONENT_BOUNDS, NAMES, JointFit
from hptransfer.stats.basin import BasinSet
from hptransfer.stats.cells import Bools, Cells, Floats
from hptransfer.stats.estimate import Estimate
from hptransfer.stats.identifiability import THRESHOLDS, TOLERATED_SHARE, grade, judge, refuse
from hptransfer.stats.minima import Minima
from hptransfer.stats.power_analysis import NORMAL_90
from hptransfer.stats.reasons import Reason, Reasons

_RANGES = {NAMES[k]: {"low": low, "high": high} for k, (low, high) in EXPONENT_BOUNDS.items()}
_GETTERS: dict[str, Callable[[JointFit], Floats]] = {
    "alpha": lambda fit: fit.alpha,
    "beta": lambda fit: fit.beta,
    "gamma": lambda fit: fit.gamma,
    "b": lambda fit: fit.slope,
    "loss_inf": lambda fit: fit.loss_inf,
}
#: Widths of a group that a fit without the widest still needs three of.
WIDTHS_FOR_JOINT = 3
WIDTHS_FOR_OUT = WIDTHS_FOR_JOINT + 1


def list_bounds(point: JointFit, samples: JointFit | None, *names: str) -> Reasons:
    """Return which of the named parameters rest on a bound; empty if none does."""
    out = []
    at_point = point.at_bound()
    at_samples = {} if samples is None else samples.at_bound()
    for name in names:
        share = float(np.mean(at_samples[name])) if name in at_samples else 0.0
        span = _RANGES.get(name, {})
        if at_point[name][0]:
            out.append(Reason("at_bound", parameter=name, **span))
        elif share > TOLERATED_SHARE:
            out.append(Reason("at_bound", parameter=name, **span, percent=100 * share))
    return tuple(out)


def estimate_drift(
    point: JointFit, samples: JointFit | None, narrowest: float, widest: float
) -> Estimate:
    """Estimate x*(widest) − x*(narrowest), in ln(lr)."""
    value = float((point.optimum(widest) - point.optimum(narrowest))[0])
    drawn = None if samples is None else samples.optimum(widest) - samples.optimum(narrowest)
    return judge(value, drawn, "log_lr")


def measure_drift(minima: Minima) -> Estimate | None:
    """Estimate x*(widest) − x*(narrowest) from the two minima alone, in ln(lr).

    Returns
    -------
    Estimate or None
        None with fewer than two widths with a minimum.
    """
    x, variance = minima.x[minima.found], minima.variance[minima.found]
    if len(x) < 2:
        return None
    value = float(x[-1] - x[0])
    half = NORMAL_90 * float(np.sqrt(variance[0] + variance[-1]))
    limit = THRESHOLDS["log_lr"]
    wide = (Reason("half_width", half=half, limit=limit),) if half > limit else ()
    return Estimate(
        value=value, low=value - half, high=value + half, status=grade(half, limit), reasons=wide
    )


def holds_zero(estimate: Estimate) -> bool:
    """Whether an estimate's interval holds 0; False where there is none."""
    if estimate.low is None or estimate.high is None:
        return False
    return estimate.low <= 0.0 <= estimate.high


def estimate_exponents(
    point: JointFit, samples: JointFit | None, drift: Estimate
) -> dict[str, Estimate]:
    """Estimate alpha, gamma, loss_inf and beta (form ``power``: b)."""

    def one(name: str, value: Floats, drawn: Floats | None, *rests_on: str) -> Estimate:
        return judge(float(value[0]), drawn, name, problem=list_bounds(point, samples, *rests_on))

    drawn: dict[str, Floats] = {}
    if samples is not None:
        drawn = {name: getter(samples) for name, getter in _GETTERS.items()}
    out = {"alpha": one("alpha", point.alpha, drawn.get("alpha"), "loss_inf", "A", "alpha")}
    if point.form == "power":
        out["b"] = one("b", point.slope, drawn.get("b"))
    else:
        out["beta"] = (
            refuse(Reason("no_drift", about="beta"))
            if holds_zero(drift)
            else one("beta", point.beta, drawn.get("beta"), "beta")
        )
    out["gamma"] = one("gamma", point.gamma, drawn.get("gamma"), "gamma")
    out["loss_inf"] = one(
        "loss_inf", point.loss_inf, drawn.get("loss_inf"), "loss_inf", "A", "alpha"
    )
    return out


def estimate_kappa(
    point: JointFit, samples: JointFit | None, drift: Estimate, price: Reason | None
) -> Estimate:
    """Estimate κ = α − 2β + γ (Kalra & Barkeshli 2026, eq. for transfer robustness).

    Parameters
    ----------
    price : Reason or None
        What stands in for κ where no drift is seen: the bound on the regret.
    """
    if point.form == "power":
        return refuse(Reason("converging_only", name="kappa"))
    if holds_zero(drift):
        known = drift.status == "identified"
        return refuse(Reason("no_drift", about="kappa", known=known, price=price))
    value = float((point.alpha - 2.0 * point.beta + point.gamma)[0])
    drawn = None if samples is None else samples.alpha - 2.0 * samples.beta + samples.gamma
    problem = list_bounds(point, samples, "loss_inf", "A", "alpha", "beta", "gamma")
    return judge(value, drawn, "kappa", problem=problem)


def square_error(value: float, drawn: Floats | None, *, problem: Reasons = ()) -> Estimate:
    """Judge a mean squared error in nats² by the half-width of its root, in nats."""
    root = judge(
        float(np.sqrt(value)), None if drawn is None else np.sqrt(drawn), "error", problem=problem
    )
    return Estimate(
        value=value,
        low=None if root.low is None else root.low**2,
        high=None if root.high is None else root.high**2,
        status=root.status,
        reasons=root.reasons,
    )


def estimate_error(
    point: JointFit, losses: Floats, samples: JointFit | None, resampled: Floats | None
) -> Estimate:
    """Estimate E, the mean squared residual over points of the window, in nats².

    Parameters
    ----------
    losses : ndarray, shape (N,)
        Cell means the point fit saw.
    resampled : ndarray, shape (R, N)
        Those that `samples` saw.
    """
    value = float(np.mean((point.predicted()[0] - losses) ** 2))
    problem: Reasons = ()
    if len(losses) <= point.num_parameters:
        sizes = {"points": len(losses), "parameters": point.num_parameters}
        problem = (Reason("no_residual", **sizes),)
    drawn = None
    if samples is not None and resampled is not None:
        drawn = np.mean((samples.predicted() - resampled) ** 2, axis=1)
    return square_error(value, drawn, problem=problem)


def estimate_error_out(
    point: JointFit,
    losses: Floats,
    samples: JointFit | None,
    resampled: Floats | None,
    *,
    width: float,
    x: Floats,
    out: Bools,
) -> Estimate:
    """Estimate E_out: the mean squared error at `width`, which the fits did not see, in nats².

    `x` and `out` (N,) are ln(lr) and the mask of the points of that width.
    """
    value = float(np.mean((point.loss_at(width, x[out])[0] - losses[out]) ** 2))
    drawn = None
    if samples is not None and resampled is not None:
        misses = samples.loss_at(width, x[out]) - resampled[:, out]
        drawn = np.mean(misses**2, axis=1)
    return square_error(value, drawn)


def pair_difference(
    value: float,
    drawn: Floats | None,
    other: float,
    other_drawn: Floats | None,
    problem: Reasons = (),
) -> Estimate:
    """Estimate a difference in nats between two groups from resamples paired by their index."""
    both = None if drawn is None or other_drawn is None else drawn - other_drawn
    return judge(value - other, both, "R_inf", problem=problem)


def describe_bound(regret: Estimate, width: float) -> Reason | None:
    """Return what keeping the narrowest width's lr costs at most at a width; None if unknown."""
    if regret.high is None:
        return None
    return Reason("keeping_costs", width=width, most=regret.high)


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
    x_point = float(basins.at(source).coefficients[0])
    drawn = basins.samples.get(source)
    none = None if drawn is None else np.zeros(len(drawn))
    out = {source: Price(Estimate(value=0.0, low=0.0, high=0.0), none)}
    for width in usable[1:]:
        point = np.array(basins.at(width).coefficients)
        local = basins.samples.get(width)
        rows = cells.at(width)
        clean = rows[cells.clean[rows]]
        x, mean = cells.x[clean], cells.mean[clean]
        bad = cells.x[rows][cells.diverged[rows] > 0]
        beyond = float(bad[bad > point[0]].min()) if np.any(bad > point[0]) else np.inf
        if x_point >= beyond:
            out[width] = Price(refuse(Reason("diverged_there")), None)
            continue
        if not x[0] <= x_point <= x[-1]:
            out[width] = Price(refuse(Reason("outside_measured")), None)
            continue
        ends = (float(basins.fits[width].x[0]), float(basins.fits[width].x[-1]))
        value = _price(np.array([x_point]), point[None, :], x, mean, ends)[0]
        samples = None
        if drawn is not None and local is not None:
            samples = _price(drawn[:, 0], local, x, mean, ends)
        out[width] = Price(judge(float(value), samples, "regret"), samples)
    return out


def _price(x0: Floats, basin: Floats, x: Floats, mean: Floats, ends: tuple[float, float]) -> Floats:
    """Loss at x0 (R,) above each minimum of `basin` (R, 4), in nats, shape (R,)."""
    u = x0 - basin[:, 0]
    local = 0.5 * basin[:, 2] * u**2 + basin[:, 3] * u**3
    # np.interp maps NaN to NaN, so that failed resamples stay failed.
    measured = np.interp(x0, x, mean) - basin[:, 1]
    inside = (x0 >= ends[0]) & (x0 <= ends[1])
    price = np.where(inside, local, measured)
    return np.where(np.isfinite(price), np.maximum(price, 0.0), np.nan)
