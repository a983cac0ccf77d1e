"""What the fits return, as frozen results: each prints itself and converts to columns or JSON."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hptransfer.stats.estimate import (
    HIDDEN,
    BasinFit,
    Estimate,
    NamedEstimate,
    TidyResult,
    name_values,
)
from hptransfer.stats.loss_table import Axis, Doubt
from hptransfer.stats.reasons import Reason, say_lr

FastVerdict = Literal["fast", "not fast", "undecided"]


@dataclass(frozen=True, kw_only=True)
class Sensitivity(TidyResult):
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
    sensitivity: Estimate = field(metadata={"key": "lr_sensitivity"})
    lr_low: float
    lr_high: float
    num_lrs: int
    num_diverged: int

    def quantities(self) -> list[NamedEstimate]:
        """The sensitivity."""
        return [NamedEstimate(self.width, "lr_sensitivity", "nats", self.sensitivity)]

    def lines(self) -> list[object]:
        """The sensitivity and the range that it averages over."""
        return [*self.quantities(), f"over lr {self.lr_low:.3g} to {self.lr_high:.3g}"]


@dataclass(frozen=True, kw_only=True)
class ComputeRegret(TidyResult):
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
    extra: Mapping[str, Estimate] = field(metadata={"key": "extra_compute"})
    equivalent_width: Mapping[str, float | None]

    def quantities(self) -> list[NamedEstimate]:
        """The wasted fraction of each choice."""
        return [
            NamedEstimate(self.width, f"extra_compute.{k}", "", e) for k, e in self.extra.items()
        ]


@dataclass(frozen=True, kw_only=True)
class FastTransfer(TidyResult):
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

    def lines(self) -> list[object]:
        """The verdict."""
        return [f"transfer is {self.verdict}: {self.because}"]

    def quantities(self) -> list[NamedEstimate]:
        """The margin β − α/2."""
        return [NamedEstimate(None, "fast_transfer_margin", "", self.margin)]


Form = Literal["converging", "power"]


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

    Examples
    --------
    >>> model = TransferModel(
    ...     form="power", loss_inf=2.0, A=8.0, alpha=0.5, C0=0.1, gamma=0.0, x_inf=-3.0, B=0.5,
    ...     beta=0.0,
    ... )
    >>> model.best_loss(np.array([64.0, 256.0]))
    array([3. , 2.5])
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


@dataclass(frozen=True, kw_only=True)
class TransferFit(TidyResult):
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
        x*(widest) − x*(narrowest) of the minima, in ln(lr); None with fewer than two.
    regrets : mapping of float to Estimate
        By width, the price in nats of using the narrowest usable width's optimal lr there.
    model : TransferModel or None
        The fitted joint model, for curves; None without a joint fit.
    sensitivity : tuple of Sensitivity
        Learning-rate sensitivity by width, ascending.
    fast : FastTransfer or None
        The test β > α/2.
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
    gaps: Mapping[float, Estimate] = field(default_factory=dict, metadata={"each": "gap"})
    notes: tuple[str, ...] = ()
    reference: str = ""
    drift: Estimate | None = None
    regrets: Mapping[float, Estimate] = field(default_factory=dict, metadata={"each": "regret"})
    model: TransferModel | None = None
    sensitivity: tuple[Sensitivity, ...] = field(default=(), metadata={"key": "lr_sensitivity"})
    fast: FastTransfer | None = field(default=None, metadata={"key": "fast_transfer"})
    extra: Mapping[float, Estimate] = field(default_factory=dict, metadata=HIDDEN)

    @property
    def name(self) -> str:
        """The group in one string, for tables and legends."""
        return ", ".join(name_values(self.group))

    def quantities(self) -> list[NamedEstimate]:
        """Metrics and exponents of the group, then all that is known at each width."""
        units = {"E": "nats²", "E_out": "nats²", "R_inf": "nats", "loss_inf": "nats"}
        found = [
            NamedEstimate(None, name, units.get(name, ""), e)
            for name, e in {**self.metrics, **self.exponents}.items()
        ]
        found += [] if self.drift is None else [NamedEstimate(None, "drift", "", self.drift)]
        found += [] if self.fast is None else self.fast.quantities()
        found += [quantity for basin in self.basins for quantity in basin.quantities()]
        each = (("gap", "nats", self.gaps), ("regret", "nats", self.regrets))
        for name, unit, values in (*each, ("extra_compute", "", self.extra)):
            found += [NamedEstimate(width, name, unit, e) for width, e in values.items()]
        return found + [quantity for each in self.sensitivity for quantity in each.quantities()]

    def lines(self) -> list[object]:
        """The estimates, whether transfer is fast, and the notes."""
        said = [] if self.fast is None else [f"transfer is {self.fast.verdict}"]
        return [*self.quantities(), *said, *(f"note: {note}" for note in self.notes)]

    def to_dict(self) -> dict[str, Any]:
        """Return the fit in the shape that ``fit --json`` documents."""
        document = super().to_dict()
        for each, width in zip(document["regrets"], self.regrets, strict=True):
            extra = self.extra.get(width)
            each["extra_compute"] = None if extra is None else extra.to_dict()
        return document


#: Learning rates that are named one by one.
_MOST_NAMED = 4


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
        """Say the trials: ``width 1024 (new): 2^-7, 2^-6 ×1``; long lists by their ends."""
        named = [say_lr(float(np.log(lr))) for lr in self.lrs]
        said = ", ".join(named)
        if len(named) > _MOST_NAMED:
            said = f"{len(named)} lrs from {named[0]} to {named[-1]}"
        return f"width {self.width:g}{' (new)' if self.new else ''}: {said} ×{self.trials[0]}"


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """Which trials to run next.

    Attributes
    ----------
    half_width : float or None
        90 % half-width of ln(lr*) at the target now; None where there is no answer yet.
    steps : tuple of Step
        Best first; each counts on those before it. Empty where nothing is to be gained.
    missing : tuple of Reason
        Without an answer: the points and widths that one needs.
    cost_basis : str
        What the cost of a trial is taken from.
    """

    half_width: float | None
    steps: tuple[Step, ...] = ()
    missing: tuple[Reason, ...] = ()
    cost_basis: str = "width²"

    def __str__(self) -> str:
        if self.missing:
            return "needed for an answer: " + "; ".join(map(str, self.missing))
        if self.half_width is None or not self.steps:
            return "no trials would tell more"
        lines = [f"lr* is open to a factor of {np.exp(self.half_width):.3g} (90 %)"]
        lines += [
            f"{k}. {step.describe()}: {100 * step.cost:.2g} % of the compute, then to "
            f"{np.exp(step.half_width):.3g}"
            for k, step in enumerate(self.steps, 1)
        ]
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class Recommendation(TidyResult):
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
    forms : mapping of str to float
        How much each form of x*(n) carries the answer; they add up to 1, empty without an answer.
    scatter : float or None
        Standard deviation of ln lr* from size to size about the law.
    prior : str
        Kind of sweep whose prior was used, with its slope; ``none`` where it was switched off.
    next : Proposal or None
        Which trials to run next; None where that was not asked for.
    compute : ComputeRegret or None
        The regrets as training FLOPs that bought nothing.
    fast : FastTransfer or None
        Whether transfer is fast, β > α/2.
    axis : Axis
        What `lr` means.
    base_width : float or None
        Width at which all parameterizations agree; None for a table read as given.
    lr_by_role : mapping of str to float or None
        The learning rates to give the optimizer, by a tensor's role; None for a table read as
        given, whose `lr` is its own.
    doubts : tuple of Doubt
        What was seen in the table that makes an answer risky that were usable.
    """

    group: Mapping[str, object]
    width: float
    lr: Estimate
    loss: Estimate
    regret: Mapping[str, Estimate]
    verdict: Literal["usable", "risky", "unusable"]
    because: str
    forms: Mapping[str, float] = field(default_factory=dict)
    scatter: float | None = None
    prior: str = ""
    next: Proposal | None = None
    compute: ComputeRegret | None = field(default=None, metadata={"key": "extra_compute"})
    fast: FastTransfer | None = field(default=None, metadata={"key": "fast_transfer"})
    axis: Axis = "as given"
    base_width: float | None = None
    lr_by_role: Mapping[str, float] | None = None
    doubts: tuple[Doubt, ...] = field(default=(), metadata=HIDDEN)

    def heed(self, doubts: Iterable[Doubt]) -> "Recommendation":
        """Return the recommendation, risky at best where doubts of a table concern its group."""
        group = dict(self.group)
        own = tuple(doubt for doubt in doubts if group in doubt.values.get("groups", [group]))
        worse = self.verdict == "usable" and own
        return replace(self, verdict="risky", doubts=own) if worse else self

    def quantities(self) -> list[NamedEstimate]:
        """Learning rate, loss, the regrets in nats and as compute, and the fast-transfer margin."""
        out = [
            NamedEstimate(self.width, "lr", "", self.lr),
            NamedEstimate(self.width, "loss", "nats", self.loss),
            *(NamedEstimate(self.width, f"regret.{k}", "nats", e) for k, e in self.regret.items()),
        ]
        out += [] if self.compute is None else self.compute.quantities()
        return out + ([] if self.fast is None else self.fast.quantities())

    def lines(self) -> list[object]:
        """The verdict, the estimates, and the trials to run next."""
        following = [] if self.next is None else str(self.next).splitlines()
        doubts = ", ".join(doubt.kind for doubt in self.doubts)
        said = (
            f"{self.verdict}: {self.because}{'; doubts of the table: ' if doubts else ''}{doubts}"
        )
        return [said, *self.quantities(), *following]
