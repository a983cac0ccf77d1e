"""Estimate the exponents and metrics of a group's laws, and the price of a transferred optimum.

An estimate rests on parameters; where one of them sits at a bound, in the fit or in more than a
few per cent of the resamples, it is not identified, whatever its interval says. The price comes
from the minima and the measured losses alone, so it holds where the laws do not. As compute:

A loss r above the best of width n is the best of a smaller width n′, L*(n′) = L*(n) + r, so that
1 − F(n′)/F(n) of the training FLOPs F bought nothing. With s = −dL*/d ln n as measured at the
widest widths, ln n′ = ln n − r/s.

Shape letters: R resamples, L learning rates of a width.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike

from hptransfer.errors import FitError
from hptransfer.stats._power_laws import EXPONENT_BOUNDS, Laws, MinimaDraws
from hptransfer.stats.estimate import (
    NORMAL_90,
    TOLERATED_SHARE,
    Estimate,
    bound,
    judge,
    refuse,
)
from hptransfer.stats.loss_table import Cells, Floats, LossTable
from hptransfer.stats.minima import Minima, rise
from hptransfer.stats.reasons import Reason, Reasons, join_reasons
from hptransfer.stats.results import ComputeRegret, FastTransfer, FastVerdict

_RANGE = dict(zip(("low", "high"), EXPONENT_BOUNDS, strict=True))


def list_bounds(laws: Laws, *names: str) -> Reasons:
    """Return which of the named parameters rest on a bound; empty if none does."""
    out = []
    for name in names:
        hits = laws.at_bound(name)
        share = float(np.mean(hits[1:])) if laws.drawn else 0.0
        span = _RANGE if name in ("alpha", "beta") else {}
        if hits[0]:
            out.append(Reason("at_bound", parameter=name, **span))
        elif share > TOLERATED_SHARE:
            out.append(Reason("at_bound", parameter=name, **span, percent=100 * share))
    return tuple(out)


def judge_rows(
    rows: Floats, kind: str, *, problem: Reasons = (), caution: Reasons = ()
) -> Estimate:
    """Judge a fit's value, the first row, by the rows of its draws, if there are any."""
    drawn = rows[1:] if len(rows) > 1 else None
    return judge(float(rows[0]), drawn, kind, problem=problem, caution=caution)


def measure_drift(minima: Minima, scatter: float) -> Estimate | None:
    """Estimate x*(widest) − x*(narrowest) from the two minima and their scatter, in ln(lr).

    Returns
    -------
    Estimate or None
        None with fewer than two widths with a minimum.
    """
    found = np.flatnonzero(minima.found)
    if len(found) < 2:
        return None
    ends = found[[0, -1]]
    change = np.array([-1.0, 1.0])
    value = float(change @ minima.x[ends])
    # The two share a skew, which moves both.
    variance = float(change @ minima.covariance[np.ix_(ends, ends)] @ change)
    half = NORMAL_90 * float(np.sqrt(variance + 2.0 * scatter**2))
    return bound(value, value - half, value + half, "log_lr")


def holds_zero(estimate: Estimate) -> bool:
    """Whether an estimate's interval holds 0; False where there is none."""
    if estimate.low is None or estimate.high is None:
        return False
    return estimate.low <= 0.0 <= estimate.high


def _judge_drifting(
    laws: Laws, name: str, rows: Floats, *bounds: str, price: Reason | None = None
) -> Estimate:
    """Judge what has no meaning without a drift, and rests on parameters that may hit `bounds`.

    Where no drift is seen, `price` stands in: the bound on the regret.
    """
    if laws.form == "power":
        return refuse(Reason("converging_only", name=name))
    drift = judge_rows(laws.optimum(laws.widths[-1]) - laws.optimum(laws.widths[0]), "log_lr")
    if holds_zero(drift):
        known = drift.status == "identified"
        return refuse(Reason("no_drift", about=name, known=known, price=price))
    return judge_rows(rows, name, problem=list_bounds(laws, *bounds))


#: What α and L∞ rest on.
_FALL = ("loss_inf", "A", "alpha")


def estimate_exponents(laws: Laws) -> dict[str, Estimate]:
    """Estimate alpha, gamma, loss_inf and beta (form ``power``: b)."""
    falls = list_bounds(laws, *_FALL)
    out = {"alpha": judge_rows(laws.best.exponent, "alpha", problem=falls)}
    if laws.form == "power":
        out["b"] = judge_rows(laws.place.drop, "b")
    else:
        out["beta"] = _judge_drifting(laws, "beta", laws.place.exponent, "beta")
    out["gamma"] = judge_rows(laws.gamma, "gamma")
    out["loss_inf"] = judge_rows(laws.best.limit, "loss_inf", problem=falls)
    return out


def estimate_kappa(laws: Laws, price: Reason | None) -> Estimate:
    """Estimate κ = α − 2β + γ (Kalra & Barkeshli 2026, eq. for transfer robustness).

    Parameters
    ----------
    price : Reason or None
        What stands in for κ where no drift is seen: the bound on the regret.
    """
    return _judge_drifting(laws, "kappa", laws.kappa, *_FALL, "beta", price=price)


