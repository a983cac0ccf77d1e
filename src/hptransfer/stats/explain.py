"""A fit's reasons, each ended with the data that would help; the words are `remedy`'s."""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from hptransfer.stats.basins import BasinSet
from hptransfer.stats.cells import Cells
from hptransfer.stats.design import Design
from hptransfer.stats.estimate import Estimate
from hptransfer.stats.judge import NO_NOISE, THRESHOLDS, say_lr
from hptransfer.stats.metrics import NO_DRIFT, NO_REFERENCE, WIDTHS_FOR_JOINT, WIDTHS_FOR_OUT
from hptransfer.stats.power import NORMAL_90
from hptransfer.stats.remedy import (
    PHRASES,
    add_help,
    find_missing,
    help_interval,
    say_point,
    say_times,
    say_widths,
)
from hptransfer.stats.results import BasinFit, TransferFit


def half_of(estimate: Estimate, *, log: bool = False) -> float | None:
    """90 % half-width, of the logarithm if `log`; None without an interval."""
    if estimate.low is None or estimate.high is None:
        return None
    if log:
        return 0.5 * math.log(estimate.high / estimate.low) if estimate.low > 0.0 else None
    return 0.5 * (estimate.high - estimate.low)


def help_basin(estimate: Estimate, name: str, basin: BasinFit, basins: BasinSet) -> str:
    """Say what would identify a basin's ``lr``, ``loss`` or ``curvature``; "" if points would."""
    limit = THRESHOLDS[_KINDS[name]]
    if name == "curvature":
        limit *= basin.curvature.value or 1.0
    if basin.width not in basins.usable or "divergence" in estimate.reason:
        return ""
    if estimate.reason.startswith(NO_NOISE):
        return PHRASES["seed"]
    half = half_of(estimate, log=name == "lr")
    if half is None:
        return _say_local(basin.width, basins)
    return say_times(half, limit, basin.width) if half > limit else ""


_KINDS = {"lr": "log_lr", "loss": "loss", "curvature": "curvature"}


def _say_local(width: float, basins: BasinSet) -> str:
    """Say how many times the trials a width's minimum needs, by its parabola; "" if unknown."""
    local = basins.fits.get(width)
    if local is None:
        return ""
    _, slope, bend = local.projection @ local.mean
    lean = local.projection[1] / bend - slope * local.projection[2] / bend**2
    scale = basins.misfit.sigma if basins.misfit.only_source else 1.0
    error = 0.5 * local.span * scale * math.sqrt(float(np.sum(lean**2 / local.weights)))
    # Where resamples have no minimum the parabola's own error is only the least there is.
    return say_times(max(NORMAL_90 * error, THRESHOLDS["log_lr"]), THRESHOLDS["log_lr"], width)


def explain_basin(basin: BasinFit, basins: BasinSet, cells: Cells) -> BasinFit:
    """End the reasons of a basin's estimates with what would help."""

    def one(name: str, estimate: Estimate) -> Estimate:
        if estimate.status == "identified":
            return estimate
        remedy = help_basin(estimate, name, basin, basins)
        return add_help(estimate, remedy or say_point(basin, basins, cells))

    return replace(
        basin,
        lr=one("lr", basin.lr),
        loss=one("loss", basin.loss),
        curvature=one("curvature", basin.curvature),
    )


