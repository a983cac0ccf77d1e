"""Words of a file as messages show them: one line, printable, short; and the nearest names."""

import difflib
from collections.abc import Iterable, Sequence

# Names that are compared with a wrong one, and the letters of the longest of them.
_MOST = 1000
_LONGEST = 100


def clean(text: str) -> str:
    """Return text in one line of printable characters: what is none is a blank."""
    if text.isprintable():
        return text.strip()
    kept = "".join(letter if letter.isprintable() else " " for letter in text)
    return " ".join(kept.split())


def show(cell: object, most: int = 40) -> str:
    """Return a cell as a message shows it: quoted where it is text, and cut where it is long."""
    if isinstance(cell, str) and len(cell) > most:
        cell = cell[:most]
    text = clean(repr(cell))
    return text if len(text) <= most else text[: most - 1] + "…"


def name_some(names: Iterable[object], most: int = 12) -> str:
    """Return the first few of many names, and how many more there are."""
    texts = [clean(str(name)) for name in names]
    shown = ", ".join(text if len(text) <= 60 else text[:59] + "…" for text in texts[:most])
    return shown + (f" and {len(texts) - most} more" if len(texts) > most else "")


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
