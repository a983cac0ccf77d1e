"""Recommend a learning rate at a width: what it should give, and the price of being wrong.

The optimum is forecast from the minima of the measured widths, each found with its best loss
free, by forms averaged with priors and scatter (`optimum_law`). A rate x is priced at every place
where the optimum may lie, ½·C·(x − x*)² with the curvature C of the minimum nearest to the target.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
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
)
from hptransfer.stats.estimate import (
    THRESHOLDS,
    Estimate,
    bound,
    exponentiate,
    half_width,
    refuse,
)
from hptransfer.stats.loss_table import Ints, LossTable
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


def advise(
    fit: GroupFit,
    width: float,
    table: LossTable,
    *,
    form: str | None = None,
    scatter: float | None = None,
    priors: Mapping[str, Prior] | None = PRIORS,
    flops: Flops = square_flops,
    basis: str = SQUARE_BASIS,
) -> Recommendation:
    """Make one group's recommendation from its minima, but for what it costs in compute.

    The options are those of `TableFit.recommend`; `basis` says what the FLOPs are taken from.
    """
    minima, cells = fit.minima, fit.data.cells
    prior = find_prior(table, fit.data.rows, priors)

    def locate(known: Known, at: float) -> Forecast:
        place = find_measured(known, at)
        if place is not None:
            return answer_measured(known.x[place], known.variance[place])
        return forecast(known, at, prior=prior, scatter=scatter, form=form)

    missing = find_missing(fit.result.basins, np.array(fit.usable), cells)
    following = Proposal(half_width=None, missing=missing, cost_basis=basis)
    no = refuse(Reason("no_minimum"), remedy=Reason("missing", parts=missing) if missing else None)
    blank = refuse_answer(table, fit.result.group, width, prior, no)
    if not minima.found.any():
        return replace(blank, next=following)
    last, measured = int(np.flatnonzero(minima.found)[-1]), find_measured(Known.of(minima), width)
    away = np.where(minima.found, np.abs(np.log(minima.size / width)), np.inf)
    curvature = float(minima.curvature[np.argmin(away)])
    found = locate(Known.of(minima), width)
    worries = _worry(fit, width, found)
    if fit.doubt and fit.scatter == 0.0:
        worries.append(f"one shape of the basins, as a scatter of 0 takes it, {fit.doubt}")
    proxy = float(minima.x[last]), float(minima.size[last])
    answer = judge_answer(blank, table, fit.data.rows, found, curvature, *proxy, worries)
    repeated = None
    if measured is not None:
        loss = fit.result.basins[measured].loss
        if (half := half_width(loss)) is not None:
            repeated = repeat_trials(half, THRESHOLDS["loss"], width)
    elif fit.laws is not None:
        loss = predict_loss(fit.laws, width)
    else:
        loss = refuse(*fit.result.exponents["alpha"].reasons)
    if not missing:
        total = float(np.sum((cells.count + cells.diverged) * flops(cells.width)))
        following = propose_trials(minima, width, locate, flops, total, basis)
    return _explain(replace(answer, loss=loss.with_remedy(repeated), next=following), proxy[1])


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
    rows: Ints,
    found: Forecast,
    curvature: float,
    same: float,
    size: float,
    worries: Sequence[str],
) -> Recommendation:
    """Fill in the rate that where x* lies asks for, its price and that of others, and a verdict.

    Parameters
    ----------
    blank : Recommendation
        From `refuse_answer`.
    rows : ndarray of int
        The group's rows of the table.
    found, curvature : Forecast and float
        x* and C at the target.
    same, size : float
        The proxy's x*, and its size.
    worries : sequence of str
        What makes the answer risky besides its price and the rate's interval.
    """
    where = found.where
    lr = bound(where.mean, *where.interval(), "log_lr").transform(exponentiate)
    choices = (where.mean, same, same - float(np.log(blank.width / size)))
    prices = (price(where, choice, curvature) for choice in choices)
    regret = dict(zip(RULES, prices, strict=True))
    most = regret["recommended"].high or 0.0
    because = f"with 90 % confidence it costs at most {most:.2g} nats over the best"
    verdict: Verdict = "usable"
    doubts = [f"that is more than {USABLE_REGRET:g}"] if most > USABLE_REGRET else []
    if lr.status == "not identified" and lr.low and lr.high:
        factor = np.sqrt(lr.high / lr.low)
        doubts.append(f"the rate is known to a factor of {factor:.2g} only")
    doubts += worries
    tried, broken = np.log(table.lr[rows]), ~np.isfinite(table.loss[rows])
    if not tried.min() <= where.mean <= tried.max():
        doubts.append("that learning rate lies outside those measured")
    if where.mean >= tried[broken].min(initial=np.inf):
        doubts.append("trials diverged at that learning rate, or below it, at a measured width")
    if most > RISKY_REGRET:
        # The price is said; what made it so high is what one can mend.
        verdict = "unusable"
        because = "; ".join([f"{because}, more than {RISKY_REGRET:g}", *doubts[1:]])
    elif doubts:
        verdict, because = "risky", f"{because}, but " + "; ".join(doubts)
    if verdict != "unusable" and lr.status == "not identified":
        # A rate that is judged is shown, however wide its interval.
        lr = replace(lr, status="weakly identified")
    by_role = None
    if table.rates is not None and lr.value is not None:
        by_role = table.rates(blank.group, blank.width, lr.value)
    return replace(
        blank, lr=lr, regret=regret, verdict=verdict, because=because, lr_by_role=by_role,
        forms=found.forms, scatter=found.scatter,
    )  # fmt: skip


def answer_measured(x: float, variance: float) -> Forecast:
    """Return where x* lies as its own basin says."""
    least = np.array([max(variance, SMALLEST_VARIANCE)])
    where = Mixture(weights=np.ones(1), means=np.array([x]), variances=least)
    return Forecast(where=where, forms={"measured": 1.0}, scatter=0.0)


def find_measured(known: Known, width: float) -> int | None:
    """Return the place of the size with a minimum that a width is; None if it is none."""
    same = np.flatnonzero((np.abs(known.size / width - 1.0) < SAME_WIDTH) & np.isfinite(known.x))
    return int(same[0]) if len(same) else None


def _explain(answer: Recommendation, widest: float) -> Recommendation:
    """Give what was predicted, where it is not identified, what would help."""
    wider = Reason("widths", num=1, width=widest)
    steps = answer.next.steps if answer.next is not None else ()
    half = half_width(answer.lr, log=True)
    if half is None or any(step.new and step.width > widest for step in steps):
        lr = answer.lr.with_remedy(wider)
    else:
        lr = answer.lr.with_remedy(repeat_trials(half, THRESHOLDS["log_lr"]))
    regret = dict(answer.regret)
    for name, estimate in regret.items():
        if (half := half_width(estimate)) is not None:
            # The regret of the fit's own choice falls as the variance of the optimum does.
            power = 1.0 if name == "recommended" else 2.0
            remedy = repeat_trials(half, THRESHOLDS["regret"], power=power)
            regret[name] = estimate.with_remedy(remedy)
    loss = answer.loss.with_remedy(Reason("flat") if falls_flat(answer.loss) else wider)
    return replace(answer, lr=lr, loss=loss, regret=regret)


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


def price(where: Mixture, x: float, curvature: float) -> Estimate:
    """Expected regret of x in nats, and what it costs at most, with 90 % confidence."""
    value = where.regret(x, curvature)
    found = bound(value, 0.0, where.bound(x, curvature), "regret")
    return replace(found, high=max(found.high or 0.0, value))


def _worry(fit: GroupFit, width: float, found: Forecast) -> list[str]:
    """Say what makes an answer at a width risky, besides its price."""
    worries = []
    known = fit.usable
    if "measured" not in found.forms:
        if len(known) < USABLE_WIDTHS:
            widths = "width has" if len(known) == 1 else "widths have"
            worries.append(f"only {len(known)} {widths} a minimum: the prior answers for the rest")
        span = known[-1] / known[0]
        ways = {"beyond the widest": width / known[-1], "below the narrowest": known[0] / width}
        worries += [
            f"it reaches {factor:.3g} times {way} width, and the widths measured span only "
            f"{span:.3g} times"
            for way, factor in ways.items()
            if factor > span and len(known) > 1
        ]
    if fit.cliff <= found.where.mean < fit.edge:
        worries.append(
            "one of several seeds broke down at that learning rate, or below it, at a measured "
            "width"
        )
    return worries
