"""Price a missed learning rate as training compute.

A loss r above the best of width n is the best of a smaller width n′, L*(n′) = L*(n) + r, so that
1 − F(n′)/F(n) of the training FLOPs F bought nothing. With s = −dL*/d ln n as measured at the
widest widths, ln n′ = ln n − r/s.

Shape letters: R resamples, W widths.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike

from hptransfer.errors import FitError
from hptransfer.stats.cells import Floats
from hptransfer.stats.estimate import NORMAL_90, THRESHOLDS, Estimate, grade, refuse, worst
from hptransfer.stats.loss_table import LossTable
from hptransfer.stats.minima import Minima
from hptransfer.stats.reasons import Reason, Reasons
from hptransfer.stats.results import ComputeRegret

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
        slope = (f[k + 1] - f[k]) / (t[k + 1] - t[k])
        return np.asarray(np.exp(f[k] + slope * (at - t[k])), dtype=np.float64)

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
    ends = np.zeros(len(ok))
    ends[-2:] = np.array([1.0, -1.0]) / (t[-1] - t[-2])
    slope, error = float(ends @ loss), float(np.sqrt(ends @ covariance @ ends))
    centred = t - t.mean()
    line = -centred / float(centred @ centred)
    other = float(line @ loss)
    if abs(other - slope) <= NORMAL_90 * error:
        return other, float(np.sqrt(line @ covariance @ line))
    return slope, error


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
    half, limit = 0.5 * (high - low), THRESHOLDS["regret"]
    wide = (Reason("half_width", half=half, limit=limit),) if half > limit else ()
    status = worst(grade(half, limit), "weakly identified" if caution else "identified")
    return (
        Estimate(value=value, low=low, high=high, status=status, reasons=(*caution, *wide)),
        equal,
    )
