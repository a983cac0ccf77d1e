"""Which data would identify what these do not: a remedy for each estimate that lacks one.

What is too uncertain is answered from the information matrix of the fit's own trials
(`Design`): the fewest further widths, and the number of trials, with which the interval would
meet its threshold. What a basin lacks is read off its flags.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from hptransfer.stats._fisher import Design
from hptransfer.stats._metrics import WIDTHS_FOR_JOINT, WIDTHS_FOR_OUT
from hptransfer.stats.basin import BasinSet
from hptransfer.stats.cells import Cells, Floats
from hptransfer.stats.estimate import Estimate
from hptransfer.stats.identifiability import THRESHOLDS, half_width
from hptransfer.stats.power_analysis import NORMAL_90
from hptransfer.stats.reasons import Reason
from hptransfer.stats.results import BasinFit, TransferFit

#: More widths, and times as many trials, than these are no help worth naming.
MOST_WIDTHS = 3
MOST_TIMES = 30

_SEED = Reason("seed")


def find_missing(basins: BasinSet, cells: Cells, *, needed: int = WIDTHS_FOR_JOINT) -> list[Reason]:
    """Return the points and widths without which there is no joint fit; empty where none lack."""
    if len(basins.usable) >= needed:
        return []
    broken = [b for b in basins.basins if b.width not in basins.usable]
    out = [find_point(b, basins, cells) for b in broken]
    lacking = needed - len(basins.basins)
    if lacking > 0:
        out.append(Reason("widths", num=lacking, width=float(cells.width.max())))
    return out


def find_point(basin: BasinFit, basins: BasinSet, cells: Cells) -> Reason:
    """Return which point would give a width its minimum."""
    rows = cells.at(basin.width)
    x, mean = cells.x[rows], cells.mean[rows]
    if not np.any(np.isfinite(mean)):
        return Reason("lower", x=float(x.min()), width=basin.width)
    clean = np.flatnonzero(np.isfinite(mean))
    best = int(clean[np.argmin(mean[clean])])
    local = basins.fits.get(basin.width)
    if local is not None and local.near.best >= 0:
        best = local.near.best
    here = {"x": float(x[best]), "width": basin.width}
    bad = x[(cells.diverged[rows] > 0) & (x > x[best])]
    if not basin.bracketed:
        sides = (flag.numbers["side"] for flag in basin.flags if flag.kind == "best_at_end")
        return Reason(_TOWARDS[next(sides, "only")], **here)
    if len(bad) and any(flag.kind == "bounded_by_divergence" for flag in basin.flags):
        return Reason("between", end=float(bad.min()), **here)
    return Reason("near", **here)


_TOWARDS = {"highest": "right", "lowest": "left", "only": "sides"}


def narrow_interval(
    design: Design | None, gradient: Floats | None, half: float | None, limit: float
) -> Reason:
    """Return how many widths, or trials, would bring a 90 % half-width down to its threshold."""
    if design is None or gradient is None:
        return _SEED if half is None else repeat_trials(half, limit)
    now = design.error(gradient)
    # An interval cut off by a bound says less than the information does.
    start = max(half or 0.0, NORMAL_90 * now) if now > 0.0 else (half or 0.0)

    def after(other: Design) -> float:
        return start * other.error(gradient) / now if now > 0.0 else start

    num = next(
        (k for k in range(1, MOST_WIDTHS + 1) if after(design.with_widths(k)) <= limit), None
    )
    times = next(
        (k for k in range(2, MOST_TIMES + 1) if after(design.with_trials(k)) <= limit), None
    )
    widest = float(design.widths[-1])
    widths = None if num is None else Reason("widths", num=num, width=widest)
    trials = None if times is None else Reason("times", times=times, most=MOST_TIMES)
    if widths and trials:
        return Reason("widths_or_times", widths=widths, times=trials)
    return widths or trials or Reason("neither", most=MOST_TIMES)


def repeat_trials(
    half: float, limit: float, width: float | None = None, power: float = 2.0
) -> Reason:
    """Return how many times the trials bring a half-width down to its threshold."""
    need = (half / limit) ** power
    times = None if need > MOST_TIMES or math.isnan(need) else max(2, math.ceil(need))
    return Reason("times", times=times, most=MOST_TIMES, width=width)


def _repeat_local(width: float, basins: BasinSet) -> Reason | None:
    """Return how many times the trials a width's minimum needs, by its parabola."""
    local = basins.fits.get(width)
    if local is None:
        return None
    _, slope, bend = local.projection @ local.mean
    lean = local.projection[1] / bend - slope * local.projection[2] / bend**2
    scale = basins.misfit.sigma if basins.misfit.only_source else 1.0
    error = 0.5 * local.span * scale * math.sqrt(float(np.sum(lean**2 / local.weights)))
    # Where resamples have no minimum the parabola's own error is only the least there is.
    limit = THRESHOLDS["log_lr"]
    return repeat_trials(max(NORMAL_90 * error, limit), limit, width)


