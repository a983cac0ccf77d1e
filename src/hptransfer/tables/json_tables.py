"""JSON documents and JSON lines to raw tables: an object a row, nested keys joined by dots."""

import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hptransfer.errors import DataError
from hptransfer.tables.raw_table import RawTable, check_size, make_column, make_raw
from hptransfer.tables.wording import clean, name_some

if TYPE_CHECKING:
    import pyarrow as pa

    from hptransfer.tables.table_files import Source

# A nested object's keys are joined, as trackers show them: config.n_embd.
_JOINT = "."
# Objects within objects from which on Arrow's parser, which recurses, is not asked.
_DEEPEST = 50
_STRING = re.compile(rb'"[^"\\\n]*(?:\\.[^"\\\n]*)*"')
# Bytes of a part of a file that is looked at for its depth.
_CHUNK = 1 << 24


class Pairs(list[tuple[str, Any]]):
    """A JSON object as read: a repeated key is still there."""


def read_json(source: "Source") -> RawTable:
    """Return the cells of a JSON document: rows, or columns, or rows under a key.

    Read are a list of objects, an object of them by run (whose key is the column ``run``), one
    list of them under any key (``{"runs": [...]}``), lists by column, and pandas' ``columns`` and
    ``split`` forms; or JSON lines.

    Raises
    ------
    DataError
        If the file is not UTF-8, no JSON, or another document.
    """
    try:
        with source.open() as file:
            found = _load(file.read().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(
            f"{source}: expected UTF-8 text, found byte {error.object[error.start]:#04x} at "
            f"offset {error.start}"
        ) from error
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return read_json_lines(source)
        raise DataError(f"{source}: expected JSON: {clean(str(error))}") from error
    except ValueError as error:
        raise DataError(f"{source}: expected JSON: {clean(str(error))}") from error
    if isinstance(found, Pairs):
        found = _find_rows(source, found)
    if not isinstance(found, list) or not found:
        raise DataError(f"{source}: expected a JSON list of objects, one for each run")
    for row, value in enumerate(found, start=1):
        if not isinstance(value, Pairs):
            raise DataError(
                f"{source}: row {row}: expected a JSON object for each run, "
                f"found {type(value).__name__}"
            )
    return tabulate(source, ((f"row {n}", to_cells(v)) for n, v in enumerate(found, start=1)))


def _find_rows(source: "Source", document: Pairs) -> list[Any]:
    """Return the rows of a document that is an object."""
    values = [value for _, value in document]
    objects = [isinstance(value, Pairs) for value in values]
    if all(objects) and values:
        keys = [[key for key, _ in value] for value in values]
        if keys[0] and all(key.isdigit() for key in keys[0]) and all(k == keys[0] for k in keys):
            return [
                Pairs((name, value[row][1]) for name, value in document)
                for row in range(len(keys[0]))
            ]
        return [Pairs([("run", name), *value]) for name, value in document]
    lists: list[tuple[str, Sequence[Any]]] = [
        (key, value) for key, value in document if isinstance(value, list) and value
        and not isinstance(value, Pairs)
    ]  # fmt: skip
    rows = [value for _, value in lists if all(isinstance(item, Pairs) for item in value)]
    if len(rows) == 1:
        return list(rows[0])
    named = dict(lists)
    if {"columns", "data"} <= named.keys() and all(isinstance(r, list) for r in named["data"]):
        lists = list(
            zip(map(str, named["columns"]), zip(*named["data"], strict=False), strict=False)
        )
    if lists and len({len(value) for _, value in lists}) == 1:
        return [
            Pairs((name, value[row]) for name, value in lists) for row in range(len(lists[0][1]))
        ]
    shown = name_some([key for key, _ in document], 3)
    raise DataError(
        f"{source}: expected a JSON list of objects, one for each run, or lists by column, found "
        f"an object of {shown or 'nothing'}; settings in keys are to be written out: "
        '[{"width": 64, "lr": 0.01, "loss": 3.2}, …]'
    )


def read_json_lines(source: "Source") -> RawTable:
    """Return the cells of a file with a JSON object on each line; blank lines are skipped.

    A key that a line lacks is an empty cell.

    Raises
    ------
    DataError
        If the file is empty or not UTF-8, or a line is no JSON object or has a key twice.
    """
    fast = _read_fast(source)
    if fast is None:
        return tabulate(source, _scan(source))
    return make_raw(source, fast, lambda row: f"row {row + 1} (line {_find_line(source, row)})")


def _read_fast(source: "Source") -> "list[tuple[str, pa.Array]] | None":
    """Return the columns of JSON lines as Arrow reads them; None where a line has to be found."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.json as pj

    if not _is_shallow(source):
        return None
    try:
        with source.open() as file:
            table = pj.read_json(file, pj.ReadOptions(use_threads=False, block_size=_CHUNK))
        table.validate(full=True)  # Arrow's parser lets texts pass that are no UTF-8
        while any(pa.types.is_struct(field.type) for field in table.schema):
            table = table.flatten()
    except (pa.ArrowException, ValueError):
        return None
    if not table.num_rows or len(set(map(clean, table.column_names))) < table.num_columns:
        return None
    columns = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_timestamp(column.type):
            return None  # text that is like a date stays as it was written
        if pa.types.is_floating(column.type) and (pc.max(pc.abs(column)).as_py() or 0) >= 2.0**53:
            return None  # as a double a long seed is no longer itself
        if pa.types.is_list(column.type):
            column = pa.array(["[…]"] * len(column))
        columns.append((name, column))
    return columns


def _is_shallow(source: "Source") -> bool:
    """Tell whether no object lies deep in others, and none is closed that was not opened."""
    depth = 0
    with source.open() as file:
        while chunk := file.read(_CHUNK) + file.readline():
            data = np.frombuffer(_STRING.sub(b"", chunk), np.uint8) | 32
            steps = (data == ord("{")).astype(np.int32) - (data == ord("}"))
            depths = depth + np.cumsum(steps)  # of brackets too: they differ in the bit set above
            if depths.size and (depths.max() > _DEEPEST or depths.min() < 0):
                return False
            depth = int(depths[-1]) if depths.size else depth
    return True


def _scan(source: "Source") -> Iterator[tuple[str, Iterable[tuple[str, object]]]]:
    """Yield the place and the cells of each line that is not blank."""
    number = row = 0
    with source.open() as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig")
        try:
            for number, line in enumerate(text, start=1):
                if line.strip():
                    row += 1
                    place = f"row {row} (line {number})"
                    yield place, _parse(source, place, line)
        except UnicodeDecodeError as error:
            raise DataError(
                f"{source}: expected UTF-8 text, found byte {error.object[error.start]:#04x} after "
                f"line {number}"
            ) from error
    if not row:
        raise DataError(f"{source}: empty file; expected a JSON object on each line")


def _find_line(source: "Source", wanted: int) -> int:
    with source.open() as file:
        filled = (number for number, line in enumerate(file, start=1) if line.strip())
        return next(number for row, number in enumerate(filled) if row == wanted)


def tabulate(source: object, rows: Iterable[tuple[str, Iterable[tuple[str, object]]]]) -> RawTable:
    """Return rows of places and cells as a table; a cell that a row lacks is empty.

    Raises
    ------
    DataError
        If a key stands twice in a row, or there are no rows, or far too many keys.
    """
    columns: dict[str, list[object]] = {}
    places: list[str] = []
    for row, (place, cells) in enumerate(rows):
        for name, cell in cells:
            column = columns.setdefault(name, [])
            if len(column) > row:
                raise DataError(f"{source}: {place}: key {name[:60]!r} stands twice")
            column.extend([None] * (row - len(column)))
            column.append(cell)
        check_size(f"{source}: {place}", row, len(columns))
        places.append(place)
    for column in columns.values():
        column.extend([None] * (len(places) - len(column)))
    arrays = [(name, make_column(column)) for name, column in columns.items()]
    return make_raw(source, arrays, places.__getitem__)


def _parse(source: "Source", place: str, line: str) -> Iterator[tuple[str, object]]:
    """Return a line's keys and cells; a repeated key comes twice."""
    try:
        found = _load(line)
    except ValueError as error:  # also a whole number of more than 4,300 digits
        raise DataError(f"{source}: {place}: expected a JSON object{_say(error)}") from error
    if not isinstance(found, Pairs):
        raise DataError(
            f"{source}: {place}: expected a JSON object such as "
            f'{{"width": 64, "lr": 0.01, "loss": 3.2}}, found {type(found).__name__}'
        )
    return to_cells(found)


def _say(error: ValueError) -> str:
    text = clean(str(error))
    return text.removeprefix("expected JSON") if "nesting" in text else f": {text}"


def _load(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=Pairs)
    except RecursionError:
        raise ValueError("expected JSON, found deep nesting") from None


def parse_object(text: str) -> dict[str, object]:
    """Return the cells of a JSON object.

    Raises
    ------
    ValueError
        If the text is none.
    """
    found = _load(text)
    if not isinstance(found, Pairs):
        raise ValueError(f"expected a JSON object, found {type(found).__name__}")
    return dict(to_cells(found))


def to_cells(pairs: "Pairs | Mapping[Any, Any]", prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield an object's names and cells; keys of nested ones are joined by dots."""
    for key, value in pairs.items() if isinstance(pairs, Mapping) else pairs:
        name = prefix + _make_text(str(key))
        if isinstance(value, Pairs | Mapping):
            yield from to_cells(value, name + _JOINT)
        elif isinstance(value, list | tuple):
            yield name, "[…]"  # a curve or a histogram is no cell of a table
        elif value is None or isinstance(value, bool | int | float):
            yield name, value
        else:
            yield name, _make_text(str(value))


def _make_text(text: str) -> str:
    """Return text without lone surrogates, which JSON can hold and nothing can print."""
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode("utf-8")
    return clean(text)
