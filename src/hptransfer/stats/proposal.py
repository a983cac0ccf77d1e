"""What to run next: trials that would narrow an answer, ranked by what they give for their cost."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from hptransfer.stats.judge import say_lr

#: Learning rates that are named one by one.
MOST_NAMED = 4


@dataclass(frozen=True, kw_only=True)
class Step:
    """Trials at one width, as one row of a proposal.

    Attributes
    ----------
    width : float
        Model width.
    new : bool
        Whether the table has no trial at that width yet.
    lrs : tuple of float
        Learning rates, ascending, on the table's axis.
    trials : tuple of int
        Further trials at each of them.
    cost : float
        Their training FLOPs over those of all trials of the group.
    half_width : float
        Expected 90 % half-width of ln(lr*) at the target with these and all steps before.
    gain : float
        By how much they narrow it, as a fraction of the half-width now, over `cost`.
    """

    width: float
    new: bool
    lrs: tuple[float, ...]
    trials: tuple[int, ...]
    cost: float
    half_width: float
    gain: float

    def describe(self) -> str:
        """Say the trials: ``width 1024 (new): 2^-7, 2^-6 ×3``; long lists by their ends."""
        points: dict[int, list[str]] = {}
        for lr, num in zip(self.lrs, self.trials, strict=True):
            points.setdefault(num, []).append(say_lr(float(np.log(lr))))
        parts = []
        for num, lrs in sorted(points.items(), reverse=True):
            named = ", ".join(lrs)
            if len(lrs) > MOST_NAMED:
                named = f"{len(lrs)} lrs from {lrs[0]} to {lrs[-1]}"
            parts.append(f"{named} ×{num}")
        return f"width {self.width:g}{' (new)' if self.new else ''}: {'; '.join(parts)}"

    def to_dict(self) -> dict[str, Any]:
        """Return the step by name."""
        return {
            "width": self.width,
            "new": self.new,
            "lrs": list(self.lrs),
            "trials": list(self.trials),
            "cost": self.cost,
            "half_width": self.half_width,
            "gain": self.gain,
        }


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """Which trials to run next.

    Attributes
    ----------
    half_width : float or None
        90 % half-width of ln(lr*) at the target now; None where there is no answer yet.
    steps : tuple of Step
        Best first; each counts on those before it. Empty where nothing is to be gained.
    missing : tuple of str
        Without an answer: the points and widths that one needs, in words.
    cost_basis : str
        What the cost of a trial is taken from.
    """

    half_width: float | None
    steps: tuple[Step, ...] = ()
    missing: tuple[str, ...] = ()
    cost_basis: str = "width²"

    def __str__(self) -> str:
        if self.missing:
            return "needed for an answer: " + "; ".join(self.missing)
        if self.half_width is None or not self.steps:
            return "no trials would tell more"
        lines = [f"lr* is known to a factor of {np.exp(self.half_width):.3g} (90 %)"]
        lines += [
            f"{k}. {step.describe()}: {100 * step.cost:.2g} % of the compute, then to "
            f"{np.exp(step.half_width):.3g}"
            for k, step in enumerate(self.steps, 1)
        ]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Return the proposal by name."""
        return {
            "half_width": self.half_width,
            "steps": [step.to_dict() for step in self.steps],
            "missing": list(self.missing),
            "cost_basis": self.cost_basis,
        }
