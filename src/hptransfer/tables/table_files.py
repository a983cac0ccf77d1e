"""Files, pipes and frames in memory to raw tables; a file's kind is told by its first bytes."""

import io
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from hptransfer.errors import DataError
from hptransfer.tables.json_tables import read_json, read_json_lines
from hptransfer.tables.raw_table import MAX_BYTES, RawTable, check_size, make_raw
from hptransfer.tables.text_tables import read_text
from hptransfer.tables.wording import clean

_TEXT = (".csv", ".tsv", ".tab", ".txt", ".dat", ".md", "")
_LINES = (".jsonl", ".ndjson")
_PARQUET = (".parquet", ".pq")
_EXPECTED = (
    "expected CSV (.csv), TSV (.tsv), JSON (.json), JSON lines (.jsonl, .ndjson) or "
    "Parquet (.parquet)"
)
#: Suffixes of files that a directory of tables is made of.
TABLE_SUFFIXES = (".csv", ".tsv", *_LINES, *_PARQUET)

# First bytes of what people have beside tables, and what it is.
_FOREIGN = (
    (b"PK\x03\x04", "a zip archive or a spreadsheet; save the sheet as CSV"),
    (b"\xd0\xcf\x11\xe0", "an old spreadsheet; save the sheet as CSV"),
    (b"\x1f\x8b", "a gzip file; unpack it first"),
    (b"BZh", "a bzip2 file; unpack it first"),
    (b"\xfd7zXZ", "an xz file; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstd file; unpack it first"),
    (b"ARROW1", "an Arrow or Feather file; write it as Parquet"),
    (b"\x93NUMPY", "a NumPy array; write its columns as CSV"),
    (b"\x89HDF", "an HDF5 file; write its table as CSV"),
    (b"\x80\x04", "a pickle, which is never loaded; write its table as CSV"),
    (b"\x80\x05", "a pickle, which is never loaded; write its table as CSV"),
    (b"%PDF", "a PDF; copy its table into a CSV"),
)


@dataclass(frozen=True)
class Source:
    """A file that can be read again: a path, or what a pipe held."""

    path: Path
    data: bytes | None = None

    def __str__(self) -> str:
        return str(self.path)

    @property
    def suffix(self) -> str:
        """The suffix of the file's name, in lower case; a pipe has none."""
        return "" if self.data is not None else self.path.suffix.lower()

    def open(self) -> IO[bytes]:
        """Open the file, or what it held, from its start."""
        return self.path.open("rb") if self.data is None else io.BytesIO(self.data)

    def holding(self, data: bytes) -> "Source":
        """Return this source with other bytes in place of the file's."""
        return replace(self, data=data)


