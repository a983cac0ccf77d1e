"""Recommend a learning rate at a width: what it should give, and the price of being wrong.

The optimum is forecast from the minima of the measured widths, each found with its best loss
free, by forms averaged with priors and scatter (`optimum_law`). A rate x is priced at every place
where the optimum may lie, ½·C·(x − x*)² with the curvature C of the widest minimum.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from hptransfer.stats._group_fit import GroupFit
from hptransfer.stats._metrics import (
    RULES,
    SQUARE_BASIS,
    Flops,
    judge_rows,
    list_bounds,
    square_flops,
)
from hptransfer.stats._power_laws import Laws
from hptransfer.stats._suggestions import (
    falls_flat,
    find_missing,
    propose_trials,
    repeat_trials,
    with_remedy,
)
from hptransfer.stats.estimate import (
    LEVEL,
    THRESHOLDS,
    Estimate,
    bound,
    exponentiate,
    half_width,
    refuse,
)
from hptransfer.stats.loss_table import Floats, LossTable
from hptransfer.stats.minima import Minima
from hptransfer.stats.optimum_law import SMALLEST_VARIANCE, Forecast, Known, Mixture, forecast
from hptransfer.stats.priors import NO_PRIOR, PRIORS, Prior, find_prior
from hptransfer.stats.reasons import Reason
from hptransfer.stats.results import Proposal, Recommendation


def predict_loss(laws: Laws, width: float) -> Estimate:
    """Predict the best loss at a width, in nats, by the law of the best losses.

    Not identified where A or α rests on a bound: no falling law was seen. At best weakly
    identified where L∞ rests on its bound. The interval has the losses' scatter about the law and,
    unless the law is taken to hold exactly, its miss at the widest width where that was left out.
    """
    rows = laws.best_loss(width)
    if laws.drawn:
        rng = np.random.default_rng([0, 8])
        spread = float(np.hypot(laws.loss_scatter, laws.miss))
        rows = rows + np.append(0.0, spread * rng.standard_normal(len(rows) - 1))
    problem = list_bounds(laws, "A", "alpha")
    return judge_rows(rows, "loss", problem=problem, caution=list_bounds(laws, "loss_inf"))


#: 90 % upper bounds of the regret, in nats, up to which an answer is usable, and risky.
USABLE_REGRET = 0.02
RISKY_REGRET = 0.1
#: Fewest widths with a minimum from which an answer may be usable.
USABLE_WIDTHS = 3
#: A target within this of a measured width, relatively, is that width.
SAME_WIDTH = 1e-9
Verdict = Literal["usable", "risky", "unusable"]


@dataclass(frozen=True, kw_only=True)
class LawOptions:
    """How the optimum is forecast: what a user may set.

    Attributes
    ----------
    form : str or None
        The form of x*(n) that answers alone; None averages them.
    scatter : float or None
        Standard deviation of ln lr* from size to size, held; None finds it. With 0 nothing
        scatters and basins have one shape where points allow it; the average of forms still lets
        the law bend, and a `form` holds one law exactly.
    priors : mapping of str to Prior, or None
        Priors by kind of sweep; None for none.
    flops : callable
        From widths (W,) to training FLOPs of a trial (W,), up to a factor.
    basis : str
        What they are taken from, in words.
    """

    form: str | None = None
    scatter: float | None = None
    priors: Mapping[str, Prior] | None = field(default_factory=lambda: PRIORS)
    flops: Flops = square_flops
    basis: str = SQUARE_BASIS


def advise(fit: GroupFit, width: float, table: LossTable, options: LawOptions) -> Recommendation:
    """Make one group's recommendation from its minima, but for what it costs in compute."""
    minima = fit.minima
    prior = find_prior(table, fit.data.rows, options.priors)

    def locate(known: Known, at: float) -> Forecast:
        beside = find_measured(known, at)
        if beside is not None:
            return answer_measured(known.x, known.variance, beside)
        return forecast(known, at, prior=prior, scatter=options.scatter, form=options.form)

    parts = _missing(fit)
    remedy = Reason("missing", parts=parts) if parts else None
    no = refuse(Reason("no_minimum"), remedy=remedy)
    blank = refuse_answer(table, fit.result.group, width, prior, no)
    if not minima.found.any():
        following = Proposal(half_width=None, missing=parts, cost_basis=options.basis)
        return replace(blank, next=following)
    last, measured = int(np.flatnonzero(minima.found)[-1]), find_measured(Known.of(minima), width)
    curvature = float(minima.curvature[last if measured is None else measured])
    found = locate(Known.of(minima), width)
    same, ratio = float(minima.x[last]), float(np.log(width / minima.size[last]))
    worries = _worry(fit, minima, width, found)
    if fit.doubt and options.scatter == 0.0:
        worries.append(f"one shape of the basins, as a scatter of 0 takes it, {fit.doubt}")
    answer = judge_answer(blank, table, found.where, curvature, same, ratio, worries)
    repeated = None
    if measured is not None:
        loss = fit.result.basins[measured].loss
        if (half := half_width(loss)) is not None:
            repeated = repeat_trials(half, THRESHOLDS["loss"], width)
    elif fit.laws is not None:
        loss = predict_loss(fit.laws, width)
    else:
        loss = refuse(*fit.result.exponents["alpha"].reasons)
    loss = with_remedy(loss, repeated)
    following = _propose(fit, minima, width, locate, options)
    lr, loss, regret = _explain(answer.lr, loss, answer.regret, following, float(minima.size[last]))
    return replace(
        answer, lr=lr, loss=loss, regret=regret, forms=found.forms, scatter=found.scatter,
        next=following,
    )  # fmt: skip


