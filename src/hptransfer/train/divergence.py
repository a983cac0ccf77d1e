"""Tell when a run of an ensemble has diverged; docs/design.md has the criterion."""

import math

import numpy as np
from numpy.typing import NDArray

from hptransfer.train.schedule import count_warmup_steps

#: Length of the windows whose mean loss is judged, as a fraction of the steps.
WINDOW_FRACTION = 0.05
#: How far above the first loss a window's mean may lie after the warmup, in nats.
TOLERANCE = 0.5


class DivergenceWatch:
    """Watches the training losses of K runs, step by step.

    A run has diverged when a loss is non-finite; or when the mean over any 5 % of the steps, all
    of them after the warmup, exceeds the first step's loss by 0.5 nats; or when the mean over
    the last 5 % exceeds it at all.

    Parameters
    ----------
    num_runs : int
        K.
    steps : int
        Length of a whole run.
    warmup : float
        Fraction of the steps that the warmup takes.

    Attributes
    ----------
    curves : ndarray of shape (K, steps)
        Training losses so far, in nats; NaN for steps to come.
    diverged : dict of int to int
        Run to the 0-based step at which it had diverged, the last of the window.
    """

    def __init__(self, num_runs: int, *, steps: int, warmup: float) -> None:
        self.curves: NDArray[np.float64] = np.full((num_runs, steps), np.nan)
        self.diverged: dict[int, int] = {}
        self._steps = steps
        self._window = max(1, math.ceil(WINDOW_FRACTION * steps))
        self._first_window_end = count_warmup_steps(steps, warmup) + self._window

    def update(self, step: int, losses: NDArray[np.float64]) -> list[int]:
        """Record the (K,) losses of a step; return the runs that have now diverged."""
        self.curves[:, step] = losses
        bad = ~np.isfinite(losses)
        done = step + 1
        if done >= self._first_window_end or done == self._steps:
            mean = self.curves[:, max(0, done - self._window) : done].mean(axis=1)
            tolerance = 0.0 if done == self._steps else TOLERANCE
            bad |= mean > self.curves[:, 0] + tolerance
        found = [int(k) for k in np.flatnonzero(bad) if int(k) not in self.diverged]
        self.diverged.update(dict.fromkeys(found, step))
        return found
