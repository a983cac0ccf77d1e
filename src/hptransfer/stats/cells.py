"""Cells of one group of a loss table: one per (width, lr), with its trials side by side.

Shape letters: C cells, S seeds.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hptransfer.errors import FitError
from hptransfer.stats.loss_table import LossTable

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

#: Learning rates whose logarithms agree to this many digits are one cell.
LOG_LR_DIGITS = 9

# Entries that the array of losses may have whatever the seeds; beyond, most must be trials.
_MOST_ENTRIES = 1 << 18

#: Points of a width count for the joint fit and E up to this multiple of its best loss.
DEFAULT_WINDOW = 1.35


@dataclass(frozen=True, kw_only=True)
class Cells:
    """Trials of one group, arranged as cells by seeds; sorted by width, then by x.

    A cell with any diverged trial has no mean: averaging the survivors would make an unstable
    learning rate look better than it is. Such a cell still tells where the right-hand edge is.

    Attributes
    ----------
    width, x : ndarray, shape (C,)
        Model width and ln(lr).
    losses : ndarray, shape (C, S)
        Loss in nats; NaN where there is no such trial or it diverged.
    diverged : ndarray of int, shape (C,)
        Number of diverged trials.
    seeds : tuple of (int, int), length S
        Seed and repeat number of each column; a repeated (width, lr, seed) is a replicate.

    Examples
    --------
    >>> from hptransfer import LossTable
    >>> table = LossTable.from_columns(width=[64, 128], lr=[0.01, 0.01], loss=[3.0, 2.5])
    >>> cells = build_cells(table)
    >>> len(cells), cells.widths
    (2, array([ 64., 128.]))
    """

    width: Floats
    x: Floats
    losses: Floats
    diverged: Ints
    seeds: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.width)

    @cached_property
    def present(self) -> Bools:
        """Which (cell, seed) hold a finite loss, shape (C, S)."""
        return np.isfinite(self.losses)

    @cached_property
    def count(self) -> Ints:
        """Finite losses per cell, shape (C,)."""
        return np.asarray(np.sum(self.present, axis=1), dtype=np.int64)

    @cached_property
    def clean(self) -> Bools:
        """Cells with a loss and no diverged trial, shape (C,)."""
        return np.asarray((self.count > 0) & (self.diverged == 0), dtype=np.bool_)

    @cached_property
    def mean(self) -> Floats:
        """Mean loss over seeds in nats, shape (C,); NaN where the cell is not clean."""
        total = np.where(self.present, self.losses, 0.0).sum(axis=1)
        return np.where(self.clean, total / np.maximum(self.count, 1), np.nan)

    @cached_property
    def widths(self) -> Floats:
        """Distinct widths, ascending."""
        return np.unique(self.width)

    def at(self, width: float) -> Ints:
        """Indices of the cells at one width, ascending in x."""
        return np.flatnonzero(self.width == width)

    def residuals(self) -> Floats:
        """Losses less their cell's mean, shape (C, S); NaN where absent or not clean."""
        return self.losses - self.mean[:, None]

    def in_window(self, window: float = DEFAULT_WINDOW) -> Bools:
        """Clean cells with a mean of at most `window` times their width's best, shape (C,)."""
        inside = np.zeros(len(self), dtype=bool)
        mean = self.mean
        for width in self.widths:
            rows = self.at(width)
            rows = rows[self.clean[rows]]
            if len(rows):
                best = mean[rows].min()
                inside[rows] = mean[rows] <= best + (window - 1.0) * abs(best)
        return inside


