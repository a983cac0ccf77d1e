"""Checks of numbers and names, each with a one-line message that a user can act on."""

import math
import operator
from collections.abc import Iterable

from hptransfer._messages import find_nearest_name
from hptransfer.errors import ConfigError


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Return the known name most like ``name``; there always is one if any is known."""
    nearest = find_nearest_name(name, known, cutoff=0.0)
    assert nearest is not None, "some name is known"
    return nearest


def check_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Return ``name`` if it is known.

    Raises
    ------
    ConfigError
        If it is not; the message holds the nearest known name and all of them.
    """
    names = list(known)
    if name in names:
        return name
    raise ConfigError(
        f"{kind}: expected one of {', '.join(names)}, found {name!r}; "
        f"did you mean {nearest_name(str(name), names)!r}?"
    )


def check_count(key: str, value: int) -> int:
    """Return ``value`` as an int if it is a whole number above 0, else raise ConfigError."""
    try:
        count = operator.index(value)
    except TypeError:
        count = 0
    if isinstance(value, bool) or count <= 0:
        raise ConfigError(f"{key}: expected a whole number above 0, found {value!r}")
    return count


def check_number(key: str, value: float, *, zero: bool) -> float:
    """Return ``value`` as a float if finite and above 0 (or 0, where ``zero`` says so).

    Raises
    ------
    ConfigError
        If it is not.
    """
    number = float(value)
    if math.isfinite(number) and (number > 0.0 or (zero and number == 0.0)):
        return number
    least = "of 0 or more" if zero else "above 0"
    raise ConfigError(f"{key}: expected a finite number {least}, found {value!r}")
