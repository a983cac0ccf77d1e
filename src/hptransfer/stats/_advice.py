"""Recommend a learning rate at a width: what it should give, and the price of being wrong.

The optimum is forecast from the minima of the measured widths, each found with its best loss
free, by forms averaged with priors and scatter (`optimum_law`). A rate x is priced at every place
where the optimum may lie, ½·C·(x − x*)² with the curvature C of the widest minimum.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from hptransfer.errors import FitError
from hptransfer.stats._group_fit import GroupFit, find_group_minima
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
    Known,
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
from hptransfer.stats.loss_table import LossTable
from hptransfer.stats.minima import EXACT, Minima
from hptransfer.stats.optimum_law import SMALLEST_VARIANCE, Forecast, Mixture, forecast
from hptransfer.stats.priors import NO_PRIOR, PRIORS, Prior, classify
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
        Standard deviation of ln lr* from size to size, held; None finds it. With 0 the law, and
        the basins' shape, are taken to hold exactly.
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

    def prior(self, fit: GroupFit, table: LossTable) -> Prior:
        """Return the prior of a group's kind of sweep."""
        if self.priors is None:
            return NO_PRIOR
        name = fit.result.group.get("parameterization")
        kind = classify(table.size, table.axis, None if name is None else str(name))
        return choose_prior(self.priors, kind)


def choose_prior(priors: Mapping[str, Prior], kind: str) -> Prior:
    """Return the prior of a kind of sweep; FitError where there is none."""
    if kind not in priors:
        known = ", ".join(priors)
        raise FitError(f"priors: expected a prior of kind {kind}, found {known}")
    return priors[kind]


def advise(fit: GroupFit, width: float, table: LossTable, options: LawOptions) -> Recommendation:
    """Make one group's recommendation from its minima, but for what it costs in compute."""
    minima = fit.minima if options.scatter != 0.0 else find_group_minima(fit.data, EXACT)
    prior = options.prior(fit, table)

    def locate(known: Known, at: float) -> Forecast:
        beside = find_measured(known, at)
        if beside is not None:
            return Forecast(
                where=Mixture(
                    weights=np.ones(1),
                    means=known.x[[beside]],
                    variances=np.maximum(known.variance[[beside]], SMALLEST_VARIANCE),
                ),
                forms={"measured": 1.0},
                scatter=0.0,
            )
        return forecast(
            known.size,
            known.x,
            known.variance,
            at,
            prior=prior,
            low=known.low,
            high=known.high,
            scatter=options.scatter,
            form=options.form,
        )

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
        parts = _missing(fit)
        remedy = Reason("missing", parts=parts) if parts else None
        no = refuse(Reason("no_minimum"), remedy=remedy)
        because = f"the table cannot support an answer: {no.reason}"
        following = Proposal(half_width=None, missing=parts, cost_basis=options.basis)
        nothing = dict.fromkeys(RULES, no)
        return replace(blank, lr=no, loss=no, regret=nothing, because=because, next=following)
    last, measured = int(np.flatnonzero(minima.found)[-1]), find_measured(Known.of(minima), width)
    curvature = float(minima.curvature[last if measured is None else measured])
    found = locate(Known.of(minima), width)
    where = found.where
    x = where.mean
    lr = estimate_lr(where)
    same = float(minima.x[last])
    shifted = same - float(np.log(width / minima.size[last]))
    choices = dict(zip(RULES, (x, same, shifted), strict=True))
    regret = {rule: price(where, choice, curvature) for rule, choice in choices.items()}
    if measured is not None:
        loss = fit.result.basins[measured].loss
    elif fit.laws is not None:
        loss = predict_loss(fit.laws, width)
    else:
        loss = refuse(*fit.result.exponents["alpha"].reasons)
    verdict, because = judge_advice(fit, minima, width, x, lr, regret, found)
    lr, by_role = settle_rate(table, fit.data.group, width, lr, verdict)
    following = _propose(fit, minima, width, locate, options)
    repeated = None
    if measured is not None and (half := half_width(loss)) is not None:
        repeated = repeat_trials(half, THRESHOLDS["loss"], width)
    loss = with_remedy(loss, repeated)
    lr, loss, regret = _explain(lr, loss, regret, following, float(minima.size[last]))
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
        next=following,
    )


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
    return f"{prior.name}: lr* ~ size^({prior.slope:.2f} ± {prior.spread:.2f})"


def estimate_lr(where: Mixture) -> Estimate:
    """Turn where x* lies into an estimate of the learning rate."""
    low, high = where.quantile(0.5 - 0.5 * LEVEL), where.quantile(0.5 + 0.5 * LEVEL)
    return bound(where.mean, low, high, "log_lr").transform(exponentiate)


def price(where: Mixture, x: float, curvature: float) -> Estimate:
    """Expected regret of x in nats, and what it costs at most, with 90 % confidence."""
    value = where.regret(x, curvature)
    found = bound(value, 0.0, where.bound(x, curvature, LEVEL), "regret")
    return replace(found, high=max(found.high or 0.0, value))


def doubt_rate(lr: Estimate) -> list[str]:
    """Say to what factor a rate is known that is not identified; empty for any other."""
    if lr.status != "not identified" or not lr.low or not lr.high:
        return []
    return [f"the rate is known to a factor of {np.sqrt(lr.high / lr.low):.2g} only"]


def settle_rate(
    table: LossTable, group: Mapping[str, object], width: float, lr: Estimate, verdict: Verdict
) -> tuple[Estimate, Mapping[str, float] | None]:
    """Return a judged rate as it is shown, and the rates of its roles where they are known."""
    if verdict != "unusable" and lr.status == "not identified":
        # A rate that is judged is shown, however wide its interval.
        lr = replace(lr, status="weakly identified")
    if table.rates is None or lr.value is None:
        return lr, None
    return lr, table.rates(group, width, lr.value)


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
    worries += doubt_rate(lr)
    measured = fit.data.cells.x
    if not measured.min() <= x <= measured.max():
        worries.append("that learning rate lies outside those measured")
    if np.isfinite(fit.edge) and x >= fit.edge:
        worries.append("trials diverged at that learning rate, or below it, at a measured width")
    elif np.isfinite(fit.cliff) and x >= fit.cliff:
        worries.append(
            "one of several seeds broke down at that learning rate, or below it, at a measured "
            "width"
        )
    if worries:
        return "risky", f"{said}, but " + "; ".join(worries)
    return "usable", said
