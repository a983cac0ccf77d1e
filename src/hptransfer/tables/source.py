"""A loss table together with what is known about where it came from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hptransfer.stats.loss_table import LossTable


@dataclass(frozen=True, kw_only=True)
class StudyTable:
    """A loss table, and what a study directory says beside it.

    Attributes
    ----------
    table : LossTable
        The trials that ended, diverged ones as NaN.
    damaged : tuple of str
        One line for each file of the study that could not be read.
    settings : mapping
        Contents of the study's ``study.json``; empty for a table read from a file.
    notes : tuple of str
        What was left out and why, in words.
    """

    table: LossTable
    damaged: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
