"""Files, pipes and frames in memory to raw tables; a file's kind is told by its first bytes."""

import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as arrow_json
import pyarrow.parquet as pq

from hptransfer.errors import DataError
from hptransfer.tables import _raw_table as cells
from hptransfer.tables._raw_table import MAX_BYTES, RawTable, clean
from hptransfer.tables._text_files import Source, read_text

_TEXT = (".csv", ".tsv", ".tab", ".txt", ".dat", ".md", "")
_LINES = (".jsonl", ".ndjson")
_PARQUET = (".parquet", ".pq")
#: Suffixes of files that a directory of tables is made of.
TABLE_SUFFIXES = (".csv", ".tsv", *_LINES, *_PARQUET)
_EXPECTED = (
    "CSV (.csv), TSV (.tsv), JSON (.json), JSON lines (.jsonl, .ndjson) or Parquet (.parquet)"
)
# First bytes of what people have beside tables, and what it is.
_FOREIGN = {
    b"PK\x03\x04": "a zip archive or a spreadsheet; save the sheet as CSV",
    b"\xd0\xcf\x11\xe0": "an old spreadsheet; save the sheet as CSV",
    b"\x1f\x8b": "a gzip file; unpack it first",
    b"BZh": "a bzip2 file; unpack it first",
    b"\xfd7zXZ": "an xz file; unpack it first",
    b"\x28\xb5\x2f\xfd": "a zstd file; unpack it first",
    b"ARROW1": "an Arrow or Feather file; write it as Parquet",
    b"\x93NUMPY": "a NumPy array; write its columns as CSV",
    b"\x89HDF": "an HDF5 file; write its table as CSV",
    b"\x80\x04": "a pickle, which is never loaded; write its table as CSV",
    b"\x80\x05": "a pickle, which is never loaded; write its table as CSV",
    b"%PDF": "a PDF; copy its table into a CSV",
}


def read_file(path: Path) -> RawTable:
    """Return the cells of a CSV, TSV, Markdown, JSON, JSON lines or Parquet file, or of a pipe.

    Raises
    ------
    DataError
        If the file is missing, empty, damaged, of another kind, or not a table with unique
        column names.
    """
    try:
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
            is_folder = stat.S_ISDIR(mode)
            found = "a folder, which is read alone" if is_folder else "a device or a socket"
            raise cells.unexpected(path, "a file or a pipe", found)
        with path.open("rb") as file:
            start = file.read(1 << 12)
            source = Source(path, start + file.read(MAX_BYTES) if stat.S_ISFIFO(mode) else None)
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file or directory; expected a loss table or a study"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{clean(str(path))}: not readable: {clean(str(error))}") from error
    suffix = source.suffix
    if start.startswith(b"PAR1") or suffix in _PARQUET:
        return _read_parquet(source)
    if what := next((what for magic, what in _FOREIGN.items() if start.startswith(magic)), ""):
        raise cells.unexpected(path, _EXPECTED, what)
    if suffix in _LINES:
        return read_json(source, lines=True)
    is_json = re.match(rb"(\xef\xbb\xbf)?\s*(\[\s*)?\{", start)
    if suffix == ".json" or (is_json and suffix in (*_TEXT, ".log")):
        return read_json(source)
    if suffix in _TEXT:
        return read_text(source)
    example = "write a row for each run, with its settings and last loss, such as width,lr,loss"
    found = f"a log; {example}" if suffix == ".log" else f"a file named {suffix}"
    raise cells.unexpected(path, _EXPECTED, found)


def read_files(paths: Sequence[Path]) -> RawTable:
    """Return the rows of several files as one table; column ``file`` says which.

    Raises
    ------
    DataError
        As for `read_file`.
    """
    tables = [read_file(path) for path in paths]
    if len(tables) == 1:
        return tables[0]
    sizes = [len(table) for table in tables]
    ends = np.cumsum(sizes)
    columns: dict[str, pa.Array] = {}
    for name in dict.fromkeys(name for table in tables for name in table.columns):
        parts = [table.columns.get(name, pa.nulls(len(table))) for table in tables]
        kinds = {part.type for part in parts if not pa.types.is_null(part.type)}
        text = pa.float64() if kinds <= {pa.int64(), pa.float64()} else pa.string()
        kind = kinds.pop() if len(kinds) == 1 else text if kinds else pa.null()
        columns[name] = pa.concat_arrays([part.cast(kind, safe=False) for part in parts])
    columns.setdefault("file", pa.array(np.repeat([path.stem for path in paths], sizes).tolist()))

    def describe(row: int) -> str:
        part = int(np.searchsorted(ends, row, side="right"))
        inside = row - int(ends[part]) + sizes[part]
        return f"{paths[part].name}: {tables[part].describe_row(inside)}"

    common = os.path.commonpath([path.absolute().parent for path in paths])
    return cells.make_raw(f"{len(paths)} files in {common}", list(columns.items()), describe)


