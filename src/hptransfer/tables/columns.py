"""Which column of a file is which quantity of a loss table."""

import difflib
from collections.abc import Collection, Iterable, Mapping, Sequence

from hptransfer.errors import ConfigError, DataError
from hptransfer.tables.raw import RawTable
from hptransfer.tables.text import clean, name_some

REQUIRED = ("width", "lr", "loss")
OPTIONAL = (
    "parameterization", "seed", "weight_decay", "params", "tokens", "state", "init_loss", "flops",
)  # fmt: skip
CANONICAL = REQUIRED + OPTIONAL

# What a learning rate may also be called: our own store writes these two.
_LR_NAMES = ("lr", "base_lr", "log2_lr")

# Names that are compared with a wrong one, and the letters of the longest of them.
_MOST = 1000
_LONGEST = 100

#: Every name that a column of ours can have.
KNOWN = tuple(dict.fromkeys(CANONICAL + _LR_NAMES))


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
    return parse_mapping(texts, known=KNOWN, listed=CANONICAL, example="width=n_embd")


def parse_mapping(
    texts: Iterable[str], *, known: Collection[str], listed: Sequence[str], example: str
) -> dict[str, str]:
    """Return the mapping of ``--columns`` for any set of columns of ours.

    Parameters
    ----------
    texts : iterable of str
        As for `parse_columns`.
    known : collection of str
        Columns that may be mapped.
    listed : sequence of str
        Those of them that an error names.
    example : str
        A part as it should be, for the error.

    Raises
    ------
    ConfigError
        As for `parse_columns`.
    """
    columns: dict[str, str] = {}
    for part in (part for text in texts for part in text.split(",")):
        ours, equals, theirs = (piece.strip() for piece in part.partition("="))
        if not (ours and equals and theirs):
            raise ConfigError(f"--columns: expected OURS=THEIRS such as {example}, found {part!r}")
        if ours not in known:
            raise ConfigError(
                f"--columns: no column of ours is called {ours!r}"
                f"{suggest(ours, listed)}; expected one of {', '.join(listed)}"
            )
        if columns.setdefault(ours, theirs) != theirs:
            raise ConfigError(
                f"--columns: {ours} is given twice, as {columns[ours]!r} and {theirs!r}"
            )
    return columns


def rename(raw: RawTable, columns: Mapping[str, str]) -> RawTable:
    """Return the table under our names: a mapped column replaces one of the same name.

    A name in other letters (``State``) is ours too where nothing else has that name. An
    optional column without any entry is as good as absent, and left out.

    Raises
    ------
    DataError
        If a mapped or a required column is missing; the nearest names are given.
    """
    have = raw.names
    columns = {ours: clean(theirs) for ours, theirs in columns.items()}
    for ours, theirs in columns.items():
        if theirs not in raw.columns:
            raise DataError(
                f"{raw.source}: no column {theirs!r} (wanted as {ours})"
                f"{suggest(theirs, have)}; found {name_some(have)}"
            )
    columns = _match_case(have, columns) | columns
    # A column that another was mapped onto, or away from, keeps no second meaning; and a
    # learning rate that was named is the one to use.
    moved = set(columns) | set(columns.values())
    if not set(columns).isdisjoint(_LR_NAMES):
        moved |= set(_LR_NAMES)
    renamed = {name: cells for name, cells in raw.columns.items() if name not in moved}
    renamed |= {ours: raw.columns[theirs] for ours, theirs in columns.items()}
    for name in REQUIRED:
        found = any(n in renamed for n in _LR_NAMES) if name == "lr" else name in renamed
        if not found:
            other = f" (or {' or '.join(_LR_NAMES[1:])})" if name == "lr" else ""
            raise DataError(
                f"{raw.source}: no column {name!r}{other}{suggest(name, have)}; "
                f"found {name_some(have)}; name it with --columns {name}=NAME"
            )
    for name in OPTIONAL:
        if name in renamed and _is_blank(renamed[name]):
            del renamed[name]
    return RawTable(source=raw.source, columns=renamed, places=raw.places, dropped=raw.dropped)


def _match_case(have: Sequence[str], columns: Mapping[str, str]) -> dict[str, str]:
    """Return our names of columns that differ from the file's in letter case only."""
    taken = set(have) | set(columns) | set(columns.values())
    if not taken.isdisjoint(_LR_NAMES):
        taken |= set(_LR_NAMES)
    lowered: dict[str, list[str]] = {}
    for name in have:
        lowered.setdefault(name.lower(), []).append(name)
    return {
        ours: lowered[ours][0]
        for ours in KNOWN
        if ours not in taken
        and len(lowered.get(ours, ())) == 1
        and lowered[ours][0] not in columns.values()
    }


def _is_blank(cells: Sequence[object]) -> bool:
    return all(cell is None or (isinstance(cell, str) and not cell.strip()) for cell in cells)


def find_lr(raw: RawTable) -> str:
    """Return the name of the column that holds the learning rate; `raw` is renamed."""
    return next(name for name in _LR_NAMES if name in raw.columns)


def suggest(name: str, known: Sequence[str]) -> str:
    """Return ``"; did you mean …?"`` with the nearest known names, or nothing."""
    # Long names and very many are no typing errors, and comparing them takes long.
    lowered = {other.lower(): other for other in known[:_MOST] if len(other) <= _LONGEST}
    if len(name) > _LONGEST:
        return ""
    near = difflib.get_close_matches(name.lower(), list(lowered), n=3, cutoff=0.5)
    # A tracker's "val/loss" or "train.width" is what its last part says.
    near += [low for low in lowered if name.lower() in low and low not in near]
    if not near:
        return ""
    return f"; did you mean {' or '.join(repr(lowered[low]) for low in near[:3])}?"
