"""JSON and JSON lines to raw tables: an object a row, keys of nested ones joined by dots."""

import json
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hptransfer.errors import DataError
from hptransfer.tables.files import LARGE, check_columns, check_rows, is_wanted
from hptransfer.tables.raw import Places, RawTable
from hptransfer.tables.text import clean

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
    table = _Table(path, wanted)
    number = 0
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    place = f"row {len(table) + 1} (line {number})"
                    table.add(place, _parse(path, place, line), number)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: expected UTF-8 text, found byte {error.object[error.start]:#04x} after "
            f"line {number}"
        ) from error
    if not len(table):
        raise DataError(f"{path}: empty file; expected a JSON object on each line")
    return table.finish()


def read_json(path: Path, wanted: Collection[str] | None) -> RawTable:
    """Return the cells of a JSON document: a list of objects, or an object of them by run.

    Raises
    ------
    DataError
        If the file is not UTF-8, no JSON, or another document.
    """
    try:
        found = _load(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: expected UTF-8 text, found byte {error.object[error.start]:#04x} at "
            f"offset {error.start}"
        ) from error
    except ValueError as error:
        raise DataError(f"{path}: expected JSON: {clean(str(error))}") from error
    if isinstance(found, Pairs):
        found = [
            Pairs([("run", name), *value]) if isinstance(value, Pairs) else value
            for name, value in found
        ]
    if not isinstance(found, list) or not found:
        raise DataError(f"{path}: expected a JSON list of objects, one for each run")
    table = _Table(path, wanted)
    for row, value in enumerate(found, start=1):
        if not isinstance(value, Pairs):
            raise DataError(
                f"{path}: row {row}: expected a JSON object for each run, "
                f"found {type(value).__name__}"
            )
        table.add(f"row {row}", to_cells(value))
    return table.finish()


class _Table:
    """A table as it grows by rows whose keys may differ."""

    def __init__(self, path: Path, wanted: Collection[str] | None) -> None:
        self._path = path
        self._wanted = wanted
        self._columns: dict[str, list[object]] = {}
        self._dropped: set[str] = set()
        self._memo: dict[tuple[type, object], object] = {}
        self._lines: list[int] = []
        self._rows = 0

    def __len__(self) -> int:
        return self._rows

    def add(self, place: str, cells: Iterable[tuple[str, object]], line: int = 0) -> None:
        """Add a row; `line` is the one that it stands on, if any."""
        columns, memo, rows = self._columns, self._memo, self._rows
        for name, cell in cells:
            if name in self._dropped:
                continue
            column = columns.get(name)
            if column is None:
                if rows >= LARGE and not is_wanted(name, self._wanted):
                    self._dropped.add(name)
                    continue
                column = columns[name] = []
                check_columns(self._path, place, len(columns))
            if len(column) > rows:
                raise DataError(f"{self._path}: {place}: key {name[:60]!r} stands twice")
            if len(column) < rows:
                column.extend([None] * (rows - len(column)))
            if len(memo) < LARGE:
                cell = memo.setdefault((type(cell), cell), cell)
            column.append(cell)
        self._rows += 1
        if line:
            self._lines.append(line)
        if self._rows == LARGE:
            gone = [name for name in columns if not is_wanted(name, self._wanted)]
            self._dropped.update(gone)
            for name in gone:
                del columns[name]
        if self._rows % LARGE == 0:
            check_rows(self._path, self._rows)

    def finish(self) -> RawTable:
        """Return the table; each column gets its full length."""
        for column in self._columns.values():
            column.extend([None] * (self._rows - len(column)))
        return RawTable(
            source=str(self._path),
            columns=dict(self._columns),
            places=Places(
                rows=np.arange(1, self._rows + 1),
                lines=np.array(self._lines) if self._lines else None,
            ),
            dropped=tuple(sorted(self._dropped)),
        )


def _parse(path: Path, place: str, line: str) -> Iterator[tuple[str, object]]:
    """Return a line's keys and cells; a repeated key comes twice."""
    try:
        found = json.loads(line, object_pairs_hook=Pairs)
    except RecursionError:
        raise DataError(f"{path}: {place}: expected a JSON object, found deep nesting") from None
    except ValueError as error:  # also a whole number of more than 4,300 digits
        raise DataError(f"{path}: {place}: expected a JSON object: {clean(str(error))}") from error
    if not isinstance(found, Pairs):
        raise DataError(
            f"{path}: {place}: expected a JSON object such as "
            f'{{"width": 64, "lr": 0.01, "loss": 3.2}}, found {type(found).__name__}'
        )
    return to_cells(found)


class Pairs(list[tuple[str, Any]]):
    """A JSON object as read: a repeated key is still there."""


def parse_object(text: str) -> Pairs:
    """Return a JSON object.

    Raises
    ------
    ValueError
        If the text is none.
    """
    found = _load(text)
    if not isinstance(found, Pairs):
        raise ValueError(f"expected a JSON object, found {type(found).__name__}")
    return found


def parse_cells(name: str, text: str) -> Iterator[tuple[str, object]]:
    """Return the cell that a JSON value under a name is, or those of an object.

    Raises
    ------
    ValueError
        If the text is no JSON.
    """
    return to_cells(Pairs([(name, _load(text))]))


def _load(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=Pairs)
    except RecursionError:
        raise ValueError("expected JSON, found deep nesting") from None


def to_cells(pairs: Pairs, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Return an object's names and cells; keys of nested ones are joined by dots."""
    for key, value in pairs:
        name = prefix + _make_text(key)
        if isinstance(value, Pairs):
            yield from to_cells(value, name + _JOINT)
        elif isinstance(value, list):
            yield name, "[…]"  # a curve or a histogram is no cell of a table
        else:
            yield name, _make_text(value) if isinstance(value, str) else value


def _make_text(text: str) -> str:
    """Return text without lone surrogates, which JSON can hold and nothing can print."""
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode("utf-8")
    return clean(text)
