"""Recommend a learning rate at a width: what it should give, and the price of being wrong.

The optimum is forecast from the minima of the measured widths, each found with its best loss
free, by forms averaged with priors and scatter (`optimum_law`). A rate x is priced at every place
where the optimum may lie, ½·C·(x − x*)² with the curvature C of the widest minimum.

Whether the best loss follows one power law of width is tested on the way: the fit to all widths
and one to the wider half of them agree, up to noise, where L*(n) = L∞ + A·n^-α holds throughout
(a specification test: Hausman 1978). Where they disagree more than the paired resamples of the
two explain, α changes with width: the loss predicted then spans both, and is at best weakly
identified.

Shape letters: R resamples, N points.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from hptransfer.errors import FitError
from hptransfer.stats._compute_regret import RULES, Flops
from hptransfer.stats._group_fit import GroupFit, find_group_minima
from hptransfer.stats._joint_fit import refit_joint
from hptransfer.stats._metrics import WIDTHS_FOR_JOINT, WIDTHS_FOR_OUT, list_bounds
from hptransfer.stats._next_trials import propose_trials
from hptransfer.stats._suggestions import explain_advice, find_missing
from hptransfer.stats.estimate import Estimate
from hptransfer.stats.identifiability import (
    LEVEL,
    THRESHOLDS,
    exponentiate,
    grade,
    interval,
    judge,
    refuse,
    worst,
)
from hptransfer.stats.loss_table import LossTable
from hptransfer.stats.minima import EXACT, Minima
from hptransfer.stats.optimum_law import SMALLEST_VARIANCE, Forecast, Mixture, forecast
from hptransfer.stats.priors import NO_PRIOR, PRIORS, Prior, classify
from hptransfer.stats.reasons import Reason
from hptransfer.stats.results import Proposal, Recommendation

#: Level of the test that one power law holds.
LAW_LEVEL = 0.05


def predict_loss(fit: GroupFit, width: float) -> Estimate:
    """Predict the best loss at a width, in nats, from a fit that has a joint model.

    Not identified where A or α rests on a bound: no falling law was seen. At best weakly
    identified where L∞ rests on its bound, or where the law changes with width; the interval
    then spans what both fits say.
    """
    joint, samples = fit.joint, fit.samples
    assert joint is not None
    value = float(joint.best_loss(width)[0])
    drawn = None if samples is None else samples.best_loss(width)
    problem = list_bounds(joint, samples, "A", "alpha")
    caution = list_bounds(joint, samples, "loss_inf")
    plain = judge(value, drawn, "loss", problem=problem, caution=caution)
    other = _reject_law(fit, width)
    if other is None or problem or plain.low is None or plain.high is None:
        return plain
    found, low, high = other
    low, high = min(plain.low, low), max(plain.high, high)
    half, limit = 0.5 * (high - low), THRESHOLDS["loss"]
    reasons = [Reason("law_changes", loss=found), *caution]
    if half > limit:
        reasons.append(Reason("half_width", half=half, limit=limit))
    return Estimate(
        value=value,
        low=low,
        high=high,
        status=worst(grade(half, limit), "weakly identified"),
        reasons=tuple(reasons),
    )


def _reject_law(fit: GroupFit, width: float) -> tuple[float, float, float] | None:
    """Value and interval, in nats, of the wider half's fit where it rejects the law, or None."""
    joint, samples, resampled = fit.joint, fit.samples, fit.resampled
    usable = fit.basins.usable
    if joint is None or samples is None or resampled is None or len(usable) < WIDTHS_FOR_OUT:
        return None
    num = max(WIDTHS_FOR_JOINT, math.ceil(len(usable) / 2))
    keep = np.exp(joint.data.t + joint.log_width) > np.sqrt(usable[-num] * usable[-num - 1])
    if int(np.sum(keep)) < joint.num_parameters:
        return None
    value = float(joint.best_loss(width)[0])
    apart = float(refit_joint(joint, fit.losses[None, :], keep=keep).best_loss(width)[0]) - value
    drawn = refit_joint(joint, resampled, keep=keep).best_loss(width)
    gaps = np.abs(drawn - samples.best_loss(width))
    if not abs(apart) > np.quantile(gaps, 1.0 - LAW_LEVEL):
        return None
    # Resamples are drawn around the fit to all widths; their spread is the wider half's own.
    low, high = interval(drawn)
    return value + apart, low + apart, high + apart


