"""What `recommend` returns: a learning rate at a width, its price and risk, what to run next."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hptransfer.stats.estimate import Estimate
from hptransfer.stats.measures import ComputeRegret, FastTransfer
from hptransfer.stats.proposal import Proposal
from hptransfer.stats.tidy import Quantity, Tidy, print_lines


@dataclass(frozen=True, kw_only=True)
class Recommendation(Tidy):
    """Which learning rate to use at a width, and the price of being wrong.

    Attributes
    ----------
    group : mapping of str to object
        The group the answer is for.
    width : float
        The target width.
    lr, loss : Estimate
        Learning rate to use on the table's axis, and the loss in nats expected there.
    regret : mapping of str to Estimate
        Expected loss above the best, in nats, of ``recommended``, ``same_lr`` (the widest
        proxy's optimum unchanged on the table's axis) and ``inverse_width`` (that optimum
        times proxy width over target width).
    verdict : str
        ``usable``, ``risky`` or ``unusable``.
    because : str
        The verdict's reason in plain words.
    next : Proposal or None
        Which trials to run next; None where that was not asked for.
    compute : ComputeRegret or None
        The regrets as training FLOPs that bought nothing.
    fast : FastTransfer or None
        Whether transfer is fast, β > α/2.
    """

    group: Mapping[str, object]
    width: float
    lr: Estimate
    loss: Estimate
    regret: Mapping[str, Estimate]
    verdict: Literal["usable", "risky", "unusable"]
    because: str
    next: Proposal | None = None
    compute: ComputeRegret | None = None
    fast: FastTransfer | None = None

    def quantities(self) -> list[Quantity]:
        """Learning rate, loss, the regrets in nats and as compute, and the fast-transfer margin."""
        out = [
            Quantity(self.width, "lr", "", self.lr),
            Quantity(self.width, "loss", "nats", self.loss),
            *(Quantity(self.width, f"regret.{k}", "nats", e) for k, e in self.regret.items()),
        ]
        out += [] if self.compute is None else self.compute.quantities()
        return out + ([] if self.fast is None else self.fast.quantities())

    def __str__(self) -> str:
        following = [] if self.next is None else str(self.next).splitlines()
        verdict = f"{self.verdict}: {self.because}"
        return print_lines(self.group, [verdict, *self.quantities(), *following])

    def to_dict(self) -> dict[str, Any]:
        """Return the recommendation in the shape that ``recommend --json`` documents."""
        return {
            "group": dict(self.group),
            "width": self.width,
            "lr": self.lr.to_dict(),
            "loss": self.loss.to_dict(),
            "regret": {name: e.to_dict() for name, e in self.regret.items()},
            "verdict": self.verdict,
            "because": self.because,
            "next": None if self.next is None else self.next.to_dict(),
            "extra_compute": None if self.compute is None else self.compute.to_dict(),
            "fast_transfer": None if self.fast is None else self.fast.to_dict(),
        }
