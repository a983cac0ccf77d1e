"""One group's trials with their noise and its resamples: what every fit of a group starts from.

A table is split into groups on some of its columns; the groups of one setting, which differ in
the compared column alone, are paired by seed and share part of their noise.

Shape letters: C cells, R resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hptransfer._messages import did_you_mean
from hptransfer.errors import FitError
from hptransfer.stats.cells import (
    DEFAULT_WINDOW,
    Cells,
    Floats,
    Ints,
    build_cells,
    pair_columns,
    split_rows,
)
from hptransfer.stats.loss_table import Axis, LossTable
from hptransfer.stats.seed_noise import Noise, draw_noise, measure_noise

#: The column whose values are compared with each other, where a table is split on it.
_COMPARED = "parameterization"
#: The ends of an interval from 500 draws lie within 4 % of where more would put them.
DEFAULT_RESAMPLES = 500
DEFAULT_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows of a table that are fitted together.

    Attributes
    ----------
    key : tuple of (str, object)
        Column names and values that name the group.
    rows : ndarray of int
        Its rows in the table.
    """

    key: tuple[tuple[str, object], ...]
    rows: Ints


@dataclass(frozen=True, kw_only=True)
class Split:
    """A table split into groups, and which column compares them.

    Attributes
    ----------
    groups : tuple of Group
        In order of first appearance.
    compared : str
        The column whose values R compares; "" without columns.
    """

    groups: tuple[Group, ...]
    compared: str

    def label(self, group: Group) -> str:
        """Return the group's value of the compared column."""
        return str(dict(group.key).get(self.compared, ""))

    def settings(self) -> list[list[int]]:
        """Return the numbers of the groups of each setting, in order of first appearance.

        A setting is the same values of all columns but the compared one.
        """
        found: dict[tuple[tuple[str, object], ...], list[int]] = {}
        for k, group in enumerate(self.groups):
            setting = tuple(pair for pair in group.key if pair[0] != self.compared)
            found.setdefault(setting, []).append(k)
        return list(found.values())


def split_table(table: LossTable, by: Sequence[str] | None = None) -> Split:
    """Split a table into groups on the columns of `by`; by default on all that it has.

    Raises
    ------
    FitError
        The table is empty, a column is unknown, or one not split on varies within a width.
    """
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
    compared = _COMPARED if _COMPARED in columns else (columns[0] if columns else "")
    return Split(groups=tuple(split_groups(table, columns)), compared=compared)


def split_groups(table: LossTable, columns: Sequence[str]) -> list[Group]:
    """Split a table on group columns, in order of first appearance.

    Raises
    ------
    FitError
        A column that is not split on takes several values within one width of a group.
    """
    whole = np.zeros(len(table), dtype=np.int64)
    for name in columns:
        _, whole = pair_columns(whole, _encode(table.groups[name]))
    groups = []
    for rows in split_rows(whole):
        key = tuple((name, table.groups[name][rows[0]]) for name in columns)
        groups.append(Group(key=key, rows=rows))
    for name in table.groups:
        if name in columns:
            continue
        codes = _encode(table.groups[name])
        for group in groups:
            first, pair = pair_columns(table.width[group.rows], codes[group.rows])
            if len(first) == len(np.unique(table.width[group.rows[first]])):
                continue
            for rows in split_rows(table.width[group.rows]):
                several = np.unique(pair[rows])
                if len(several) > 1:
                    there = group.rows[first[several]]
                    shown = ", ".join(sorted(map(str, table.groups[name][there]))[:4])
                    raise FitError(
                        f"{table.source}: column {name}: expected one value per fit, found "
                        f"{shown} at width {table.width[there[0]]:g}; split on it with --by {name}"
                    )
    return groups


def _encode(column: NDArray[np.object_]) -> Ints:
    """Return a number for each value of a column, equal for equal ones, shape (rows,)."""
    codes: dict[object, int] = {}
    return np.array([codes.setdefault(value, len(codes)) for value in column.tolist()])


def check_reference(table: LossTable, split: Split, reference: str | None) -> None:
    """Raise `FitError` where `reference` is no value of the compared column."""
    labels = list(dict.fromkeys(split.label(group) for group in split.groups))
    if reference is None or reference in labels:
        return
    found = ", ".join(labels) if split.compared else "no group column"
    raise FitError(
        f"{table.source}: no reference {reference}: found {found}"
        f"{did_you_mean(reference, labels, cutoff=0.4)}"
    )


class Draws(NamedTuple):
    """Resampled noise of one group.

    Attributes
    ----------
    seeds : ndarray, shape (R, C)
        Seed noise of the cell means, in nats.
    unit : ndarray, shape (R, C)
        Standard normal draws, which a fit scales by the misfit it finds.
    """

    seeds: Floats
    unit: Floats


def draw(cells: Cells, noise: Noise, *, num_resamples: int, seed: int, stream: int = 0) -> Draws:
    """Draw seed noise and unit noise for one group, shapes (R, C)."""
    rng = np.random.default_rng([seed, 4, stream])
    return Draws(
        seeds=draw_noise(cells, noise, num_resamples=num_resamples, seed=seed, stream=stream),
        unit=rng.standard_normal((num_resamples, len(cells))),
    )


@dataclass(frozen=True, kw_only=True)
class GroupData:
    """The trials of one group with the noise of their seeds and its resamples.

    Attributes
    ----------
    cells : Cells
        The trials, one cell for each width and learning rate.
    noise : Noise
        Seed noise of the cells.
    draws : Draws
        Its resamples.
    group : mapping of str to object
        The values that name the group; empty for a table of one group.
    rows : ndarray of int
        The group's rows in its table.
    axis : Axis
        Name of the learning-rate axis.
    window : float
        Points with a mean loss up to this multiple of their width's best are fitted.
    seed : int
        Seed of the resamples.
    stream : int
        The group's number in its table: what groups do not share is drawn apart.
    """

    cells: Cells
    noise: Noise
    draws: Draws
    group: Mapping[str, object] = field(default_factory=dict)
    rows: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    axis: Axis = "as given"
    window: float = DEFAULT_WINDOW
    seed: int = DEFAULT_SEED
    stream: int = 0


def gather_groups(
    table: LossTable,
    split: Split | None = None,
    *,
    window: float = DEFAULT_WINDOW,
    num_resamples: int = DEFAULT_RESAMPLES,
    seed: int = DEFAULT_SEED,
) -> list[GroupData]:
    """Gather the trials, noise and resamples of each group of a table.

    Parameters
    ----------
    table : LossTable
        Trials.
    split : Split, optional
        The groups; groups of one setting share the noise that their seeds share. By default those
        of all group columns.
    window, num_resamples, seed
        As for `fit_table`.

    Raises
    ------
    FitError
        The table has a token axis, or a width or learning rate is not a positive number.
    """
    split = split or split_table(table)
    cells = [build_cells(table, group.rows) for group in split.groups]
    found: dict[int, GroupData] = {}
    for members in split.settings():
        noises = measure_noise([cells[k] for k in members])
        for k, noise in zip(members, noises, strict=True):
            found[k] = GroupData(
                cells=cells[k],
                noise=noise,
                draws=draw(cells[k], noise, num_resamples=num_resamples, seed=seed, stream=k),
                group=dict(split.groups[k].key),
                rows=split.groups[k].rows,
                axis=table.axis,
                window=window,
                seed=seed,
                stream=k,
            )
    return [found[k] for k in range(len(cells))]
