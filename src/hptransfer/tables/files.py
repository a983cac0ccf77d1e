"""Which kind of file a table is, told by its first bytes and by its name."""

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from hptransfer.errors import DataError
from hptransfer.tables.raw import RawTable

#: Rows of a table from which on columns that nothing asks for are not kept.
LARGE = 1 << 16

#: More rows than any table of trials holds; a compressed file can claim any number.
MAX_ROWS = 10_000_000

#: More different keys than the settings and metrics of trials have.
MAX_COLUMNS = 4096

_TEXT = (".csv", ".tsv", ".tab", ".txt", ".dat", "")
_LINES = (".jsonl", ".ndjson")
_PARQUET = (".parquet", ".pq")
_EXPECTED = (
    "expected CSV (.csv), TSV (.tsv), JSON (.json), JSON lines (.jsonl, .ndjson) or "
    "Parquet (.parquet)"
)

# First bytes of what people have beside tables, and what it is.
_FOREIGN = (
    (b"PK\x03\x04", "a zip archive or a spreadsheet; save the sheet as CSV"),
    (b"\xd0\xcf\x11\xe0", "an old spreadsheet; save the sheet as CSV"),
    (b"\x1f\x8b", "a gzip file; unpack it first"),
    (b"BZh", "a bzip2 file; unpack it first"),
    (b"\xfd7zXZ", "an xz file; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstd file; unpack it first"),
    (b"ARROW1", "an Arrow or Feather file; write it as Parquet"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x80\x04", "a pickle, which is never loaded"),
    (b"\x80\x05", "a pickle, which is never loaded"),
    (b"%PDF", "a PDF"),
)


def read_file(path: Path, wanted: Collection[str] | None = None) -> RawTable:
    """Return the cells of a CSV, TSV, JSON, JSON lines or Parquet file.

    Parameters
    ----------
    path : Path
        The file.
    wanted : collection of str, optional
        Columns to keep of a table of more than `LARGE` rows, in lower case (default: all); a
        smaller one keeps all of them, which lets messages say what rows differ in.

    Raises
    ------
    DataError
        If the file is missing, empty, damaged, of another kind, or not a table with unique
        column names.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or directory; expected a loss table or a study")
    with path.open("rb") as file:
        start = file.read(16)
    # Imported here: each kind of file needs its own reader only.
    suffix = path.suffix.lower()
    if start.startswith(b"PAR1") or suffix in _PARQUET:
        from hptransfer.tables.parquet import read_parquet

        return read_parquet(path, wanted)
    found = next((what for magic, what in _FOREIGN if start.startswith(magic)), None)
    if found:
        raise DataError(f"{path}: {_EXPECTED}, found {found}")
    if suffix in _LINES:
        from hptransfer.tables.jsonl import read_jsonl

        return read_jsonl(path, wanted)
    if suffix == ".json":
        from hptransfer.tables.jsonl import read_json

        return read_json(path, wanted)
    if suffix not in _TEXT:
        raise DataError(f"{path}: {_EXPECTED}, found a file named {suffix}")
    from hptransfer.tables.delimited import read_delimited

    return read_delimited(path, wanted)


def check_names(path: Path, names: Sequence[str]) -> None:
    """Refuse columns of one name; a column without a name, such as an index, is nobody's.

    Raises
    ------
    DataError
        If a name stands twice; the message says in which columns.
    """
    twice = [name for name, count in Counter(names).items() if name and count > 1]
    if twice:
        where = [str(number) for number, name in enumerate(names, start=1) if name == twice[0]]
        shown = ", ".join(where[:6]) + (", …" if len(where) > 6 else "")
        raise DataError(
            f"{path}: header: column {twice[0][:60]!r} stands {len(where)} times "
            f"(columns {shown}); expected each name once"
        )


def check_rows(path: Path, rows: int) -> None:
    """Refuse a table of more than `MAX_ROWS` rows.

    Raises
    ------
    DataError
        If there are more.
    """
    if rows > MAX_ROWS:
        raise DataError(f"{path}: expected at most {MAX_ROWS:,} rows, found more")


def check_columns(source: object, place: str, columns: int) -> None:
    """Refuse a table that is a log of another kind: each column is padded to full length.

    Raises
    ------
    DataError
        If there are more than `MAX_COLUMNS`.
    """
    if columns > MAX_COLUMNS:
        raise DataError(
            f"{source}: {place}: expected at most {MAX_COLUMNS} different keys in a table, "
            f"found more"
        )


def is_wanted(name: str, wanted: Collection[str] | None) -> bool:
    """Tell whether a large table keeps a column."""
    return wanted is None or name.lower() in wanted
