"""Training FLOPs by width, which costs and compute are counted in.

Shape letters: W widths.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from hptransfer.errors import FitError
from hptransfer.stats.cells import Floats
from hptransfer.stats.table import LossTable

Flops = Callable[[Floats], Floats]

#: What `square_flops` rests on, in words.
SQUARE_BASIS = "width² (fixed tokens, parameters as width²)"


def square_flops(width: Floats) -> Floats:
    """Training FLOPs up to a factor where parameters grow as n² and tokens are fixed."""
    return np.asarray(width, dtype=np.float64) ** 2


def flops_of(widths: ArrayLike, params: ArrayLike, tokens: ArrayLike = 1.0) -> Flops:
    """Training FLOPs from parameters and tokens by width: 6·params·tokens.

    Parameters
    ----------
    widths, params : array, shape (W,)
        Two widths or more, and their parameter counts.
    tokens : array, shape (W,), or float
        Tokens trained on.

    Returns
    -------
    callable
        From widths to FLOPs, straight lines in the logarithms, also beyond the ends.

    Raises
    ------
    FitError
        Fewer than two widths, a number that is not positive, or FLOPs that do not grow.
    """
    n = np.asarray(widths, dtype=np.float64)
    params, tokens = np.asarray(params, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
    if n.ndim != 1 or params.shape != n.shape or tokens.shape not in ((), n.shape):
        raise FitError(
            f"flops: expected one params and tokens per width, found shapes {n.shape}, "
            f"{params.shape} and {tokens.shape}"
        )
    flops = 6.0 * params * tokens
    good = np.isfinite(n) & np.isfinite(flops) & (n > 0) & (params > 0) & (flops > 0)
    if len(n) < 2 or not np.all(good):
        raise FitError("flops: expected two widths or more, all numbers positive")
    order = np.argsort(n)
    t, f = np.log(n[order]), np.log(flops[order])
    if np.any(np.diff(t) <= 0) or np.any(np.diff(f) <= 0):
        raise FitError("flops: expected distinct widths and FLOPs that grow with width")

    def interpolate(width: Floats) -> Floats:
        at = np.log(np.asarray(width, dtype=np.float64))
        k = np.clip(np.searchsorted(t, at) - 1, 0, len(t) - 2)
        slope = (f[k + 1] - f[k]) / (t[k + 1] - t[k])
        return np.asarray(np.exp(f[k] + slope * (at - t[k])), dtype=np.float64)

    return interpolate


def flops_by_width(table: LossTable) -> tuple[Flops, str]:
    """Training FLOPs by width as a table has them, and what they rest on, in words.

    The median over the trials of a width, on straight lines in the logarithms; width² where the
    table knows none at two widths, or where they do not grow with width.
    """
    if table.flops is None:
        return square_flops, SQUARE_BASIS
    known = np.isfinite(table.flops) & (table.flops > 0)
    widths = np.unique(table.width[known])
    each = np.array([np.median(table.flops[known & (table.width == n)]) for n in widths])
    if len(widths) < 2 or np.any(np.diff(each) <= 0):
        return square_flops, SQUARE_BASIS
    return flops_of(widths, each / 6.0), "the table's FLOPs"