def refuse_answer(
    table: LossTable, group: Mapping[str, object], width: float, prior: Prior, no: Estimate
) -> Recommendation:
    """Return a recommendation of nothing, for the reasons of `no`."""
    return Recommendation(
        group=group,
        width=float(width),
        lr=no,
        loss=no,
        regret=dict.fromkeys(RULES, no),
        verdict="unusable",
        because=f"the table cannot support an answer: {no.reason}",
        axis=table.axis,
        base_width=table.base_width,
        prior=describe_prior(prior),
    )


def judge_answer(
    blank: Recommendation,
    table: LossTable,
    where: Mixture,
    curvature: float,
    same: float,
    ratio: float,
    worries: Sequence[str],
) -> Recommendation:
    """Fill in the rate that where x* lies asks for, its price and that of others, and a verdict.

    Parameters
    ----------
    blank : Recommendation
        From `refuse_answer`.
    where, curvature : Mixture and float
        x* and C at the target.
    same, ratio : float
        The proxy's x*, and ln of the target's width over its.
    worries : sequence of str
        What makes the answer risky besides its price and the rate's interval.
    """
    lr = estimate_lr(where)
    choices = dict(zip(RULES, (where.mean, same, same - ratio), strict=True))
    regret = {rule: price(where, choice, curvature) for rule, choice in choices.items()}
    most = regret["recommended"].high or 0.0
    because = f"with 90 % confidence it costs at most {most:.2g} nats over the best"
    verdict: Verdict = "usable"
    doubts = [f"that is more than {USABLE_REGRET:g}"] if most > USABLE_REGRET else []
    if lr.status == "not identified" and lr.low and lr.high:
        factor = np.sqrt(lr.high / lr.low)
        doubts.append(f"the rate is known to a factor of {factor:.2g} only")
    doubts += worries
    if most > RISKY_REGRET:
        verdict, because = "unusable", f"{because}, more than {RISKY_REGRET:g}"
    elif doubts:
        verdict, because = "risky", f"{because}, but " + "; ".join(doubts)
    if verdict != "unusable" and lr.status == "not identified":
        # A rate that is judged is shown, however wide its interval.
        lr = replace(lr, status="weakly identified")
    by_role = None
    if table.rates is not None and lr.value is not None:
        by_role = table.rates(blank.group, blank.width, lr.value)
    return replace(
        blank, lr=lr, regret=regret, verdict=verdict, because=because, lr_by_role=by_role
    )


def answer_measured(x: Floats, variance: Floats, place: int) -> Forecast:
    """Return where x* lies as its own basin, the minimum number `place`, says."""
    where = Mixture(
        weights=np.ones(1),
        means=x[[place]],
        variances=np.maximum(variance[[place]], SMALLEST_VARIANCE),
    )
    return Forecast(where=where, forms={"measured": 1.0}, scatter=0.0)


def find_measured(known: Known, width: float) -> int | None:
    """Return the place of the size with a minimum that a width is; None if it is none."""
    same = np.flatnonzero((np.abs(known.size / width - 1.0) < SAME_WIDTH) & np.isfinite(known.x))
    return int(same[0]) if len(same) else None


