"""Files, pipes and frames in memory to raw tables; a file's kind is told by its first bytes."""

import codecs
import csv
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import reduce
from itertools import islice
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as arrow_csv
import pyarrow.json as arrow_json
import pyarrow.parquet as pq

from hptransfer.errors import DataError
from hptransfer.tables import _raw_table as cells
from hptransfer.tables._raw_table import MAX_BYTES, RawTable, check_size, clean

_TEXT = (".csv", ".tsv", ".tab", ".txt", ".dat", ".md", "")
_LINES = (".jsonl", ".ndjson")
_PARQUET = (".parquet", ".pq")
#: Suffixes of files that a directory of tables is made of.
TABLE_SUFFIXES = (".csv", ".tsv", *_LINES, *_PARQUET)
_EXPECTED = (
    "CSV (.csv), TSV (.tsv), JSON (.json), JSON lines (.jsonl, .ndjson) or Parquet (.parquet)"
)
# Bytes in which a header is looked for, and those of a block that Arrow parses at once.
_HEAD, _BLOCK = 1 << 20, 1 << 23
_CELL = re.compile(rb"[\r\n,;\t|]")
_RULE = re.compile(r"\|?[\s:|-]*-[\s:|-]*\|?")
# A line above the header: a comment, or the separator that Excel is told.
_COMMENT = re.compile(r"\s*(#|\"?sep=.\"?\s*$)", re.I)
# First bytes of what people have beside tables, and what it is.
_FOREIGN = {
    b"PK\x03\x04": "a zip archive or a spreadsheet; save the sheet as CSV",
    b"\x1f\x8b": "a gzip file; unpack it first",
    b"BZh": "a bzip2 file; unpack it first",
    b"\xfd7zXZ": "an xz file; unpack it first",
    b"\x28\xb5\x2f\xfd": "a zstd file; unpack it first",
    b"\x80\x04": "a pickle, which is never loaded; write its table as CSV",
    b"\x80\x05": "a pickle, which is never loaded; write its table as CSV",
}


@dataclass(frozen=True)
class Source:
    """A file that can be read again: a path, or what a pipe held."""

    path: Path
    data: bytes | None = None
    suffix: str = ""

    def __str__(self) -> str:
        return str(self.path)

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


def read_file(path: Path) -> RawTable:
    """Return the cells of a CSV, TSV, Markdown, JSON, JSON lines or Parquet file, or of a pipe.

    Raises
    ------
    DataError
        If the file is missing, empty, damaged, of another kind, or not a table with unique
        column names.
    """
    try:
        if path.exists() and not (path.is_file() or path.is_fifo()):
            found = "a folder, which is read alone" if path.is_dir() else "a device or a socket"
            raise cells.unexpected(path, "a file or a pipe", found)
        with path.open("rb") as file:
            start = file.read(1 << 12)
            piped = start + file.read(MAX_BYTES) if path.is_fifo() else None
        size = path.stat().st_size if piped is None else len(piped)
    except (OSError, ValueError) as error:
        why = f"not readable: {clean(str(error))}"
        if isinstance(error, FileNotFoundError):
            why = "no such file or directory; expected a loss table or a study"
        raise DataError(f"{clean(str(path))}: {why}") from error
    suffix = path.suffix.lower() if piped is None else ""  # a pipe's name says nothing
    source = Source(path, piped, suffix)
    if start.startswith(b"PAR1") or suffix in _PARQUET:
        return _read_parquet(source)
    if what := next((what for magic, what in _FOREIGN.items() if start.startswith(magic)), ""):
        raise cells.unexpected(path, _EXPECTED, what)
    check_size(source, size=size)
    is_json = re.match(rb"(\xef\xbb\xbf)?\s*(\[\s*)?\{", start) and suffix in (*_TEXT, ".log")
    if is_json or suffix in (".json", *_LINES):
        return read_json(source, lines=suffix in _LINES)
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
        kind = kinds.pop() if len(kinds) == 1 else pa.string()  # as text a number is the same
        columns[name] = pa.concat_arrays([part.cast(kind) for part in parts])
    common = os.path.commonpath([path.absolute().parent for path in paths])
    names = [path.stem for path in paths]
    if len({*names}) < len(names):  # such as a log in each run's folder
        names = [str(path.absolute().relative_to(common).with_suffix("")) for path in paths]
    columns.setdefault("file", pa.array(np.repeat(names, sizes).tolist()))

    def describe(row: int) -> str:
        part = int(np.searchsorted(ends, row, side="right"))
        inside = row - int(ends[part]) + sizes[part]
        return f"{names[part]}{paths[part].suffix}: {tables[part].describe_row(inside)}"

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
    return cells.make_raw(source, [(n, c) for n, c in named if n != "__index_level_0__"])


