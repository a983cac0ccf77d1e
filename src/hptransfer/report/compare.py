"""Comparisons that the words of a report rest on: drift, price of transfer, gaps."""

import math
from collections.abc import Sequence
from dataclasses import replace

from hptransfer.report.words import say_width, take_root, transform
from hptransfer.stats.estimate import Estimate
from hptransfer.stats.identifiability import refuse
from hptransfer.stats.reasons import Reason
from hptransfer.stats.results import BasinFit, TransferFit


def subtract(one: Estimate, other: Estimate) -> Estimate:
    """Return one minus the other, the 90 % bounds combined as of independent estimates.

    Each side's distance to its bound is added in quadrature. Trials paired by seed make the
    difference more certain than this, so the interval errs on the wide side.
    """
    if one.value is None or other.value is None:
        return refuse(Reason("side_missing"))
    value = one.value - other.value
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return refuse(Reason("no_interval"), value=value)
    below = math.hypot(one.value - one.low, other.high - other.value)
    above = math.hypot(one.high - one.value, other.value - other.low)
    return Estimate(value=value, low=value - below, high=value + above)


def find_span(fit: TransferFit) -> tuple[BasinFit, BasinFit] | None:
    """Return the basins of the narrowest and the widest width whose optimum is known, or None.

    The statistics give a price of transfer at just these widths.
    """
    known = [basin for basin in fit.basins if basin.bracketed and basin.width in fit.regrets]
    return (known[0], known[-1]) if len(known) > 1 else None


def measure_drift(fit: TransferFit) -> Estimate:
    """Return lr*(wide) / lr*(narrow) at the ends of the span, with its 90 % interval.

    It is the joint fit's where there is one, so that it agrees with the metrics; else the two
    basins' own, their intervals combined in ln(lr), where they are about symmetric.
    """
    if fit.drift is not None and fit.drift.low is not None:
        return transform(fit.drift, math.exp)
    span = find_span(fit)
    if span is None:
        return refuse(Reason("few_optima"))
    narrow, wide = span
    log_ratio = subtract(transform(wide.lr, math.log), transform(narrow.lr, math.log))
    return transform(log_ratio, math.exp)


def measure_price(fit: TransferFit) -> Estimate:
    """Return the loss, in nats, of reusing the narrow optimum at the wide end of the span."""
    span = find_span(fit)
    if span is None:
        return refuse(Reason("few_optima"))
    return fit.regrets[span[1].width]


def measure_gap(fit: TransferFit, other: TransferFit, width: float) -> Estimate:
    """Return L*(fit) − L*(other) in nats at a width that both have.

    Where one is the reference of the other the statistics have paired the two by seed, and
    their difference is taken; else the basins' own intervals are combined.
    """
    if width in fit.gaps and fit.reference == _label(other):
        return fit.gaps[width]
    if width in other.gaps and other.reference == _label(fit):
        gap = other.gaps[width]
        return replace(gap, value=_minus(gap.value), low=_minus(gap.high), high=_minus(gap.low))
    return subtract(basin_at(fit, width).loss, basin_at(other, width).loss)


def headline(fits: Sequence[TransferFit]) -> list[tuple[str, str, list[Estimate | None]]]:
    """Return the columns of the metrics table: name, unit, and one estimate per fit.

    E and E_out are given as their roots. Beside the design's metrics stand the gap R(n) at the
    widest width and the price of transfer, which small studies identify before any exponent;
    None stands for the reference's own R.
    """
    columns: list[tuple[str, str, list[Estimate | None]]] = [
        ("√E", "nats", [take_root(fit.metrics["E"]) for fit in fits]),
        ("√E_out", "nats", [take_root(fit.metrics["E_out"]) for fit in fits]),
        ("κ", "", [fit.metrics["kappa"] for fit in fits]),
        ("R(∞)", "nats", [None if is_reference(fit) else fit.metrics["R_inf"] for fit in fits]),
    ]
    widest = max((width for fit in fits for width in fit.gaps), default=None)
    if widest is not None:
        gaps = [
            None if is_reference(fit) else fit.gaps.get(widest, refuse(Reason("no_gap")))
            for fit in fits
        ]
        columns.append((f"R({say_width(widest)})", "nats", gaps))
    columns.append(("price of transfer", "nats", [measure_price(fit) for fit in fits]))
    return columns


def widest_shared(fits: Sequence[TransferFit]) -> float | None:
    """Return the widest width at which every fit has a bracketed basin, or None."""
    shared = set.intersection(*({b.width for b in fit.basins if b.bracketed} for fit in fits))
    return max(shared, default=None)


def basin_at(fit: TransferFit, width: float) -> BasinFit:
    """Return the basin at a width the fit is known to have."""
    return next(basin for basin in fit.basins if basin.width == width)


def is_reference(fit: TransferFit) -> bool:
    """Tell whether a group is what the gaps and R of its setting are measured against."""
    return bool(fit.reference) and fit.reference == _label(fit)


def _label(fit: TransferFit) -> str:
    """Return the value that names the group among those it is compared with."""
    values = fit.group
    return str(values.get("parameterization", next(iter(values.values()), "")))


def _minus(value: float | None) -> float | None:
    return None if value is None else -value
