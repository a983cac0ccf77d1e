"""Price a missed learning rate as training compute, and test whether transfer is fast.

A loss r above the best of width n is the best of a smaller width n′, L*(n′) = L*(n) + r, so that
1 − F(n′)/F(n) of the training FLOPs F bought nothing. With L* = L∞ + A·n^-α,
n′ = n·(1 + r/(A·n^-α))^(-1/α).

Transfer is fast (Ghosh et al. 2025, arXiv 2512.22768) when the cost of a transferred optimum,
∝ n^(-2β), vanishes before the reducible loss ∝ n^-α does: β > α/2.

Shape letters: R resamples, W widths.
"""

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import ArrayLike

from hptransfer.errors import FitError
from hptransfer.stats._group_fit import GroupFit
from hptransfer.stats._joint_model import JointFit
from hptransfer.stats._metrics import holds_zero, list_bounds
from hptransfer.stats.cells import Floats
from hptransfer.stats.estimate import Estimate
from hptransfer.stats.identifiability import judge, refuse
from hptransfer.stats.loss_table import LossTable
from hptransfer.stats.reasons import Reason, Reasons, join_reasons
from hptransfer.stats.results import ComputeRegret, FastTransfer, FastVerdict

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


def waste(fit: JointFit, width: float, regret: Floats | float, flops: Flops) -> Floats:
    """Fraction of the FLOPs at `width` that a regret in nats, shape (R,), wastes; (R,)."""
    match = match_width(fit, width, regret)
    whole = float(flops(np.array([width]))[0])
    return np.asarray(1.0 - flops(match) / whole, dtype=np.float64)


def match_width(fit: JointFit, width: float, regret: Floats | float) -> Floats:
    """n′ with L*(n′) = L*(width) + regret, shape (R,); NaN where L* does not fall."""
    excess = fit.best_loss(width) - fit.loss_inf
    # A resample whose best loss does not fall with width has no n′.
    good = excess > 0.0
    ratio = np.where(good, regret / np.where(good, excess, 1.0), np.nan)
    return np.asarray(width * np.exp(-np.log1p(ratio) / fit.alpha), dtype=np.float64)


def price_compute(
    fit: GroupFit, width: float, choices: Mapping[str, float], *, flops: Flops = square_flops
) -> ComputeRegret:
    """Price choices of x = ln(lr) at a width as compute; n/a where α is not identified.

    As for the regret in nats, the value is the mean over resamples.
    """
    joint, samples = fit.joint, fit.samples
    extra: dict[str, Estimate] = {}
    match: dict[str, float | None] = {}
    for choice, x in choices.items():
        rise = None if joint is None else float(joint.rise(width, x)[0])
        drawn = None if samples is None else samples.rise(width, x)
        extra[choice], match[choice] = price_loss(fit, width, rise, drawn, flops=flops, mean=True)
    return ComputeRegret(
        group=fit.result.group, width=float(width), extra=extra, equivalent_width=match
    )


def price_loss(
    fit: GroupFit,
    width: float,
    regret: float | None,
    drawn: Floats | None,
    *,
    flops: Flops = square_flops,
    mean: bool = False,
) -> tuple[Estimate, float | None]:
    """Turn a regret in nats at a width, and its resamples (R,), into wasted FLOPs.

    Returns
    -------
    extra : Estimate
        The fraction of the FLOPs that bought nothing; the mean of its resamples if `mean`.
    equivalent : float or None
        n′ of the point fit.
    """
    alpha = fit.result.exponents["alpha"]
    joint, samples = fit.joint, fit.samples
    if joint is None or samples is None or alpha.status == "not identified":
        return refuse(Reason("alpha_unknown", of=alpha.reasons)), None
    if regret is None or drawn is None:
        return refuse(Reason("regret_unknown")), None
    equal = float(match_width(joint, width, regret)[0])
    spent = waste(samples, width, drawn, flops)
    caution: Reasons = ()
    if alpha.status != "identified":
        caution = (Reason("alpha_doubtful", of=alpha.reasons),)
    smallest = fit.basins.usable[0]
    if equal < smallest:
        caution = (*caution, Reason("below_narrowest", width=smallest))
    value = float(waste(joint, width, regret, flops)[0])
    if mean:
        finite = spent[np.isfinite(spent)]
        value = float(np.mean(finite)) if len(finite) else float("nan")
    return judge(value, spent, "regret", caution=caution), equal


def price_widths(fit: GroupFit, flops: Flops = square_flops) -> dict[float, Estimate]:
    """The price of the narrowest width's optimum at each usable width, as wasted FLOPs."""
    return {
        width: price_loss(fit, width, e.value, fit.prices.get(width), flops=flops)[0]
        for width, e in fit.result.regrets.items()
    }


def judge_fast(fit: GroupFit) -> FastTransfer:
    """Test β > α/2 on a fit in the converging form."""
    joint, samples, drift = fit.joint, fit.samples, fit.result.drift

    def undecided(margin: Estimate, because: str | None = None) -> FastTransfer:
        because = margin.reason if because is None else because
        return FastTransfer(
            group=fit.result.group, margin=margin, verdict="undecided", because=because
        )

    if joint is None or drift is None:
        return undecided(refuse(*fit.result.exponents["alpha"].reasons))
    if joint.form == "power":
        return undecided(refuse(Reason("converging_only", name="beta")))
    if holds_zero(drift):
        return undecided(refuse(Reason("no_drift", about="beta")))
    value = float(joint.beta[0] - 0.5 * joint.alpha[0])
    drawn = None if samples is None else samples.beta - 0.5 * samples.alpha
    distorted = list_bounds(joint, samples, "loss_inf", "A", "alpha")
    bounds = list_bounds(joint, samples, "beta")
    margin = judge(value, drawn, "beta", problem=(*distorted, *bounds))
    if margin.low is None or margin.high is None:
        return undecided(margin)
    said = f"beta − alpha/2 is {margin.value:.2g} [{margin.low:.2g}, {margin.high:.2g}]"
    if distorted:
        return undecided(margin, f"{said}, but {join_reasons(distorted)}")
    if margin.low <= 0.0 <= margin.high:
        return undecided(margin, said)
    # A bound on beta does not hide on which side of alpha/2 it lies, so it may stand here.
    verdict: FastVerdict = "fast" if margin.low > 0.0 else "not fast"
    return FastTransfer(group=fit.result.group, margin=margin, verdict=verdict, because=said)


def choose_lrs(fit: GroupFit, width: float) -> dict[str, float]:
    """x = ln(lr) of `recommend`'s three rules at a width; NaN without a joint fit."""
    if fit.joint is None:
        return dict.fromkeys(RULES, float("nan"))
    widest = fit.basins.usable[-1]
    same = float(fit.basins.at(widest).coefficients[0])
    shifted = same - float(np.log(width / widest))
    return dict(zip(RULES, (float(fit.joint.optimum(width)[0]), same, shifted), strict=True))
