"""CSV and Parquet files to raw tables."""

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from hptransfer.errors import DataError
from hptransfer.tables.raw import RawTable

_PARQUET_MAGIC = b"PAR1"


def read_file(path: Path) -> RawTable:
    """Return the cells of a CSV or Parquet file, told apart by their first bytes.

    Raises
    ------
    DataError
        If the file is missing, empty, damaged, or not a table with unique column names.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or directory; expected a loss table or a study")
    with path.open("rb") as file:
        magic = file.read(len(_PARQUET_MAGIC))
    if magic == _PARQUET_MAGIC or path.suffix == ".parquet":
        return _read_parquet(path)
    return _read_csv(path)


def _read_parquet(path: Path) -> RawTable:
    # Imported here: a CSV needs no Arrow, and importing it is most of a command's start.
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        cause = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: damaged Parquet file, or not Parquet: {cause}") from error
    names = _check_names(path, table.column_names)
    if table.num_rows == 0:
        raise DataError(f"{path}: empty table; expected a row for each trial, found none")
    return RawTable(
        source=str(path),
        columns={name: table.column(name).to_pylist() for name in names},
        places=[f"row {row}" for row in range(1, table.num_rows + 1)],
    )


def _read_csv(path: Path) -> RawTable:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: expected UTF-8 text or Parquet, found byte {error.object[error.start]:#04x} "
            f"at offset {error.start}"
        ) from error
    lines = text.splitlines(keepends=True)
    reader = csv.reader(lines, delimiter=_find_delimiter(lines))
    header: list[str] | None = None
    rows: list[list[str]] = []
    places: list[str] = []
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = _check_names(path, [cell.strip() for cell in cells])
                continue
            place = f"row {len(rows) + 1} (line {reader.line_num})"
            if len(cells) != len(header):
                raise DataError(
                    f"{path}: {place}: expected {len(header)} cells as in the header, "
                    f"found {len(cells)}"
                )
            rows.append(cells)
            places.append(place)
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: not readable as CSV: {error}") from error
    if header is None:
        raise DataError(f"{path}: empty file; expected a header with width, lr and loss")
    if not rows:
        raise DataError(f"{path}: empty table; expected rows below the header, found none")
    columns = dict(zip(header, zip(*rows, strict=True), strict=True))
    return RawTable(source=str(path), columns=dict(columns), places=places)


def _find_delimiter(lines: Iterable[str]) -> str:
    """Return the separator of the header: a comma unless it has only tabs or semicolons."""
    header = next((line for line in lines if line.strip()), "")
    return next((mark for mark in (",", "\t", ";") if mark in header), ",")


def _check_names(path: Path, names: Sequence[str]) -> list[str]:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        where = [str(number) for number, name in enumerate(names, start=1) if name == twice[0]]
        raise DataError(
            f"{path}: header: column {twice[0]!r} stands {len(where)} times "
            f"(columns {', '.join(where)}); expected each name once"
        )
    return list(names)
