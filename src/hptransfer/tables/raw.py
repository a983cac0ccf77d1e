"""A table as its file holds it: named columns of unchecked cells."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False)
class Places(Sequence[str]):
    """Where each row stands, such as ``"row 3 (line 4)"``, put in words only when asked.

    Attributes
    ----------
    rows : ndarray of int, shape (rows,)
        Numbers of the rows in the file, from 1.
    lines : ndarray of int or None, shape (rows,)
        The line that each row ends on, where the file has lines.
    word : str
        What a row is called.
    names : tuple of str or None
        Names that rows have instead of numbers, as runs do.
    """

    rows: NDArray[np.int64]
    lines: NDArray[np.int64] | None = None
    word: str = "row"
    names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "Places": ...
    def __getitem__(self, index: int | slice) -> "str | Places":
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        if self.names is not None:
            return f"run {self.names[index]}"
        line = "" if self.lines is None else f" (line {self.lines[index]})"
        return f"{self.word} {self.rows[index]}{line}"

    def take(self, rows: NDArray[np.int64]) -> "Places":
        """Return the places of some rows."""
        lines = None if self.lines is None else self.lines[rows]
        names = None if self.names is None else tuple(self.names[row] for row in rows.tolist())
        return Places(rows=self.rows[rows], lines=lines, word=self.word, names=names)


@dataclass(frozen=True, kw_only=True)
class RawTable:
    """Cells as read, before any meaning is given to them.

    Attributes
    ----------
    source : str
        The file or directory, for messages.
    columns : dict of str to sequence of object
        Cells by column name, all of one length; None or "" where a cell is empty.
    places : Places
        Where each row stands.
    dropped : tuple of str
        Columns whose cells were not kept, as nothing asked for them in a large table.
    """

    source: str
    columns: dict[str, Sequence[object]]
    places: Places
    dropped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.places)

    @property
    def names(self) -> list[str]:
        """Names of all columns of the file."""
        return [*self.columns, *self.dropped]

    def take(self, rows: NDArray[np.int64]) -> "RawTable":
        """Return the table of some rows."""
        picked = rows.tolist()
        return RawTable(
            source=self.source,
            columns={name: [cells[row] for row in picked] for name, cells in self.columns.items()},
            places=self.places.take(rows),
            dropped=self.dropped,
        )


def encode(cells: Sequence[object]) -> tuple[NDArray[np.int64], list[object]]:
    """Return a column as codes and its distinct cells, in order of first appearance.

    Parameters
    ----------
    cells : sequence of object
        Cells; ``1``, ``1.0``, ``True`` and ``"1"`` are four different ones.

    Returns
    -------
    codes : ndarray of int, shape (rows,)
        Index of each cell among the distinct ones.
    values : list of object
        The distinct cells.
    """
    kinds = set(map(type, cells))
    # Text is its own key; among several types the type keeps True from being 1.
    keys: Iterable[object] = cells if len(kinds) < 2 else zip(map(type, cells), cells, strict=True)
    code: defaultdict[object, int] = defaultdict()
    code.default_factory = code.__len__
    codes = np.fromiter(map(code.__getitem__, keys), np.int64, len(cells))
    values = list(code) if len(kinds) < 2 else [key[1] for key in code]  # type: ignore[index]
    return codes, values
