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
from hptransfer.stats.cells import Floats, build_cells
from hptransfer.stats.estimate import Estimate, judge, refuse
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


def _count_trials(table: LossTable, fit: GroupFit) -> _Counted:
    """Count each trial of a group as min(loss, loss at init)."""
    init, rows, plain = table.losses_at_init(), fit.data.rows, fit.data.cells
    clipped = np.fmin(np.where(np.isfinite(table.loss), table.loss, np.nan), init)
    # The cells depend on width and lr alone, so that these line up with the group's.
    counted = build_cells(replace(table, loss=clipped), rows)
    ceilings = build_cells(replace(table, loss=init), rows)
    num = np.maximum(counted.count, 1)
    squares = np.where(counted.present, counted.residuals(), 0.0) ** 2
    spread = np.sqrt(squares.sum(axis=1) / np.maximum(num - 1, 1) / num)
    untouched = plain.clean & (plain.mean == counted.mean)
    return _Counted(
        mean=counted.mean,
        spread=np.where(untouched, np.nan, spread),
        ceiling=np.where(np.isfinite(ceilings.mean), ceilings.mean, np.inf),
    )


def measure_widths(table: LossTable, fit: GroupFit) -> tuple[Sensitivity, ...]:
    """Estimate the sensitivity at each width of a group of a table, ascending.

    With one seed per cell the noise is that of the basins' scatter.
    """
    counted, cells = _count_trials(table, fit), fit.data.cells
    return tuple(
        Sensitivity(
            group=dict(fit.data.group),
            width=width,
            sensitivity=_measure_width(width, fit, counted),
            lr_low=float(np.exp(cells.x[cells.at(width)[0]])),
            lr_high=float(np.exp(cells.x[cells.at(width)[-1]])),
            num_lrs=len(cells.at(width)),
            num_diverged=int(np.sum(cells.diverged[cells.at(width)] > 0)),
        )
        for width in fit.minima.size.tolist()
    )


def _measure_width(width: float, fit: GroupFit, counted: _Counted) -> Estimate:
    data, cells = fit.data, fit.data.cells
    rows = cells.at(width)
    unknown = np.isnan(counted.mean[rows])
    if np.any(unknown):
        return refuse(Reason("uncounted", trials=int(np.sum(cells.diverged[rows][unknown]))))
    if len(rows) < 2:
        return refuse(Reason("one_lr"))
    weights = share_range(cells.x[rows])
    caution: Reasons = ()
    if not np.all(np.isfinite(counted.ceiling[rows])):
        caution = (Reason("unclipped"),)
    clean = rows[cells.clean[rows]]
    if len(clean) == 0:
        return refuse(Reason("width_diverged"))
    lowest = int(clean[np.argmin(cells.mean[clean])])
    best = float(cells.mean[lowest])
    found: Floats | None = None
    if width in fit.usable:
        best, found = fit.losses_at(width)
    else:
        caution = (Reason("unbracketed_best"), *caution)
    samples = None
    if fit.draws is not None or data.noise.known:
        shaken = _shake(fit, counted)
        samples = shaken[:, rows] @ weights - (shaken[:, lowest] if found is None else found)
    return judge(float(weights @ counted.mean[rows]) - best, samples, "loss", caution=caution)


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
