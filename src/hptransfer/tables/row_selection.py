"""Which rows of a table are read: values that are asked for, last evaluations, each trial once."""

import math
import shlex
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hptransfer.errors import ConfigError, DataError
from hptransfer.stats.loss_table import LossTable
from hptransfer.tables.cell_values import find_blank, parse_plain, to_numbers
from hptransfer.tables.notes import TableNote, note
from hptransfer.tables.raw_table import (
    RawTable,
    count_codes,
    encode,
    find_first,
    join_codes,
    make_column,
)
from hptransfer.tables.table_columns import ChosenColumns, normalize
from hptransfer.tables.wording import clean, name_some, suggest

#: What counts evaluations of a run, by its normalized name.
STEPS = (
    "step", "global_step", "training_iteration", "iteration", "iter", "epoch", "timestep",
    "trainer_global_step", "train_global_step", "last_step", "steps_done",
)  # fmt: skip
_RUNS = ("run", "run_id", "run_name", "trial_id", "trial", "name", "id", "file")


def find_column(raw: RawTable, name: str, columns: Mapping[str, str], option: str) -> str:
    """Return the file's name of a column, given that or ours.

    Raises
    ------
    ConfigError
        If there is no such column; the message names the option that asked for it.
    """
    found = name if name in raw.columns else columns.get(name, clean(name))
    if found not in raw.columns:
        have = list(raw.columns)
        raise ConfigError(
            f"{raw.source}: {option}: no column {clean(name)!r}{suggest(name, have)}; "
            f"found {name_some(have)}"
        )
    return found


def map_values(raw: RawTable, changes: Mapping[str, Mapping[str, str]]) -> RawTable:
    """Return a table with other values in some cells, by column and old value.

    Raises
    ------
    ConfigError
        If there is no such column, or no such value in it.
    """
    import pyarrow as pa

    for column, words in changes.items():
        name = find_column(raw, column, {}, "--map")
        codes, values = encode(raw.columns[name])
        for word in words:
            if not any(_is_value(value, word) for value in values):
                raise ConfigError(
                    f"{raw.source}: --map: no cell of {name!r} is {word!r}; found "
                    f"{name_some(values)}"
                )
        new = [next((n for w, n in words.items() if _is_value(v, w)), v) for v in values]
        raw = replace(raw, columns={**raw.columns, name: make_column(new).take(pa.array(codes))})
    return raw


def filter_rows(raw: RawTable, where: Mapping[str, str], columns: Mapping[str, str]) -> RawTable:
    """Return the rows in which each named column has its value.

    Numbers are compared as numbers (``512`` is ``5.12e2``), all else as text without its outer
    blanks; an empty value asks for empty cells.

    Parameters
    ----------
    raw : RawTable
        Cells as read.
    where : mapping of str to str
        Values by column, by the file's name or by ours.
    columns : mapping of str to str
        Our column names to the file's.

    Raises
    ------
    ConfigError
        If a column is not there.
    DataError
        If no row is left; the values that the column has are given.
    """
    chosen = np.arange(len(raw))
    for ours, value in where.items():
        name = find_column(raw, ours, columns, "--where")
        codes, values = encode(raw.columns[name])
        same = np.array([_is_value(cell, value) for cell in values], dtype=bool)
        left = chosen[same[codes[chosen]]]
        if not len(left):
            present = np.unique(codes[chosen])[:100_000].tolist()
            seen = list(dict.fromkeys(_show(values[code]) for code in present))
            raise DataError(
                f"{raw.source}: --where: no row in which {name!r} is {clean(value)!r}"
                f"{suggest(value, seen)}; found {name_some(seen)}"
            )
        chosen = left
    return raw if len(chosen) == len(raw) else raw.take(chosen)


def keep_last(
    raw: RawTable, chosen: ChosenColumns, last: str | None
) -> tuple[RawTable, list[TableNote]]:
    """Return each run's last evaluation, where rows are evaluations, and a note on it.

    Rows are evaluations where several of one run differ in a column that counts steps; an
    evaluation without a loss is none.

    Parameters
    ----------
    raw : RawTable
        The table.
    chosen : ChosenColumns
        Its columns.
    last : str or None
        The column that counts; by default one that is called so, if it does.
    """
    names = {**chosen.names, **chosen.groups}
    column = find_column(raw, last, names, "--last") if last else None
    candidates = (n for n in raw.columns if normalize(n) in STEPS and n not in names.values())
    column = column or next(candidates, None)
    if column is None:
        return raw, []
    settings = {
        names[name] for name in ("width", chosen.rate, "seed", *chosen.groups) if name in names
    }
    runs = _find_runs(raw, join_codes(*(encode(raw.columns[name])[0] for name in settings)))
    steps = to_numbers(raw.columns[column])
    count = count_codes(runs)
    # Rows of one run at one step are no evaluations, and neither are steps without numbers.
    is_history = np.isfinite(steps).all() and count_codes(join_codes(runs, steps)) == len(steps)
    if count == len(raw) or not (last or is_history):
        return raw, []
    kept = _take_last(runs, steps, ~find_blank(raw.columns[names["loss"]]))
    return raw.take(kept), [note("history", rows=len(raw), count=count, column=column)]


