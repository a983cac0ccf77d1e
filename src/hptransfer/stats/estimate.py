"""One estimated number: its value, its 90 % interval, and whether the data identify it."""

from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["identified", "weakly identified", "not identified"]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value with its 90 % interval and a status in words.

    Attributes
    ----------
    value, low, high : float or None
        Point estimate and 90 % bounds, in the quantity's own unit; None where there is none.
    status : Status
        Whether the data identify the quantity (design, section 4, "Known traps").
    reason : str
        Why the status is not "identified", in words; empty when it is.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    status: Status = "identified"
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the estimate in the shape that ``--json`` documents."""
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "status": self.status,
            "reason": self.reason,
        }
