"""How far a search has come at one width, and what it measures next there."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

State = Literal["search", "done", "stopped"]


@dataclass(frozen=True, kw_only=True)
class WidthSearch:
    """How far the search at one width has come.

    Attributes
    ----------
    width : float
        Model width.
    state : State
        ``search``: `points` are to be measured; ``done``; or ``stopped``.
    points : tuple of float
        log2(lr) to measure next, ascending.
    optimum, error : float
        log2(lr*) and its standard error; NaN and inf where the data give none.
    num_points : int
        Learning rates measured so far.
    reason : str
        Why, in words.
    group : mapping of str to object
        Keys of the search, where there are several.
    """

    width: float
    state: State
    points: tuple[float, ...] = ()
    optimum: float = float("nan")
    error: float = float("inf")
    num_points: int = 0
    reason: str
    group: Mapping[str, object] = field(default_factory=dict)

    def describe(self) -> str:
        """Return the state in words."""
        count = len(self.points)
        doing = {
            "search": f"{count} learning {'rate' if count == 1 else 'rates'} to come",
            "done": "done",
            "stopped": "stopped",
        }[self.state]
        name = "".join(f"{key} {value}, " for key, value in self.group.items())
        return f"{name}width {self.width:g}: {doing} ({self.reason})"