def read_arrow(frame: Any, source: object = "frame") -> RawTable:
    """Return the cells of a pandas, polars or Arrow frame; structs become columns.

    Raises
    ------
    DataError
        If it is none of these, or not a table with unique column names.
    """
    try:
        table = frame if isinstance(frame, pa.Table) else pa.table(frame)
    except (TypeError, ValueError, pa.ArrowException) as error:
        expected = "a pandas, polars or Arrow table with a column for each of width, lr and loss"
        found = f"{type(frame).__name__}: {clean(str(error))[:120]}"
        raise cells.unexpected(source, expected, found) from error
    table = _flatten(table)
    named = zip(table.column_names, table.columns, strict=True)
    flat = [(name, c) for name, c in named if not pa.types.is_nested(c.type)]
    return cells.make_raw(source, [(n, c) for n, c in flat if n != "__index_level_0__"])


def _read_parquet(source: Source) -> RawTable:
    try:
        with source.open() as opened, pq.ParquetFile(opened) as file:
            fields = [field for field in file.schema_arrow if field.name]
            kept = [f.name for f in fields if pa.types.is_struct(f.type) or not _is_nested(f)]
            texts = [f.name for f in fields if pa.types.is_string(f.type)]
            _check_parquet(source, file.metadata, {*kept})
        # Texts stay as they are stored, each different one once, until their size is known.
        with source.open() as opened, pq.ParquetFile(opened, read_dictionary=texts) as file:
            table = file.read(columns=kept, use_threads=False)
            table.validate(full=True)  # texts may be no UTF-8
        return read_arrow(table, source)
    # A damaged file fails in many ways: a name or a text that is no UTF-8 is a ValueError.
    except (pa.ArrowException, OSError, ValueError, LookupError, OverflowError) as error:
        cause = clean(str(error).partition("\n")[0]) or type(error).__name__
        raise DataError(f"{source}: damaged Parquet file, or not Parquet: {cause}") from error


def _is_nested(field: Any) -> bool:
    return bool(pa.types.is_nested(field.type))


def _check_parquet(source: Source, about: Any, names: set[str]) -> None:
    """Refuse what a Parquet file says would not fit in memory, before any is taken."""
    cells.check_size(source, about.num_rows, len(names))
    if about.num_rows == 0:
        raise DataError(f"{source}: empty table; expected a row for each trial, found none")
    groups = [about.row_group(number) for number in range(about.num_row_groups)]
    chunks = [group.column(k) for group in groups for k in range(about.num_columns)]
    sizes = [
        max(chunk.total_uncompressed_size, 8 * chunk.num_values)
        for chunk in chunks
        if chunk.path_in_schema.split(".")[0] in names
    ]
    if sum(sizes) > MAX_BYTES:
        raise cells.unexpected(
            source,
            f"a table of at most {MAX_BYTES / 2**30:.0f} GiB",
            f"{sum(sizes) / 2**30:.1f} GiB",
            "write the columns that are used to a file of their own",
        )


# --- JSON

# Objects and lists of a line from which on Arrow's parser, which recurses, is not asked.
_DEEPEST = 50
_EXAMPLE = '{"width": 64, "lr": 0.01, "loss": 3.2}'


def read_json(source: Source, *, lines: bool = False) -> RawTable:
    """Return the cells of a JSON document: rows, or columns, or rows under a key; or JSON lines.

    Read are a list of objects, an object of them by run (whose key is the column ``run``), one
    list of them under any key (``{"runs": [...]}``), lists by column, and pandas' ``columns`` and
    ``split`` forms; or an object on each line that is not blank. A key that an object lacks is an
    empty cell.

    Raises
    ------
    DataError
        If the file is not UTF-8, no JSON, or another document.
    """
    if lines and (columns := _read_columns(source)) is not None:
        return cells.make_raw(source, columns, lambda row: list(_scan(source))[row][0])
    if lines:
        rows = [(place, _load_json(line, f"{source}: {place}")) for place, line in _scan(source)]
    else:
        try:
            document = _load_json(source.read(), source)
        except DataError as error:
            if "Extra data" in str(error):
                return read_json(source, lines=True)
            raise
        rows = [(f"row {n}", row) for n, row in enumerate(_find_rows(source, document), start=1)]
    if not rows:
        raise DataError(f"{source}: empty file; expected a JSON object for each run")
    for place, row in rows:
        if not isinstance(row, dict):
            expected = f"a JSON object for each run, such as {_EXAMPLE}"
            raise cells.unexpected(f"{source}: {place}", expected, type(row).__name__)
    return tabulate(source, ((place, to_cells(row)) for place, row in rows))


def _scan(source: Source) -> Iterator[tuple[str, str]]:
    """Yield each line that is not blank, and its place."""
    row = 0
    for number, line in enumerate(source.read().split("\n"), start=1):
        if line.strip():
            row += 1
            yield f"row {row} (line {number})", line