def _read_parquet(source: Source) -> RawTable:
    try:
        with source.open() as opened, pq.ParquetFile(opened) as file:
            types = {each.name: each.type for each in file.schema_arrow if each.name}
            kept = [n for n, t in types.items() if not pa.types.is_nested(t) or _is_mapping(t)]
            _check_parquet(source, file.metadata, {*kept})
        # Texts stay as they are stored, each different one once, until their size is known.
        texts = [name for name in kept if pa.types.is_string(types[name])]
        with source.open() as opened, pq.ParquetFile(opened, read_dictionary=texts) as file:
            table = file.read(columns=kept, use_threads=False)
            table.validate(full=True)  # texts may be no UTF-8
        return read_arrow(table, source)
    # A damaged file fails in many ways: a name or a text that is no UTF-8 is a ValueError.
    except (pa.ArrowException, OSError, ValueError, LookupError, OverflowError) as error:
        cause = clean(str(error).partition("\n")[0]) or type(error).__name__
        raise DataError(f"{source}: damaged Parquet file, or not Parquet: {cause}") from error


def _check_parquet(source: Source, about: Any, names: set[str]) -> None:
    """Refuse what a Parquet file says would not fit in memory, before any is taken."""
    groups = [about.row_group(number) for number in range(about.num_row_groups)]
    chunks = [group.column(k) for group in groups for k in range(about.num_columns)]
    used = [chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] in names]
    size = sum(max(chunk.total_uncompressed_size, 8 * chunk.num_values) for chunk in used)
    check_size(source, about.num_rows, len(names), size)


# --- JSON

# Objects and lists of a line from which on Arrow's parser, which recurses, is not asked.
_DEEPEST = 50
_EXAMPLE = '{"width": 64, "lr": 0.01, "loss": 3.2}'


def read_json(source: Source, *, lines: bool = False) -> RawTable:
    """Return the cells of a JSON document: rows, or columns, or rows under a key; or JSON lines.

    Read are a list of objects, an object of them by run (whose key is the column ``run``), one
    list of them under any key (``{"runs": [...]}``), lists by column, pandas' ``columns`` and
    ``split`` forms, and one run with its settings; or an object on each line that is not blank. A
    key that an object lacks is an empty cell.

    Raises
    ------
    DataError
        If the file is not UTF-8, no JSON, or another document.
    """
    if lines and (table := _read_lines(source)) is not None:
        columns = [*zip(table.column_names, table.columns, strict=True)]
        return cells.make_raw(source, columns, lambda k: _find_place(_scan_json(source.read()), k))
    text = source.read()
    first, _, more = text.strip().partition("\n")
    with suppress(ValueError, RecursionError):
        lines = lines or bool(more and isinstance(json.loads(first), dict))
    if lines:
        scanned = _scan_json(text)
        rows = [(place, _load_json(line, f"{source}: {place}")) for place, line in scanned]
    else:
        found = _find_rows(source, _load_json(text, source))
        rows = [(f"row {number}", row) for number, row in enumerate(found, start=1)]
    if not rows:
        raise DataError(f"{source}: empty file; expected a JSON object for each run")
    for place, row in rows:
        if not isinstance(row, dict):
            expected = f"a JSON object for each run, such as {_EXAMPLE}"
            raise cells.unexpected(f"{source}: {place}", expected, type(row).__name__)
    return tabulate(source, ((place, to_cells(row)) for place, row in rows))


def _scan_json(text: str) -> Iterator[tuple[str, str]]:
    """Yield each line that is not blank, and its place."""
    row = 0
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            row += 1
            yield f"row {row} (line {number})", line


