"""What a missed learning rate costs as compute, and whether transfer is fast.

A loss r above the best of width n is the best of a smaller width n′, L*(n′) = L*(n) + r, so that
1 − F(n′)/F(n) of the training FLOPs F bought nothing. With L* = L∞ + A·n^-α,
n′ = n·(1 + r/(A·n^-α))^(-1/α).

Transfer is fast (Ghosh et al. 2025, arXiv 2512.22768) when the cost of a transferred optimum,
∝ n^(-2β), vanishes before the reducible loss ∝ n^-α does: β > α/2.

Shape letters: R resamples, W widths.
"""

from collections.abc import Mapping

import numpy as np

from hptransfer.stats.cells import Floats
from hptransfer.stats.estimate import Estimate
from hptransfer.stats.flops import Flops, square_flops
from hptransfer.stats.joint_model import JointFit
from hptransfer.stats.judge import judge, refuse
from hptransfer.stats.measures import ComputeRegret, FastTransfer, FastVerdict
from hptransfer.stats.metrics import NO_DRIFT, holds_zero, say_bounds
from hptransfer.stats.transfer import GroupFit

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
        return refuse(f"alpha is not identified: {alpha.reason}"), None
    if regret is None or drawn is None:
        return refuse("the regret in nats is not known"), None
    equal = float(match_width(joint, width, regret)[0])
    spent = waste(samples, width, drawn, flops)
    caution = "" if alpha.status == "identified" else f"alpha: {alpha.reason}"
    smallest = fit.basins.usable[0]
    if equal < smallest:
        beyond = f"it compares with a width below {smallest:g}, the narrowest measured"
        caution = "; ".join(filter(None, (caution, beyond)))
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

    def undecided(why: str, margin: Estimate | None = None) -> FastTransfer:
        margin = refuse(why) if margin is None else margin
        return FastTransfer(group=fit.result.group, margin=margin, verdict="undecided", because=why)

    if joint is None or drift is None:
        return undecided(fit.result.exponents["alpha"].reason)
    if joint.form == "power":
        return undecided("beta exists only in the converging form")
    if holds_zero(drift):
        return undecided(f"{NO_DRIFT}, so that beta has no meaning")
    value = float(joint.beta[0] - 0.5 * joint.alpha[0])
    drawn = None if samples is None else samples.beta - 0.5 * samples.alpha
    distorted = say_bounds(joint, samples, "loss_inf", "A", "alpha")
    bounds = "; ".join(filter(None, (distorted, say_bounds(joint, samples, "beta"))))
    margin = judge(value, drawn, "beta", problem=bounds)
    if margin.low is None or margin.high is None:
        return undecided(margin.reason, margin)
    said = f"beta − alpha/2 is {margin.value:.2g} [{margin.low:.2g}, {margin.high:.2g}]"
    if distorted:
        return undecided(f"{said}, but {distorted}", margin)
    if margin.low <= 0.0 <= margin.high:
        return undecided(said, margin)
    # A bound on beta does not hide on which side of alpha/2 it lies, so it may stand here.
    verdict: FastVerdict = "fast" if margin.low > 0.0 else "not fast"
    return FastTransfer(group=fit.result.group, margin=margin, verdict=verdict, because=said)


def choose_lrs(fit: GroupFit, width: float) -> dict[str, float]:
    """x = ln(lr) of `recommend`'s three rules at a width; NaN without a joint fit."""
    if fit.joint is None:
        return dict.fromkeys(RULES, float("nan"))
    widest = fit.basins.usable[-1]
    same = float(next(b for b in fit.basins.basins if b.width == widest).coefficients[0])
    shifted = same - float(np.log(width / widest))
    return dict(zip(RULES, (float(fit.joint.optimum(width)[0]), same, shifted), strict=True))