def _first_kind(estimate: Estimate) -> str:
    return estimate.reasons[0].kind if estimate.reasons else ""


def _with_remedy(estimate: Estimate, remedy: Reason | None) -> Estimate:
    """Give an estimate that is not identified its remedy, where it has none."""
    if estimate.status == "identified" or estimate.remedy is not None:
        return estimate
    return replace(estimate, remedy=remedy)


def _help_basin(estimate: Estimate, name: str, basin: BasinFit, basins: BasinSet) -> Reason | None:
    """Return what would identify a basin's ``lr``, ``loss`` or ``curvature``; None if points."""
    limit = THRESHOLDS[_KINDS[name]]
    if name == "curvature":
        limit *= basin.curvature.value or 1.0
    bounded = any(reason.kind == "bounded_by_divergence" for reason in estimate.reasons)
    if basin.width not in basins.usable or bounded:
        return None
    if _first_kind(estimate) == "no_noise":
        return _SEED
    half = half_width(estimate, log=name == "lr")
    if half is None:
        return _repeat_local(basin.width, basins)
    return repeat_trials(half, limit, basin.width) if half > limit else None


_KINDS = {"lr": "log_lr", "loss": "loss", "curvature": "curvature"}


def _explain_basin(basin: BasinFit, basins: BasinSet, cells: Cells) -> BasinFit:
    def one(name: str, estimate: Estimate) -> Estimate:
        if estimate.status == "identified":
            return estimate
        remedy = _help_basin(estimate, name, basin, basins)
        return _with_remedy(estimate, remedy or find_point(basin, basins, cells))

    return replace(
        basin,
        lr=one("lr", basin.lr),
        loss=one("loss", basin.loss),
        curvature=one("curvature", basin.curvature),
    )


def _help_metric(
    name: str,
    estimate: Estimate,
    result: TransferFit,
    basins: BasinSet,
    cells: Cells,
    design: Design | None,
) -> Reason | None:
    """Return what would identify an exponent or a metric; None where nothing more is needed."""
    first = _first_kind(estimate)
    widest = float(basins.usable[-1]) if basins.usable else float(cells.width.max())
    if first == "zero_by_assumption":
        return None
    if first == "no_reference":
        return Reason("reference")
    if design is None and len(basins.usable) < WIDTHS_FOR_JOINT:
        return Reason("missing", parts=tuple(find_missing(basins, cells)))
    if first == "no_drift":
        if result.drift is None or result.drift.status == "identified":
            return None
        half = half_width(result.drift)
        return None if half is None else repeat_trials(half, THRESHOLDS["log_lr"])
    if falls_flat(estimate):
        return Reason("flat")
    if name == "E_out" and len(basins.usable) < WIDTHS_FOR_OUT:
        return Reason("widths", num=WIDTHS_FOR_OUT - len(basins.usable), width=widest)
    if first == "no_noise":
        return _SEED
    if name in ("E", "E_out"):
        root = (
            None
            if estimate.low is None or estimate.high is None
            else (0.5 * (math.sqrt(estimate.high) - math.sqrt(estimate.low)))
        )
        wide = root is not None and root > THRESHOLDS["error"]
        return repeat_trials(root, THRESHOLDS["error"]) if wide and root else Reason("points")
    key = "loss_inf" if name == "R_inf" else name
    if design is None or key not in ("alpha", "beta", "gamma", "b", "kappa", "loss_inf"):
        return _SEED
    return narrow_interval(design, design.gradient_of(key), half_width(estimate), THRESHOLDS[name])


