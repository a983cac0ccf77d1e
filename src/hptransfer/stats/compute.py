"""What a missed learning rate costs as compute, and whether transfer is fast.

A loss r above the best of width n is the best of a smaller width n′, L*(n′) = L*(n) + r, so that
1 − F(n′)/F(n) of the training FLOPs F bought nothing. With L* = L∞ + A·n^-α,
n′ = n·(1 + r/(A·n^-α))^(-1/α).

Transfer is fast (Ghosh et al. 2025, arXiv 2512.22768) when the cost of a transferred optimum,
∝ n^(-2β), vanishes before the reducible loss ∝ n^-α does: β > α/2.

Shape letters: R resamples, W widths.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from hptransfer.errors import FitError
from hptransfer.stats.basins import DEFAULT_RESAMPLES, DEFAULT_SEED
from hptransfer.stats.cells import DEFAULT_WINDOW, Floats
from hptransfer.stats.compare import DEFAULT_BY, fit_groups, split_table
from hptransfer.stats.estimate import Estimate
from hptransfer.stats.flops import Flops, square_flops
from hptransfer.stats.joint_model import JointFit
from hptransfer.stats.judge import judge, refuse
from hptransfer.stats.metrics import NO_DRIFT, holds_zero, say_bounds
from hptransfer.stats.recommend import RULES
from hptransfer.stats.sensitivity import name_values
from hptransfer.stats.table import LossTable
from hptransfer.stats.transfer import GroupFit

FastVerdict = Literal["fast", "not fast", "undecided"]


@dataclass(frozen=True, kw_only=True)
class ComputeRegret:
    """Transfer regret at one width, as compute.

    Attributes
    ----------
    group : mapping of str to object
        The values that name the group.
    width : float
        The width that is trained.
    extra : mapping of str to Estimate
        By choice of learning rate: the fraction of the training FLOPs, 0 to 1, that bought
        nothing. Thresholds are 0.1 and 0.2.
    equivalent_width : mapping of str to float or None
        n′: the width whose best loss the choice reaches, by the point fit.
    """

    group: Mapping[str, object]
    width: float
    extra: Mapping[str, Estimate]
    equivalent_width: Mapping[str, float | None]

    def __str__(self) -> str:
        where = ", ".join([*name_values(self.group), f"width {self.width:g}"])
        lines = []
        for choice, e in self.extra.items():
            said = f"n/a: {e.reason}"
            if e.value is not None and e.low is not None and e.high is not None:
                said = f"{100 * e.value:.2g} % [{100 * e.low:.2g}, {100 * e.high:.2g}]"
            lines.append(f"{where}, {choice}: compute that bought nothing {said}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the result by name, estimates in the shape that ``--json`` documents."""
        return {
            "group": dict(self.group),
            "width": self.width,
            "extra_compute": {choice: e.to_dict() for choice, e in self.extra.items()},
            "equivalent_width": dict(self.equivalent_width),
        }


@dataclass(frozen=True, kw_only=True)
class FastTransfer:
    """The test β > α/2 of one group.

    Attributes
    ----------
    group : mapping of str to object
        The values that name the group.
    margin : Estimate
        β − α/2; its status follows the thresholds of β.
    verdict : FastVerdict
        ``fast`` or ``not fast`` where the margin's interval excludes 0 and α rests on no bound.
    because : str
        The verdict's reason in plain words.
    """

    group: Mapping[str, object]
    margin: Estimate
    verdict: FastVerdict
    because: str

    def __str__(self) -> str:
        name = ", ".join(name_values(self.group))
        return f"{name + ': ' if name else ''}transfer is {self.verdict}: {self.because}"

    def to_dict(self) -> dict[str, Any]:
        """Return the result by name."""
        return {
            "group": dict(self.group),
            "margin": self.margin.to_dict(),
            "verdict": self.verdict,
            "because": self.because,
        }


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
    alpha = fit.result.exponents["alpha"]
    joint, samples = fit.joint, fit.samples
    extra: dict[str, Estimate] = {}
    match: dict[str, float | None] = {}
    for choice, x in choices.items():
        if joint is None or samples is None or alpha.status == "not identified":
            extra[choice] = refuse(f"alpha is not identified: {alpha.reason}")
            match[choice] = None
            continue
        match[choice] = equal = float(match_width(joint, width, joint.rise(width, x))[0])
        drawn = waste(samples, width, samples.rise(width, x), flops)
        finite = drawn[np.isfinite(drawn)]
        caution = "" if alpha.status == "identified" else f"alpha: {alpha.reason}"
        smallest = fit.basins.usable[0]
        if equal < smallest:
            beyond = f"it compares with a width below {smallest:g}, the narrowest measured"
            caution = "; ".join(filter(None, (caution, beyond)))
        value = float(np.mean(finite)) if len(finite) else float("nan")
        extra[choice] = judge(value, drawn, "regret", caution=caution)
    return ComputeRegret(
        group=fit.result.group, width=float(width), extra=extra, equivalent_width=match
    )


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


def compute_regret(
    table: LossTable,
    *,
    width: float,
    flops: Flops = square_flops,
    by: Sequence[str] = DEFAULT_BY,
    window: float = DEFAULT_WINDOW,
    num_resamples: int = DEFAULT_RESAMPLES,
    seed: int = DEFAULT_SEED,
) -> list[ComputeRegret]:
    """Price the choices that `recommend` compares at a width, as compute, for every group.

    Parameters
    ----------
    table, width, by, window, num_resamples, seed
        As for `recommend`.
    flops : callable
        From widths (W,) to training FLOPs (W,), up to a factor; `flops_of` makes one.

    Raises
    ------
    FitError
        `width` is not a positive number, or the table cannot be split.
    """
    if not (np.isfinite(width) and width > 0):
        raise FitError(f"width: expected a positive number, found {width}")
    fits = fit_groups(
        table, split_table(table, by), window=window, num_resamples=num_resamples, seed=seed
    )
    return [price_compute(fit, width, choose_lrs(fit, width), flops=flops) for fit in fits]


def choose_lrs(fit: GroupFit, width: float) -> dict[str, float]:
    """x = ln(lr) of `recommend`'s three rules at a width; NaN without a joint fit."""
    if fit.joint is None:
        return dict.fromkeys(RULES, float("nan"))
    widest = fit.basins.usable[-1]
    same = float(next(b for b in fit.basins.basins if b.width == widest).coefficients[0])
    shifted = same - float(np.log(width / widest))
    return dict(zip(RULES, (float(fit.joint.optimum(width)[0]), same, shifted), strict=True))


def fast_transfer(
    table: LossTable,
    *,
    by: Sequence[str] = DEFAULT_BY,
    window: float = DEFAULT_WINDOW,
    num_resamples: int = DEFAULT_RESAMPLES,
    seed: int = DEFAULT_SEED,
) -> list[FastTransfer]:
    """Test β > α/2 for every group of a table; parameters as for `fit_table`.

    Raises
    ------
    FitError
        The table cannot be split.
    """
    fits = fit_groups(
        table, split_table(table, by), window=window, num_resamples=num_resamples, seed=seed
    )
    return [judge_fast(fit) for fit in fits]
