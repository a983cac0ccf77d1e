"""The exponent with which a quantity goes with width, with its interval.

Shape letters: W widths, S seeds.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import special

from hptransfer.stats.estimate import Estimate
from hptransfer.stats.reasons import Reason

Floats = NDArray[np.float64]

#: A line through two points has no error: a third is the least that gives an interval.
MIN_WIDTHS = 3

LEVEL = 0.9


def fit_slope(widths: Sequence[int], values: Floats) -> Estimate:
    """Return the slope of ln(value) against ln(width), with its 90 % interval.

    Ordinary least squares on the means over seeds. What is left over after the line, curvature as
    well as noise, is the error, with Student's t at W − 2 degrees of freedom: seeds make the
    means better and never stand for widths.

    Parameters
    ----------
    widths : sequence of int, length W
        At least three different ones.
    values : ndarray, shape (W, S)
        Positive and finite; otherwise the slope is not identified.
    """
    assert len(set(widths)) >= MIN_WIDTHS, "checked where the widths come in"
    if not np.all(np.isfinite(values) & (values > 0.0)):
        return Estimate(value=None, status="not identified", reasons=(Reason("not_positive"),))
    x = np.log(np.asarray(widths, dtype=np.float64))
    y = np.log(values).mean(axis=1)
    x = x - x.mean()
    spread = float(x @ x)
    slope = float(x @ y) / spread
    left = y - y.mean() - slope * x
    freedom = len(x) - 2
    error = math.sqrt(float(left @ left) / freedom / spread)
    reach = float(special.stdtrit(freedom, 0.5 * (1.0 + LEVEL))) * error
    return Estimate(value=slope, low=slope - reach, high=slope + reach)
