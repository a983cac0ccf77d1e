"""Cells to values: numbers in the notations people use, names and states, or what is wrong."""

import math
import re
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hptransfer.errors import DataError
from hptransfer.tables.raw_table import RawTable, encode
from hptransfer.tables.wording import clean, show, suggest

if TYPE_CHECKING:
    import pyarrow as pa

#: What trackers and data frames write where there is no number.
EMPTY = frozenset({"", "na", "n/a", "nan", "none", "null", "<na>"})

#: States by the words of trackers, tuners and schedulers. A run that crashed or was killed says
#: nothing about its learning rate, whatever its last logged loss is.
STATES = {
    **dict.fromkeys(("completed", "finished", "complete", "success", "terminated"), "completed"),
    "diverged": "diverged",
    **dict.fromkeys(("failed", "fail", "error", "timeout"), "failed"),
    **{word: word for word in ("crashed", "killed", "pruned")},
    **dict.fromkeys(("preempted", "preempting", "cancelled", "canceled"), "preempted"),
    **dict.fromkeys(("pending", "running", "scheduled", "queued", "waiting"), "pending"),
}

#: Beyond these a number is as good as infinite, or as zero: no training in single precision
#: meets it, and its square still is a number.
LARGEST = 1e50
SMALLEST = 1e-50

