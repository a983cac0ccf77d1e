"""A raw table to a loss table: every row checked, nothing silently dropped."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from hptransfer.errors import ConfigError, DataError
from hptransfer.stats.table import Axis, LossTable
from hptransfer.tables.budget import check_tokens
from hptransfer.tables.cells import Need, parse_loss, parse_name, parse_number, parse_state
from hptransfer.tables.columns import find_lr, rename, suggest
from hptransfer.tables.raw import RawTable

GROUPS = ("parameterization", "weight_decay")


def convert(
    raw: RawTable,
    *,
    columns: Mapping[str, str],
    by: Sequence[str],
    axis: Axis = "as given",
    one_budget: bool = True,
) -> tuple[LossTable, tuple[str, ...]]:
    """Return the loss table of a raw one, and notes on the rows left out.

    Parameters
    ----------
    raw : RawTable
        Cells as read.
    columns : mapping of str to str
        Our column names to the file's, where they differ.
    by : sequence of str
        Columns beside ``parameterization`` and ``weight_decay`` that separate fits; those of
        these two that the table lacks are skipped.
    axis : Axis
        Name of the learning-rate axis.
    one_budget : bool
        Whether to refuse a table whose token budgets differ (where there is a token column).

    Raises
    ------
    ConfigError
        If `by` names a column that is not there.
    DataError
        If a column is missing or a cell is not what its column needs.
    """
    raw = rename(raw, columns)
    names = _group_names(raw, by)
    keep, states, notes = _select_rows(raw)
    if not keep:
        raise DataError(f"{raw.source}: no finished trial; {'; '.join(notes)}")

    def place(row: int, column: str) -> str:
        return f"{raw.source}: {raw.places[row]}: column {columns.get(column, column)!r}"

    def numbers(column: str, need: Need) -> NDArray[np.float64]:
        cells = raw.columns[column]
        return np.array([parse_number(cells[row], place(row, column), need) for row in keep])

    width = numbers("width", Need.POSITIVE)
    lr_name = find_lr(raw)
    if lr_name == "log2_lr":
        lr = np.exp2(numbers(lr_name, Need.ANY))
    else:
        lr = numbers(lr_name, Need.POSITIVE)
    cells = raw.columns["loss"]
    loss = np.array(
        [
            math.nan if states[row] == "diverged" else parse_loss(cells[row], place(row, "loss"))
            for row in keep
        ]
    )
    has_seed = "seed" in raw.columns
    seed = numbers("seed", Need.WHOLE) if has_seed else np.zeros(len(keep))
    groups: dict[str, NDArray[np.object_]] = {}
    for name in names:
        if name == "weight_decay":
            groups[name] = numbers(name, Need.NOT_NEGATIVE).astype(object)
        else:
            groups[name] = _values(raw.columns[name], keep)

    if one_budget and "tokens" in raw.columns:
        params = numbers("params", Need.POSITIVE) if "params" in raw.columns else None
        tokens = numbers("tokens", Need.POSITIVE)
        # A diverged trial may have stopped early: its tokens are no budget.
        check_tokens(raw, keep, tokens=tokens, params=params, ended=np.isfinite(loss))

    table = LossTable(
        width=width, lr=lr, loss=loss, seed=seed.astype(np.int64), groups=groups, axis=axis,
        source=raw.source,
    )  # fmt: skip
    unique, more = _drop_repeats(raw, keep, table, has_seed=has_seed)
    return unique, (*notes, *more)


def _group_names(raw: RawTable, by: Sequence[str]) -> list[str]:
    known = [name for name in raw.columns if name not in ("width", "loss", "seed", find_lr(raw))]
    for name in by:
        if name not in known and name not in GROUPS:
            raise ConfigError(
                f"{raw.source}: --by: no column {name!r} to group by{suggest(name, known)}; "
                f"found {', '.join(known) or 'none'}"
            )
    return [name for name in dict.fromkeys((*GROUPS, *by)) if name in raw.columns]


def _select_rows(raw: RawTable) -> tuple[list[int], dict[int, str], list[str]]:
    """Return the rows that ended, the states by row, and a note on those that did not."""
    if "state" not in raw.columns:
        return list(range(len(raw))), dict.fromkeys(range(len(raw)), "completed"), []
    states = {
        row: parse_state(cell, f"{raw.source}: {raw.places[row]}: column 'state'")
        for row, cell in enumerate(raw.columns["state"])
    }
    left_out = Counter(state for state in states.values() if state in ("pending", "failed"))
    notes = [f"{count} {state} trial(s) left out" for state, count in sorted(left_out.items())]
    return [row for row, state in states.items() if state not in left_out], states, notes


def _values(cells: Sequence[object], keep: Sequence[int]) -> NDArray[np.object_]:
    """Return a column's names of groups, as numbers where all of them are, shape (rows,)."""
    values = [parse_name(cells[row]) for row in keep]
    try:
        found = [float(value) for value in values if isinstance(value, str)]
    except ValueError:
        found = []
    if len(found) == len(values) and all(math.isfinite(value) for value in found):
        values = [int(value) if value.is_integer() else value for value in found]
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _drop_repeats(
    raw: RawTable, keep: Sequence[int], table: LossTable, *, has_seed: bool
) -> tuple[LossTable, list[str]]:
    """Return the table with each trial once; the same trial with two losses is refused."""
    first: dict[tuple[object, ...], int] = {}
    repeats = []
    for index in range(len(table)):
        group = tuple(column[index] for column in table.groups.values())
        key = (table.width[index], table.lr[index], table.seed[index], *group)
        before = first.setdefault(key, index)
        if before == index:
            continue
        losses = table.loss[before], table.loss[index]
        if losses[0] != losses[1] and not np.isnan(losses).all():
            one, other = keep[before], keep[index]
            raise DataError(
                f"{raw.source}: {raw.places[one]} and {raw.places[other]} have the same width, "
                f"lr{', seed' if has_seed else ''} and group but losses {losses[0]:g} and "
                f"{losses[1]:g}; expected each trial once"
                f"{_explain(raw, one, other, has_seed=has_seed)}"
            )
        repeats.append(index)
    if not repeats:
        return table, []
    rest = np.setdiff1d(np.arange(len(table)), repeats)
    return LossTable(
        width=table.width[rest], lr=table.lr[rest], loss=table.loss[rest], seed=table.seed[rest],
        groups={name: column[rest] for name, column in table.groups.items()}, axis=table.axis,
        source=table.source,
    ), [f"{len(repeats)} repeated row(s) left out"]  # fmt: skip


def _explain(raw: RawTable, one: int, other: int, *, has_seed: bool) -> str:
    """Return what two rows of one trial differ in, as advice."""
    known = {"width", "loss", "state", "params", "tokens", find_lr(raw)}
    differ = {
        name: len({str(cell) for cell in cells})
        for name, cells in raw.columns.items()
        if name not in known and cells[one] != cells[other]
    }
    if not has_seed:
        return "; if these are seeds, name their column with --columns seed=NAME"
    # A run's id or time stamp differs in every row and groups nothing.
    name = min(differ, key=differ.__getitem__, default="")
    if name and differ[name] <= len(raw) // 2:
        return f"; they differ in {name!r}: group with --by {name}"
    return ""
