"""Token budgets: a table without a token axis holds one budget, or one ratio to size."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hptransfer.errors import DataError
from hptransfer.tables.raw import RawTable

# Whole steps make a fixed ratio of tokens to parameters come out a little uneven.
_TOLERANCE = 0.05


def check_tokens(
    raw: RawTable,
    keep: Sequence[int],
    *,
    tokens: NDArray[np.float64],
    params: NDArray[np.float64] | None,
    ended: NDArray[np.bool_],
) -> None:
    """Refuse a table that mixes token budgets; shapes are (rows,).

    Parameters
    ----------
    raw : RawTable
        For the message.
    keep : sequence of int
        The raw row of each row.
    tokens : ndarray
        Training tokens of each trial.
    params : ndarray or None
        Parameters of each trial, where the table has them: then one number of tokens per
        parameter counts as one budget.
    ended : ndarray of bool
        Trials that trained to their end; only these are looked at.

    Raises
    ------
    DataError
        If there is more than one budget.
    """
    rows = np.flatnonzero(ended)
    if not len(rows) or _is_constant(tokens[rows]):
        return
    if params is not None and _is_constant(tokens[rows] / params[rows]):
        return
    one, other = rows[np.argmin(tokens[rows])], rows[np.argmax(tokens[rows])]
    raise DataError(
        f"{raw.source}: column 'tokens': expected one token budget (or, with a column 'params', "
        f"one number of tokens per parameter), found {tokens[one]:g} at {raw.places[keep[one]]} "
        f"and {tokens[other]:g} at {raw.places[keep[other]]}; split the table by budget"
    )


def _is_constant(values: NDArray[np.float64]) -> bool:
    return bool(values.max() <= values.min() * (1 + _TOLERANCE))