#: 90 % upper bounds of the regret, in nats, up to which an answer is usable, and risky.
USABLE_REGRET = 0.02
RISKY_REGRET = 0.1
#: Fewest widths with a minimum from which an answer may be usable.
USABLE_WIDTHS = 3
#: A target within this of a measured width, relatively, is that width.
SAME_WIDTH = 1e-9
Verdict = Literal["usable", "risky", "unusable"]


def propose(fit: GroupFit, width: float, flops: Flops, cost_basis: str) -> Proposal:
    """Propose the trials to run next: those that narrow what noise leaves open at a width."""
    joint, samples, design, cells = fit.joint, fit.samples, fit.design, fit.data.cells
    if joint is None:
        missing = find_missing(fit.basins, cells)
        return Proposal(half_width=None, missing=tuple(missing), cost_basis=cost_basis)
    if samples is None or design is None:
        # Without noise there is no interval to narrow; with noise unknown, seeds come first.
        missing = [] if samples is not None else [Reason("seed")]
        return Proposal(half_width=None, missing=tuple(missing), cost_basis=cost_basis)
    low, high = interval(samples.optimum(width))
    total = float(np.sum((cells.count + cells.diverged) * flops(cells.width)))
    return propose_trials(design, 0.5 * (high - low), width, flops, total, cost_basis)


@dataclass(frozen=True, kw_only=True)
class LawOptions:
    """How the optimum is forecast: what a user may set.

    Attributes
    ----------
    form : str or None
        The form of x*(n) that answers alone; None averages them.
    scatter : float or None
        Standard deviation of ln lr* from size to size, held; None finds it. With 0 the law, and
        the basins' shape, are taken to hold exactly.
    priors : mapping of str to Prior, or None
        Priors by kind of sweep; None for none.
    """

    form: str | None = None
    scatter: float | None = None
    priors: Mapping[str, Prior] | None = field(default_factory=lambda: PRIORS)

    def prior(self, fit: GroupFit, table: LossTable) -> Prior:
        """Return the prior of a group's kind of sweep."""
        if self.priors is None:
            return NO_PRIOR
        name = fit.result.group.get("parameterization")
        kind = classify(table.size, table.axis, None if name is None else str(name))
        if kind not in self.priors:
            known = ", ".join(self.priors)
            raise FitError(f"priors: expected a prior of kind {kind}, found {known}")
        return self.priors[kind]


def advise(fit: GroupFit, width: float, table: LossTable, options: LawOptions) -> Recommendation:
    """Make one group's recommendation from its minima."""
    minima = fit.minima if options.scatter != 0.0 else find_group_minima(fit.data, EXACT)
    prior = options.prior(fit, table)
    blank = Recommendation(
        group=fit.result.group,
        width=float(width),
        lr=refuse(),
        loss=refuse(),
        regret={},
        verdict="unusable",
        because="",
        axis=table.axis,
        base_width=table.base_width,
        prior=describe_prior(prior),
    )
    if not minima.found.any():
        no = refuse(Reason("no_minimum"), remedy=_missing(fit))
        because = f"the table cannot support an answer: {no.reason}"
        return replace(blank, lr=no, loss=no, regret=dict.fromkeys(RULES, no), because=because)
    last = int(np.flatnonzero(minima.found)[-1])
    curvature = float(minima.curvature[last])
    beside = np.flatnonzero(np.abs(minima.size / width - 1.0) < SAME_WIDTH)
    if len(beside) and minima.found[beside[0]]:
        place = int(beside[0])
        curvature = float(minima.curvature[place])
        found = Forecast(
            where=Mixture(
                weights=np.ones(1),
                means=minima.x[[place]],
                variances=np.maximum(minima.variance[[place]], SMALLEST_VARIANCE),
            ),
            forms={"measured": 1.0},
            scatter=0.0,
        )
    else:
        found = forecast(
            minima.size,
            minima.x,
            minima.variance,
            width,
            prior=prior,
            low=minima.low,
            high=minima.high,
            scatter=options.scatter,
            form=options.form,
        )
    where = found.where
    x = where.mean
    lr = estimate_lr(where)
    same = float(minima.x[last])
    shifted = same - float(np.log(width / minima.size[last]))
    choices = dict(zip(RULES, (x, same, shifted), strict=True))
    regret = {rule: price(where, choice, curvature) for rule, choice in choices.items()}
    loss = (
        predict_loss(fit, width)
        if fit.joint is not None
        else refuse(*fit.result.exponents["alpha"].reasons)
    )
    verdict, because = judge_advice(fit, minima, width, x, lr, regret, found)
    if verdict != "unusable" and lr.status == "not identified":
        # A rate that is judged is shown, however wide its interval.
        lr = replace(lr, status="weakly identified")
    if fit.design is not None:
        lr, loss, regret = explain_advice(lr, loss, regret, fit.design, width)
    by_role = None
    if table.rates is not None and lr.value is not None:
        by_role = table.rates(fit.data.group, width, lr.value)
    return replace(
        blank,
        lr=lr,
        loss=loss,
        regret=regret,
        verdict=verdict,
        because=because,
        lr_by_role=by_role,
        forms=found.forms,
        scatter=found.scatter,
    )


