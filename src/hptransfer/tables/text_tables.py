"""CSV, TSV, Markdown and aligned text to raw tables, read by Arrow; what fails is found by cell."""

import codecs
import contextlib
import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hptransfer.errors import DataError
from hptransfer.tables.cell_values import parse_plain
from hptransfer.tables.raw_table import RawTable, check_size, make_raw
from hptransfer.tables.wording import clean, name_some, show

if TYPE_CHECKING:
    import pyarrow as pa

    from hptransfer.tables.table_files import Source

# Bytes in which a header is looked for, and those of a block that Arrow parses at once.
_HEAD = 1 << 20
_BLOCK = 1 << 23

_RULE = re.compile(r"\|?[\s:|-]*-[\s:|-]*\|?")


@dataclass(frozen=True)
class _Layout:
    """Where a text's rows begin and what separates their cells; "" means blanks or Markdown."""

    names: list[str]
    delimiter: str
    start: int
    line: int


def read_text(source: "Source") -> RawTable:
    """Return the cells of a CSV, TSV, Markdown or aligned table.

    Lines that begin with ``#`` above the header are comments, or the header where a row of
    numbers follows (as NumPy writes it).

    Raises
    ------
    DataError
        If the file is empty, not text, or a row has more or fewer cells than the header.
    """
    with source.open() as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            file.seek(0)
            source = source.holding(_decode(source, file.read(), "utf-16").encode())
    layout = _find_layout(source)
    columns = _read_fast(source, layout) if layout.delimiter else None
    if columns is None or not len(columns[0]):
        columns = _read_slowly(source, layout)
    kept = _find_filled(columns)
    if kept is not None:
        columns = [column.filter(kept) for column in columns]
    if not columns or not len(columns[0]):
        raise DataError(f"{source}: empty table; expected rows below the header, found none")
    return make_raw(
        source,
        list(zip(layout.names, columns, strict=True)),
        lambda row: f"row {row + 1} (line {_find_line(source, layout, row)})",
    )


def _find_layout(source: "Source") -> _Layout:
    """Return a text's header, and how it is separated."""
    with source.open() as file:
        head = file.read(_HEAD)
    start = len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0
    comment, line = b"", 0
    for match in re.finditer(rb"[^\r\n]*(?:\r\n|\n|\r|$)", head[start:]):
        text = match[0].strip()
        if text and not text.startswith(b"#"):
            break
        comment, line = text or comment, line + 1
    else:
        raise DataError(
            f"{source}: empty table; expected rows below the header, found none"
            if comment
            else f"{source}: empty file; expected a header with width, lr and loss"
        )
    start += match.start()
    delimiter = _sniff(source, match[0].decode("utf-8", "replace"))
    names, lines, size = _read_header(head[start:], delimiter)
    if any("\ufffd" in name for name in names):
        _decode(source, head, "utf-8-sig")
    if not all(_is_number(name) for name in names):
        return _Layout(names, delimiter, start + size, line + lines)
    above = _read_header(comment.lstrip(b"# "), delimiter)[0]
    if len(above) == len(names):
        return _Layout(above, delimiter, start, line)
    raise DataError(
        f"{source}: header: expected names of columns such as width, lr and loss, found numbers: "
        f"{name_some(names, 4)}"
    )


def _is_number(name: str) -> bool:
    return parse_plain(name) == parse_plain(name)


def _read_header(data: bytes, delimiter: str) -> tuple[list[str], int, int]:
    """Return the cells of a text's first row, the lines that it stands on, and its bytes."""
    text = data.decode("utf-8", "replace")
    names, lines = _split_aligned(text.partition("\n")[0]), 1
    if delimiter:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        with contextlib.suppress(csv.Error):
            names, lines = next(reader, []), reader.line_num
    ends = [end.end() for end in re.finditer(rb"\r\n|\n|\r", data)][:lines]
    return [clean(name) for name in names], lines, ends[-1] if 0 < len(ends) == lines else len(data)


def _sniff(source: "Source", header: str) -> str:
    """Return a header's separator: of comma, tab, semicolon and bar the most frequent."""
    if source.suffix in (".tsv", ".tab"):
        return "\t"
    # Outside quotes only: a quoted name may hold anything.
    bare = "".join(header.split('"')[::2])
    best = max(",\t;|", key=bare.count)
    is_markdown = bare.startswith("|") and bare.rstrip().endswith("|")
    return "" if is_markdown or (best not in bare and len(bare.split()) > 2) else best


