"""Parquet files to raw tables."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hptransfer.errors import DataError
from hptransfer.tables.files import LARGE, check_names, check_rows, is_wanted
from hptransfer.tables.raw import Places, RawTable
from hptransfer.tables.text import clean

if TYPE_CHECKING:
    import pyarrow as pa


def read_parquet(path: Path, wanted: Collection[str] | None) -> RawTable:
    """Return the cells of a Parquet file; `wanted` as in `files.read_file`.

    Raises
    ------
    DataError
        If the file is damaged, empty, or not a table with unique column names.
    """
    # Imported here: text needs no Arrow, and importing it is most of a command's start.
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            names = list(file.schema_arrow.names)
            check_names(path, [clean(name) for name in names])
            rows = file.metadata.num_rows
            if rows == 0:
                raise DataError(f"{path}: empty table; expected a row for each trial, found none")
            check_rows(path, rows)
            large = rows > LARGE
            kept = [name for name in names if name and (not large or is_wanted(name, wanted))]
            table = file.read(columns=kept) if large else file.read()
            columns = {clean(name): to_cells(table.column(name)) for name in kept}
    # A damaged file fails in many ways: a name or a text that is no UTF-8 is a ValueError.
    except (pa.ArrowException, OSError, ValueError, LookupError, OverflowError) as error:
        cause = clean(str(error).partition("\n")[0]) or type(error).__name__
        raise DataError(f"{path}: damaged Parquet file, or not Parquet: {cause}") from error
    return RawTable(
        source=str(path),
        columns=columns,
        places=Places(rows=np.arange(1, rows + 1)),
        dropped=tuple(clean(name) for name in names if name and name not in kept),
    )


def to_cells(column: "pa.ChunkedArray") -> Sequence[object]:
    """Return a column's cells: numbers, text or None; of anything else, its type's name."""
    import pyarrow as pa

    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    types = pa.types
    if types.is_boolean(kind) or types.is_integer(kind) or types.is_decimal(kind):
        cells: list[object] = column.to_pylist()
    elif types.is_floating(kind):
        cells = column.cast(pa.float64()).to_pylist()
    elif types.is_string(kind) or types.is_large_string(kind):
        cells = column.to_pylist()
    elif types.is_null(kind):
        cells = [None] * len(column)
    elif types.is_temporal(kind):
        cells = column.cast(pa.string()).to_pylist()
    else:
        cells = [f"<{clean(str(kind))[:30]}>"] * len(column)
    return cells
