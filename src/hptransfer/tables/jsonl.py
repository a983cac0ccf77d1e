"""JSON lines to raw tables: one object a line, nested ones with their keys joined by dots."""

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hptransfer.errors import DataError
from hptransfer.tables.files import LARGE, check_rows, is_wanted
from hptransfer.tables.raw import Places, RawTable
from hptransfer.tables.text import clean

# A table of a great many columns is a log of another kind; each would be padded to full length.
_MAX_COLUMNS = 4096

# A nested object's keys are joined, as trackers show them: config.n_embd.
_JOINT = "."


def read_jsonl(path: Path, wanted: Collection[str] | None) -> RawTable:
    """Return the cells of a file with a JSON object on each line; blank lines are skipped.

    A key that a line lacks is an empty cell. `wanted` as in `files.read_file`.

    Raises
    ------
    DataError
        If the file is empty or not UTF-8, or a line is no JSON object or has a key twice.
    """
    columns: dict[str, list[object]] = {}
    dropped: set[str] = set()
    memo: dict[tuple[type, object], object] = {}
    lines: list[int] = []
    number = 0
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                place = f"row {len(lines) + 1} (line {number})"
                for name, cell in _parse(path, place, line):
                    if name in dropped:
                        continue
                    column = columns.get(name)
                    if column is None:
                        if len(lines) >= LARGE and not is_wanted(name, wanted):
                            dropped.add(name)
                            continue
                        column = columns[name] = []
                        if len(columns) > _MAX_COLUMNS:
                            raise DataError(
                                f"{path}: {place}: expected at most {_MAX_COLUMNS} different "
                                f"keys in a table, found more"
                            )
                    if len(column) > len(lines):
                        raise DataError(f"{path}: {place}: key {name[:60]!r} stands twice")
                    if len(column) < len(lines):
                        column.extend([None] * (len(lines) - len(column)))
                    if len(memo) < LARGE:
                        cell = memo.setdefault((type(cell), cell), cell)
                    column.append(cell)
                lines.append(number)
                if len(lines) == LARGE:
                    gone = [name for name in columns if not is_wanted(name, wanted)]
                    dropped.update(gone)
                    for name in gone:
                        del columns[name]
                if len(lines) % LARGE == 0:
                    check_rows(path, len(lines))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: expected UTF-8 text, found byte {error.object[error.start]:#04x} after "
            f"line {number}"
        ) from error
    if not lines:
        raise DataError(f"{path}: empty file; expected a JSON object on each line")
    for column in columns.values():
        column.extend([None] * (len(lines) - len(column)))
    return RawTable(
        source=str(path),
        columns=dict(columns),
        places=Places(rows=np.arange(1, len(lines) + 1), lines=np.array(lines)),
        dropped=tuple(sorted(dropped)),
    )


def _parse(path: Path, place: str, line: str) -> Iterator[tuple[str, object]]:
    """Return a line's keys and cells; a repeated key comes twice."""
    try:
        found = json.loads(line, object_pairs_hook=_Pairs)
    except RecursionError:
        raise DataError(f"{path}: {place}: expected a JSON object, found deep nesting") from None
    except ValueError as error:  # also a whole number of more than 4,300 digits
        raise DataError(f"{path}: {place}: expected a JSON object: {clean(str(error))}") from error
    if not isinstance(found, _Pairs):
        raise DataError(
            f"{path}: {place}: expected a JSON object such as "
            f'{{"width": 64, "lr": 0.01, "loss": 3.2}}, found {type(found).__name__}'
        )
    return _flatten(found)


class _Pairs(list[tuple[str, Any]]):
    """A JSON object as read: a repeated key is still there."""


def _flatten(pairs: _Pairs, prefix: str = "") -> Iterator[tuple[str, object]]:
    for key, value in pairs:
        name = prefix + _make_text(key)
        if isinstance(value, _Pairs):
            yield from _flatten(value, name + _JOINT)
        elif isinstance(value, list):
            yield name, "[…]"  # a curve or a histogram is no cell of a table
        else:
            yield name, _make_text(value) if isinstance(value, str) else value


def _make_text(text: str) -> str:
    """Return text without lone surrogates, which JSON can hold and nothing can print."""
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode("utf-8")
    return clean(text)
