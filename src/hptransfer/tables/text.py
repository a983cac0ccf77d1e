"""Words of a file that are safe to show: one line, printable, short."""

from collections.abc import Sequence


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


def name_some(names: Sequence[str], most: int = 12) -> str:
    """Return the first few of many names, and how many more there are."""
    shown = ", ".join(name if len(name) <= 60 else name[:59] + "…" for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
