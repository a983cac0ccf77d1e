"""What the sensitivity, the fast-transfer test and the regret as compute return."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hptransfer.stats.estimate import Estimate
from hptransfer.stats.tidy import Quantity, Tidy, name_values

FastVerdict = Literal["fast", "not fast", "undecided"]


@dataclass(frozen=True, kw_only=True)
class Sensitivity(Tidy):
    """Learning-rate sensitivity of one group at one width.

    Attributes
    ----------
    group : mapping of str to object
        The values that name the group.
    width : float
        Model width.
    sensitivity : Estimate
        In nats. Comparable only between sweeps over the same range of learning rates, counted
        from their optimum or not, as the comparison asks.
    lr_low, lr_high : float
        Ends of the range that was averaged over, on the table's axis.
    num_lrs, num_diverged : int
        Learning rates in the range; those of them at which a trial diverged.
    """

    group: Mapping[str, object]
    width: float
    sensitivity: Estimate
    lr_low: float
    lr_high: float
    num_lrs: int
    num_diverged: int

    def __str__(self) -> str:
        e = self.sensitivity
        where = ", ".join([*name_values(self.group), f"width {self.width:g}"])
        if e.value is None or e.low is None or e.high is None:
            return f"{where}: lr sensitivity not identified: {e.reason}"
        said = f"{e.value:.4g} nats [{e.low:.4g}, {e.high:.4g}]"
        return f"{where}: lr sensitivity {said} over lr {self.lr_low:.3g} to {self.lr_high:.3g}"

    def quantities(self) -> list[Quantity]:
        """The sensitivity."""
        return [Quantity(self.width, "lr_sensitivity", "nats", self.sensitivity)]

    def to_dict(self) -> dict[str, Any]:
        """Return the result by name, the estimate in the shape that ``--json`` documents."""
        return {
            "group": dict(self.group),
            "width": self.width,
            "lr_sensitivity": self.sensitivity.to_dict(),
            "lr_low": self.lr_low,
            "lr_high": self.lr_high,
            "num_lrs": self.num_lrs,
            "num_diverged": self.num_diverged,
        }


@dataclass(frozen=True, kw_only=True)
class ComputeRegret(Tidy):
    """Transfer regret at one width, as compute.

    Attributes
    ----------
    group : mapping of str to object
        The values that name the group.
    width : float
        The width that is trained.
    extra : mapping of str to Estimate
        By choice of learning rate: the fraction of the training FLOPs, 0 to 1, that bought
        nothing. Thresholds are 0.1 and 0.2.
    equivalent_width : mapping of str to float or None
        n′: the width whose best loss the choice reaches, by the point fit.
    """

    group: Mapping[str, object]
    width: float
    extra: Mapping[str, Estimate]
    equivalent_width: Mapping[str, float | None]

    def __str__(self) -> str:
        where = ", ".join([*name_values(self.group), f"width {self.width:g}"])
        lines = []
        for choice, e in self.extra.items():
            said = f"n/a: {e.reason}"
            if e.value is not None and e.low is not None and e.high is not None:
                said = f"{100 * e.value:.2g} % [{100 * e.low:.2g}, {100 * e.high:.2g}]"
            lines.append(f"{where}, {choice}: compute that bought nothing {said}")
        return "\n".join(lines)

    def quantities(self) -> list[Quantity]:
        """The wasted fraction of each choice."""
        return [Quantity(self.width, f"extra_compute.{k}", "", e) for k, e in self.extra.items()]

    def to_dict(self) -> dict[str, Any]:
        """Return the result by name, estimates in the shape that ``--json`` documents."""
        return {
            "group": dict(self.group),
            "width": self.width,
            "extra_compute": {choice: e.to_dict() for choice, e in self.extra.items()},
            "equivalent_width": dict(self.equivalent_width),
        }


@dataclass(frozen=True, kw_only=True)
class FastTransfer(Tidy):
    """The test β > α/2 of one group.

    Attributes
    ----------
    group : mapping of str to object
        The values that name the group.
    margin : Estimate
        β − α/2; its status follows the thresholds of β.
    verdict : FastVerdict
        ``fast`` or ``not fast`` where the margin's interval excludes 0 and α rests on no bound.
    because : str
        The verdict's reason in plain words.
    """

    group: Mapping[str, object]
    margin: Estimate
    verdict: FastVerdict
    because: str

    def __str__(self) -> str:
        name = ", ".join(name_values(self.group))
        return f"{name + ': ' if name else ''}transfer is {self.verdict}: {self.because}"

    def quantities(self) -> list[Quantity]:
        """The margin β − α/2."""
        return [Quantity(None, "fast_transfer_margin", "", self.margin)]

    def to_dict(self) -> dict[str, Any]:
        """Return the result by name."""
        return {
            "group": dict(self.group),
            "margin": self.margin.to_dict(),
            "verdict": self.verdict,
            "because": self.because,
        }