def _find_runs(raw: RawTable, trials: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the run of each row: by a column that names runs, else by its trial."""
    for name in raw.columns:
        if normalize(name) in _RUNS:
            codes = encode(raw.columns[name])[0]
            # A name that holds several trials, such as a sweep's, is no run's.
            if count_codes(join_codes(codes, trials)) == count_codes(codes):
                return codes
    return trials


def _take_last(codes: NDArray[np.int64], *ranks: NDArray[np.generic]) -> NDArray[np.int64]:
    """Return the row of each code that ranks highest, the last rank first, then the last row."""
    order = np.lexsort((*ranks, codes))
    return np.sort(order[np.append(np.flatnonzero(np.diff(codes[order])), len(order) - 1)])


def drop_repeats(
    raw: RawTable,
    table: LossTable,
    trial: NDArray[np.int64],
    chosen: ChosenColumns,
    keep: str | None,
) -> tuple[NDArray[np.int64], list[TableNote]]:
    """Return the rows to keep: each trial once, and of several rows the one that is asked for.

    Parameters
    ----------
    raw : RawTable
        Cells of the rows, for the message.
    table : LossTable
        The same rows.
    trial : ndarray of int, shape (rows,)
        Which trial each row is.
    chosen : ChosenColumns
        Columns that are read.
    keep : str or None
        ``last``, or ``longest:COLUMN``.

    Raises
    ------
    DataError
        If a trial has two losses and `keep` does not choose; the message says what else the rows
        differ in.
    """
    count = count_codes(trial)
    if count == len(trial):
        return np.arange(count), []
    if keep:
        rule, _, column = keep.partition(":")
        if rule not in ("last", "longest") or (rule == "longest") != bool(column):
            raise ConfigError(f"--keep: expected last or longest:COLUMN, found {keep!r}")
        size = np.zeros(len(trial))
        if column:
            size = to_numbers(raw.columns[find_column(raw, column, chosen.names, "--keep")])
        return _take_last(trial, np.nan_to_num(size, nan=-np.inf)), [
            note("kept", count=len(trial) - count, rule=keep)
        ]
    kept = find_first(trial)
    before, after = table.loss[kept[trial]], table.loss
    differ = (before != after) & ~(np.isnan(before) & np.isnan(after))
    if differ.any():
        other = int(np.argmax(differ))
        one = int(kept[trial[other]])
        seed = ", seed" if "seed" in chosen.names else ""
        raise DataError(
            f"{raw.place(one)} and {raw.describe_row(int(raw.rows[other]))} have the same width, "
            f"lr{seed} and group but losses {before[other]:g} and {after[other]:g}; expected each "
            f"trial once{_explain_repeat(raw, one, other, chosen)}"
        )
    return kept, [note("repeated", count=len(trial) - count)]


def _explain_repeat(raw: RawTable, one: int, other: int, chosen: ChosenColumns) -> str:
    """Return what two rows of one trial differ in, as advice."""
    known = {*chosen.names.values(), *chosen.groups.values()}
    rest = [name for name in raw.columns if name not in known]
    differ = [name for name in rest if raw.cell(one, name) != raw.cell(other, name)]
    sizes = {name: len(encode(raw.columns[name])[1]) for name in differ}
    # A run's id or time stamp differs in every row, a log of its end in most: neither groups.
    name = min(differ, key=lambda n: (sizes[n], len(str(raw.cell(one, n)))), default="")
    advice = ""
    if name and sizes[name] <= len(raw) // 2:
        value = shlex.quote(f"{name}={_show(raw.cell(one, name))}")
        group = shlex.quote(name)
        advice = (
            f"; they differ in {name!r}: group with --by {group}, or pick one with --where {value}"
        )
    step = next((n for n in differ if normalize(n) in STEPS), None)
    if step or not advice:
        advice += f"; of retries, --keep {shlex.quote(f'longest:{step}') if step else 'last'}"
    if "seed" not in chosen.names:
        advice += "; if these are seeds, name their column with --columns seed=NAME"
    return advice


def _is_value(cell: object, value: str) -> bool:
    one, other = parse_plain(cell), parse_plain(value)
    if not (math.isnan(one) or math.isnan(other)):
        return one == other
    return _show(cell) == clean(value)[:60]


def _show(cell: object) -> str:
    return "" if cell is None else clean(str(cell))[:60]