def _find_rows(source: Source, document: Any) -> list[Any]:
    """Return the rows of a document, or raise the error of one of no known form."""
    if not isinstance(document, dict):
        return document if isinstance(document, list) else [document]
    values = [*document.values()]
    if values and all(isinstance(value, dict) for value in values):
        filled = [len(value) for value in values if value]
        if len(filled) > 1 and sum(filled) == len({key for value in values for key in value}):
            return [document]  # the sections of one run: its settings, its results
        if not (len({*map(tuple, values)}) == 1 and all(map(str.isdigit, values[0])) and values[0]):
            return [{"run": name, **value} for name, value in document.items()]
        document = {name: list(value.values()) for name, value in document.items()}
    lists = {name: v for name, v in document.items() if isinstance(v, list) and v}
    rows = [v for v in lists.values() if all(isinstance(item, dict) for item in v)]
    if len(rows) == 1:
        return rows[0]
    if {"columns", "data"} <= lists.keys() and all(isinstance(r, list) for r in lists["data"]):
        return [dict(zip(map(str, lists["columns"]), r, strict=False)) for r in lists["data"]]
    # Width, rate and loss beside a curve or two, which are too few columns for a table.
    if 0 < len(lists) < 3 <= sum(type(value) in (int, float) for value in values):
        return [document]
    if len({*map(len, lists.values())}) == 1:
        return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
    # Names of settings make one run; those with numbers are settings written as keys.
    is_named = not all(re.search(r"\d", name) for name in document)
    if is_named and any(isinstance(value, str | int | float) for value in values):
        return [document]
    expected = "a JSON list of objects, one for each run, or lists by column"
    hint = f"settings in keys are to be written out: [{_EXAMPLE}, …]"
    found = f"an object of {cells.name_some(document, 3) or 'nothing'}"
    raise cells.unexpected(source, expected, found, hint)


def _find_place(scanned: Iterator[tuple[str, object]], row: int) -> str:
    return next(islice(scanned, row, None))[0]


def _read_lines(source: Source) -> pa.Table | None:
    """Return JSON lines as Arrow reads them; None where a line has to be found or cells change."""
    try:
        with source.open() as file:
            for line in map(bytes.strip, file):
                depth = line.count(b"{") + line.count(b"[")
                if line and (depth > _DEEPEST or line[:1] + line[-1:] != b"{}"):
                    return None
            file.seek(0)
            table = _flatten(arrow_json.read_json(file, arrow_json.ReadOptions(use_threads=False)))
        table.validate(full=True)  # Arrow's parser lets texts pass that are no UTF-8
    except (pa.ArrowException, ValueError):
        return None
    floats = [column for column in table.columns if pa.types.is_floating(column.type)]
    is_odd = (
        not table.num_rows
        or len({*map(clean, table.column_names)}) < table.num_columns
        # Cells that are no longer as written: a text as a date, a long seed as a double.
        or any(pa.types.is_timestamp(column.type) for column in table.columns)
        or any((pc.max(pc.abs(column)).as_py() or 0) >= 2.0**53 for column in floats)
    )
    return None if is_odd else table


def _flatten(table: pa.Table) -> pa.Table:
    """Return a table whose structs and maps are columns, each under its names joined by dots."""
    while any(_is_mapping(kind) for kind in table.schema.types):
        for k, (name, kind) in enumerate(zip(table.column_names, table.schema.types, strict=True)):
            if pa.types.is_map(kind):
                items = [{str(n): v for n, v in cell or ()} for cell in table[k].to_pylist()]
                table = table.set_column(k, name, pa.array(items))
        table = table.flatten()
    return table


def _is_mapping(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind) or pa.types.is_map(kind))


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
        check_size(f"{source}: {place}", row, len(columns))
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


# --- CSV, TSV, Markdown and aligned text


# The names of a text's columns, what separates cells, and the lines above the first row.
_Layout: TypeAlias = tuple[list[str], str, int]


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
    layout = names, delimiter, above = _find_layout(source)
    if not delimiter:
        source = Source(source.path, _align(source).encode())
        layout = names, delimiter, above = _find_layout(source)
    cells.check_names(source, names)
    keys = [*map(str, range(len(names)))]
    try:
        with source.open() as file:
            table = arrow_csv.read_csv(
                file,
                arrow_csv.ReadOptions(
                    column_names=keys, skip_rows=above, block_size=_BLOCK, use_threads=False
                ),
                arrow_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
                arrow_csv.ConvertOptions(column_types=dict.fromkeys(keys, pa.string())),
            )
    except (pa.ArrowInvalid, UnicodeError):
        return tabulate(source, _scan_text(source, *layout))
    blank = [pc.equal(pc.utf8_trim_whitespace(table[0]), "")]
    if pc.any(blank[0]).as_py():  # a row that holds nothing is none
        blank += [pc.equal(pc.utf8_trim_whitespace(column), "") for column in table.columns[1:]]
        table = table.filter(pc.invert(reduce(pc.and_, blank)))
    columns = []
    for name in names:  # one at a time, so that the table is never held twice
        columns.append((name, table[0].combine_chunks()))
        table = table.remove_column(0)
    return cells.make_raw(
        source, columns, lambda row: _find_place(_scan_text(source, *layout), row)
    )


