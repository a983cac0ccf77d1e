"""Rows of a table that the user asks for: ``--where batch=512``."""

from collections.abc import Iterable, Mapping

import numpy as np

from hptransfer.errors import ConfigError, DataError
from hptransfer.tables.cells import is_number
from hptransfer.tables.columns import suggest
from hptransfer.tables.raw import RawTable, encode
from hptransfer.tables.text import clean, name_some


def parse_where(texts: Iterable[str]) -> dict[str, str]:
    """Return the filter that ``--where COLUMN=VALUE`` asks for.

    Parameters
    ----------
    texts : iterable of str
        Each ``COLUMN=VALUE``; the value may hold anything, commas and ``=`` included.

    Raises
    ------
    ConfigError
        If one is not of that form, or one column is to have two values.
    """
    where: dict[str, str] = {}
    for text in texts:
        name, equals, value = (piece.strip() for piece in text.partition("="))
        if not (name and equals):
            raise ConfigError(f"--where: expected COLUMN=VALUE such as batch=512, found {text!r}")
        if where.setdefault(name, value) != value:
            raise ConfigError(
                f"--where: {name} is to be both {where[name]!r} and {value!r}; expected one value"
            )
    return where


def select(raw: RawTable, where: Mapping[str, str], columns: Mapping[str, str]) -> RawTable:
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
        name = ours if ours in raw.columns else columns.get(ours, ours)
        if name not in raw.columns:
            raise ConfigError(
                f"{raw.source}: --where: no column {clean(ours)!r}{suggest(ours, raw.names)}; "
                f"found {name_some(raw.names)}"
            )
        codes, values = encode(raw.columns[name])
        same = np.array([_equal(cell, value) for cell in values], dtype=bool)
        left = chosen[same[codes[chosen]]]
        if not len(left):
            seen = dict.fromkeys(_say(values[code]) for code in codes[chosen[:100_000]].tolist())
            raise DataError(
                f"{raw.source}: --where: no row in which {clean(name)!r} is {clean(value)!r}"
                f"{suggest(value, list(seen))}; found {name_some(list(seen))}"
            )
        chosen = left
    return raw if len(chosen) == len(raw) else raw.take(chosen)


def _equal(cell: object, value: str) -> bool:
    if is_number(value) and is_number(cell):
        return float(cell) == float(value)  # type: ignore[arg-type]
    return ("" if cell is None else clean(str(cell))) == clean(value)


def _say(cell: object) -> str:
    return "" if cell is None else clean(str(cell))[:60]
