"""State how a search for optima places learning rates: its grid, its target and its budget.

Units of this module are octaves, log2(lr), where a name says nothing else.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from hptransfer._sections import Octaves, Positive, Section, fault

Stop = Literal["regret", "optima"]

#: A minimum is not trusted on fewer points than this: three of them a parabola meets anyway.
FEWEST_POINTS = 4
#: A width has at most this multiple of the points that all have on average.
MOST_POINTS = 2.0


class SearchRule(Section):
    """``[adaptive]``: how learning rates are placed; log2 in octaves. The defaults' one home.

    Examples
    --------
    >>> SearchRule(step=0.5).snap([-6.3, -6.2, 99])
    (-6.5, -6.0, 10.0)
    """

    log2_lr: tuple[Octaves, Octaves] = (-10.0, -2.0)
    """Where the narrowest width is searched first; the search goes beyond where it must."""

    limits: tuple[Octaves, Octaves] = (-30.0, 10.0)
    """log2(lr) that the search never goes beyond."""

    step: Annotated[float, Field(ge=0.01, le=2)] = 0.25
    """All learning rates are 2 to whole multiples of this."""

    error: Positive = 0.1
    """Standard error of log2(lr*) at which the widest width is done. A narrower one, a trial of
    which costs a share c as much, is done at error·c^¼ (half of it at least): it pays to measure
    where it is cheap, because the shape of the basin that all widths share is learned there too."""

    max_points: Annotated[int | float, Field(ge=FEWEST_POINTS, le=1000)] = 6
    """The budget: a search costs no more than a grid of this many learning rates at each width.
    Narrower, cheaper widths take more of them, wider ones fewer, at least four. With ``stop =
    "regret"`` it has no more points either."""

    stop: Stop = "regret"
    """``regret``: the search is done where the regret at ``target_width`` is known to be at most
    ``regret``; ``optima``: where each width's optimum is known to ``error``."""

    regret: Positive = 0.002
    """Nats over the best at the target, exceeded with probability 10 % at most."""

    target_width: Positive | None = None
    """The width that a learning rate is wanted for; by default four times the widest."""

    @field_validator("log2_lr", "limits", mode="before")
    @classmethod
    def _as_pair(cls, value: object) -> object:
        pair = tuple(value) if isinstance(value, list) else value
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise fault("two numbers, lowest first", value)
        return pair

    @model_validator(mode="after")
    def _check_ends(self) -> "SearchRule":
        (low, high), (lowest, highest) = self.log2_lr, self.limits
        if not low < high:
            raise fault("two numbers, lowest first", [low, high], key="adaptive.log2_lr")
        if not lowest < highest:
            raise fault("two numbers, lowest first", [lowest, highest], key="adaptive.limits")
        if not lowest <= low < high <= highest:
            expected = f"numbers inside adaptive.limits = [{lowest:g}, {highest:g}]"
            raise fault(expected, [low, high], key="adaptive.log2_lr")
        return self

    def with_cost_share(self, share: float) -> "SearchRule":
        """Return the rule of a width whose trials cost this share of the widest one's."""
        return self.model_copy(update={"error": self.error * max(share**0.25, 0.5)})

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