def build_cells(table: LossTable, rows: Ints | None = None) -> Cells:
    """Gather `rows` of a table (default: all) into cells.

    Raises
    ------
    FitError
        The table is empty or has a token axis, or a width or learning rate is not a positive
        number.

    Examples
    --------
    >>> from hptransfer import LossTable
    >>> table = LossTable.from_columns(
    ...     width=[64, 64, 64], lr=[0.01, 0.01, 0.02], loss=[3.0, 3.5, 2.5], seed=[0, 1, 0]
    ... )
    >>> cells = build_cells(table)
    >>> cells.mean, cells.count
    (array([3.25, 2.5 ]), array([2, 1]))
    """
    if table.tokens is not None or table.batch is not None:
        raise FitError(
            f"{table.source}: expected one token budget and batch, found an axis of them: fit_axes"
        )
    rows = np.arange(len(table)) if rows is None else rows
    if len(rows) == 0:
        raise FitError(f"{table.source}: expected at least one trial, found none")
    width, lr, loss = (
        np.asarray(column, dtype=np.float64)[rows] for column in (table.width, table.lr, table.loss)
    )
    seed = np.asarray(table.seed, dtype=np.int64)[rows]
    for name, column in (("width", width), ("lr", lr)):
        bad = np.flatnonzero(~(np.isfinite(column) & (column > 0)))
        if len(bad):
            raise FitError(
                f"{table.source}: column {name}, row {int(rows[bad[0]]) + 1}: "
                f"expected a positive number, found {float(column[bad[0]])}"
            )
    x = np.round(np.log(lr), LOG_LR_DIGITS)
    first, cell = pair_columns(width, x)
    num_cells, cell_width = len(first), width[first]
    # Seeds that hardly any two cells share (a run's number, say) pair nothing, and a column for
    # each would be an array of mostly nothing: then a trial's number in its cell is its seed.
    if num_cells * len(np.unique(seed)) > max(_MOST_ENTRIES, 16 * len(seed)):
        seed = _rank(cell, np.zeros_like(seed))
    repeat = _rank(cell, seed)
    first, place = pair_columns(seed, repeat)
    seeds = tuple(zip(seed[first].tolist(), repeat[first].tolist(), strict=True))
    finite = np.isfinite(loss)
    losses = np.full((num_cells, len(seeds)), np.nan)
    losses[cell[finite], place[finite]] = loss[finite]
    diverged = np.bincount(cell[~finite], minlength=num_cells).astype(np.int64)
    # The x of a cell is the mean of its logarithms, so that rounding leaves no trace.
    exact = np.bincount(cell, np.log(lr), num_cells) / np.bincount(cell, minlength=num_cells)
    return Cells(width=cell_width, x=exact, losses=losses, diverged=diverged, seeds=seeds)


def pair_columns(major: NDArray[Any], minor: NDArray[Any]) -> tuple[Ints, Ints]:
    """Return the first row of each pair, pairs ascending, and the pair of each row."""
    one = np.unique(major, return_inverse=True)[1].reshape(-1)
    two = np.unique(minor, return_inverse=True)[1].reshape(-1)
    code = one * (two.max() + 1) + two
    _, first, pair = np.unique(code, return_index=True, return_inverse=True)
    return first.astype(np.int64), pair.reshape(-1).astype(np.int64)


def _rank(cell: Ints, seed: Ints) -> Ints:
    """Return how many earlier rows have a row's cell and seed, shape (rows,)."""
    order = np.lexsort((seed, cell))  # stable: rows of one cell and seed stay in order
    new = np.ones(len(cell), dtype=np.bool_)
    new[1:] = (np.diff(cell[order]) != 0) | (np.diff(seed[order]) != 0)
    index = np.arange(len(cell))
    rank = np.empty(len(cell), dtype=np.int64)
    rank[order] = index - np.maximum.accumulate(np.where(new, index, 0))
    return rank


def split_rows(column: NDArray[Any]) -> list[Ints]:
    """Return the rows of each value of a column, in order of first appearance."""
    _, first, value = np.unique(column, return_index=True, return_inverse=True)
    value = value.reshape(-1)
    ends = np.cumsum(np.bincount(value))[:-1]
    parts = np.split(np.argsort(value, kind="stable"), ends)
    return [parts[index] for index in np.argsort(first)]
