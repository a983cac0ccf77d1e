"""Recommend a learning rate at a width: what it should give, and the price of being wrong.

The joint model is refitted to each resample; the learning rate that the point fit recommends is
then priced at every resample's own optimum, ½·C(n)·(δx)² (with the shared skew), so that the
expected regret holds what is unknown about the optimum and about the curvature.

Whether the best loss follows one power law of width is tested on the way: the fit to all widths
and one to the wider half of them agree, up to noise, where L*(n) = L∞ + A·n^-α holds throughout
(a specification test: Hausman 1978). Where they disagree more than the paired resamples of the
two explain, α changes with width: the loss predicted then spans both, and is at best weakly
identified.

Shape letters: R resamples, N points.
"""

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np

from hptransfer.stats._compute_regret import (
    RULES,
    Flops,
    choose_lrs,
)
from hptransfer.stats._group_fit import GroupFit
from hptransfer.stats._joint_fit import refit_form, refit_joint
from hptransfer.stats._joint_model import JointFit
from hptransfer.stats._metrics import WIDTHS_FOR_JOINT, WIDTHS_FOR_OUT, list_bounds
from hptransfer.stats._next_trials import propose_trials
from hptransfer.stats._suggestions import explain_advice, find_missing
from hptransfer.stats.cells import Floats
from hptransfer.stats.estimate import Estimate
from hptransfer.stats.identifiability import (
    THRESHOLDS,
    exponentiate,
    f_limit,
    grade,
    interval,
    judge,
    judge_log,
    refuse,
    worst,
)
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
#: Level at which the converging form rejects the power form.
FORM_LEVEL = 0.01
Verdict = Literal["usable", "risky", "unusable"]


def propose(fit: GroupFit, width: float, flops: Flops, cost_basis: str) -> Proposal:
    """Propose the trials to run next for an answer at a width."""
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


def advise(fit: GroupFit, width: float) -> Recommendation:
    """Make one group's recommendation from its fit in the converging form."""
    result = fit.result
    joint, samples = fit.joint, fit.samples
    if joint is None or samples is None:
        alpha = fit.explained(result).exponents["alpha"]
        no = refuse(*alpha.reasons, remedy=alpha.remedy)
        return Recommendation(
            group=result.group,
            width=float(width),
            lr=no,
            loss=no,
            regret=dict.fromkeys(RULES, no),
            verdict="unusable",
            because=f"the table cannot support an answer: {no.reason}",
        )
    x = float(joint.optimum(width)[0])
    lr = judge_log(x, samples.optimum(width))
    loss = predict_loss(fit, width)
    choices = choose_lrs(fit, width)
    regret = {rule: price(samples.rise(width, choice)) for rule, choice in choices.items()}
    verdict, because = judge_advice(fit, width, x, regret)
    lr, loss, regret = explain_advice(lr, loss, regret, fit.design, width)
    return Recommendation(
        group=result.group,
        width=float(width),
        lr=lr,
        loss=loss,
        regret=regret,
        verdict=verdict,
        because=because,
    )


def price(drawn: Floats) -> Estimate:
    """Turn resampled regrets in nats into an estimate whose value is their mean."""
    finite = drawn[np.isfinite(drawn)]
    value = float(np.mean(finite)) if len(finite) else float("nan")
    return judge(value, drawn, "regret")


def judge_advice(
    fit: GroupFit, width: float, x: float, regret: Mapping[str, Estimate]
) -> tuple[Verdict, str]:
    """Return the verdict on x = ln(lr) at a width, and its reason in plain words."""
    assert fit.joint is not None
    worst = regret["recommended"].high
    if worst is None:
        return "unusable", regret["recommended"].reason
    said = f"with 90 % confidence it costs at most {worst:.2g} nats over the best"
    if worst > RISKY_REGRET:
        return "unusable", f"{said}, more than {RISKY_REGRET:g}"
    worries = []
    if worst > USABLE_REGRET:
        worries.append(f"that is more than {USABLE_REGRET:g}")
    usable = fit.basins.usable
    factor, span = width / usable[-1], usable[-1] / usable[0]
    if factor > span:
        worries.append(
            f"it reaches {factor:.3g} times beyond the widest width, and the widths measured "
            f"span only {span:.3g} times"
        )
    power = refit_form(fit.joint, fit.losses, fit.basins, "power")
    if power_fits(fit.joint, power):
        gap = float(fit.joint.rise(width, power.optimum(width))[0])
        if gap > max(USABLE_REGRET, worst):
            there = exponentiate(float(power.optimum(width)[0]))
            says = "another" if there is None else f"{there:.3g}"
            worries.append(
                f"a power law for the optimum fits too and says {says}, {gap:.2g} nats away"
            )
    measured = fit.joint.data.x + fit.joint.x_mean
    if not measured.min() <= x <= measured.max():
        worries.append("that learning rate lies outside those measured near the minima")
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


def power_fits(converging: JointFit, power: JointFit) -> bool:
    """Return whether an F test at `FORM_LEVEL` does not reject the power form."""
    spare = len(converging.data.t) - converging.num_parameters
    if spare < 1:
        return True
    limit = f_limit(FORM_LEVEL, 1, spare)
    found = float(converging.cost[0])
    return float(power.cost[0]) - found <= limit * found / spare
