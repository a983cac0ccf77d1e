"""CSV and TSV files to raw tables, read as a stream: a large one is never held as text."""

import codecs
import csv
from collections.abc import Collection
from pathlib import Path

import numpy as np

from hptransfer.errors import DataError
from hptransfer.tables.cells import is_number
from hptransfer.tables.files import LARGE, check_names, check_rows, is_wanted
from hptransfer.tables.raw import Places, RawTable
from hptransfer.tables.text import clean

# Distinct cells of a column that are kept as one object each; losses are all different.
_MEMO = 10_000


def read_delimited(path: Path, wanted: Collection[str] | None) -> RawTable:
    """Return the cells of a CSV or TSV file; `wanted` as in `files.read_file`.

    Raises
    ------
    DataError
        If the file is empty, not text, or a row has more or fewer cells than the header.
    """
    encoding = _find_encoding(path)
    delimiter = "\t" if path.suffix.lower() in (".tsv", ".tab") else _sniff(path, encoding)
    header: list[str] | None = None
    cells: dict[str, _Cells] = {}
    pending: list[list[str]] = []
    lines: list[int] = []
    with path.open(encoding=encoding, newline="") as file:
        reader = csv.reader(file, delimiter=delimiter)
        try:
            for row in reader:
                if not any(map(str.strip, row)):
                    continue
                if header is None:
                    header = _check_header(path, [clean(cell) for cell in row])
                    cells = {name: _Cells() for name in header}
                    continue
                lines.append(reader.line_num)
                if len(row) != len(header):
                    raise DataError(
                        f"{path}: row {len(lines)} (line {reader.line_num}): expected "
                        f"{len(header)} cells as in the header, found {len(row)}"
                    )
                pending.append(row)
                if len(pending) == LARGE:
                    check_rows(path, len(lines))
                    _flush(cells, header, pending)
                    cells = {n: column for n, column in cells.items() if is_wanted(n, wanted)}
        except csv.Error as error:
            raise DataError(
                f"{path}: line {reader.line_num}: not readable as CSV: {error}"
            ) from error
        except UnicodeError as error:
            raise _explain_bytes(path, encoding) from error
    if header is None:
        raise DataError(f"{path}: empty file; expected a header with width, lr and loss")
    if not lines:
        raise DataError(f"{path}: empty table; expected rows below the header, found none")
    _flush(cells, header, pending)
    return RawTable(
        source=str(path),
        columns={name: column.cells for name, column in cells.items() if name},
        places=Places(rows=np.arange(1, len(lines) + 1), lines=np.array(lines)),
        dropped=tuple(name for name in header if name and name not in cells),
    )


class _Cells:
    """A column as it grows; equal cells are one object, up to a number of distinct ones."""

    def __init__(self) -> None:
        self.cells: list[object] = []
        self._memo: dict[str, str] = {}

    def extend(self, cells: tuple[str, ...]) -> None:
        memo = self._memo
        if len(memo) > _MEMO:
            self.cells.extend(cells)
        else:
            self.cells.extend([memo.setdefault(cell, cell) for cell in cells])


def _flush(cells: dict[str, _Cells], header: list[str], pending: list[list[str]]) -> None:
    for name, column in zip(header, zip(*pending, strict=True), strict=False):
        if name in cells:
            cells[name].extend(column)
    pending.clear()


def _check_header(path: Path, header: list[str]) -> list[str]:
    if all(is_number(name) for name in header):
        raise DataError(
            f"{path}: header: expected names of columns such as width, lr and loss, found numbers"
        )
    check_names(path, header)
    return header


def _find_encoding(path: Path) -> str:
    """Return how a file is written: UTF-8, unless its first bytes mark it as UTF-16."""
    with path.open("rb") as file:
        start = file.read(2)
    return "utf-16" if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def _sniff(path: Path, encoding: str) -> str:
    """Return the header's separator: of comma, tab, semicolon and bar the most frequent."""
    with path.open(encoding=encoding, errors="replace", newline="") as file:
        header = ""
        while not header.strip():
            header = file.readline(1 << 20)
            if not header:
                return ","
    # Outside quotes only: a quoted name may hold anything.
    bare = "".join(header.split('"')[::2])
    return max(",\t;|", key=bare.count)


def _explain_bytes(path: Path, encoding: str) -> DataError:
    """Return the error for a file that is not the text it claims to be, naming the byte."""
    decoder = codecs.getincrementaldecoder(encoding)()
    done = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            before = len(decoder.getstate()[0])
            try:
                decoder.decode(chunk)
            except UnicodeDecodeError as error:
                offset = done - before + error.start
                return DataError(
                    f"{path}: expected UTF-8 text or Parquet, found byte "
                    f"{error.object[error.start]:#04x} at offset {offset}"
                )
            done += len(chunk)
    return DataError(f"{path}: expected UTF-8 text or Parquet, found text that ends too early")
