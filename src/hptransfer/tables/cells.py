"""One cell to one value: numbers, names and states, or an error that names the place."""

import math
from enum import Enum

from hptransfer.errors import DataError
from hptransfer.tables.columns import suggest

# What trackers and data frames write where there is no number.
_EMPTY = frozenset({"", "na", "n/a", "nan", "none", "null", "<na>"})

_STATES = {
    "completed": "completed",
    "diverged": "diverged",
    "failed": "failed",
    "pending": "pending",
    # Other tools' words for the same four.
    "finished": "completed",
    "crashed": "failed",
    "killed": "failed",
    "running": "pending",
}


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
    return value if math.isfinite(value) else math.nan


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
    fine = {
        Need.ANY: True,
        Need.POSITIVE: value > 0,
        Need.NOT_NEGATIVE: value >= 0,
        Need.WHOLE: value.is_integer() if math.isfinite(value) else False,
    }[need]
    if not (math.isfinite(value) and fine):
        raise DataError(f"{place}: expected {need.value}, found {_show(cell)}")
    return value


def parse_state(cell: object, place: str) -> str:
    """Return a trial's state; a row that says nothing has been completed."""
    if is_empty(cell):
        return "completed"
    word = str(cell).strip().lower()
    if word not in _STATES:
        expected = ", ".join(dict.fromkeys(_STATES.values()))
        raise DataError(
            f"{place}: expected a state ({expected}), found {_show(cell)}"
            f"{suggest(word, list(_STATES))}"
        )
    return _STATES[word]


def parse_name(cell: object) -> object:
    """Return a value that names a group: text without its outer blanks, "" where empty."""
    if cell is None:
        return ""
    return cell.strip() if isinstance(cell, str) else cell


def _to_float(cell: object, place: str, need: Need) -> float:
    try:
        # True is a number to Python and a slip in a table; "1_000" likewise.
        if isinstance(cell, bool) or (isinstance(cell, str) and "_" in cell):
            raise ValueError
        return float(cell)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise DataError(f"{place}: expected {need.value}, found {_show(cell)}") from None


def _show(cell: object, most: int = 40) -> str:
    text = repr(cell)
    return text if len(text) <= most else text[: most - 1] + "…"
