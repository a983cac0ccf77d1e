"""The seed column: numbers where it holds numbers, labels where it holds words."""

import numpy as np
from numpy.typing import NDArray

from hptransfer.tables.cells import Need, is_fine, parse_all, parse_number
from hptransfer.tables.raw import RawTable, encode

# Whole numbers up to here are themselves as floats and as 64-bit integers.
_LARGEST = 2.0**53


def read_seeds(raw: RawTable, name: str) -> NDArray[np.int64]:
    """Return a seed for each row, shape (rows,).

    A seed only says which trials belong together, so a column of words ("mean of 3") is one of
    labels, numbered in order of appearance, as are hashes too large for a machine's integer. One
    bad cell among numbers stays an error.

    Parameters
    ----------
    raw : RawTable
        A table with a column ``seed``.
    name : str
        The file's name of that column, for the message.

    Raises
    ------
    DataError
        If some cells are numbers and one is not a whole number.
    """
    codes, values = encode(raw.columns["seed"])
    numbers = parse_all(values)
    if np.isnan(numbers).all():
        return codes
    bad = ~is_fine(numbers, Need.WHOLE)
    if bad.any():
        row = int(np.argmax(bad[codes]))
        place = f"{raw.source}: {raw.places[row]}: column {name!r}"
        parse_number(values[codes[row]], place, Need.WHOLE)
        raise AssertionError("a cell that is no whole number was read as one")
    if np.abs(numbers).max() > _LARGEST:
        return codes
    return numbers.astype(np.int64)[codes]
