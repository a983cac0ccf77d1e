"""Metrics over the lattice, and the pairs of rows that differ in one switch alone.

Shape letters: N rows, P pairs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hptransfer.errors import DataError

Effect = Literal["ratio", "difference"]
#: How the effect on each of our metrics is said: a ratio where they are positive.
EFFECTS: dict[str, Effect] = {
    "E": "ratio",
    "E_out": "ratio",
    "R_inf": "difference",
    "kappa": "difference",
}


@dataclass(frozen=True, kw_only=True)
class MetricsTable:
    """Metrics of parameterizations, one row each; all arrays have shape (N,).

    Attributes
    ----------
    switches : mapping of str to ndarray of bool
        For each switch whether it is on.
    setting : mapping of str to ndarray of object
        Columns that two rows must share to be compared, such as ``weight_decay``.
    metrics : mapping of str to ndarray of float
        Metrics by name; NaN where there is none.
    effects : mapping of str to Effect
        How the effect on each metric is said; all values of a ``ratio`` are positive.
    source : str
        Where the table came from, for messages.
    """

    switches: Mapping[str, NDArray[np.bool_]]
    setting: Mapping[str, NDArray[np.object_]] = field(default_factory=dict)
    metrics: Mapping[str, NDArray[np.float64]]
    effects: Mapping[str, Effect]
    source: str = "table"

    def __len__(self) -> int:
        return len(next(iter(self.switches.values())))


def number_settings(table: MetricsTable) -> NDArray[np.int64]:
    """Return each row's setting as a number from 0, shape (N,)."""
    known: dict[tuple[object, ...], int] = {}
    rows = zip(*table.setting.values(), strict=True) if table.setting else [()] * len(table)
    return np.array([known.setdefault(tuple(row), len(known)) for row in rows], dtype=np.int64)


def match_pairs(table: MetricsTable, switch: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows with a switch off and their partners with it on, each of shape (P,).

    Raises
    ------
    DataError
        If two rows have the same switches and setting.
    """
    order = np.array([2**place for place in range(len(table.switches))], dtype=np.int64)
    bits = np.stack(list(table.switches.values()), axis=1).astype(np.int64) @ order
    key = number_settings(table) * 2 ** len(order) + bits
    keys, rows, counts = np.unique(key, return_index=True, return_counts=True)
    if (counts > 1).any():
        one, other = np.flatnonzero(key == keys[counts > 1][0])[:2]
        raise DataError(
            f"{table.source}: rows {one + 1} and {other + 1} have the same switches and setting; "
            f"expected each cell once"
        )
    bit = order[list(table.switches).index(switch)]
    is_on = (keys & bit) > 0
    off, at_off, at_on = np.intersect1d(
        keys[~is_on], keys[is_on] - bit, assume_unique=True, return_indices=True
    )
    assert len(off) == len(at_on)
    return rows[~is_on][at_off], rows[is_on][at_on]
