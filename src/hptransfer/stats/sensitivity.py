"""Learning-rate sensitivity: what a learning rate picked blindly from the sweep costs.

    sensitivity = mean over the sweep range of min(loss, loss at init) − best loss

per width (Wortsman et al. 2023, arXiv 2309.14322). The mean is over ln(lr): a learning rate counts
for the part of the range nearest to it, which on an even grid is the plain mean of the source.
The best loss is the basin's L*, which noise does not pull down as it does the lowest of several
means; where the minimum is not bracketed the lowest mean stands in.

Shape letters: C cells, L learning rates of a width, R resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hptransfer.errors import FitError
from hptransfer.stats.basins import DEFAULT_RESAMPLES, DEFAULT_SEED, BasinSet, Draws, draw
from hptransfer.stats.basins import fit_basins as fit_all_basins
from hptransfer.stats.cells import Cells, Floats, Ints, build_cells
from hptransfer.stats.compare import DEFAULT_BY, split_table
from hptransfer.stats.estimate import Estimate
from hptransfer.stats.judge import judge, refuse
from hptransfer.stats.measure import measure_noise
from hptransfer.stats.noise import Noise
from hptransfer.stats.table import LossTable

NO_CLIP = "the loss at init is unknown: losses above it are counted whole"


def name_values(group: Mapping[str, object]) -> list[str]:
    """Say a group's values, each with its column where that is not the parameterization."""
    return [
        str(value) if key == "parameterization" else f"{key} {value}"
        for key, value in group.items()
    ]


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """Learning-rate sensitivity of one group at one width.

    Attributes
    ----------
    group : mapping of str to object
        The values that name the group.
    width : float
        Model width.
    sensitivity : Estimate
        In nats. Comparable only between sweeps over the same range of learning rates, counted
        from their optimum or not, as the comparison asks.
    lr_low, lr_high : float
        Ends of the range that was averaged over, on the table's axis.
    num_lrs, num_diverged : int
        Learning rates in the range; those of them at which a trial diverged.
    """

    group: Mapping[str, object]
    width: float
    sensitivity: Estimate
    lr_low: float
    lr_high: float
    num_lrs: int
    num_diverged: int

    def __str__(self) -> str:
        e = self.sensitivity
        where = ", ".join([*name_values(self.group), f"width {self.width:g}"])
        if e.value is None or e.low is None or e.high is None:
            return f"{where}: lr sensitivity not identified: {e.reason}"
        said = f"{e.value:.4g} nats [{e.low:.4g}, {e.high:.4g}]"
        return f"{where}: lr sensitivity {said} over lr {self.lr_low:.3g} to {self.lr_high:.3g}"

    def to_dict(self) -> dict[str, Any]:
        """Return the result by name, the estimate in the shape that ``--json`` documents."""
        return {
            "group": dict(self.group),
            "width": self.width,
            "lr_sensitivity": self.sensitivity.to_dict(),
            "lr_low": self.lr_low,
            "lr_high": self.lr_high,
            "num_lrs": self.num_lrs,
            "num_diverged": self.num_diverged,
        }


def lr_sensitivity(
    table: LossTable,
    *,
    init_loss: float | NDArray[np.float64] | None = None,
    lr_range: tuple[float, float] | None = None,
    by: Sequence[str] = DEFAULT_BY,
    num_resamples: int = DEFAULT_RESAMPLES,
    seed: int = DEFAULT_SEED,
) -> list[Sensitivity]:
    """Estimate the learning-rate sensitivity of every group and width of a table.

    Parameters
    ----------
    table : LossTable
        Trials.
    init_loss : float or ndarray, shape (rows,), optional
        Loss at initialisation in nats, of all trials or of each; NaN where unknown. A diverged
        trial counts as this. Without it a width at which a trial diverged has no sensitivity,
        and the others are at best weakly identified: nothing stands in for it.
    lr_range : (float, float), optional
        Average over these learning rates only, ends included; by default each width's sweep.
    by : sequence of str
        As for `fit_table`.
    num_resamples, seed : int
        Number and seed of the resamples behind the 90 % intervals.

    Returns
    -------
    list of Sensitivity
        By group in order of first appearance, then by width; a width without a learning rate in
        `lr_range` is refused with that reason.

    Raises
    ------
    FitError
        The table cannot be split, or `init_loss` or `lr_range` has the wrong shape or sign.
    """
    init = _check_init(table, init_loss)
    low, high = _check_range(lr_range)
    out = []
    for group in split_table(table, by).groups:
        cells = build_cells(table, group.rows)
        (noise,) = measure_noise([cells])
        draws = draw(cells, noise, num_resamples=num_resamples, seed=seed)
        basins = fit_all_basins(cells, noise, draws, seed=seed)
        counted = count_trials(table, group.rows, init)
        for basin in basins.basins:
            found = measure_width(
                basin.width, cells, counted, noise, draws, basins, low=low, high=high, seed=seed
            )
            out.append(replace(found, group=dict(group.key)))
    return out


def _check_init(table: LossTable, init_loss: float | NDArray[np.float64] | None) -> Floats:
    """Return the loss at init of each trial, shape (rows,); NaN where unknown."""
    given = np.asarray(np.nan if init_loss is None else init_loss, dtype=np.float64)
    if given.shape not in ((), (len(table),)):
        raise FitError(
            f"{table.source}: init_loss: expected a number or one per row ({len(table)}), "
            f"found shape {given.shape}"
        )
    if np.any(np.isinf(given)):
        raise FitError(f"{table.source}: init_loss: expected finite losses, found infinity")
    return np.broadcast_to(given, (len(table),)).copy()


def _check_range(lr_range: tuple[float, float] | None) -> tuple[float, float]:
    """Return the ends of the range as ln(lr)."""
    if lr_range is None:
        return -np.inf, np.inf
    low, high = lr_range
    if not 0.0 < low < high < np.inf:
        raise FitError(f"lr_range: expected two rising positive numbers, found {low:g}, {high:g}")
    # A learning rate typed as an end is inside, whatever its last digit.
    return float(np.log(low)) - 1e-9, float(np.log(high)) + 1e-9


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