def _missing(fit: GroupFit) -> tuple[Reason, ...]:
    return find_missing(fit.result.basins, np.array(fit.usable), fit.data.cells)


def _propose(
    fit: GroupFit,
    minima: Minima,
    width: float,
    locate: Callable[[Known, float], Forecast],
    options: LawOptions,
) -> Proposal:
    """Propose the trials to run next: those that narrow the answer at a width most."""
    missing, basis = _missing(fit), options.basis
    if missing:
        return Proposal(half_width=None, missing=missing, cost_basis=basis)
    cells = fit.data.cells
    total = float(np.sum((cells.count + cells.diverged) * options.flops(cells.width)))

    def halves(known: Known) -> float:
        where = locate(known, width).where
        return 0.5 * (where.quantile(0.5 + 0.5 * LEVEL) - where.quantile(0.5 - 0.5 * LEVEL))

    def optimum(at: float) -> float:
        return locate(Known.of(minima), at).where.mean

    return propose_trials(minima, width, halves, optimum, options.flops, total, basis)


def _explain(
    lr: Estimate, loss: Estimate, regret: Mapping[str, Estimate], following: Proposal, widest: float
) -> tuple[Estimate, Estimate, dict[str, Estimate]]:
    """Give what was predicted at a width, where it is not identified, what would help."""
    wider = Reason("widths", num=1, width=widest)
    new = any(step.new and step.width > widest for step in following.steps)
    half = half_width(lr, log=True)
    if new or half is None:
        lr = with_remedy(lr, wider)
    else:
        lr = with_remedy(lr, repeat_trials(half, THRESHOLDS["log_lr"]))
    loss = with_remedy(loss, Reason("flat") if falls_flat(loss) else wider)
    return lr, loss, {
        # The regret of the fit's own choice falls as the variance of the optimum does.
        name: with_remedy(
            e,
            repeat_trials(
                half, THRESHOLDS["regret"], power=1.0 if name == "recommended" else 2.0
            ),
        )
        if (half := half_width(e)) is not None
        else e
        for name, e in regret.items()
    }  # fmt: skip


def describe_prior(prior: Prior) -> str:
    """Say which prior was used: its kind, and its slope of ln lr* on ln size.

    Examples
    --------
    >>> describe_prior(PRIORS["aligned"])
    'aligned: lr* ~ size^(-0.09 ± 0.16)'
    """
    if prior == NO_PRIOR:
        return prior.name
    return f"{prior.name}: lr* ~ size^({prior.slope + prior.trend:.2f} ± {prior.spread:.2f})"


def estimate_lr(where: Mixture) -> Estimate:
    """Turn where x* lies into an estimate of the learning rate."""
    low, high = where.quantile(0.5 - 0.5 * LEVEL), where.quantile(0.5 + 0.5 * LEVEL)
    return bound(where.mean, low, high, "log_lr").transform(exponentiate)


def price(where: Mixture, x: float, curvature: float) -> Estimate:
    """Expected regret of x in nats, and what it costs at most, with 90 % confidence."""
    value = where.regret(x, curvature)
    found = bound(value, 0.0, where.bound(x, curvature, LEVEL), "regret")
    return replace(found, high=max(found.high or 0.0, value))


def _worry(fit: GroupFit, minima: Minima, width: float, found: Forecast) -> list[str]:
    """Say what makes an answer at a width risky, besides its price."""
    worries = []
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
    x = found.where.mean
    worries += worry_about_rate(x, fit.data.cells.x, fit.edge)
    if fit.cliff <= x < fit.edge:
        worries.append(
            "one of several seeds broke down at that learning rate, or below it, at a measured "
            "width"
        )
    return worries


def worry_about_rate(x: float, tried: Floats, edge: float) -> list[str]:
    """Say what makes a rate risky where others were tried: no trial near it, or diverged ones.

    Parameters
    ----------
    x, tried : float and ndarray
        ln(lr) of the answer, and of all trials.
    edge : float
        Lowest ln(lr) at which a trial diverged; inf if none.
    """
    worries = []
    if not tried.min() <= x <= tried.max():
        worries.append("that learning rate lies outside those measured")
    if x >= edge:
        worries.append("trials diverged at that learning rate, or below it, at a measured width")
    return worries
