"""Recommend a learning rate at a width, price being wrong, and name the data that would help.

The optimum is forecast from the minima of the measured widths, each found with its best loss
free, by forms averaged with priors and scatter (`optimum_law`). A rate x is priced at every place
where the optimum may lie, ½·C·(x − x*)² with the curvature C of the minimum nearest to the target.

What is too uncertain is answered from the Fisher information of the fit's own trials: the fewest
further widths, and the number of trials, with which an interval would meet its threshold. What a
basin lacks is read off its flags. The trials to run next are those that narrow the optimum's
interval at the target most for their training FLOPs.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

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
from hptransfer.stats.estimate import (
    NORMAL_90,
    THRESHOLDS,
    BasinFit,
    Estimate,
    bound,
    exponentiate,
    half_width,
    refuse,
)
from hptransfer.stats.joint_model import WIDTHS_FOR_JOINT, Information
from hptransfer.stats.loss_table import Cells, Floats, Ints, LossTable
from hptransfer.stats.minima import Minima
from hptransfer.stats.optimum_law import SMALLEST_VARIANCE, Forecast, Known, Mixture, forecast
from hptransfer.stats.priors import NO_PRIOR, PRIORS, Prior, find_prior
from hptransfer.stats.reasons import Reason, join_reasons
from hptransfer.stats.results import Proposal, Recommendation, Step
from hptransfer.stats.seed_noise import cell_variances, is_silent


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

    missing = find_missing(fit)
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
        because=f"the table cannot support an answer: {join_reasons(no.reasons)}",
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


# --- Which data would help

#: More widths, and times as many trials, than these are no help worth naming.
_MOST_WIDTHS = 3
_MOST_TIMES = 30

#: Quantities of which the Fisher information tells what more trials would make of them.
_BOUNDED = ("alpha", "beta", "gamma", "b", "kappa", "loss_inf")


def find_missing(fit: GroupFit) -> tuple[Reason, ...]:
    """Return the points and widths without which there are no laws; empty where none lack."""
    if len(fit.usable) >= WIDTHS_FOR_JOINT:
        return ()
    basins, cells = fit.result.basins, fit.data.cells
    out = [find_point(b, cells) for b in basins if b.width not in fit.usable]
    lacking = WIDTHS_FOR_JOINT - len(basins)
    if lacking > 0:
        out.append(Reason("widths", num=lacking, width=float(cells.width.max())))
    return tuple(out)


def find_point(basin: BasinFit, cells: Cells) -> Reason:
    """Return which point would give a width its minimum."""
    rows = cells.at(basin.width)
    x, mean = cells.x[rows], cells.mean[rows]
    if not np.any(np.isfinite(mean)):
        return Reason("lower", x=float(x.min()), width=basin.width)
    clean = np.flatnonzero(np.isfinite(mean))
    best = int(clean[np.argmin(mean[clean])])
    here = {"x": float(x[best]), "width": basin.width}
    bad = x[(cells.diverged[rows] > 0) & (x > x[best])]
    if not basin.bracketed:
        sides = (flag.numbers["side"] for flag in basin.flags if flag.kind == "best_at_end")
        return Reason(_TOWARDS[next(sides, "only")], **here)
    if len(bad) and any(flag.kind == "bounded_by_divergence" for flag in basin.flags):
        return Reason("between", end=float(bad.min()), **here)
    return Reason("near", **here)


_TOWARDS = {"highest": "right", "lowest": "left", "only": "sides"}


def narrow_interval(fit: GroupFit, name: str, half: float | None) -> Reason:
    """Return how many widths, or trials, would bring a 90 % half-width down to its threshold."""
    limit = THRESHOLDS[name]
    # R(∞) is a difference of two L∞.
    name = "loss_inf" if name == "R_inf" else name
    cells, noise, model = fit.data.cells, fit.data.noise, fit.result.model
    silent = is_silent(cells, noise)
    if half is None and silent:
        return Reason("seed")
    if silent or model is None or name not in _BOUNDED:
        return repeat_trials(half or math.inf, limit)
    rows = cells.clean & np.isin(cells.width, fit.usable)
    width = cells.width[rows]
    sigma = np.maximum(np.sqrt(cell_variances(cells, noise)[rows]), 1e-300)
    u, last = cells.x[rows] - model.optimum(width), width == width.max()

    def expect(num: int) -> float:
        """Standard error with `num` more widths, each twice the last, sampled as the widest."""
        new = np.repeat(width.max() * 2.0 ** np.arange(1, num + 1), last.sum())
        n = np.append(width, new)
        off, error = (np.append(each, np.tile(each[last], num)) for each in (u, sigma))
        return Information(model, width=n, x=model.optimum(n) + off, sigma=error).error(name)

    now = expect(0)
    if not 0.0 < now < math.inf:
        return repeat_trials(half or math.inf, limit)
    # An interval cut off by a bound says less than the information does.
    start = max(half or 0.0, NORMAL_90 * now)
    enough = (k for k in range(1, _MOST_WIDTHS + 1) if start * expect(k) / now <= limit)
    num = next(enough, None)
    trials = repeat_trials(start, limit)
    few = trials.numbers["times"] is not None
    if num is None:
        return trials if few else Reason("neither", most=_MOST_TIMES)
    widths = Reason("widths", num=num, width=float(width.max()))
    return Reason("widths_or_times", widths=widths, times=trials) if few else widths


def repeat_trials(
    half: float, limit: float, width: float | None = None, power: float = 2.0
) -> Reason:
    """Return how many times the trials bring a half-width down to its threshold."""
    need = (half / limit) ** power
    times = None if need > _MOST_TIMES or math.isnan(need) else max(2, math.ceil(need))
    return Reason("times", times=times, most=_MOST_TIMES, width=width)


def falls_flat(estimate: Estimate) -> bool:
    """Tell whether an estimate rests on a best loss that does not fall with width."""
    reasons = list(estimate.reasons)
    for reason in reasons:
        reasons += reason.numbers.get("of", ())
    return any(each.kind == "at_bound" and each.numbers["parameter"] == "A" for each in reasons)


#: Spent at most, as a fraction of the compute of the trials that are there.
BUDGET = 0.5
#: Learning rates of a new width, and steps that gain less than this share of the half-width now.
_ROW, _LEAST_GAIN = 5, 0.01


class _Candidate(NamedTuple):
    """Trials at one width that could be run: their ln(lr), cost, and the variance they leave.

    `variance` is that of a new width's minimum, or a share of that of one that is there.
    """

    width: float
    new: bool
    x: tuple[float, ...]
    cost: float
    variance: float

    def grow(self, known: Known) -> Known:
        """Return what would be known with these trials."""
        at = int(np.searchsorted(known.size, self.width))
        if self.new:
            new = (self.width, self.x[len(self.x) // 2], self.variance, -np.inf, np.inf)
            return Known(*(np.insert(a, at, value) for a, value in zip(known, new, strict=True)))
        variance = known.variance.copy()
        variance[at] *= self.variance
        return known._replace(variance=variance)


def propose_trials(
    minima: Minima,
    target: float,
    locate: Callable[[Known, float], Forecast],
    flops: Callable[[Floats], Floats],
    total: float,
    basis: str,
) -> Proposal:
    """Propose trials that narrow lr* at a target width: greedily, most for their FLOPs first.

    Parameters
    ----------
    minima : Minima
        The widths' minima, at least one.
    target : float
        Width of the answer.
    locate : callable
        From what is known and a width to where x* lies there.
    flops, total : callable, float
        Training FLOPs of widths, and of all trials of the group.
    basis : str
        What the FLOPs are taken from, in words.

    Returns
    -------
    Proposal
        Without steps where nothing is to be gained.
    """

    def halves(known: Known) -> float:
        low, high = locate(known, target).where.interval()
        return 0.5 * (high - low)

    known = Known.of(minima)
    start = before = halves(known)
    left = _list_candidates(
        minima, target, lambda at: locate(Known.of(minima), at).where.mean, flops, total
    )
    budget, steps = BUDGET, list[Step]()
    while True:
        tried = [
            ((before - halves(each.grow(known))) / start, each)
            for each in left
            if each.cost <= budget * (1.0 + 1e-9)
        ]
        tried = [(gain, each) for gain, each in tried if gain >= _LEAST_GAIN]
        if not tried:
            return Proposal(half_width=start, steps=tuple(steps), cost_basis=basis)
        gain, best = max(tried, key=lambda each: each[0] / each[1].cost)
        left.remove(best)
        known, budget, before = best.grow(known), budget - best.cost, before - gain * start
        steps.append(
            Step(
                width=best.width,
                new=best.new,
                lrs=tuple(np.exp(best.x).tolist()),
                trials=(1,) * len(best.x),
                cost=best.cost,
                half_width=before,
                gain=gain / best.cost,
            )
        )


def _list_candidates(
    minima: Minima,
    target: float,
    optimum: Callable[[float], float],
    flops: Callable[[Floats], Floats],
    total: float,
) -> list[_Candidate]:
    """List rates half-way between the points around each minimum, and rows at new widths."""
    found = np.flatnonzero(minima.found)
    every = [np.sort(minima.places[k]) for k in found]
    gaps = np.concatenate([np.diff(x) for x in every])
    step = float(np.median(gaps)) if len(gaps) else math.log(2.0)
    out = []

    def add(width: float, new: bool, x: Sequence[float], variance: float) -> None:
        cost = len(x) * float(flops(np.array([width]))[0]) / total
        out.append(_Candidate(width, new, tuple(x), cost, variance))

    for k, x in zip(found.tolist(), every, strict=True):
        middles = 0.5 * (x[:-1] + x[1:])
        near = np.argsort(np.abs(middles - minima.x[k]), kind="stable")[:4]
        add(
            float(minima.size[k]), False, np.sort(middles[near]).tolist(),
            len(x) / (len(x) + len(near)),
        )  # fmt: skip
    grid = np.concatenate(every)
    for width in list_widths(minima.size, target):
        # On the study's own grid where it reaches.
        centre = optimum(width)
        anchor = float(grid[np.argmin(np.abs(grid - centre))])
        middle = anchor + step * round((centre - anchor) / step)
        row = [middle + step * k for k in range(-(_ROW // 2), _ROW // 2 + 1)]
        add(width, True, row, float(np.median(minima.variance[found])))
    return out


def list_widths(widths: Floats, target: float) -> list[float]:
    """New widths: half-way between those there, and in steps of 1.5 and 2 below the target."""
    between = (0.5 * (widths[:-1] + widths[1:])).tolist()
    beyond = []
    last = float(widths[-1])
    while last < target:
        beyond += [1.5 * last, 2.0 * last]
        last *= 2.0
    return [*between, *(n for n in beyond if n < target)]
