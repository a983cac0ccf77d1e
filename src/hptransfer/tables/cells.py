"""One cell to one value: numbers, names and states, or an error that names the place."""

import math
import re
from collections.abc import Sequence
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from hptransfer.errors import DataError
from hptransfer.tables.columns import suggest
from hptransfer.tables.text import clean, show

# What trackers and data frames write where there is no number.
_EMPTY = frozenset({"", "na", "n/a", "nan", "none", "null", "<na>"})

_STATES = {
    "completed": "completed",
    "diverged": "diverged",
    "failed": "failed",
    "pending": "pending",
    # Trackers', tuners' and schedulers' words for the same four. A run that crashed or was
    # killed says nothing about its learning rate, whatever its last logged loss is.
    "finished": "completed",
    "complete": "completed",
    "success": "completed",
    "terminated": "completed",
    "crashed": "failed",
    "killed": "failed",
    "fail": "failed",
    "error": "failed",
    "preempted": "failed",
    "preempting": "failed",
    "cancelled": "failed",
    "canceled": "failed",
    "timeout": "failed",
    "pruned": "failed",
    "running": "pending",
    "scheduled": "pending",
    "queued": "pending",
    "waiting": "pending",
}

_DECIMAL_COMMA = re.compile(r"\s*[+-]?\d*,\d+([eE][+-]?\d+)?\s*")


#: Beyond these a number is as good as infinite, or as zero: no training in single precision
#: meets it, and its square still is a number.
LARGEST = 1e50
SMALLEST = 1e-50


class Need(Enum):
    """What a number must be; the value is how a message says it."""

    ANY = "a number"
    POSITIVE = "a positive number"
    NOT_NEGATIVE = "a number of 0 or more"
    WHOLE = "a whole number"


def is_empty(cell: object) -> bool:
    """Tell whether a cell holds nothing, by any of the usual spellings."""
    return cell is None or (isinstance(cell, str) and cell.strip().lower() in _EMPTY)


def parse_loss(cell: object, place: str) -> float:
    """Return a loss in nats, NaN where there is none or it is not finite: a diverged trial."""
    if is_empty(cell):
        return math.nan
    value = _to_float(cell, place, Need.ANY)
    return value if abs(value) <= LARGEST else math.nan


def parse_number(cell: object, place: str, need: Need) -> float:
    """Return a finite number that is what it needs to be.

    Raises
    ------
    DataError
        If the cell is empty, not a number, not finite, or out of range.
    """
    if is_empty(cell):
        raise DataError(f"{place}: expected {need.value}, found an empty cell")
    value = _to_float(cell, place, need)
    if not is_fine(np.array(value), need):
        raise DataError(f"{place}: expected {need.value}, found {show(cell)}")
    return value


def is_fine(values: NDArray[np.float64], need: Need) -> NDArray[np.bool_]:
    """Tell which numbers are what they need to be; NaN never is."""
    least = {Need.POSITIVE: SMALLEST, Need.NOT_NEGATIVE: 0.0}.get(need, -LARGEST)
    fine = (values >= least) & (values <= LARGEST)
    return np.asarray(fine & (values == np.floor(values)) if need is Need.WHOLE else fine)


def parse_all(cells: Sequence[object]) -> NDArray[np.float64]:
    """Return many cells as numbers, shape (cells,); NaN where a cell is none."""
    # A loop in C where nothing is out of the ordinary, as in all but damaged tables.
    if all(type(cell) is float or (type(cell) is str and "_" not in cell) for cell in cells):
        try:
            return np.fromiter(map(float, cells), np.float64, len(cells))  # type: ignore[arg-type]
        except ValueError:
            pass
    return np.array([_to_float_or_nan(cell) for cell in cells], dtype=np.float64)


def is_number(cell: object) -> bool:
    """Tell whether a cell is a number, infinities included."""
    return not math.isnan(_to_float_or_nan(cell))


def parse_state(cell: object, place: str) -> str:
    """Return a trial's state; a row that says nothing has been completed."""
    if is_empty(cell):
        return "completed"
    word = clean(str(cell)).lower() if isinstance(cell, str) else ""
    if word not in _STATES:
        expected = ", ".join(dict.fromkeys(_STATES.values()))
        raise DataError(
            f"{place}: expected a state ({expected}), found {show(cell)}"
            f"{suggest(word, list(_STATES))}"
        )
    return _STATES[word]


def parse_name(cell: object) -> object:
    """Return a value that names a group: text in one line, "" where empty."""
    if cell is None:
        return ""
    return clean(cell) if isinstance(cell, str) else cell


def _to_float_or_nan(cell: object) -> float:
    # True is a number to Python and a slip in a table; "1_000" likewise.
    if isinstance(cell, bool) or (isinstance(cell, str) and "_" in cell):
        return math.nan
    try:
        return float(cell)  # type: ignore[arg-type]
    except OverflowError:  # a whole number beyond the largest float
        return math.inf
    except (TypeError, ValueError):
        return math.nan


def _to_float(cell: object, place: str, need: Need) -> float:
    value = _to_float_or_nan(cell)
    if math.isnan(value) and not _is_nan(cell):
        comma = isinstance(cell, str) and _DECIMAL_COMMA.fullmatch(cell)
        hint = "; write decimals with a point" if comma else ""
        raise DataError(f"{place}: expected {need.value}, found {show(cell)}{hint}")
    return value


def _is_nan(cell: object) -> bool:
    return isinstance(cell, float) or (
        isinstance(cell, str) and cell.strip().lower() in ("nan", "+nan", "-nan")
    )