def _find_layout(source: Source) -> _Layout:
    """Return a text's header, and how it is separated: "" where by blanks or as Markdown."""
    with source.open() as file:
        head = file.read(_HEAD).decode("utf-8-sig", "replace")
    lines = [*io.StringIO(head, newline="")]
    filled = [k for k, line in enumerate(lines) if line.strip()]
    first = next((k for k in filled if not _COMMENT.match(lines[k])), None)
    if source.suffix == ".md":  # a table may stand below some words
        first = next((k for k in filled if lines[k].lstrip().startswith("|")), first)
    if first is None:
        what = "table; expected rows below the" if filled else "file; expected a"
        raise DataError(f"{source}: empty {what} header with width, lr and loss")
    delimiter = _sniff(source, lines[first])
    names, rows = _read_header(lines[first:], delimiter)
    if any("\ufffd" in name for name in names):
        source.read()
    if not all(cells.parse_plain(name) == cells.parse_plain(name) for name in names):
        return names, delimiter, first + rows
    comments = [lines[k].lstrip("#, ") for k in filled if k < first]
    above = _read_header(comments[-1:], delimiter)[0]
    if len(above) != len(names):
        found = f"numbers: {cells.name_some(names, 4)}"
        expected = "names of columns such as width, lr and loss"
        raise cells.unexpected(f"{source}: header", expected, found)
    return above, delimiter, first


def _read_header(lines: list[str], delimiter: str) -> tuple[list[str], int]:
    """Return the cells of a text's first row, and the lines that it stands on."""
    reader, names = csv.reader(lines, delimiter=delimiter or ","), list[str]()
    with suppress(csv.Error):
        names = next(reader, [])
    return [*map(clean, names)], reader.line_num


def _sniff(source: Source, header: str) -> str:
    """Return the most frequent separator of a header, nothing where it is blanks or Markdown."""
    if source.suffix in (".tsv", ".tab"):
        return "\t"
    bare = "".join(header.split('"')[::2])  # a quoted name may hold anything
    best = max(",\t;|", key=bare.count)
    is_markdown = bare.startswith("|") and bare.rstrip().endswith("|")
    return "" if is_markdown or (best not in bare and len(bare.split()) > 2) else best


def _align(source: Source) -> str:
    """Return Markdown or aligned text as CSV, each row on the line where it stood."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    lines = [*map(str.strip, source.read().split("\n"))]
    is_markdown = any(line.startswith("|") for line in lines)
    heads = [k for k, line in enumerate(lines) if line.startswith("|") and _RULE.fullmatch(line)]
    if heads and not all(line.startswith("|") for line in lines[heads[0] : heads[-1]]):
        place, hint = f"{source}: line {heads[-1] + 1}", "write each to a file of its own"
        raise cells.unexpected(place, "one table in a file", "another below it", hint)
    for line in lines:
        if not line or _RULE.fullmatch(line) or (is_markdown and not line.startswith("|")):
            out.write("\n")
        elif line.startswith("|"):
            inner = line.strip("|").split("|")
            writer.writerow([cell.strip().strip("*`$").strip() for cell in inner])
        else:
            writer.writerow(line.split())
    return out.getvalue()


def _scan_text(
    source: Source, names: list[str], delimiter: str, above: int
) -> Iterator[tuple[str, list[tuple[str, object]]]]:
    """Yield each row that is not blank, its place and cells, up to the first that is wrong."""
    number = 0
    with io.TextIOWrapper(source.open(), "utf-8-sig", newline="") as text:
        reader = csv.reader(islice(text, above, None), delimiter=delimiter)
        try:
            for row in reader:
                if any(map(str.strip, row)):
                    number += 1
                    place = f"row {number} (line {above + reader.line_num})"
                    if len(row) != len(names):
                        expected = f"{len(names)} cells as in the header"
                        raise cells.unexpected(f"{source}: {place}", expected, len(row))
                    yield place, [item for item in zip(names, row, strict=True) if item[0]]
        except csv.Error as error:
            line = f"line {above + reader.line_num}"
            raise DataError(f"{source}: {line}: not readable as CSV: {error}") from error
        except UnicodeDecodeError:
            source.read()