def _split_aligned(line: str) -> list[str]:
    line = line.strip()
    if line.startswith("|"):
        return [cell.strip().strip("*`").strip() for cell in line.strip("|").split("|")]
    return line.split()


def _read_fast(source: "Source", layout: _Layout) -> "list[pa.Array] | None":
    """Return a table's columns as text; None where Arrow can't, and a row has to be found."""
    import pyarrow as pa
    import pyarrow.csv as pc

    names = [str(number) for number in range(len(layout.names))]
    batches, rows = [], 0
    try:
        with source.open() as file:
            file.seek(layout.start)
            reader = pc.open_csv(
                file,
                pc.ReadOptions(column_names=names, block_size=_BLOCK, use_threads=False),
                pc.ParseOptions(delimiter=layout.delimiter, newlines_in_values=True),
                pc.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
            )
            for batch in reader:
                rows += batch.num_rows
                check_size(source, rows)
                batches.append(batch)
    except (pa.ArrowInvalid, UnicodeError):
        return None
    table = pa.Table.from_batches(batches, reader.schema)
    del batches
    columns = []
    for _ in names:  # one at a time, so that the table is never held twice
        columns.append(pa.concat_arrays(table.column(0).chunks or [pa.array([], pa.string())]))
        table = table.remove_column(0)
    return columns


def _read_slowly(source: "Source", layout: _Layout) -> "list[pa.Array]":
    """Return a table's columns row by row, or raise the error that names the wrong one."""
    import pyarrow as pa

    cells: list[list[str]] = [[] for _ in layout.names]
    for number, (line, row) in enumerate(_scan(source, layout), start=1):
        if len(row) != len(layout.names):
            raise DataError(
                f"{source}: row {number} (line {line}): expected {len(layout.names)} cells as in "
                f"the header, found {len(row)}"
            )
        check_size(source, number)
        for column, cell in zip(cells, row, strict=True):
            column.append(cell)
    return [pa.array(column, pa.string()) for column in cells]


def _scan(source: "Source", layout: _Layout) -> Iterator[tuple[int, Sequence[str]]]:
    """Yield each row that is not blank, and the line that it ends on."""
    with source.open() as file:
        file.seek(layout.start)
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        reader = csv.reader(text, delimiter=layout.delimiter) if layout.delimiter else None
        lines = enumerate(text, start=1)
        try:
            if reader is None:
                for number, line in lines:
                    if line.strip() and not (layout.names and _RULE.fullmatch(line.strip())):
                        yield layout.line + number, _split_aligned(line)
                return
            for row in reader:
                if any(map(str.strip, row)):
                    yield layout.line + reader.line_num, row
        except csv.Error as error:
            at = layout.line + (reader.line_num if reader else 0)
            raise DataError(f"{source}: line {at}: not readable as CSV: {error}") from error
        except UnicodeDecodeError:
            with source.open() as whole:
                _decode(source, whole.read(), "utf-8-sig")
            raise AssertionError("bytes were no UTF-8 once, and then they were") from None


def _find_line(source: "Source", layout: _Layout, wanted: int) -> int:
    return next(line for row, (line, _) in enumerate(_scan(source, layout)) if row == wanted)


def _find_filled(columns: "Sequence[pa.Array]") -> "pa.Array | None":
    """Return which rows hold anything; None where all do, as in nearly every table."""
    import pyarrow.compute as pc

    blank = None
    for column in columns:
        empty = pc.equal(pc.utf8_trim_whitespace(column), "")
        blank = empty if blank is None else pc.and_(blank, empty)
        if not pc.any(blank).as_py():
            return None
    return None if blank is None else pc.invert(blank)


def _decode(source: "Source", data: bytes, encoding: str) -> str:
    """Return bytes as text, or raise the error that names the first byte that is none."""
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        byte, offset = data[error.start], error.start
        if error.end >= len(data) and "utf-16" in encoding:
            raise DataError(
                f"{source}: expected UTF-8 text or Parquet, found text that ends too early"
            ) from error
        word = data[: offset + 20].splitlines()[-1].decode("latin-1").split(",")[0]
        raise DataError(
            f"{source}: expected UTF-8 text or Parquet, found byte {byte:#04x} at offset {offset} "
            f"({show(word)} as Latin-1); save the file as UTF-8"
        ) from error