def _missing(fit: GroupFit) -> Reason | None:
    parts = find_missing(fit.basins, fit.data.cells)
    return Reason("missing", parts=parts) if parts else None


def describe_prior(prior: Prior) -> str:
    """Say which prior was used: its kind, and its slope of ln lr* on ln size.

    Examples
    --------
    >>> describe_prior(PRIORS["aligned"])
    'aligned: lr* ~ size^(-0.09 ± 0.16)'
    """
    if prior == NO_PRIOR:
        return prior.name
    return f"{prior.name}: lr* ~ size^({prior.slope:.2f} ± {prior.spread:.2f})"


def estimate_lr(where: Mixture) -> Estimate:
    """Turn where x* lies into an estimate of the learning rate."""
    low, high = where.quantile(0.5 - 0.5 * LEVEL), where.quantile(0.5 + 0.5 * LEVEL)
    half, limit = 0.5 * (high - low), THRESHOLDS["log_lr"]
    return Estimate(
        value=exponentiate(where.mean),
        low=exponentiate(low),
        high=exponentiate(high),
        status=grade(half, limit),
        reasons=(Reason("half_width", half=half, limit=limit),) if half > limit else (),
    )


def price(where: Mixture, x: float, curvature: float) -> Estimate:
    """Expected regret of x in nats, and what it costs at most, with 90 % confidence."""
    high, limit = where.bound(x, curvature, LEVEL), THRESHOLDS["regret"]
    half = 0.5 * high
    return Estimate(
        value=where.regret(x, curvature),
        low=0.0,
        high=max(high, where.regret(x, curvature)),
        status=grade(half, limit),
        reasons=(Reason("half_width", half=half, limit=limit),) if half > limit else (),
    )


def judge_advice(
    fit: GroupFit,
    minima: Minima,
    width: float,
    x: float,
    lr: Estimate,
    regret: Mapping[str, Estimate],
    found: Forecast,
) -> tuple[Verdict, str]:
    """Return the verdict on x = ln(lr) at a width, and its reason in plain words."""
    most = regret["recommended"].high
    assert most is not None
    said = f"with 90 % confidence it costs at most {most:.2g} nats over the best"
    if most > RISKY_REGRET:
        return "unusable", f"{said}, more than {RISKY_REGRET:g}"
    worries = []
    if most > USABLE_REGRET:
        worries.append(f"that is more than {USABLE_REGRET:g}")
    known = minima.size[minima.found]
    if "measured" not in found.forms:
        if len(known) < USABLE_WIDTHS:
            widths = "width has" if len(known) == 1 else "widths have"
            worries.append(f"only {len(known)} {widths} a minimum: the prior answers for the rest")
        factor, span = width / known[-1], known[-1] / known[0]
        if factor > span and len(known) > 1:
            worries.append(
                f"it reaches {factor:.3g} times beyond the widest width, and the widths measured "
                f"span only {span:.3g} times"
            )
    if lr.status == "not identified" and lr.low and lr.high:
        worries.append(f"the rate is known to a factor of {np.sqrt(lr.high / lr.low):.2g} only")
    measured = fit.data.cells.x
    if not measured.min() <= x <= measured.max():
        worries.append("that learning rate lies outside those measured")
    if np.isfinite(fit.basins.edge) and x >= fit.basins.edge:
        worries.append("trials diverged at that learning rate, or below it, at a measured width")
    elif np.isfinite(fit.basins.cliff) and x >= fit.basins.cliff:
        worries.append(
            "one of several seeds broke down at that learning rate, or below it, at a measured "
            "width"
        )
    if worries:
        return "risky", f"{said}, but " + "; ".join(worries)
    return "usable", said
