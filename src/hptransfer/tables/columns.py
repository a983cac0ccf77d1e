"""Which column of a file is which quantity of a loss table."""

import difflib
from collections.abc import Iterable, Mapping, Sequence

from hptransfer.errors import ConfigError, DataError
from hptransfer.tables.raw import RawTable

REQUIRED = ("width", "lr", "loss")
OPTIONAL = ("parameterization", "seed", "weight_decay", "params", "tokens", "state")
CANONICAL = REQUIRED + OPTIONAL

# What a learning rate may also be called: our own store writes these two.
_LR_NAMES = ("lr", "base_lr", "log2_lr")


def parse_columns(texts: Iterable[str]) -> dict[str, str]:
    """Return the mapping that ``--columns width=n_embd,loss=val/loss`` asks for.

    Parameters
    ----------
    texts : iterable of str
        Each ``OURS=THEIRS``, or several of them separated by commas.

    Raises
    ------
    ConfigError
        If a part is not of that form, or its left side is no column of ours.
    """
    columns: dict[str, str] = {}
    for part in (part for text in texts for part in text.split(",")):
        ours, equals, theirs = (piece.strip() for piece in part.partition("="))
        if not (ours and equals and theirs):
            raise ConfigError(
                f"--columns: expected OURS=THEIRS such as width=n_embd, found {part!r}"
            )
        if ours not in CANONICAL and ours not in _LR_NAMES:
            raise ConfigError(
                f"--columns: no column of ours is called {ours!r}"
                f"{suggest(ours, CANONICAL)}; expected one of {', '.join(CANONICAL)}"
            )
        if columns.setdefault(ours, theirs) != theirs:
            raise ConfigError(
                f"--columns: {ours} is given twice, as {columns[ours]!r} and {theirs!r}"
            )
    return columns


def rename(raw: RawTable, columns: Mapping[str, str]) -> RawTable:
    """Return the table under our names: a mapped column replaces one of the same name.

    Raises
    ------
    DataError
        If a mapped or a required column is missing; the nearest names are given.
    """
    have = list(raw.columns)
    for ours, theirs in columns.items():
        if theirs not in raw.columns:
            raise DataError(
                f"{raw.source}: no column {theirs!r} (wanted as {ours})"
                f"{suggest(theirs, have)}; found {_list(have)}"
            )
    # A column that another was mapped onto, or away from, keeps no second meaning.
    moved = set(columns) | set(columns.values())
    renamed = {name: cells for name, cells in raw.columns.items() if name not in moved}
    renamed |= {ours: raw.columns[theirs] for ours, theirs in columns.items()}
    for name in REQUIRED:
        found = any(n in renamed for n in _LR_NAMES) if name == "lr" else name in renamed
        if not found:
            other = f" (or {' or '.join(_LR_NAMES[1:])})" if name == "lr" else ""
            raise DataError(
                f"{raw.source}: no column {name!r}{other}{suggest(name, have)}; "
                f"found {_list(have)}; name it with --columns {name}=NAME"
            )
    return RawTable(source=raw.source, columns=renamed, places=raw.places)


def find_lr(raw: RawTable) -> str:
    """Return the name of the column that holds the learning rate; `raw` is renamed."""
    return next(name for name in _LR_NAMES if name in raw.columns)


def suggest(name: str, known: Sequence[str]) -> str:
    """Return ``"; did you mean …?"`` with the nearest known names, or nothing."""
    lowered = {other.lower(): other for other in known}
    near = difflib.get_close_matches(name.lower(), list(lowered), n=3, cutoff=0.5)
    # A tracker's "val/loss" or "train.width" is what its last part says.
    near += [low for low in lowered if name.lower() in low and low not in near]
    if not near:
        return ""
    return f"; did you mean {' or '.join(repr(lowered[low]) for low in near[:3])}?"


def _list(names: Sequence[str], most: int = 12) -> str:
    shown = ", ".join(names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
