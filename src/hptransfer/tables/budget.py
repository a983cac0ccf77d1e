"""Token budgets: a table without a token axis holds one budget, or one ratio to size."""

import shlex
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hptransfer.errors import DataError
from hptransfer.tables.raw import Places

# Whole steps make a fixed ratio of tokens to parameters come out a little uneven.
_TOLERANCE = 0.05


def check_tokens(
    source: str,
    places: Places,
    *,
    tokens: NDArray[np.float64],
    params: NDArray[np.float64] | None,
    ended: NDArray[np.bool_],
    groups: Sequence[NDArray[np.int64]] = (),
    name: str = "tokens",
) -> None:
    """Refuse a fit that mixes token budgets; arrays have shape (rows,).

    Parameters
    ----------
    source : str
        The file, for the message.
    places : Places
        Where each row stands.
    tokens : ndarray
        Training tokens of each trial.
    params : ndarray or None
        Parameters of each trial, where the table has them: then one number of tokens per
        parameter counts as one budget.
    ended : ndarray of bool
        Trials that trained to their end; only these are looked at.
    groups : sequence of ndarray of int
        Rows of each fit (default: one fit of all rows).
    name : str
        The file's name of the column.

    Raises
    ------
    DataError
        If a fit has more than one budget.
    """
    for group in groups or (np.arange(len(tokens)),):
        rows = group[ended[group]]
        if not len(rows) or _is_constant(tokens[rows]):
            continue
        if params is not None and _is_constant(tokens[rows] / params[rows]):
            continue
        one, other = rows[np.argmin(tokens[rows])], rows[np.argmax(tokens[rows])]
        raise DataError(
            f"{source}: column {name!r}: expected one token budget (or, with a column 'params', "
            f"one number of tokens per parameter), found {tokens[one]:g} at {places[one]} "
            f"and {tokens[other]:g} at {places[other]}; split the table by budget with "
            f"--by {shlex.quote(name)}, or pick one with "
            f"--where {shlex.quote(f'{name}={tokens[other]:.17g}')}, or fit tokens as an axis with "
            "fit --token-axis"
        )


def _is_constant(values: NDArray[np.float64]) -> bool:
    return bool(values.max() <= values.min() * (1 + _TOLERANCE))