def _find_rows(source: Source, document: Any) -> list[Any]:
    """Return the rows of a document, or raise the error of one of no known form."""
    if not isinstance(document, dict):
        return document if isinstance(document, list) else [document]
    values, names = list(document.values()), list(document)
    if values and all(isinstance(value, dict) for value in values):
        index = list(values[0])
        if not (index and all(k.isdigit() for k in index) and all([*v] == index for v in values)):
            return [{"run": name, **value} for name, value in document.items()]
        document = {name: list(value.values()) for name, value in document.items()}
    lists = {name: v for name, v in document.items() if isinstance(v, list) and v}
    rows = [v for v in lists.values() if all(isinstance(item, dict) for item in v)]
    if len(rows) == 1:
        return rows[0]
    if {"columns", "data"} <= lists.keys() and all(isinstance(r, list) for r in lists["data"]):
        columns = map(list, zip(*lists["data"], strict=False))
        lists = dict(zip(map(str, lists["columns"]), columns, strict=False))
    if len({len(value) for value in lists.values()}) == 1:
        return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
    expected = "a JSON list of objects, one for each run, or lists by column"
    hint = f"settings in keys are to be written out: [{_EXAMPLE}, …]"
    found = f"an object of {cells.name_some(names, 3) or 'nothing'}"
    raise cells.unexpected(source, expected, found, hint)


def _read_columns(source: Source) -> list[tuple[str, pa.Array]] | None:
    """Return the columns of JSON lines as Arrow reads them; None where a line has to be found."""
    try:
        with source.open() as file:
            for line in map(bytes.strip, file):
                depth = line.count(b"{") + line.count(b"[")
                if line and (depth > _DEEPEST or line[:1] + line[-1:] != b"{}"):
                    return None
            file.seek(0)
            table = arrow_json.read_json(file, arrow_json.ReadOptions(use_threads=False))
        table.validate(full=True)  # Arrow's parser lets texts pass that are no UTF-8
        table = _flatten(table)
    except (pa.ArrowException, ValueError):
        return None
    columns = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        # As a double a long seed is no longer itself, and text like a date stays as written.
        is_float = pa.types.is_floating(column.type)
        is_long = is_float and (pc.max(pc.abs(column)).as_py() or 0) >= 2.0**53
        if is_long or pa.types.is_timestamp(column.type):
            return None
        is_list = pa.types.is_list(column.type)
        columns.append((name, pa.array(["[…]"] * len(column)) if is_list else column))
    unique = len({*map(cells.clean, table.column_names)}) == table.num_columns
    return columns if table.num_rows and unique else None


def _flatten(table: pa.Table) -> pa.Table:
    """Return a table whose structs are columns, each under its names joined by dots."""
    while any(pa.types.is_struct(field.type) for field in table.schema):
        table = table.flatten()
    return table


def tabulate(source: object, rows: Iterable[tuple[str, Iterable[tuple[str, object]]]]) -> RawTable:
    """Return rows of places and cells as a table; a cell that a row lacks is empty.

    Raises
    ------
    DataError
        If a key stands twice in a row, or there are no rows, or far too many keys.
    """
    columns: dict[str, list[object]] = {}
    places: list[str] = []
    for row, (place, items) in enumerate(rows):
        for name, cell in items:
            column = columns.setdefault(name, [])
            if len(column) > row:
                raise DataError(f"{source}: {place}: key {name[:60]!r} stands twice")
            column += [None] * (row - len(column))
            column.append(cell)
        cells.check_size(f"{source}: {place}", row, len(columns))
        places.append(place)
    for column in columns.values():
        column += [None] * (len(places) - len(column))
    arrays = [(name, cells.make_column(column)) for name, column in columns.items()]
    return cells.make_raw(source, arrays, places.__getitem__)


def _load_json(text: str, place: object) -> Any:
    """Return a JSON document, in which no object has a key twice.

    Raises
    ------
    DataError
        If the text is none, with its place.
    """
    try:
        return json.loads(text, object_pairs_hook=_make_object)
    except RecursionError:
        raise cells.unexpected(place, "JSON", "deep nesting") from None
    except ValueError as error:  # also a whole number of more than 4,300 digits
        raise DataError(f"{place}: expected JSON: {cells.clean(str(error))}") from error


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"key {twice[:60]!r} stands twice")
    return dict(pairs)


def to_cells(document: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield an object's names and cells; keys of nested ones are joined by dots.

    Examples
    --------
    >>> dict(to_cells({"config": {"n_embd": 64}, "curve": [1, 2]}))
    {'config.n_embd': 64, 'curve': '[…]'}
    """
    for key, value in document.items():
        name = prefix + _make_text(key)
        if isinstance(value, Mapping):
            yield from to_cells(value, name + ".")
        elif isinstance(value, int) and abs(value) > 10**300:  # too long to be written out
            yield name, np.inf if value > 0 else -np.inf
        elif value is None or isinstance(value, bool | int | float):
            yield name, value
        else:  # a curve or a histogram is no cell of a table
            yield name, "[…]" if isinstance(value, list | tuple) else _make_text(value)


def _make_text(value: object) -> str:
    """Return text without lone surrogates, which JSON can hold and nothing can print."""
    return cells.clean(str(value).encode("utf-8", "replace").decode("utf-8"))
