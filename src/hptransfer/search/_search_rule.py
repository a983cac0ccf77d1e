"""State how a search for optima places learning rates: its grid, its target and its budget.

Units of this module are octaves, log2(lr), where a name says nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

Stop = Literal["regret", "optima"]

#: A minimum is not trusted on fewer points than this: three of them a parabola meets anyway.
FEWEST_POINTS = 4
#: A width has at most this multiple of the points that all have on average.
MOST_POINTS = 2.0


@dataclass(frozen=True, kw_only=True)
class SearchRule:
    """Grid, target and budget of a search for one group's optima; the defaults' one home.

    Attributes
    ----------
    log2_lr : tuple of (float, float)
        Ends of the first bracket at the narrowest width; the search goes beyond where it must.
    limits : tuple of (float, float)
        No learning rate lies outside.
    step : float
        All learning rates are 2 to whole multiples of this.
    error : float
        Standard error of log2(lr*) at which the widest width is done. A narrower one, a trial of
        which costs a share c as much, is done at error·c^¼ (half of it at least): it pays to
        measure where it is cheap, because the shape of the basin that all widths share is learned
        there too.
    max_points : float
        The budget: a search costs no more than a grid of this many learning rates at every width.
        `points_for_width` shares it out. With ``stop="regret"`` it has no more points either.
    stop : {"regret", "optima"}
        When the search is done: where the regret at the target is known to be small, or where
        each width's optimum is known to `error`.
    regret : float
        Nats over the best at the target width, exceeded with probability 10 % at most, at which
        the search is done.
    target_width : float or None
        The width that a learning rate is wanted for; by default four times the widest.

    Examples
    --------
    >>> SearchRule(step=0.5).snap([-6.3, -6.2, 99])
    (-6.5, -6.0, 10.0)
    """

    log2_lr: tuple[float, float] = (-10.0, -2.0)
    limits: tuple[float, float] = (-30.0, 10.0)
    step: float = 0.25
    error: float = 0.1
    max_points: float = 6.0
    stop: Stop = "regret"
    regret: float = 0.002
    target_width: float | None = None

    def with_cost_share(self, share: float) -> "SearchRule":
        """Return the rule of a width whose trials cost this share of the widest one's."""
        return replace(self, error=self.error * max(share**0.25, 0.5))

    def snap(self, places: Sequence[float]) -> tuple[float, ...]:
        """Return the lattice points nearest to `places`, inside the limits, each once."""
        low, high = (round(end / self.step) for end in self.limits)
        found = {min(max(round(place / self.step), low), high) for place in places}
        return tuple(k * self.step for k in sorted(found))

    def points_for_width(self, costs: Sequence[float], *, spent: float = 0.0, done: int = 0) -> int:
        """Return the most learning rates of the width that comes next.

        Parameters
        ----------
        costs : sequence of float
            Cost of a trial at every width, in the order that they are searched in.
        spent : float
            What the first `done` of them cost.

        Notes
        -----
        A width's variance falls as 1/n with its n points, so that a budget Σ n·c buys the least sum
        of variances where n goes as c^-½; between `FEWEST_POINTS` and `MOST_POINTS` times the
        average. What a width leaves over is shared among the wider ones.
        """
        left = np.asarray(costs[done:], dtype=np.float64)
        budget = self.max_points * float(np.sum(costs)) - spent
        most = max(FEWEST_POINTS, MOST_POINTS * self.max_points)

        def points(level: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
            return np.clip(level / np.sqrt(left), FEWEST_POINTS, most)

        low, high = 0.0, most * float(np.sqrt(left.max()))
        for _ in range(60):  # halvings, to a float's precision
            level = 0.5 * (low + high)
            fits = float(np.sum(points(level) * left)) <= budget
            low, high = (level, high) if fits else (low, level)
        # A budget that is met exactly is not missed by rounding.
        return int(points(low)[0] + 1e-9)
