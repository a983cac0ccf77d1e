"""CSV, TSV, Markdown and aligned text to raw tables, read by Arrow."""

import codecs
import csv
import io
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as arrow_csv

from hptransfer.errors import DataError
from hptransfer.tables import _raw_table as cells
from hptransfer.tables._raw_table import RawTable

# Bytes in which a header is looked for, and those of a block that Arrow parses at once.
_HEAD, _BLOCK = 1 << 20, 1 << 23
_CELL = re.compile(rb"[\r\n,;\t|]")
_RULE = re.compile(r"\|?[\s:|-]*-[\s:|-]*\|?")


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

    def read(self, encoding: str = "utf-8-sig") -> str:
        """Return the file's text, or raise the error that names the first byte that is none."""
        with self.open() as file:
            data = file.read()
        try:
            return data.decode(encoding)
        except UnicodeDecodeError as error:
            at = error.start
            before, after = _CELL.split(data[max(0, at - 40) : at]), _CELL.split(data[at : at + 20])
            word = (before[-1] + after[0]).decode("latin-1")
            found = f"byte {data[at]:#04x} at offset {at} ({cells.show(word)} as Latin-1)"
            if error.end >= len(data) and "utf-16" in encoding:
                found = "text that ends too early"
            raise cells.unexpected(self, "UTF-8 text", found, "save the file as UTF-8") from error


@dataclass(frozen=True)
class _Layout:
    """Where a text's rows begin, in bytes and lines, and what separates their cells."""

    names: list[str]
    delimiter: str
    start: int
    line: int


def read_text(source: Source) -> RawTable:
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
            source = Source(source.path, source.read("utf-16").encode())
    layout = _find_layout(source)
    if not layout.delimiter:
        source = Source(source.path, _align(source.read()).encode())
        layout = _find_layout(source)
    columns = _read_columns(source, layout)
    blank: Any = None
    for column in columns:  # a row that holds nothing is none
        empty = pc.equal(pc.utf8_trim_whitespace(column), "")
        blank = empty if blank is None else pc.and_(blank, empty)
        if not pc.any(blank).as_py():
            break
    else:
        columns = [column.filter(pc.invert(blank)) for column in columns]
    if not columns or not len(columns[0]):
        raise DataError(f"{source}: empty table; expected rows below the header, found none")

    def describe(row: int) -> str:
        line = next(n for k, (n, _) in enumerate(_scan(source, layout)) if k == row)
        return f"row {row + 1} (line {line})"

    return cells.make_raw(source, list(zip(layout.names, columns, strict=True)), describe)


def _find_layout(source: Source) -> _Layout:
    """Return a text's header, and how it is separated: "" where by blanks or as Markdown."""
    with source.open() as file:
        head = file.read(_HEAD)
    start = len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0
    # As Latin-1 a letter is a byte, whatever it stands for.
    lines = [*io.StringIO(head[start:].decode("latin-1"), newline="")]
    filled = [k for k, line in enumerate(lines) if line.strip()]
    below = [k for k in filled if not lines[k].lstrip().startswith("#")]
    if not below:
        what = "table; expected rows below the" if filled else "file; expected a"
        raise DataError(f"{source}: empty {what} header with width, lr and loss")
    first = below[0]
    delimiter = _sniff(source, lines[first])
    names, rows = _read_header(lines[first:], delimiter or ",")
    if any("\ufffd" in name for name in names):
        source.read()
    if not all(cells.parse_plain(name) == cells.parse_plain(name) for name in names):
        rows += first
        return _Layout(names, delimiter, start + sum(map(len, lines[:rows])), rows)
    comments = [lines[k].lstrip("#, ") for k in filled if k < first]
    above = _read_header(comments[-1:], delimiter or ",")[0]
    if len(above) != len(names):
        found = f"numbers: {cells.name_some(names, 4)}"
        expected = "names of columns such as width, lr and loss"
        raise cells.unexpected(f"{source}: header", expected, found)
    return _Layout(above, delimiter, start + sum(map(len, lines[:first])), first)


def _read_header(lines: list[str], delimiter: str) -> tuple[list[str], int]:
    """Return the cells of a text's first row, and the lines that it stands on."""
    reader, names = csv.reader(lines, delimiter=delimiter), list[str]()
    with suppress(csv.Error):
        names = next(reader, [])
    texts = [name.encode("latin-1").decode("utf-8", "replace") for name in names]
    return [cells.clean(text) for text in texts], reader.line_num


def _sniff(source: Source, header: str) -> str:
    """Return the most frequent separator of a header, nothing where it is blanks or Markdown."""
    if source.suffix in (".tsv", ".tab"):
        return "\t"
    bare = "".join(header.split('"')[::2])  # a quoted name may hold anything
    best = max(",\t;|", key=bare.count)
    is_markdown = bare.startswith("|") and bare.rstrip().endswith("|")
    return "" if is_markdown or (best not in bare and len(bare.split()) > 2) else best


def _align(text: str) -> str:
    """Return Markdown or aligned text as CSV, each row on the line where it stood."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for line in map(str.strip, text.split("\n")):
        if not line or _RULE.fullmatch(line):
            out.write("\n")
        elif line.startswith("|"):
            inner = line.strip("|").split("|")
            writer.writerow([cell.strip().strip("*`").strip() for cell in inner])
        else:
            writer.writerow(line.split())
    return out.getvalue()


def _read_columns(source: Source, layout: _Layout) -> list[pa.Array]:
    """Return a table's columns as text, or raise the error that names the wrong row."""
    names = [str(number) for number in range(len(layout.names))]
    batches, rows = [], 0
    try:
        with source.open() as file:
            file.seek(layout.start)
            reader = arrow_csv.open_csv(
                file,
                arrow_csv.ReadOptions(column_names=names, block_size=_BLOCK, use_threads=False),
                arrow_csv.ParseOptions(delimiter=layout.delimiter, newlines_in_values=True),
                arrow_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
            )
            for batch in reader:
                rows += batch.num_rows
                cells.check_size(source, rows)
                batches.append(batch)
    except (pa.ArrowInvalid, UnicodeError) as error:
        scanned = list[list[str]]()
        for number, (line, row) in enumerate(_scan(source, layout), start=1):
            if len(row) != len(names):
                place = f"{source}: row {number} (line {line})"
                expected = f"{len(names)} cells as in the header"
                raise cells.unexpected(place, expected, len(row)) from error
            cells.check_size(source, number)
            scanned.append(row)
        return [pa.array(column, pa.string()) for column in zip(*scanned, strict=True)]
    table = pa.Table.from_batches(batches, reader.schema)
    del batches
    columns = []
    for _ in names if rows else ():  # one at a time, so that the table is never held twice
        columns.append(table.column(0).combine_chunks())
        table = table.remove_column(0)
    return columns


def _scan(source: Source, layout: _Layout) -> Iterator[tuple[int, list[str]]]:
    """Yield each row that is not blank, and the line that it ends on."""
    with source.open() as file:
        file.seek(layout.start)
        reader = csv.reader(io.TextIOWrapper(file, "utf-8", newline=""), delimiter=layout.delimiter)
        try:
            for row in reader:
                if any(map(str.strip, row)):
                    yield layout.line + reader.line_num, row
        except csv.Error as error:
            line = layout.line + reader.line_num
            raise DataError(f"{source}: line {line}: not readable as CSV: {error}") from error
        except UnicodeDecodeError:
            source.read()
