"""Measure the learning-rate sensitivity: what a rate picked blindly from the sweep costs.

    sensitivity = mean over the sweep range of min(loss, loss at init) − best loss

per width (Wortsman et al. 2023, arXiv 2309.14322). The mean is over ln(lr): a learning rate counts
for the part of the range nearest to it, which on an even grid is the plain mean of the source.
The best loss is the basin's L*, which noise does not pull down as it does the lowest of several
means; where the minimum is not bracketed the lowest mean stands in.

Shape letters: C cells, L learning rates of a width, R resamples.
"""

from dataclasses import dataclass, replace

import numpy as np

from hptransfer.stats._group_fit import GroupFit
from hptransfer.stats.cells import Floats, Ints, build_cells
from hptransfer.stats.estimate import judge, refuse
from hptransfer.stats.loss_table import LossTable
from hptransfer.stats.reasons import Reason, Reasons
from hptransfer.stats.results import Sensitivity


@dataclass(frozen=True, kw_only=True)
class _Counted:
    """Trials of a group's cells as the sensitivity counts them; arrays have shape (C,).

    Attributes
    ----------
    mean : ndarray
        Mean over trials of min(loss, loss at init), in nats; NaN where that is unknown.
    spread : ndarray
        Standard error of `mean` where trials diverged or were clipped, from their own spread;
        NaN where the cell's mean is that of its losses and seed noise moves it.
    ceiling : ndarray
        Mean loss at init; inf where unknown.
    """

    mean: Floats
    spread: Floats
    ceiling: Floats


def _count_trials(table: LossTable, rows: Ints, init: Floats) -> _Counted:
    """Count each trial of `rows` as min(loss, loss at init); `init` (rows of the table,)."""
    clipped = np.fmin(np.where(np.isfinite(table.loss), table.loss, np.nan), init)
    # The cells depend on width and lr alone, so that these line up with the group's.
    counted = build_cells(replace(table, loss=clipped), rows)
    ceilings = build_cells(replace(table, loss=init), rows)
    plain = build_cells(table, rows)
    num = np.maximum(counted.count, 1)
    squares = np.where(counted.present, counted.residuals(), 0.0) ** 2
    spread = np.sqrt(squares.sum(axis=1) / np.maximum(num - 1, 1) / num)
    untouched = plain.clean & (plain.mean == counted.mean)
    return _Counted(
        mean=counted.mean,
        spread=np.where(untouched, np.nan, spread),
        ceiling=np.where(np.isfinite(ceilings.mean), ceilings.mean, np.inf),
    )


def measure_widths(
    table: LossTable,
    fit: GroupFit,
    init: Floats,
    *,
    low: float = -np.inf,
    high: float = np.inf,
) -> tuple[Sensitivity, ...]:
    """Estimate the sensitivity at each width of a group, ascending.

    Parameters
    ----------
    table : LossTable
        The table that the group's rows are of.
    fit : GroupFit
        The group.
    init : ndarray, shape (rows of the table,)
        Loss at initialisation; NaN where unknown.
    low, high : float
        Ends of the range of x = ln(lr) that is averaged over.
    """
    counted = _count_trials(table, fit.data.rows, init)
    widths = fit.minima.size.tolist()
    return tuple(_measure_width(n, fit, counted, low=low, high=high) for n in widths)


def _measure_width(
    width: float, fit: GroupFit, counted: _Counted, *, low: float, high: float
) -> Sensitivity:
    """Estimate the sensitivity of one width of a group over x = ln(lr) from `low` to `high`.

    With one seed per cell the noise is that of the basins' scatter.
    """
    data, cells = fit.data, fit.data.cells
    rows = cells.at(width)
    rows = rows[(cells.x[rows] >= low) & (cells.x[rows] <= high)]
    x = cells.x[rows]
    result = Sensitivity(
        group=dict(data.group),
        width=width,
        sensitivity=refuse(Reason("none_in_range")),
        lr_low=float(np.exp(x[0])) if len(x) else float("nan"),
        lr_high=float(np.exp(x[-1])) if len(x) else float("nan"),
        num_lrs=len(x),
        num_diverged=int(np.sum(cells.diverged[rows] > 0)),
    )
    if len(x) == 0:
        return result
    unknown = np.isnan(counted.mean[rows])
    if np.any(unknown):
        trials = int(np.sum(cells.diverged[rows][unknown]))
        return replace(result, sensitivity=refuse(Reason("uncounted", trials=trials)))
    if len(x) < 2:
        return replace(result, sensitivity=refuse(Reason("one_lr")))
    weights = share_range(x)
    caution: Reasons = ()
    if not np.all(np.isfinite(counted.ceiling[rows])):
        caution = (Reason("unclipped"),)
    clean = cells.at(width)[cells.clean[cells.at(width)]]
    if len(clean) == 0:
        return replace(result, sensitivity=refuse(Reason("width_diverged")))
    lowest = int(clean[np.argmin(cells.mean[clean])])
    best = float(cells.mean[lowest])
    found: Floats | None = None
    if width in fit.usable:
        best, found = fit.losses_at(width)
    else:
        caution = (Reason("unbracketed_best"), *caution)
    value = float(weights @ counted.mean[rows]) - best
    samples = None
    if fit.draws is not None or data.noise.known:
        shaken = _shake(fit, counted)
        samples = shaken[:, rows] @ weights - (shaken[:, lowest] if found is None else found)
    return replace(result, sensitivity=judge(value, samples, "loss", caution=caution))


def _shake(fit: GroupFit, counted: _Counted) -> Floats:
    """Resample the counted means, shape (R, C); NaN where they are unknown."""
    draws, extra = fit.data.draws, fit.data.draws.seeds
    if not fit.data.noise.known:
        extra = fit.missed * draws.unit / np.sqrt(np.maximum(fit.data.cells.count, 1))
    own = np.isfinite(counted.spread)
    extra = np.where(own, np.where(own, counted.spread, 0.0) * draws.unit, extra)
    return np.minimum(counted.mean + extra, counted.ceiling)


def share_range(x: Floats) -> Floats:
    """Weight of each learning rate in a mean over the sweep range, shape (L,), summing to 1.

    Each x = ln(lr), ascending, stands for the half-way intervals to its neighbours; an end
    stands for as much outside as inside, so that an even grid gives equal weights.
    """
    gaps = np.diff(x)
    left = np.concatenate([gaps[:1], gaps])
    right = np.concatenate([gaps, gaps[-1:]])
    return np.asarray((left + right) / np.sum(left + right), dtype=np.float64)
