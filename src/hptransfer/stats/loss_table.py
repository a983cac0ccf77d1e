"""Hold the losses of trials: the table that every fit starts from, its groups, and their cells.

A table is split into groups on some of its columns; the groups of one setting differ in the
compared column alone. A group's trials are arranged in cells: one per (width, lr), with its seeds
side by side.

Shape letters: C cells, S seeds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hptransfer._messages import did_you_mean
from hptransfer.errors import DataError, FitError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

#: From a group, a width and a rate on the table's axis to the rate of each role; None if unknown.
Rates = Callable[[Mapping[str, object], float, float], Mapping[str, float] | None]
Axis = Literal["hidden-aligned", "global", "as given", "multiplier"]

#: Learning rates whose logarithms agree to this many digits are one cell.
LOG_LR_DIGITS = 9

# Entries that the array of losses may have whatever the seeds; beyond, most must be trials.
_MOST_ENTRIES = 1 << 18

#: Points of a width count for the joint fit and E up to this multiple of its best loss.
DEFAULT_WINDOW = 1.35

#: The column whose values are compared with each other, where a table is split on it.
_COMPARED = "parameterization"


class Doubt(Protocol):
    """One reason for which an answer from a table is risky at best: its kind, and its numbers."""

    @property
    def kind(self) -> str:
        """What was seen, such as ``varies``: a column that a fit mixes."""

    @property
    def values(self) -> Mapping[str, Any]:
        """Names and numbers of it; ``groups`` are those it concerns, all where there is none."""


@dataclass(frozen=True, kw_only=True)
class LossTable:
    """Final losses of trials, one row each; all arrays have shape (rows,).

    Attributes
    ----------
    width : ndarray of float
        Model width.
    lr : ndarray of float
        The learning rate on the swept axis (``base_lr``), positive.
    loss : ndarray of float
        Held-out loss in nats; NaN where the trial diverged. Never a stand-in value.
    seed : ndarray of int
        Seed; zeros when the table has none.
    groups : mapping of str to ndarray of object
        Columns that separate fits, such as ``parameterization`` and ``weight_decay``.
    axis : Axis
        Name of the learning-rate axis.
    source : str
        Where the table came from, for messages.
    tokens : ndarray of float, optional
        Training tokens of each trial, where they are an axis of their own: `fit_axes` takes
        such a table, and fits across widths alone refuse it.
    budget : ndarray of float or None
        Training tokens of each trial where they are no axis; NaN where unknown, None where all of
        it is. One that grows with the width moves the optimum too.
    init_loss : ndarray of float or None
        Loss at initialisation in nats; NaN where unknown, None where all of it is.
    flops : ndarray of float or None
        Training FLOPs of each trial; NaN where unknown, None where all of it is.
    rates : callable or None
        From the values that name a group, a width and a rate on the axis to the learning rate
        of each role, as a study's settings say; None for a table read as given.
    base_width : float or None
        Width at which all parameterizations agree; None where there is none.
    batch : ndarray of float or None
        Batch in tokens of each trial, where it is an axis of its own.
    batch_unit : float
        Tokens in one unit of the batch as its source counts it: 1, or a sequence's tokens.
    size : str
        What stands for the width: the name of its column.
    doubts : tuple of Doubt
        What its reader saw that makes an answer risky at best.
    """

    width: NDArray[np.float64]
    lr: NDArray[np.float64]
    loss: NDArray[np.float64]
    seed: NDArray[np.int64]
    groups: Mapping[str, NDArray[np.object_]] = field(default_factory=dict)
    axis: Axis = "as given"
    source: str = "table"
    tokens: NDArray[np.float64] | None = None
    budget: NDArray[np.float64] | None = None
    init_loss: NDArray[np.float64] | None = None
    flops: NDArray[np.float64] | None = None
    rates: Rates | None = None
    base_width: float | None = None
    batch: NDArray[np.float64] | None = None
    batch_unit: float = 1.0
    size: str = "width"
    doubts: tuple[Doubt, ...] = ()

    @classmethod
    def from_columns(
        cls,
        *,
        width: ArrayLike,
        lr: ArrayLike,
        loss: ArrayLike,
        seed: ArrayLike | None = None,
        axis: Axis = "as given",
        source: str = "table",
        **groups: Sequence[object],
    ) -> "LossTable":
        """Make a loss table from columns, one entry for each trial.

        Parameters
        ----------
        width, lr, loss : array, shape (rows,)
            Model width, learning rate, and held-out loss in nats: NaN or None where the trial
            diverged.
        seed : array of int, optional
            Seeds; by default all 0, so that equal widths and learning rates are repeats.
        axis, source : str
            As the attributes.
        **groups : sequence
            Columns that separate fits, such as ``parameterization=["sp", "mup", …]``.

        Raises
        ------
        DataError
            The columns are not of one length.

        Examples
        --------
        >>> table = LossTable.from_columns(width=[8, 8], lr=[0.1, 0.2], loss=[3.0, None])
        >>> len(table), table.seed.tolist()
        (2, [0, 0])
        """
        losses = np.array(loss, dtype=np.float64)
        columns: dict[str, Any] = {
            "width": np.asarray(width, dtype=np.float64),
            "lr": np.asarray(lr, dtype=np.float64),
            "seed": np.asarray(np.zeros(losses.shape) if seed is None else seed, dtype=np.int64),
        }
        named = {name: _as_objects(values) for name, values in groups.items()}
        for name, column in {**columns, **named}.items():
            if column.shape != losses.shape or losses.ndim != 1:
                raise DataError(
                    f"{source}: column {name}: expected {losses.size} entries in one dimension, "
                    f"as loss has, found shape {column.shape}"
                )
        return cls(**columns, loss=losses, groups=named, axis=axis, source=source)

    def __len__(self) -> int:
        return len(self.loss)

    def budget_growth(self, rows: NDArray[np.int64]) -> float:
        """Return d ln(training tokens)/d ln(width) over some rows; 0 where that is unknown."""
        if self.budget is None:
            return 0.0
        # A diverged trial may have stopped early: its tokens are no budget.
        rows = rows[np.isfinite(self.loss[rows]) & (self.budget[rows] > 0)]
        widths = np.unique(self.width[rows])
        if len(widths) < 2:
            return 0.0
        each = [np.median(self.budget[rows[self.width[rows] == width]]) for width in widths]
        return float(np.polyfit(np.log(widths), np.log(each), 1)[0])


def _as_objects(values: Sequence[object]) -> NDArray[np.object_]:
    column = np.empty(len(values), dtype=object)
    column[:] = list(values)
    return column


class Group(NamedTuple):
    """Rows of a table that are fitted together, and the values of the columns that name them."""

    values: Mapping[str, object]
    rows: Ints


def label_group(values: Mapping[str, object]) -> str:
    """Return a group's value of the column that R compares; "" without columns."""
    return str(values.get(_find_compared(values), ""))