def falls_flat(estimate: Estimate) -> bool:
    """Tell whether an estimate rests on a best loss that does not fall with width."""

    def flat(reason: Reason) -> bool:
        inner = reason.numbers.get("of", ())
        return (reason.kind, reason.numbers.get("parameter")) == ("at_bound", "A") or any(
            flat(each) for each in inner
        )

    return any(flat(reason) for reason in estimate.reasons)


def explain(
    result: TransferFit, basins: BasinSet, cells: Cells, design: Design | None
) -> TransferFit:
    """Give each estimate of a fit that is not identified the data that would help."""

    def all_of(found: Mapping[str, Estimate]) -> dict[str, Estimate]:
        return {
            name: e
            if e.status == "identified"
            else _with_remedy(e, _help_metric(name, e, result, basins, cells, design))
            for name, e in found.items()
        }

    def priced(found: Mapping[float, Estimate]) -> dict[float, Estimate]:
        return {n: _with_remedy(e, _help_price(e, n, basins)) for n, e in found.items()}

    return replace(
        result,
        basins=tuple(_explain_basin(b, basins, cells) for b in result.basins),
        exponents=all_of(result.exponents),
        metrics=all_of(result.metrics),
        gaps=priced(result.gaps),
        regrets=priced(result.regrets),
    )


def _help_price(estimate: Estimate, width: float, basins: BasinSet) -> Reason | None:
    """Return the data that would identify a gap or a price at a width; None if none would."""
    half = half_width(estimate)
    if half is not None:
        return repeat_trials(half, THRESHOLDS["regret"], width)
    kinds = {reason.kind for reason in estimate.reasons}
    if _first_kind(estimate) == "no_noise":
        return _SEED
    if "outside_measured" in kinds:
        return Reason("at", x=basins.at(basins.usable[0]).coefficients[0], width=width)
    sampled = "failed_resamples" in kinds or any(
        "percent" in reason.numbers for reason in estimate.reasons
    )
    return _repeat_local(width, basins) if sampled else None


#: The regret of the fit's own choice falls as the variance of the optimum does.
_POWERS = {"recommended": 1.0}


def explain_advice(
    lr: Estimate,
    loss: Estimate,
    regret: Mapping[str, Estimate],
    design: Design | None,
    width: float,
) -> tuple[Estimate, Estimate, dict[str, Estimate]]:
    """Give what was predicted at a width, where it is not identified, what would help."""
    if design is None:
        return (
            _with_remedy(lr, _SEED),
            _with_remedy(loss, _SEED),
            {name: _with_remedy(e, _SEED) for name, e in regret.items()},
        )
    if lr.status != "identified":
        limit = THRESHOLDS["log_lr"]
        slopes = design.gradient_of_optimum(width)
        lr = _with_remedy(lr, narrow_interval(design, slopes, half_width(lr, log=True), limit))
    if loss.status != "identified":
        slopes = design.gradient_of_loss(width)
        remedy = narrow_interval(design, slopes, half_width(loss), THRESHOLDS["loss"])
        if any(
            reason.kind == "law_changes" or reason.numbers.get("parameter") == "loss_inf"
            for reason in loss.reasons
        ):
            remedy = Reason("widths", num=1, width=float(design.widths[-1]))
        loss = _with_remedy(loss, Reason("flat") if falls_flat(loss) else remedy)
    prices = {
        name: _with_remedy(
            e, repeat_trials(half, THRESHOLDS["regret"], power=_POWERS.get(name, 2.0))
        )
        if (half := half_width(e)) is not None
        else e
        for name, e in regret.items()
    }
    return lr, loss, prices
