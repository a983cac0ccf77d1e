"""Messages of one line: the nearest name, an exception, a found value; and the check of a name."""

import difflib
import json
from collections.abc import Iterable, Mapping

from hptransfer.errors import ConfigError, HptransferError

MAX_SHOWN = 60
"""Characters of a found value that a message repeats."""


def find_nearest_name(name: str, known: Iterable[str], *, cutoff: float = 0.5) -> str | None:
    """Return the known name that is spelled most like `name`.

    Parameters
    ----------
    name : str
        What was typed.
    known : iterable of str
        What could have been meant.
    cutoff : float
        Likeness from 0, anything, to 1, equal, that is asked for.

    Returns
    -------
    str or None
        The nearest name; None where none is that like.

    Examples
    --------
    >>> find_nearest_name("witdh", ["width", "loss"])
    'width'
    """
    return next(iter(difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)), None)


def did_you_mean(name: str, known: Iterable[str], *, cutoff: float = 0.5) -> str:
    """Return the end of a message that proposes the known name spelled most like `name`.

    Returns
    -------
    str
        With its semicolon, ready to be appended; empty where no known name is that like.

    Examples
    --------
    >>> did_you_mean("witdh", ["width", "loss"])
    "; did you mean 'width'?"
    """
    nearest = find_nearest_name(name, known, cutoff=cutoff)
    return "" if nearest is None else f"; did you mean {nearest!r}?"


def describe_error(error: BaseException) -> str:
    """Return an exception as one line of text.

    Returns
    -------
    str
        An `HptransferError`'s message as it is; the reason and the file of an `OSError`; of any
        other exception the class and the first line of its message.

    Examples
    --------
    >>> describe_error(ValueError("no such\\nthing"))
    'ValueError: no such'
    >>> describe_error(FileNotFoundError(2, "No such file or directory", "a.csv"))
    'No such file or directory: a.csv'
    """
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    lines = str(error).splitlines() or [""]
    if isinstance(error, HptransferError):
        return lines[0]
    return f"{type(error).__name__}: {lines[0]}" if lines[0] else type(error).__name__


def show_value(value: object) -> str:
    """Return a found value as it would stand in a file, on one line, cut where it is long.

    Returns
    -------
    str
        ``nothing`` for None, and ``a section`` for a mapping.
    """
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a section"
    if isinstance(value, str):
        shown = repr(value)
    else:
        try:
            shown = json.dumps(value)
        except (TypeError, ValueError):
            shown = str(value)
    return shown if len(shown) <= MAX_SHOWN else f"{shown[:MAX_SHOWN]}…"


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
        f"{kind}: expected one of {', '.join(names)}, found {show_value(name)}; "
        f"did you mean {nearest_name(str(name), names)!r}?"
    )
