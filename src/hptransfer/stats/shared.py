"""What groups of one setting were told to have in common, and whether their data agree."""

from dataclasses import dataclass
from typing import Any, Literal

Share = Literal["alpha", "loss_inf"]

#: How a shared quantity is called in words.
SYMBOLS: dict[Share, str] = {"alpha": "α", "loss_inf": "L∞"}
#: Level of the test that calls the groups' own values different.
SHARE_LEVEL = 0.01


@dataclass(frozen=True, kw_only=True)
class Shared:
    """A parameter that several groups share by the user's assumption.

    Attributes
    ----------
    parameter : Share
        ``alpha`` or ``loss_inf``.
    groups : tuple of str
        Names of the groups that share it.
    own : tuple of float
        The value that each group has when it is fitted alone.
    p_value : float or None
        Chance of values as different as `own` if the assumption holds; None where no noise is
        known, or there are too few resamples to tell.
    """

    parameter: Share
    groups: tuple[str, ...]
    own: tuple[float, ...]
    p_value: float | None

    @property
    def rejected(self) -> bool:
        """Whether the data contradict the assumption, at `SHARE_LEVEL`."""
        return self.p_value is not None and self.p_value <= SHARE_LEVEL

    def describe(self) -> str:
        """Say what is shared, and what the groups' own values say to that."""
        symbol = SYMBOLS[self.parameter]
        said = f"{symbol} is shared by {', '.join(self.groups)}, by assumption; "
        span = f"alone they have {min(self.own):.3g} to {max(self.own):.3g}"
        if self.p_value is None:
            return f"{said}{span}, and no noise is known to compare these with"
        if self.rejected:
            return f"{said}{span}, which contradicts it (p = {self.p_value:.2g})"
        return f"{said}{span}, which does not contradict it (p = {self.p_value:.2g})"

    def to_dict(self) -> dict[str, Any]:
        """Return the assumption by name."""
        return {
            "parameter": self.parameter,
            "groups": list(self.groups),
            "own": list(self.own),
            "p_value": self.p_value,
            "rejected": self.rejected,
        }