def open_source(path: Path) -> Source:
    """Return a file or, read to its end, a pipe.

    Raises
    ------
    DataError
        If there is nothing at the path, or a device, a socket or a directory.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            return Source(path)
        if stat.S_ISFIFO(mode):
            with path.open("rb") as file:
                data = file.read(MAX_BYTES)
            return Source(path, data)
    except FileNotFoundError:
        raise DataError(
            f"{path}: no such file or directory; expected a loss table or a study"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{clean(str(path))}: not readable: {clean(str(error))}") from error
    raise DataError(f"{path}: expected a file or a pipe, found a device or a socket")


def read_file(path: Path) -> RawTable:
    """Return the cells of a CSV, TSV, Markdown, JSON, JSON lines or Parquet file, or of a pipe.

    Raises
    ------
    DataError
        If the file is missing, empty, damaged, of another kind, or not a table with unique
        column names.
    """
    source = open_source(path)
    try:
        with source.open() as file:
            start = file.read(1 << 12)
    except OSError as error:
        raise DataError(f"{path}: not readable: {clean(str(error))}") from error
    if start.startswith(b"PAR1") or source.suffix in _PARQUET:
        return _read_parquet(source)
    found = next((what for magic, what in _FOREIGN if start.startswith(magic)), None)
    if found:
        raise DataError(f"{path}: {_EXPECTED}, found {found}")
    if source.suffix in _LINES:
        return read_json_lines(source)
    is_json = re.match(rb"(\xef\xbb\xbf)?\s*(\[\s*)?\{", start)
    if source.suffix == ".json" or (is_json and source.suffix in (*_TEXT, ".log")):
        return read_json(source)
    if source.suffix == ".log":
        raise DataError(
            f"{path}: {_EXPECTED}, found a log; write a row for each run, with its settings and "
            "last loss, such as width,lr,loss"
        )
    if source.suffix not in _TEXT:
        raise DataError(f"{path}: {_EXPECTED}, found a file named {source.suffix}")
    return read_text(source)


def read_files(paths: Sequence[Path]) -> RawTable:
    """Return the rows of several files as one table; column ``file`` says which.

    Raises
    ------
    DataError
        As for `read_file`.
    """
    import pyarrow as pa

    tables = [read_file(path) for path in paths]
    if len(tables) == 1:
        return tables[0]
    ends = np.cumsum([len(table) for table in tables])
    stems = np.repeat([path.stem for path in paths], [len(table) for table in tables])
    columns: dict[str, Any] = {}
    for name in dict.fromkeys(name for table in tables for name in table.columns):
        parts = [table.columns.get(name, pa.nulls(len(table))) for table in tables]
        kinds = {part.type for part in parts if not pa.types.is_null(part.type)}
        numbers = all(pa.types.is_integer(k) or pa.types.is_floating(k) for k in kinds)
        kind = pa.null() if not kinds else kinds.pop() if len(kinds) == 1 else None
        kind = kind or (pa.float64() if numbers else pa.string())
        columns[name] = pa.concat_arrays([part.cast(kind, safe=False) for part in parts])
    columns.setdefault("file", pa.array(stems.tolist(), pa.string()))

    def describe(row: int) -> str:
        part = int(np.searchsorted(ends, row, side="right"))
        inside = row - (int(ends[part - 1]) if part else 0)
        return f"{paths[part].name}: {tables[part].describe_row(inside)}"

    common = os.path.commonpath([path.absolute().parent for path in paths])
    return make_raw(f"{len(paths)} files in {common}", list(columns.items()), describe)


def read_arrow(frame: Any) -> RawTable:
    """Return the cells of a pandas, polars or Arrow frame in memory.

    Raises
    ------
    DataError
        If it is none of these, or not a table with unique column names.
    """
    import pyarrow as pa

    try:
        table = frame if isinstance(frame, pa.Table) else pa.table(frame)
    except (TypeError, ValueError, pa.ArrowException) as error:
        raise DataError(
            "frame: expected a pandas, polars or Arrow table with a column for each of width, lr "
            f"and loss, found {type(frame).__name__}: {clean(str(error))[:120]}"
        ) from error
    return _flatten("frame", table)


def _flatten(source: object, table: Any) -> RawTable:
    """Return an Arrow table's columns; structs become columns, and a list is no cell."""
    import pyarrow as pa

    while any(pa.types.is_struct(field.type) for field in table.schema):
        table = table.flatten()
    columns = [
        (name, column)
        for name, column in zip(table.column_names, table.columns, strict=True)
        if not (pa.types.is_nested(column.type) or name == "__index_level_0__")
    ]
    return make_raw(source, columns)


def _read_parquet(source: Source) -> RawTable:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with source.open() as opened, pq.ParquetFile(opened) as file:
            kept = [f.name for f in file.schema_arrow if f.name and not _is_list(f.type)]
            _check_parquet(source, file.metadata, kept)
            texts = [f.name for f in file.schema_arrow if pa.types.is_string(f.type)]
        # Texts stay as they are stored, each different one once, until their size is known.
        with source.open() as opened, pq.ParquetFile(opened, read_dictionary=texts) as file:
            table = file.read(columns=kept, use_threads=False)
            table.validate(full=True)  # texts may be no UTF-8
        return _flatten(source, table)
    # A damaged file fails in many ways: a name or a text that is no UTF-8 is a ValueError.
    except (pa.ArrowException, OSError, ValueError, LookupError, OverflowError) as error:
        cause = clean(str(error).partition("\n")[0]) or type(error).__name__
        raise DataError(f"{source}: damaged Parquet file, or not Parquet: {cause}") from error


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_nested(kind) and not pa.types.is_struct(kind)


def _check_parquet(source: Source, metadata: Any, kept: Sequence[str]) -> None:
    """Refuse what a Parquet file says would not fit in memory, before any is taken."""
    check_size(source, metadata.num_rows, len(kept))
    if metadata.num_rows == 0:
        raise DataError(f"{source}: empty table; expected a row for each trial, found none")
    names = set(kept)
    chunks = [
        metadata.row_group(group).column(column)
        for group in range(metadata.num_row_groups)
        for column in range(metadata.num_columns)
    ]
    taken = sum(
        max(chunk.total_uncompressed_size, 8 * chunk.num_values)
        for chunk in chunks
        if chunk.path_in_schema.split(".")[0] in names
    )
    if taken > MAX_BYTES:
        raise DataError(
            f"{source}: expected a table of at most {MAX_BYTES / 2**30:.0f} GiB, found "
            f"{taken / 2**30:.1f} GiB; write the columns that are used to a file of their own"
        )