_POWER = re.compile(r"(2|10|e)(?:\^|\*\*)[({]?([+-]?\d+(?:\.\d*)?)[)}]?", re.IGNORECASE)
_SIZED = re.compile(r"(\d+(?:\.\d*)?)\s?([kmbg])", re.IGNORECASE)
_SIZES = {"k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9}
_MULTIPLE = re.compile(r"[+]?(\d*\.?\d+(?:e[+-]?\d+)?)\s?[x×]", re.IGNORECASE)

_HINTS = (
    (re.compile(r"[1-9]\d{0,2}(,\d{3})+(\.\d+)?"), "write numbers without thousands separators"),
    (re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?"), "write decimals with a point"),
    (re.compile(r"[\d.eE+-]+\s*(±|\+/?-|\().*"), "write the number alone, and its error apart"),
    (re.compile(r"[\d.eE+-]+\s*[%a-zA-Z].*"), "write the number alone, without a unit"),
    (re.compile(r"[a-zA-Z][\w .-]*"), "give words numbers with --map {column}:{text}=NUMBER,…"),
)


class Need(Enum):
    """What a number must be; the value is how a message says it."""

    ANY = "a number"
    POSITIVE = "a positive number"
    NOT_NEGATIVE = "a number of 0 or more"
    WHOLE = "a whole number"


def is_empty(cell: object) -> bool:
    """Tell whether a cell holds nothing, by any of the usual spellings."""
    return cell is None or (isinstance(cell, str) and cell.strip().lower() in EMPTY)


def is_nan(cell: object) -> bool:
    """Tell whether a cell says outright that it is not a number."""
    return isinstance(cell, float) or (
        isinstance(cell, str) and cell.strip().lower() in ("nan", "+nan", "-nan")
    )


def is_fine(values: NDArray[np.float64], need: Need) -> NDArray[np.bool_]:
    """Tell which numbers are what they need to be; NaN never is."""
    least = {Need.POSITIVE: SMALLEST, Need.NOT_NEGATIVE: 0.0}.get(need, -LARGEST)
    fine = (values >= least) & (values <= LARGEST)
    return np.asarray(fine & (values == np.floor(values)) if need is Need.WHOLE else fine)


def parse_plain(cell: object) -> float:
    """Return a cell as a number, NaN where it is not written as a decimal one."""
    # True is a number to Python and a slip in a table; "1_000" likewise.
    if isinstance(cell, bool) or (isinstance(cell, str) and "_" in cell):
        return math.nan
    try:
        return float(cell)  # type: ignore[arg-type]
    except OverflowError:  # a whole number beyond the largest float
        return math.inf
    except (TypeError, ValueError):
        return math.nan


def parse_number(cell: object) -> float:
    """Return a cell as a number, NaN where it is none: ``64``, ``2^-11``, ``19M``, ``0.25x``.

    Examples
    --------
    >>> [parse_number(cell) for cell in ("1e-3", "2^-2", "10**3", "19M", "0.25x", "1_0", True)]
    [0.001, 0.25, 1000.0, 19000000.0, 0.25, nan, nan]
    """
    number = parse_plain(cell)
    text = cell.strip() if isinstance(cell, str) and math.isnan(number) else ""
    if not text or len(text) > 40:
        return number
    if found := _POWER.fullmatch(text):
        base = math.e if found[1] in "eE" else float(found[1])
        try:
            return float(base ** float(found[2]))
        except OverflowError:
            return math.inf
    if found := _SIZED.fullmatch(text):
        return float(found[1]) * _SIZES[found[2].lower()]
    found = _MULTIPLE.fullmatch(text)
    return float(found[1]) if found else number


def find_notation(cell: object) -> str:
    """Return ``multiple`` of a cell like ``0.25x``, ``size`` of one like ``19M``, else nothing."""
    text = cell.strip() if isinstance(cell, str) else ""
    return "multiple" if _MULTIPLE.fullmatch(text) else "size" if _SIZED.fullmatch(text) else ""


def to_numbers(cells: "pa.Array") -> NDArray[np.float64]:
    """Return a column as numbers, shape (rows,); NaN where a cell is none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = cells.type
    if pa.types.is_boolean(kind) or pa.types.is_null(kind):
        return np.full(len(cells), np.nan)
    if pa.types.is_string(kind):
        try:
            filled = pc.if_else(pc.equal(cells, ""), pa.scalar(None, pa.string()), cells)
            return _to_numpy(pc.cast(filled, pa.float64()))
        except pa.ArrowInvalid:
            codes, values = encode(cells)
            numbers = np.array([parse_number(value) for value in values], dtype=np.float64)
            return numbers[codes]
    return _to_numpy(pc.cast(cells, pa.float64(), safe=False))


def _to_numpy(cells: "pa.Array") -> NDArray[np.float64]:
    return np.asarray(cells.to_numpy(zero_copy_only=False), dtype=np.float64)


def explain_number(raw: RawTable, row: int, column: str, need: Need, hint: str = "") -> DataError:
    """Return the error of a cell that is not the number it needs to be."""
    cell = raw.cell(row, column)
    place = f"{raw.place(row, column)}: expected {need.value}, found"
    if is_empty(cell) and not is_nan(cell):
        return DataError(f"{place} an empty cell{hint}")
    if isinstance(cell, str) and math.isnan(parse_number(cell)):
        text = cell.strip()[:60]
        words = next((words for form, words in _HINTS if form.fullmatch(text)), "")
        hint = f"; {words.format(column=column, text=clean(text))}" if words else hint
    return DataError(f"{place} {show(cell)}{hint}")


def parse_states(raw: RawTable, column: str) -> tuple[NDArray[np.int64], list[str]]:
    """Return trials' states as codes and words; a row that says nothing has been completed.

    Raises
    ------
    DataError
        If a cell is no state of `STATES`.
    """
    codes, values = encode(raw.columns[column])
    words = ["" if is_empty(v) else clean(v).lower() if isinstance(v, str) else "?" for v in values]
    for code, word in enumerate(words):
        if word and word not in STATES:
            place = raw.place(int(np.argmax(codes == code)), column)
            raise DataError(
                f"{place}: expected a state ({', '.join(dict.fromkeys(STATES.values()))}), found "
                f"{show(values[code])}{suggest(word, list(STATES))}"
            )
    return codes, [STATES[word] if word else "completed" for word in words]


def parse_names(cells: "pa.Array") -> tuple[NDArray[np.int64], list[object]]:
    """Return names of groups as codes and names, which are numbers where all of them are."""
    codes, values = encode(cells)
    names: list[object] = [
        "" if v is None else clean(v) if isinstance(v, str) else v for v in values
    ]
    numbers = [parse_plain(name) for name in names]
    if all(map(math.isfinite, numbers)):
        names = [int(n) if n.is_integer() and abs(n) < 2**53 else n for n in numbers]
    index: dict[object, int] = {}
    again = np.array([index.setdefault(name, len(index)) for name in names], dtype=np.int64)
    return again[codes], list(index)


def find_blank(cells: "pa.Array") -> NDArray[np.bool_]:
    """Return which cells of a column are empty, which is less than not being a number."""
    import pyarrow as pa
    import pyarrow.compute as pc

    blank = cells.is_null()
    if pa.types.is_string(cells.type):
        words = pa.array(sorted(EMPTY - {"nan"}))
        blank = pc.or_(blank, pc.is_in(pc.utf8_lower(pc.utf8_trim_whitespace(cells)), words))
    return np.array(blank.to_numpy(zero_copy_only=False), dtype=bool)


def read_seeds(raw: RawTable, column: str) -> NDArray[np.int64]:
    """Return a seed for each row, shape (rows,).

    A seed only says which trials belong together, so a column of words ("mean of 3") is one of
    labels, numbered in order of appearance, as are hashes too large for a machine's integer. One
    bad cell among numbers stays an error.

    Raises
    ------
    DataError
        If some cells are numbers and one is not a whole number.
    """
    numbers = to_numbers(raw.columns[column])
    if np.isnan(numbers).all():
        return encode(raw.columns[column])[0]
    bad = ~is_fine(numbers, Need.WHOLE)
    if bad.any():
        raise explain_number(raw, int(np.argmax(bad)), column, Need.WHOLE)
    if np.abs(numbers).max() > 2.0**53:
        return encode(raw.columns[column])[0]
    return numbers.astype(np.int64)