def judge_fast(laws: Laws | None, group: Mapping[str, object], missing: Reasons) -> FastTransfer:
    """Test whether transfer is fast (Ghosh et al. 2025, arXiv 2512.22768).

    It is where the cost of a transferred optimum, ∝ n^(-2β), vanishes before the reducible loss
    ∝ n^-α does: β > α/2. Without laws, for the reasons `missing`, it is undecided.
    """
    said, margin = None, refuse(*missing)
    distorted = () if laws is None else list_bounds(laws, *_FALL)
    if laws is not None:
        rows = np.asarray(laws.place.exponent - 0.5 * laws.best.exponent)
        margin = _judge_drifting(laws, "beta", rows, *_FALL, "beta")
    if margin.low is not None and margin.high is not None:
        said = f"beta − alpha/2 is {margin.value:.2g} [{margin.low:.2g}, {margin.high:.2g}]"
        said += f", but {join_reasons(distorted)}" if distorted else ""
    verdict: FastVerdict = "undecided"
    # A bound on beta does not hide on which side of alpha/2 it lies, so it may stand here.
    if said and not distorted and not holds_zero(margin):
        verdict = "fast" if (margin.low or 0.0) > 0.0 else "not fast"
    because = margin.reason if said is None else said
    return FastTransfer(group=group, margin=margin, verdict=verdict, because=because)


def price_transfer(
    cells: Cells, minima: Minima, draws: MinimaDraws | None
) -> dict[float, Estimate]:
    """Price, at each width with a minimum, the optimum of the narrowest such width, in nats.

    Within the points that a width's basin was fitted to, the price is the basin's curve above
    its minimum; beyond them it is interpolated linearly between the measured means, which on a
    convex loss errs on the high side.

    Returns
    -------
    dict of float to Estimate
        By width, ascending; the narrowest itself has price 0 and is included.
    """
    out = dict[float, Estimate]()
    source, *wider = np.flatnonzero(minima.found).tolist() or [0]
    kept = float(minima.x[source])
    if np.isfinite(kept):
        out[float(minima.size[source])] = Estimate(value=0.0, low=0.0, high=0.0)
    for place in wider:
        width = float(minima.size[place])
        rows = cells.at(width)
        clean = rows[cells.clean[rows]]
        x, mean = cells.x[clean], cells.mean[clean]
        bad = cells.x[rows][cells.diverged[rows] > 0]
        if kept >= bad[bad > minima.x[place]].min(initial=np.inf):
            out[width] = refuse(Reason("diverged_there"))
        elif not x[0] <= kept <= x[-1]:
            out[width] = refuse(Reason("outside_measured"))
        else:
            measured = (source, place, minima.ends[place], x, mean)
            drawn = None if draws is None else _price(draws, *measured)
            out[width] = judge(float(_price(minima, *measured)), drawn, "regret")
    return out


def _price(
    found: Minima | MinimaDraws, source: int, place: int, ends: Floats, x: Floats, mean: Floats
) -> Floats:
    """Loss at one size's x* above the minimum of another, in nats, of minima or their draws.

    x and mean (L,) are what was measured at the other.
    """
    at = np.asarray(found.x[..., source])
    z, bend = at - found.x[..., place], found.curvature[..., place]
    up = np.maximum(rise(z, bend, found.skew, cubic=found.cubic), 0.0)
    beyond = np.maximum(np.interp(at, x, mean) - found.loss[..., place], 0.0)
    return np.where((at >= ends[0]) & (at <= ends[1]), up, beyond)


Flops = Callable[[Floats], Floats]

#: What `square_flops` rests on, in words.
SQUARE_BASIS = "width² (fixed tokens, parameters as width²)"


def square_flops(width: Floats) -> Floats:
    """Training FLOPs up to a factor where parameters grow as n² and tokens are fixed."""
    return np.asarray(width, dtype=np.float64) ** 2


