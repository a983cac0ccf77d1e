"""Each trial once: equal rows are counted once, and conflicting ones refused."""

import shlex
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hptransfer.errors import DataError
from hptransfer.stats.loss_table import LossTable
from hptransfer.tables.columns import find_lr
from hptransfer.tables.raw import RawTable, encode
from hptransfer.tables.text import clean

# Columns that tell trials of one setting apart no better than their losses do.
_BESIDE = ("state", "params", "tokens", "init_loss", "flops")


def drop_repeats(raw: RawTable, table: LossTable, *, has_seed: bool) -> tuple[LossTable, list[str]]:
    """Return the table with each trial once, and a note on the rows left out.

    Parameters
    ----------
    raw : RawTable
        Cells of the same rows, for the message.
    table : LossTable
        The trials.
    has_seed : bool
        Whether the table has a column of seeds.

    Raises
    ------
    DataError
        If a trial has two losses.
    """
    first = _find_first(table)
    again = first != np.arange(len(table))
    if not again.any():
        return table, []
    before, after = table.loss[first], table.loss
    differ = again & (before != after) & ~(np.isnan(before) & np.isnan(after))
    if differ.any():
        index = int(np.argmax(differ))
        one, other = int(first[index]), index
        raise DataError(
            f"{raw.source}: {raw.places[one]} and {raw.places[other]} have the same width, "
            f"lr{', seed' if has_seed else ''} and group but losses {before[index]:g} and "
            f"{after[index]:g}; expected each trial once"
            f"{_explain(raw, one, other, has_seed=has_seed)}"
        )
    rest = np.flatnonzero(~again)
    return replace(
        table,
        width=table.width[rest],
        lr=table.lr[rest],
        loss=table.loss[rest],
        seed=table.seed[rest],
        groups={name: column[rest] for name, column in table.groups.items()},
        tokens=None if table.tokens is None else table.tokens[rest],
        init_loss=None if table.init_loss is None else table.init_loss[rest],
        flops=None if table.flops is None else table.flops[rest],
    ), [f"{int(again.sum())} repeated row(s) left out"]


def _find_first(table: LossTable) -> NDArray[np.int64]:
    """Return the first row of each row's trial, shape (rows,)."""
    key = np.zeros(len(table), dtype=np.int64)
    parts = [encode(column.tolist())[0] for column in table.groups.values()]
    budgets = () if table.tokens is None else (table.tokens,)
    for part in (*parts, *budgets, table.width, table.lr, table.seed):
        _, code = np.unique(part, return_inverse=True)
        # Renumbered each time, so that the product of two codes is far from overflowing.
        _, key = np.unique(key * (code.max() + 1) + code, return_inverse=True)
    _, first = np.unique(key, return_index=True)
    return np.asarray(first[key], dtype=np.int64)


def _explain(raw: RawTable, one: int, other: int, *, has_seed: bool) -> str:
    """Return what two rows of one trial differ in, as advice."""
    known = {"width", "loss", *_BESIDE, find_lr(raw)}
    differ = {
        name: (len({str(cell) for cell in cells}), len(str(cells[one])))
        for name, cells in raw.columns.items()
        if name not in known and cells[one] != cells[other]
    }
    # A run's id or time stamp differs in every row, a log of its end in most: neither groups.
    name: str = min(differ, key=differ.__getitem__, default="")
    advice = ""
    if name and differ[name][0] <= len(raw) // 2:
        value = shlex.quote(f"{name}={clean(str(raw.columns[name][one]))[:60]}")
        advice = (
            f"; they differ in {name!r}: group with --by {shlex.quote(name)}, "
            f"or pick one with --where {value}"
        )
    if not has_seed:
        advice += "; if these are seeds, name their column with --columns seed=NAME"
    return advice
