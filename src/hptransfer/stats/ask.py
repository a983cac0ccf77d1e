"""Questions asked of a whole table: sensitivity, fast transfer, and regret as compute."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hptransfer.errors import FitError
from hptransfer.stats.basins import DEFAULT_RESAMPLES, DEFAULT_SEED, draw, fit_basins
from hptransfer.stats.cells import DEFAULT_WINDOW, Floats, build_cells
from hptransfer.stats.compare import DEFAULT_BY, fit_groups, split_table
from hptransfer.stats.compute import choose_lrs, judge_fast, price_compute
from hptransfer.stats.flops import Flops, square_flops
from hptransfer.stats.measure import measure_noise
from hptransfer.stats.measures import ComputeRegret, FastTransfer, Sensitivity
from hptransfer.stats.recommend import require_width
from hptransfer.stats.sensitivity import measure_widths
from hptransfer.stats.table import LossTable


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
        Loss at initialisation in nats, of all trials or of each; NaN where unknown; by default
        the table's own. A diverged
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
    out: list[Sensitivity] = []
    for group in split_table(table, by).groups:
        cells = build_cells(table, group.rows)
        (noise,) = measure_noise([cells])
        draws = draw(cells, noise, num_resamples=num_resamples, seed=seed)
        basins = fit_basins(cells, noise, draws, seed=seed)
        out += measure_widths(
            table,
            group.rows,
            init,
            cells,
            noise,
            draws,
            basins,
            group=dict(group.key),
            low=low,
            high=high,
            seed=seed,
        )
    return out


def _check_init(table: LossTable, init_loss: float | NDArray[np.float64] | None) -> Floats:
    """Return the loss at init of each trial, shape (rows,); NaN where unknown."""
    if init_loss is None:
        return table.losses_at_init()
    given = np.asarray(init_loss, dtype=np.float64)
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
    require_width(width)
    fits = fit_groups(
        table, split_table(table, by), window=window, num_resamples=num_resamples, seed=seed
    )
    return [price_compute(fit, width, choose_lrs(fit, width), flops=flops) for fit in fits]


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