def _find_compared(values: Mapping[str, object]) -> str:
    return _COMPARED if _COMPARED in values else next(iter(values), "")


def list_settings(groups: Sequence[Mapping[str, object]]) -> list[list[int]]:
    """Return the numbers of the groups of each setting, in order of first appearance.

    A setting is the same values of all columns but the compared one.
    """
    found: dict[tuple[tuple[str, object], ...], list[int]] = {}
    for k, values in enumerate(groups):
        compared = _find_compared(values)
        setting = tuple(pair for pair in values.items() if pair[0] != compared)
        found.setdefault(setting, []).append(k)
    return list(found.values())


def split_table(table: LossTable, by: Sequence[str] | None = None) -> list[Group]:
    """Split a table into groups on the columns of `by`; by default on all that it has.

    Groups are in order of first appearance.

    Raises
    ------
    FitError
        It is no loss table, is empty, a column is unknown, or one not split on varies within a
        width.
    """
    if not isinstance(table, LossTable):
        raise FitError(
            f"table: expected a LossTable, found {type(table).__name__}: read_table(FILE), "
            "tables.read_frame(FRAME).table or LossTable.from_columns(…) makes one"
        )
    if len(table) == 0:
        raise FitError(f"{table.source}: expected at least one trial, found none")
    columns = tuple(dict.fromkeys(table.groups if by is None else by))
    for name in columns:
        if name not in table.groups:
            known = ", ".join(table.groups) or "none"
            raise FitError(
                f"{table.source}: no column {name} to split on: expected one of {known}"
                f"{did_you_mean(name, table.groups, cutoff=0.4)}"
            )
    whole = np.zeros(len(table), dtype=np.int64)
    for name in columns:
        _, whole = pair_columns(whole, _encode(table.groups[name]))
    groups = [
        Group({name: table.groups[name][rows[0]] for name in columns}, rows)
        for rows in split_rows(whole)
    ]
    for name in [name for name in table.groups if name not in columns]:
        codes = _encode(table.groups[name])
        for group in groups:
            for rows in split_rows(table.width[group.rows]):
                there = group.rows[rows]
                if np.ptp(codes[there]) == 0:
                    continue
                several = set(map(str, table.groups[name][there]))
                raise FitError(
                    f"{table.source}: column {name}: expected one value per fit, found "
                    f"{', '.join(sorted(several)[:4])} at width {table.width[there[0]]:g}; split "
                    f"on it with --by {name}"
                )
    return groups


def _encode(column: NDArray[np.object_]) -> Ints:
    """Return a number for each value of a column, equal for equal ones, shape (rows,)."""
    codes: dict[object, int] = {}
    return np.array([codes.setdefault(value, len(codes)) for value in column.tolist()])


def check_reference(table: LossTable, groups: Sequence[Group], reference: str | None) -> None:
    """Raise `FitError` where `reference` is no value of the compared column."""
    labels = list(dict.fromkeys(label_group(group.values) for group in groups))
    if reference is None or reference in labels:
        return
    found = ", ".join(labels) if groups[0].values else "no group column"
    raise FitError(
        f"{table.source}: no reference {reference}: found {found}"
        f"{did_you_mean(reference, labels, cutoff=0.4)}"
    )


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
