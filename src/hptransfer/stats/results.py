"""What the fits return: a basin per width, and the joint model across widths."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hptransfer.stats.estimate import Estimate
from hptransfer.stats.measures import FastTransfer, Sensitivity
from hptransfer.stats.shared import Shared
from hptransfer.stats.table import Axis
from hptransfer.stats.tidy import Quantity, Tidy, print_lines

Form = Literal["converging", "power"]


@dataclass(frozen=True, kw_only=True)
class BasinFit(Tidy):
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

    def quantities(self) -> list[Quantity]:
        """Learning rate, loss and curvature at the minimum."""
        return [
            Quantity(self.width, "lr", "", self.lr),
            Quantity(self.width, "loss", "nats", self.loss),
            Quantity(self.width, "curvature", "nats", self.curvature),
        ]

    def __str__(self) -> str:
        lines = [str(each) for each in self.quantities()]
        return "\n".join([*lines, *(f"note: {flag}" for flag in self.flags)])

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
class TransferFit(Tidy):
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
    sensitivity : tuple of Sensitivity
        Learning-rate sensitivity by width, ascending; empty from `fit_transfer`.
    fast : FastTransfer or None
        The test β > α/2; None from `fit_transfer`.
    extra : mapping of float to Estimate
        `regrets` as the fraction of the width's training FLOPs that bought nothing.
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
    sensitivity: tuple[Sensitivity, ...] = ()
    fast: FastTransfer | None = None
    extra: Mapping[float, Estimate] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The group in one string, for tables and legends."""
        return ", ".join(
            str(value) if key == "parameterization" else f"{key} {value}"
            for key, value in self.group.items()
        )

    def quantities(self) -> list[Quantity]:
        """Metrics and exponents of the group, then all that is known at each width."""
        units = {"E": "nats²", "E_out": "nats²", "R_inf": "nats", "loss_inf": "nats"}
        both = {**self.metrics, **self.exponents}
        out = [Quantity(None, name, units.get(name, ""), e) for name, e in both.items()]
        out += [] if self.drift is None else [Quantity(None, "drift", "", self.drift)]
        out += [] if self.fast is None else self.fast.quantities()
        for basin in self.basins:
            out += basin.quantities()
        for name, unit, found in (
            ("gap", "nats", self.gaps),
            ("regret", "nats", self.regrets),
            ("extra_compute", "", self.extra),
        ):
            out += [Quantity(width, name, unit, e) for width, e in found.items()]
        return out + [q for each in self.sensitivity for q in each.quantities()]

    def __str__(self) -> str:
        said = [] if self.fast is None else [f"transfer is {self.fast.verdict}"]
        notes = [f"note: {note}" for note in self.notes]
        return print_lines(self.group, [*self.quantities(), *said, *notes])

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
            "regrets": [
                {
                    "width": n,
                    "regret": e.to_dict(),
                    "extra_compute": self.extra[n].to_dict() if n in self.extra else None,
                }
                for n, e in self.regrets.items()
            ],
            "model": None if self.model is None else self.model.to_dict(),
            "shared": None if self.shared is None else self.shared.to_dict(),
            "lr_sensitivity": [each.to_dict() for each in self.sensitivity],
            "fast_transfer": None if self.fast is None else self.fast.to_dict(),
        }
