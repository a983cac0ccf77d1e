"""Which learning rate to use at a width, what it should give, and the price of being wrong.

The joint model is refitted to each resample; the learning rate that the point fit recommends is
then priced at every resample's own optimum, ½·C(n)·(δx)² (with the shared skew), so that the
expected regret holds what is unknown about the optimum and about the curvature.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from hptransfer.errors import FitError
from hptransfer.stats.basins import DEFAULT_RESAMPLES, DEFAULT_SEED
from hptransfer.stats.cells import DEFAULT_WINDOW, Floats
from hptransfer.stats.compare import DEFAULT_BY, check_reference, fit_groups, split_table
from hptransfer.stats.compute import RULES, choose_lrs, judge_fast, price_compute
from hptransfer.stats.estimate import Estimate
from hptransfer.stats.explain import help_advice
from hptransfer.stats.flops import Flops, flops_by_width
from hptransfer.stats.joint_model import JointFit
from hptransfer.stats.judge import exponentiate, f_limit, interval, judge, judge_log, refuse
from hptransfer.stats.law import predict_loss
from hptransfer.stats.next_trials import propose_trials
from hptransfer.stats.proposal import Proposal
from hptransfer.stats.recommendation import Recommendation
from hptransfer.stats.remedy import PHRASES, find_missing
from hptransfer.stats.solution import refit_form
from hptransfer.stats.table import LossTable
from hptransfer.stats.transfer import GroupFit

#: 90 % upper bounds of the regret, in nats, up to which an answer is usable, and risky.
USABLE_REGRET = 0.02
RISKY_REGRET = 0.1
#: Level at which the converging form rejects the power form.
FORM_LEVEL = 0.01
Verdict = Literal["usable", "risky", "unusable"]


def recommend(
    table: LossTable,
    *,
    width: float,
    by: Sequence[str] = DEFAULT_BY,
    reference: str | None = None,
    window: float = DEFAULT_WINDOW,
    num_resamples: int = DEFAULT_RESAMPLES,
    seed: int = DEFAULT_SEED,
    flops: Flops | None = None,
) -> list[Recommendation]:
    """Recommend a learning rate at a target width, for every group of a table.

    Parameters
    ----------
    table : LossTable
        Trials at the proxy widths.
    width : float
        Target width.
    by, reference, window, num_resamples, seed
        As for `fit_table`; the answer does not depend on the reference, whose name is checked.
    flops : callable
        From widths (W,) to training FLOPs of a trial (W,), up to a factor, for the cost of the
        trials to run next and for regret as compute; `flops_of` makes one. By default the
        table's own, or width².

    Returns
    -------
    list of Recommendation
        In order of first appearance; ``unusable`` with the reason where the table cannot say.

    Raises
    ------
    FitError
        `width` is not a positive number, or the table cannot be split.
    """
    require_width(width)
    split = split_table(table, by)
    check_reference(table, split, reference)
    fits = fit_groups(table, split, window=window, num_resamples=num_resamples, seed=seed)
    spent, cost_basis = flops_by_width(table) if flops is None else (flops, "the FLOPs given")
    return [
        replace(
            advise(fit, width),
            next=propose(fit, width, spent, cost_basis),
            compute=price_compute(fit, width, choose_lrs(fit, width), flops=spent),
            fast=judge_fast(fit),
        )
        for fit in fits
    ]


def require_width(width: float) -> None:
    """Raise FitError where a target width is not a positive number."""
    if not (np.isfinite(width) and width > 0):
        raise FitError(f"width: expected a positive number, found {width}")


def propose(fit: GroupFit, width: float, flops: Flops, cost_basis: str) -> Proposal:
    """Propose the trials to run next for an answer at a width."""
    joint, samples, design, cells = fit.joint, fit.samples, fit.design, fit.cells
    if joint is None:
        missing = find_missing(fit.basins, cells)
        return Proposal(half_width=None, missing=tuple(missing), cost_basis=cost_basis)
    if samples is None or design is None:
        # Without noise there is no interval to narrow; with noise unknown, seeds come first.
        missing = [] if samples is not None else [PHRASES["seed"]]
        return Proposal(half_width=None, missing=tuple(missing), cost_basis=cost_basis)
    low, high = interval(samples.optimum(width))
    total = float(np.sum((cells.count + cells.diverged) * flops(cells.width)))
    return propose_trials(design, 0.5 * (high - low), width, flops, total, cost_basis)


def advise(fit: GroupFit, width: float) -> Recommendation:
    """Make one group's recommendation from its fit in the converging form."""
    result = fit.result
    joint, samples = fit.joint, fit.samples
    if joint is None or samples is None:
        why = fit.explained(result).exponents["alpha"].reason
        return Recommendation(
            group=result.group,
            width=float(width),
            lr=refuse(why),
            loss=refuse(why),
            regret={rule: refuse(why) for rule in RULES},
            verdict="unusable",
            because=f"the table cannot support an answer: {why}",
        )
    x = float(joint.optimum(width)[0])
    lr = judge_log(x, samples.optimum(width))
    loss = predict_loss(fit, width)
    choices = choose_lrs(fit, width)
    regret = {rule: price(samples.rise(width, choice)) for rule, choice in choices.items()}
    verdict, because = judge_advice(fit, width, x, regret)
    lr, loss, regret = help_advice(lr, loss, regret, fit.design, width)
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
    """Whether an F test at `FORM_LEVEL` leaves the power form standing beside the converging."""
    spare = len(converging.data.t) - converging.num_parameters
    if spare < 1:
        return True
    limit = f_limit(FORM_LEVEL, 1, spare)
    found = float(converging.cost[0])
    return float(power.cost[0]) - found <= limit * found / spare
