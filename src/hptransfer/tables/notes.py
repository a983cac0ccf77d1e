"""What was seen while a table was read, as data; `hptransfer.report` makes the sentences."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: Kinds of notes with which an answer is risky at best: the table mixes what the fit cannot see.
RISKY = frozenset({"varies", "stops", "partial", "outlier", "spelling", "byte_unit", "other_rate"})


@dataclass(frozen=True, kw_only=True)
class TableNote:
    """One thing to know about a table that was read.

    Attributes
    ----------
    kind : str
        What it is: ``left_out``, ``varies`` and so on, as `docs/tables.md` lists them.
    values : mapping of str to object
        Names and numbers of it.
    """

    kind: str
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def risky(self) -> bool:
        """Whether an answer from the table is risky at best."""
        return self.kind in RISKY or bool(self.values.get("risky"))


def note(kind: str, **values: object) -> TableNote:
    """Return a note of a kind with its names and numbers."""
    return TableNote(kind=kind, values=values)
