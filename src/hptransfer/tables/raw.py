"""A table as its file holds it: named columns of unchecked cells."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RawTable:
    """Cells as read, before any meaning is given to them.

    Attributes
    ----------
    source : str
        The file or directory, for messages.
    columns : dict of str to sequence of object
        Cells by column name, all of one length; None or "" where a cell is empty.
    places : sequence of str
        Where each row stands, such as ``"row 3 (line 4)"``; one per row.
    """

    source: str
    columns: dict[str, Sequence[object]]
    places: Sequence[str]

    def __len__(self) -> int:
        return len(self.places)
