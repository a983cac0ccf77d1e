"""Learning-rate sensitivity: what a learning rate picked blindly from the sweep costs.

    sensitivity = mean over the sweep range of min(loss, loss at init) − best loss

per width (Wortsman et al. 2023, arXiv 2309.14322). The mean is over ln(lr): a learning rate counts
for the part of the range nearest to it, which on an even grid is the plain mean of the source.
The best loss is the basin's L*, which noise does not pull down as it does the lowest of several
means; where the minimum is not bracketed the lowest mean stands in.

Shape letters: C cells, L learning rates of a width, R resamples.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from hptransfer.stats.basins import DEFAULT_SEED, BasinSet, Draws
from hptransfer.stats.cells import Cells, Floats, Ints, build_cells
from hptransfer.stats.judge import judge, refuse
from hptransfer.stats.measures import Sensitivity
from hptransfer.stats.noise import Noise
from hptransfer.stats.table import LossTable

NO_CLIP = "the loss at init is unknown: losses above it are counted whole"


@dataclass(frozen=True, kw_only=True)
class Counted:
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


def count_trials(table: LossTable, rows: Ints, init: Floats) -> Counted:
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
    return Counted(
        mean=counted.mean,
        spread=np.where(untouched, np.nan, spread),
        ceiling=np.where(np.isfinite(ceilings.mean), ceilings.mean, np.inf),
    )


def measure_widths(
    table: LossTable,
    rows: Ints,
    init: Floats,
    cells: Cells,
    noise: Noise,
    draws: Draws,
    basins: BasinSet,
    *,
    group: Mapping[str, object],
    low: float = -np.inf,
    high: float = np.inf,
    seed: int = DEFAULT_SEED,
) -> tuple[Sensitivity, ...]:
    """Estimate the sensitivity at each width of a group, ascending; see `measure_width`.

    `rows` are the group's in the table, and `init` (rows of the table,) is the loss at init.
    """
    counted = count_trials(table, rows, init)
    return tuple(
        replace(
            measure_width(
                basin.width, cells, counted, noise, draws, basins, low=low, high=high, seed=seed
            ),
            group=dict(group),
        )
        for basin in basins.basins
    )


def measure_width(
    width: float,
    cells: Cells,
    counted: Counted,
    noise: Noise,
    draws: Draws,
    basins: BasinSet,
    *,
    low: float = -np.inf,
    high: float = np.inf,
    seed: int = DEFAULT_SEED,
) -> Sensitivity:
    """Estimate the sensitivity of one width of a group over x = ln(lr) from `low` to `high`.

    Its group is left empty. With one seed per cell the noise is that of the basins' scatter.
    """
    rows = cells.at(width)
    rows = rows[(cells.x[rows] >= low) & (cells.x[rows] <= high)]
    x = cells.x[rows]
    result = Sensitivity(
        group={},
        width=width,
        sensitivity=refuse("no learning rate of this width lies in the range"),
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
        said = "1 diverged trial" if trials == 1 else f"{trials} diverged trials"
        reason = f"{said} cannot be counted without the loss at init"
        return replace(result, sensitivity=refuse(reason))
    if len(x) < 2:
        return replace(result, sensitivity=refuse("one learning rate is no range"))
    weights = share_range(x)
    caution = "" if np.all(np.isfinite(counted.ceiling[rows])) else NO_CLIP
    clean = cells.at(width)[cells.clean[cells.at(width)]]
    if len(clean) == 0:
        return replace(result, sensitivity=refuse("every trial of this width diverged"))
    lowest = int(clean[np.argmin(cells.mean[clean])])
    best = float(cells.mean[lowest])
    drawn_basin = np.full(len(draws.unit), np.nan)
    if width in basins.usable:
        basin = next(b for b in basins.basins if b.width == width)
        best = basin.coefficients[1]
        if width in basins.samples:
            where, found = basins.samples[width][:, 0], basins.samples[width][:, 1]
            inside = (where >= basin.x_low) & (where <= basin.x_high)
            drawn_basin = np.where(inside, found, np.nan)
    else:
        unbracketed = "the minimum is not bracketed: the best loss may lie below the lowest one"
        caution = "; ".join(filter(None, (unbracketed, caution)))
    value = float(weights @ counted.mean[rows]) - best
    samples = None
    if basins.misfit.known:
        shaken = _shake(cells, counted, noise, draws, basins, seed)
        # A draw without a minimum takes the lowest cell's; the lowest of noisy draws would sink.
        drawn = np.where(np.isfinite(drawn_basin), drawn_basin, shaken[:, lowest])
        samples = shaken[:, rows] @ weights - drawn
    return replace(result, sensitivity=judge(value, samples, "loss", caution=caution))


def _shake(
    cells: Cells, counted: Counted, noise: Noise, draws: Draws, basins: BasinSet, seed: int
) -> Floats:
    """Resample the counted means, shape (R, C); NaN where they are unknown."""
    extra = draws.seeds
    if not noise.known:
        extra = extra + basins.misfit.draw(draws.unit, cells.count, seed)
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