def help_metric(
    name: str,
    estimate: Estimate,
    result: TransferFit,
    basins: BasinSet,
    cells: Cells,
    design: Design | None,
) -> str:
    """Say what would identify an exponent or a metric; "" where nothing more is needed."""
    reason = estimate.reason
    widest = float(basins.usable[-1]) if basins.usable else float(cells.width.max())
    if "by assumption" in reason:
        return ""
    if reason.startswith(NO_REFERENCE):
        return PHRASES["reference"]
    if result.drift is None and design is None and len(basins.usable) < WIDTHS_FOR_JOINT:
        return " and ".join(find_missing(basins, cells))
    if reason.startswith(NO_DRIFT):
        if result.drift is None or result.drift.status == "identified":
            return ""
        half = half_of(result.drift)
        return "" if half is None else say_times(half, THRESHOLDS["log_lr"])
    if "does not fall with width" in reason:
        return PHRASES["flat"]
    if name == "E_out" and len(basins.usable) < WIDTHS_FOR_OUT:
        return say_widths(WIDTHS_FOR_OUT - len(basins.usable), widest)
    if reason.startswith(NO_NOISE):
        return PHRASES["seed"]
    if name in ("E", "E_out"):
        root = (
            None
            if estimate.low is None or estimate.high is None
            else (0.5 * (math.sqrt(estimate.high) - math.sqrt(estimate.low)))
        )
        wide = root is not None and root > THRESHOLDS["error"]
        return say_times(root, THRESHOLDS["error"]) if wide and root else PHRASES["points"]
    key = "loss_inf" if name == "R_inf" else name
    if design is None or key not in ("alpha", "beta", "gamma", "b", "kappa", "loss_inf"):
        return PHRASES["seed"]
    return help_interval(design, design.gradient_of(key), half_of(estimate), THRESHOLDS[name])


def explain(
    result: TransferFit, basins: BasinSet, cells: Cells, design: Design | None
) -> TransferFit:
    """End each reason of a fit with the data that would help."""

    def all_of(found: Mapping[str, Estimate]) -> dict[str, Estimate]:
        return {
            name: e
            if e.status == "identified"
            else add_help(e, help_metric(name, e, result, basins, cells, design))
            for name, e in found.items()
        }

    def priced(found: Mapping[float, Estimate]) -> dict[float, Estimate]:
        return {n: add_help(e, _help_price(e, n, basins)) for n, e in found.items()}

    return replace(
        result,
        basins=tuple(explain_basin(b, basins, cells) for b in result.basins),
        exponents=all_of(result.exponents),
        metrics=all_of(result.metrics),
        gaps=priced(result.gaps),
        regrets=priced(result.regrets),
    )


def _help_price(estimate: Estimate, width: float, basins: BasinSet) -> str:
    """Say what would tell a gap or a price at a width; "" where nothing more would."""
    half = half_of(estimate)
    if half is not None:
        return say_times(half, THRESHOLDS["regret"], width)
    if estimate.reason.startswith(NO_NOISE):
        return PHRASES["seed"]
    if "outside those measured" in estimate.reason:
        source = next(b for b in basins.basins if b.width == basins.usable[0])
        return PHRASES["at"].format(lr=say_lr(source.coefficients[0]), width=width)
    return _say_local(width, basins) if "of the resamples" in estimate.reason else ""


#: The regret of the fit's own choice falls as the variance of the optimum does.
_POWERS = {"recommended": 1.0}


def help_advice(
    lr: Estimate,
    loss: Estimate,
    regret: Mapping[str, Estimate],
    design: Design | None,
    width: float,
) -> tuple[Estimate, Estimate, dict[str, Estimate]]:
    """End the reasons of what was predicted at a width with what would help."""
    if design is None:
        seed = PHRASES["seed"]
        return (
            add_help(lr, seed),
            add_help(loss, seed),
            {name: add_help(e, seed) for name, e in regret.items()},
        )
    if lr.status != "identified":
        limit = THRESHOLDS["log_lr"]
        slopes = design.gradient_of_optimum(width)
        lr = add_help(lr, help_interval(design, slopes, half_of(lr, log=True), limit))
    if loss.status != "identified":
        flat = "does not fall with width" in loss.reason
        slopes = design.gradient_of_loss(width)
        remedy = help_interval(design, slopes, half_of(loss), THRESHOLDS["loss"])
        if "one power law" in loss.reason or "L∞ hit" in loss.reason:
            remedy = say_widths(1, float(design.widths[-1]))
        loss = add_help(loss, PHRASES["flat"] if flat else remedy)
    prices = {
        name: add_help(e, say_times(half, THRESHOLDS["regret"], power=_POWERS.get(name, 2.0)))
        if (half := half_of(e)) is not None
        else e
        for name, e in regret.items()
    }
    return lr, loss, prices