def flops_of(widths: ArrayLike, params: ArrayLike, tokens: ArrayLike = 1.0) -> Flops:
    """Training FLOPs from parameters and tokens by width: 6·params·tokens.

    Parameters
    ----------
    widths, params : array, shape (W,)
        Two widths or more, and their parameter counts.
    tokens : array, shape (W,), or float
        Tokens trained on.

    Returns
    -------
    callable
        From widths to FLOPs, straight lines in the logarithms, also beyond the ends.

    Raises
    ------
    FitError
        Fewer than two widths, a number that is not positive, or FLOPs that do not grow.
    """
    n = np.asarray(widths, dtype=np.float64)
    params, tokens = np.asarray(params, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
    if n.ndim != 1 or params.shape != n.shape or tokens.shape not in ((), n.shape):
        raise FitError(
            f"flops: expected one params and tokens per width, found shapes {n.shape}, "
            f"{params.shape} and {tokens.shape}"
        )
    flops = 6.0 * params * tokens
    good = np.isfinite(n) & np.isfinite(flops) & (n > 0) & (params > 0) & (flops > 0)
    if len(n) < 2 or not np.all(good):
        raise FitError("flops: expected two widths or more, all numbers positive")
    order = np.argsort(n)
    t, f = np.log(n[order]), np.log(flops[order])
    if np.any(np.diff(t) <= 0) or np.any(np.diff(f) <= 0):
        raise FitError("flops: expected distinct widths and FLOPs that grow with width")

    def interpolate(width: Floats) -> Floats:
        at = np.log(np.asarray(width, dtype=np.float64))
        k = np.clip(np.searchsorted(t, at) - 1, 0, len(t) - 2)
        slope = np.diff(f) / np.diff(t)
        return np.asarray(np.exp(f[k] + slope[k] * (at - t[k])), dtype=np.float64)

    return interpolate


def flops_by_width(table: LossTable) -> tuple[Flops, str]:
    """Training FLOPs by width as a table has them, and what they rest on, in words.

    The median over the trials of a width, on straight lines in the logarithms; width² where the
    table knows none at two widths, or where they do not grow with width.
    """
    if table.flops is None:
        return square_flops, SQUARE_BASIS
    known = np.isfinite(table.flops) & (table.flops > 0)
    widths = np.unique(table.width[known])
    each = np.array([np.median(table.flops[known & (table.width == n)]) for n in widths])
    if len(widths) < 2 or np.any(np.diff(each) <= 0):
        return square_flops, SQUARE_BASIS
    return flops_of(widths, each / 6.0), "the table's FLOPs"


#: What `recommend` compares: its own answer, the proxy's optimum, and that over the width ratio.
RULES = ("recommended", "same_lr", "inverse_width")


def local_slope(minima: Minima) -> tuple[float, float] | None:
    """Return −dL*/d ln n and its standard error, where widths are widest; None with fewer than two.

    Over the two widest widths with a minimum, or a line through all where the two agree.
    """
    ok = np.flatnonzero(minima.found)
    if len(ok) < 2:
        return None
    t, loss = np.log(minima.size[ok]), minima.loss[ok]
    covariance = minima.loss_covariance[np.ix_(ok, ok)]
    ends, centred = np.zeros(len(ok)), t - t.mean()
    ends[-2:] = np.array([1.0, -1.0]) / (t[-1] - t[-2])
    (slope, error), (other, spread) = (
        (float(each @ loss), float(np.sqrt(each @ covariance @ each)))
        for each in (ends, -centred / float(centred @ centred))
    )
    return (other, spread) if abs(other - slope) <= NORMAL_90 * error else (slope, error)


def price_compute(
    minima: Minima,
    width: float,
    regrets: Mapping[str, Estimate],
    group: Mapping[str, object],
    flops: Flops = square_flops,
) -> ComputeRegret:
    """Price regrets in nats at a width as compute, by the local slope of the best loss."""
    each = {name: price_loss(minima, width, e, flops) for name, e in regrets.items()}
    return ComputeRegret(
        group=group,
        width=float(width),
        extra={name: extra for name, (extra, _) in each.items()},
        equivalent_width={name: equal for name, (_, equal) in each.items()},
    )


def price_loss(
    minima: Minima, width: float, regret: Estimate, flops: Flops = square_flops
) -> tuple[Estimate, float | None]:
    """Turn a regret in nats at a width into the FLOPs that bought nothing.

    With the local slope s = −dL*/d ln n, a model of ln n′ = ln n − r/s is as good, and
    1 − F(n′)/F(n) of the FLOPs were wasted. No L∞ is needed.

    Returns
    -------
    extra : Estimate
        The wasted fraction of the FLOPs.
    equivalent : float or None
        n′.
    """
    slope = local_slope(minima)
    if slope is None:
        return refuse(Reason("no_slope")), None
    if regret.value is None:
        return refuse(Reason("regret_unknown")), None
    steep, error = slope
    if steep <= 0.0:
        return refuse(Reason("at_bound", parameter="A")), None
    whole = float(flops(np.array([width]))[0])

    def waste(price: float, at: float) -> float:
        match = width * math.exp(-max(price, 0.0) / at) if at > 0.0 else 0.0
        return 1.0 - float(flops(np.array([max(match, 1e-300)]))[0]) / whole

    value = waste(regret.value, steep)
    equal = width * math.exp(-regret.value / steep)
    caution: Reasons = ()
    smallest = float(minima.size[minima.found][0])
    if equal < smallest:
        caution = (Reason("below_narrowest", width=smallest),)
    if regret.low is None or regret.high is None:
        return refuse(*regret.reasons, value=value), equal
    low = waste(regret.low, steep + NORMAL_90 * error)
    high = max(waste(regret.high, steep - NORMAL_90 * error), value)
    return bound(value, low, high, "regret", caution=caution), equal
