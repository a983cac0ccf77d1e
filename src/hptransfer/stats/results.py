"""What the fits return: a basin per width, and the joint model across widths."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hptransfer.stats.estimate import Estimate
from hptransfer.stats.proposal import Proposal
from hptransfer.stats.shared import Shared
from hptransfer.stats.table import Axis

Form = Literal["converging", "power"]


@dataclass(frozen=True, kw_only=True)
class BasinFit:
    """The loss around its minimum in x = ln(lr), at one width.

    Attributes
    ----------
    width : float
        Model width.
    lr : Estimate
        Learning rate at the minimum, on the table's axis.
    loss : Estimate
        Loss at the minimum, in nats.
    curvature : Estimate
        Second derivative at the minimum, in nats per (ln lr)².
    bracketed : bool
        Whether a measured point lies on each side of the best one; if not, ``lr`` is no optimum.
    num_points, num_diverged : int
        Learning rates used by the local fit; learning rates at which a trial diverged.
    flags : tuple of str
        What a reader must know, in words, such as ``"not bracketed"``.
    x_low, x_high : float
        Ends of the window of ln(lr) that the fit used.
    coefficients : tuple of float
        (x*, L*, C, skew): L(x) = L* + ½·C·u² + skew·u³ with u = x − x*; NaN where the points
        give no convex curve (fewer than three, or no minimum).
    """

    width: float
    lr: Estimate
    loss: Estimate
    curvature: Estimate
    bracketed: bool
    num_points: int
    num_diverged: int = 0
    flags: tuple[str, ...] = ()
    x_low: float
    x_high: float
    coefficients: tuple[float, float, float, float]

    @property
    def has_curve(self) -> bool:
        """Whether `curve` gives numbers."""
        return bool(np.isfinite(self.coefficients[0]))

    def curve(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the fitted loss at x = ln(lr), same shape as `x`, in nats."""
        optimum, loss, curvature, skew = self.coefficients
        u = x - optimum
        return loss + 0.5 * curvature * u**2 + skew * u**3

    def to_dict(self) -> dict[str, Any]:
        """Return the basin in the shape that ``fit --json`` documents."""
        return {
            "width": self.width,
            "lr": self.lr.to_dict(),
            "loss": self.loss.to_dict(),
            "curvature": self.curvature.to_dict(),
            "bracketed": self.bracketed,
            "num_points": self.num_points,
            "num_diverged": self.num_diverged,
            "flags": list(self.flags),
        }


@dataclass(frozen=True, kw_only=True)
class TransferModel:
    """Fitted parameters of the joint model, in the units of the table.

    Attributes
    ----------
    form : Form
        Form of the optimum.
    loss_inf, A, alpha : float
        L*(n) = loss_inf + A·n^-alpha, in nats.
    C0, gamma : float
        C(n) = C0·n^gamma, in nats per (ln lr)².
    x_inf, B, beta : float
        x*(n) = x_inf + B·n^-beta; in form ``power`` x*(n) = x_inf − B·ln n and beta is 0.
    skew : float
        L(n, x) = L*(n) + ½·C(n)·(u² + skew·u³), u = x − x*(n); 0 where the data ask for none.
    """

    form: Form
    loss_inf: float
    A: float
    alpha: float
    C0: float
    gamma: float
    x_inf: float
    B: float
    beta: float
    skew: float = 0.0

    def optimum(self, width: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return x* = ln(lr) at the minimum, same shape as `width`."""
        if self.form == "power":
            return self.x_inf - self.B * np.log(width)
        return self.x_inf + self.B * width**-self.beta

    def best_loss(self, width: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return L* in nats, same shape as `width`."""
        return self.loss_inf + self.A * width**-self.alpha

    def curvature(self, width: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return C in nats per (ln lr)², same shape as `width`."""
        return self.C0 * width**self.gamma

    def to_dict(self) -> dict[str, Any]:
        """Return the parameters by name."""
        return {
            "form": self.form,
            "loss_inf": self.loss_inf,
            "A": self.A,
            "alpha": self.alpha,
            "C0": self.C0,
            "gamma": self.gamma,
            "x_inf": self.x_inf,
            "B": self.B,
            "beta": self.beta,
            "skew": self.skew,
        }


@dataclass(frozen=True, kw_only=True)
class TransferFit:
    """The joint model of one group of a table, and the metrics it gives.

    Attributes
    ----------
    group : mapping of str to object
        The values that name the group, such as ``{"parameterization": "mup"}``.
    axis : Axis
        The learning-rate axis that E, κ and R are computed on.
    form : Form
        Form of the optimum against width.
    basins : tuple of BasinFit
        One per width, ascending.
    exponents : mapping of str to Estimate
        ``alpha``, ``beta``, ``gamma``, ``loss_inf`` (form ``power``: ``b`` in place of ``beta``).
    metrics : mapping of str to Estimate
        ``E`` and ``E_out`` in nats², ``kappa``, ``R_inf`` in nats.
    noise_floor : float or None
        s²/S, the variance of a mean over seeds, in nats²; None with one seed.
    gaps : mapping of float to Estimate
        R(n) = L*(n) − L*_ref(n) in nats by width; empty without a reference.
    notes : tuple of str
        Facts about the whole fit, in words: bounds hit, widths left out and why.
    reference : str
        Value of the compared column in the group that gaps and ``R_inf`` refer to; "" without.
    drift : Estimate or None
        x*(widest) − x*(narrowest) of the joint fit, in ln(lr); None without a joint fit.
    regrets : mapping of float to Estimate
        By width, the price in nats of using the narrowest usable width's optimal lr there.
    model : TransferModel or None
        The fitted joint model, for curves; None without a joint fit.
    shared : Shared or None
        A parameter that the joint fit shares with other groups; None where it stands alone.
    """

    group: Mapping[str, object]
    axis: Axis
    form: Form
    basins: tuple[BasinFit, ...]
    exponents: Mapping[str, Estimate]
    metrics: Mapping[str, Estimate]
    noise_floor: float | None = None
    gaps: Mapping[float, Estimate] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    reference: str = ""
    drift: Estimate | None = None
    regrets: Mapping[float, Estimate] = field(default_factory=dict)
    model: TransferModel | None = None
    shared: Shared | None = None

    @property
    def name(self) -> str:
        """The group in one string, for tables and legends."""
        return ", ".join(
            str(value) if key == "parameterization" else f"{key} {value}"
            for key, value in self.group.items()
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the fit in the shape that ``fit --json`` documents."""
        return {
            "group": dict(self.group),
            "axis": self.axis,
            "form": self.form,
            "basins": [basin.to_dict() for basin in self.basins],
            "exponents": {name: e.to_dict() for name, e in self.exponents.items()},
            "metrics": {name: e.to_dict() for name, e in self.metrics.items()},
            "noise_floor": self.noise_floor,
            "gaps": [{"width": n, "gap": e.to_dict()} for n, e in self.gaps.items()],
            "notes": list(self.notes),
            "reference": self.reference,
            "drift": None if self.drift is None else self.drift.to_dict(),
            "regrets": [{"width": n, "regret": e.to_dict()} for n, e in self.regrets.items()],
            "model": None if self.model is None else self.model.to_dict(),
            "shared": None if self.shared is None else self.shared.to_dict(),
        }


@dataclass(frozen=True, kw_only=True)
class Recommendation:
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
    """

    group: Mapping[str, object]
    width: float
    lr: Estimate
    loss: Estimate
    regret: Mapping[str, Estimate]
    verdict: Literal["usable", "risky", "unusable"]
    because: str
    next: Proposal | None = None

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
        }
