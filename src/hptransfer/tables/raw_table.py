"""A table as its file holds it: named Arrow columns of unchecked cells."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hptransfer.errors import DataError
from hptransfer.tables.wording import clean

if TYPE_CHECKING:
    import pyarrow as pa

#: More rows than any table of trials holds; a compressed file can claim any number.
MAX_ROWS = 10_000_000

#: More different keys than the settings and metrics of trials have.
MAX_COLUMNS = 4096

#: Bytes that a table may take in memory, and its texts once written out.
MAX_BYTES = 2 * 2**30
MAX_TEXT_BYTES = 2**29

# Whole numbers beyond this are no doubles: hashes, which stay text.
_EXACT = 2.0**53


@dataclass(frozen=True, kw_only=True)
class RawTable:
    """Cells as read, before any meaning is given to them.

    Attributes
    ----------
    source : str
        The file or directory, for messages.
    columns : dict of str to pyarrow.Array
        Cells by column name, all of one length: text, whole numbers, doubles, booleans or null.
    describe_row : callable
        Says where a row of the file stands, ``"row 3 (line 4)"``; it may read the file again.
    rows : ndarray of int, shape (rows,)
        Which rows of the file these are, from 0.
    last_steps : mapping of str to ndarray
        Of runs of a tracker: the last step at which each metric was logged, NaN where never.
    """

    source: str
    columns: dict[str, "pa.Array"]
    describe_row: Callable[[int], str]
    rows: NDArray[np.int64]
    last_steps: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def place(self, row: int, column: str = "") -> str:
        """Return where a row or, with its name, a cell of it stands, for messages."""
        place = f"{self.source}: {self.describe_row(int(self.rows[row]))}"
        return f"{place}: column {column!r}" if column else place

    def cell(self, row: int, column: str) -> object:
        """Return one cell: text, a number, a boolean or None."""
        return self.columns[column][int(row)].as_py()

    def take(self, rows: NDArray[np.int64]) -> "RawTable":
        """Return the table of some rows."""
        import pyarrow as pa

        picked = pa.array(rows)
        return replace(
            self,
            columns={name: column.take(picked) for name, column in self.columns.items()},
            rows=self.rows[rows],
            last_steps={name: steps[rows] for name, steps in self.last_steps.items()},
        )


def make_raw(
    source: object,
    columns: Sequence[tuple[str, "pa.Array | pa.ChunkedArray"]],
    describe_row: Callable[[int], str] | None = None,
) -> RawTable:
    """Return a raw table of Arrow columns; one without a name, such as an index, is nobody's.

    Raises
    ------
    DataError
        If a name stands twice, or there are no rows, or more rows or columns than a table has.
    """
    rows = len(columns[0][1]) if columns else 0
    check_size(source, rows, len(columns))
    found: dict[str, pa.Array] = {}
    names = [clean(name) for name, _ in columns]
    for name, (_, cells) in zip(names, columns, strict=True):
        if name in found:
            where = [str(k) for k, other in enumerate(names, start=1) if other == name]
            shown = ", ".join(where[:6]) + (", …" if len(where) > 6 else "")
            raise DataError(
                f"{source}: header: column {name[:60]!r} stands {len(where)} times "
                f"(columns {shown}); expected each name once"
            )
        if name:
            found[name] = _simplify(source, cells)
    if not rows:
        raise DataError(f"{source}: empty table; expected a row for each trial, found none")
    return RawTable(
        source=str(source),
        columns=found,
        describe_row=describe_row or (lambda row: f"row {row + 1}"),
        rows=np.arange(rows),
    )


def check_size(source: object, rows: int, columns: int = 0) -> None:
    """Refuse more rows or columns than a table of trials has.

    Raises
    ------
    DataError
        If there are more than `MAX_ROWS` or `MAX_COLUMNS`.
    """
    if rows > MAX_ROWS:
        raise DataError(f"{source}: expected at most {MAX_ROWS:,} rows, found more")
    if columns > MAX_COLUMNS:
        raise DataError(
            f"{source}: expected at most {MAX_COLUMNS} different keys in a table, found more"
        )


def _simplify(source: object, cells: "pa.Array | pa.ChunkedArray") -> "pa.Array":
    """Return a column as text, whole numbers, doubles, booleans or null."""
    import pyarrow as pa
    import pyarrow.compute as pc

    types, kind = pa.types, cells.type
    if types.is_dictionary(kind):
        if types.is_string(kind.value_type):
            # A long text repeated by index takes little in a file, and anything once written out.
            parts = cells.chunks if isinstance(cells, pa.ChunkedArray) else [cells]
            lengths = [pc.take(pc.binary_length(part.dictionary), part.indices) for part in parts]
            if sum(pc.sum(each).as_py() or 0 for each in lengths) > MAX_TEXT_BYTES:
                raise DataError(f"{source}: expected a table of trials, found texts of GiB")
        cells, kind = cells.cast(kind.value_type), kind.value_type
    if types.is_uint64(kind) or types.is_temporal(kind) or types.is_large_string(kind):
        cells = cells.cast(pa.string())
    elif types.is_integer(kind):
        cells = cells.cast(pa.int64())
    elif types.is_floating(kind) or types.is_decimal(kind):
        cells = cells.cast(pa.float64())
    elif not (types.is_boolean(kind) or types.is_string(kind) or types.is_null(kind)):
        cells = pa.array([f"<{clean(str(kind))[:30]}>"] * len(cells), pa.string())
    if isinstance(cells, pa.ChunkedArray):
        chunks = cells.chunks
        cells = chunks[0] if len(chunks) == 1 else pa.concat_arrays(chunks or [pa.nulls(0)])
    return cells


def make_column(cells: Sequence[object]) -> "pa.Array":
    """Return cells of any kinds as a column: numbers where all of them are, else text."""
    import pyarrow as pa

    kinds = {type(cell) for cell in cells if cell is not None}
    whole = kinds == {int} and all(abs(cell) < 2**63 for cell in cells if cell is not None)  # type: ignore[arg-type]
    exact = kinds == {int, float} and all(
        abs(cell) <= _EXACT for cell in cells if type(cell) is int
    )
    if not kinds or whole or kinds in ({float}, {bool}):
        return pa.array(cells)
    if exact:
        return pa.array(cells, pa.float64())
    return pa.array([None if cell is None else _write(cell) for cell in cells], pa.string())


def _write(cell: object) -> str:
    if isinstance(cell, int) and abs(cell) > 10**300:  # too long to be written out
        return "inf" if cell > 0 else "-inf"
    return str(cell)


def encode(cells: "pa.Array") -> tuple[NDArray[np.int64], list[object]]:
    """Return a column as codes, shape (rows,), and its distinct cells by first appearance."""
    coded = cells.dictionary_encode(null_encoding="encode")
    return np.asarray(coded.indices, dtype=np.int64), coded.dictionary.to_pylist()


def join_codes(*parts: NDArray[Any]) -> NDArray[np.int64]:
    """Return one code for each different combination of values, by first appearance."""
    import pyarrow as pa

    key = np.zeros(len(parts[0]), dtype=np.int64)
    for part in parts:
        code = encode(pa.array(part))[0]
        # Renumbered each time, so that the product of two codes is far from overflowing.
        key = encode(pa.array(key * (code.max(initial=0) + 1) + code))[0]
    return key


def count_codes(codes: NDArray[np.int64]) -> int:
    """Return how many different codes there are."""
    return int(codes.max(initial=-1)) + 1


def find_first(codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the first row of each code, shape (codes,)."""
    first = np.zeros(count_codes(codes), dtype=np.int64)
    first[codes[::-1]] = np.arange(len(codes))[::-1]
    return first
