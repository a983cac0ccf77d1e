"""One estimated number: its value, its 90 % interval, and whether the data identify it.

A basin is three of them; every result prints its estimates and converts to columns or JSON.

An estimate is made of a value and its resamples, of a logarithm's, or, for the exponent with
which a quantity goes with width, of a line. Shape letters: R resamples, W widths, S seeds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from html import escape
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from hptransfer.stats.minima import rise
from hptransfer.stats.reasons import Reason, Reasons, join_reasons

Floats = NDArray[np.float64]
Status = Literal["identified", "weakly identified", "not identified"]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A value with its 90 % interval and a status in words.

    Attributes
    ----------
    value, low, high : float or None
        Point estimate and 90 % bounds, in the quantity's own unit; None where there is none.
    status : Status
        Whether the data identify the quantity: no parameter that it rests on hit a bound, and
        the half-width is at most the threshold in `THRESHOLDS`.
    reasons : tuple of Reason
        Why the status is not "identified"; empty when it is.
    remedy : Reason or None
        Which data would help; None where nothing is lacking or nothing would.

    Examples
    --------
    >>> print(Estimate(value=0.0024, low=0.0019, high=0.0031))
    0.0024 [0.0019, 0.0031]
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    status: Status = "identified"
    reasons: tuple[Reason, ...] = ()
    remedy: Reason | None = None

    @property
    def reason(self) -> str:
        """The reasons, and the data that would help, on one line; empty without any."""
        return join_reasons(self.reasons, self.remedy)

    def __str__(self) -> str:
        return self.say()

    def say(self, unit: str = "") -> str:
        """Say the value in its unit, with its interval and what is to be known of it."""
        status = "" if self.status == "identified" else f"{self.status}: {self.reason}"
        if self.value is None:
            return status
        bounded = self.low is not None and self.high is not None
        interval = f" [{self.low:.4g}, {self.high:.4g}]" if bounded else ""
        return f"{self.value:.4g}{interval}{unit and f' {unit}'}{status and f' ({status})'}"

    def transform(self, change: Callable[[float], float | None]) -> "Estimate":
        """Return an increasing function of the estimate; None where it has no value."""

        def apply(end: float | None) -> float | None:
            try:
                return None if end is None else change(end)
            except (ValueError, OverflowError):
                return None

        return replace(self, value=apply(self.value), low=apply(self.low), high=apply(self.high))

    def with_remedy(self, remedy: Reason | None) -> "Estimate":
        """Return an estimate that is not identified with its remedy, where it has none."""
        if self.status == "identified" or self.remedy is not None:
            return self
        return replace(self, remedy=remedy)

    def to_dict(self) -> dict[str, Any]:
        """Return the estimate in the shape that ``--json`` documents."""
        document = {name: getattr(self, name) for name in ("value", "low", "high", "status")}
        return {**document, "reason": self.reason}


def to_document(value: Any) -> Any:
    """Return a result as what JSON can hold: dictionaries, lists, text and numbers.

    A dataclass becomes a dictionary of its fields. A field's metadata may name its ``key``, or
    leave it out with a key of None; a mapping by width whose metadata say what ``each`` value
    is called becomes a list of dictionaries. What has a `to_dict` of its own says itself what
    it is, and reasons are given as sentences.

    Examples
    --------
    >>> to_document({"loss": Estimate(value=3.0)})["loss"]["status"]
    'identified'
    """
    if hasattr(value, "to_dict"):
        return value.to_dict()
    if isinstance(value, Reason):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return fields_to_document(value)
    if isinstance(value, Mapping):
        return {key: to_document(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_document(item) for item in value]
    return value


def fields_to_document(result: Any) -> dict[str, Any]:
    """Return the fields of a dataclass as `to_document` describes."""
    document = {}
    for each in fields(result):
        key, value = each.metadata.get("key", each.name), getattr(result, each.name)
        if key is None:
            continue
        if "each" in each.metadata:
            name = each.metadata["each"]
            document[key] = [{"width": n, name: to_document(e)} for n, e in value.items()]
        else:
            document[key] = to_document(value)
    return document


#: 90 % half-widths up to which a quantity is identified; weakly identified up to twice that.
#: beta's follows from kappa's:
#: √(0.2² + (2·0.2)² + 0.2²) ≈ 0.5; b is an exponent like it. log_lr is a factor of √2.
#: curvature is relative to the value. error is for the root of E, in nats.
THRESHOLDS = {
    "alpha": 0.2,
    "beta": 0.2,
    "gamma": 0.2,
    "b": 0.2,
    "kappa": 0.5,
    "loss_inf": 0.1,
    "R_inf": 0.1,
    "loss": 0.1,
    "log_lr": 0.5 * float(np.log(2.0)),
    "curvature": 0.5,
    "error": 0.1,
    "regret": 0.1,
}

#: Share of resamples that may fail, or sit at a bound, before an estimate stops counting.
TOLERATED_SHARE = 0.05

#: Logarithms beyond this size have no float; a bound there says nothing.
_LARGEST_LOG = 700.0

#: Level of every interval that is shown.
LEVEL = 0.9
#: Half-width of a normal's 90 % interval in standard errors.
NORMAL_90 = 1.645

_ORDER: tuple[Status, ...] = ("identified", "weakly identified", "not identified")


def refuse(*reasons: Reason, value: float | None = None, remedy: Reason | None = None) -> Estimate:
    """Return a `not identified` estimate with its reasons and, perhaps, a value to look at.

    Examples
    --------
    >>> print(refuse(Reason("no_losses")))
    not identified: no losses
    """
    return Estimate(value=value, status="not identified", reasons=reasons, remedy=remedy)


def worst(*statuses: Status) -> Status:
    """Return the weakest of several statuses."""
    return max(statuses, key=_ORDER.index)


def grade(half: float, limit: float) -> Status:
    """Return what a 90 % half-width is called against the threshold of its quantity."""
    return _ORDER[int(half > limit) + int(half > 2.0 * limit)]


def interval(samples: Floats, level: float = LEVEL) -> tuple[float, float]:
    """Return the percentiles between which a share `level` of the finite samples lies."""
    tails = [50.0 * (1.0 - level), 50.0 * (1.0 + level)]
    low, high = np.percentile(samples[np.isfinite(samples)], tails)
    return float(low), float(high)


def judge(
    value: float,
    samples: Floats | None,
    kind: str,
    *,
    problem: Reasons = (),
    caution: Reasons = (),
    scale: float = 1.0,
) -> Estimate:
    """Make an estimate of a value and its resamples.

    Parameters
    ----------
    value : float
        Point estimate.
    samples : ndarray, shape (R,), or None
        Its resamples, NaN where one failed; None where no noise is known.
    kind : str
        Key of `THRESHOLDS`.
    problem : tuple of Reason
        Reasons, if there are any, for which nothing could identify the quantity.
    caution : tuple of Reason
        Reasons for which it is at best weakly identified.
    scale : float
        The half-width is divided by this before it meets the threshold.
    """
    if not np.isfinite(value):
        return refuse(*(problem or (Reason("no_value"),)))
    if samples is None:
        return refuse(*(problem or (Reason("no_noise"),)), value=value)
    failed = float(np.mean(~np.isfinite(samples)))
    if failed > TOLERATED_SHARE:
        why = problem or (Reason("failed_resamples", percent=100 * failed),)
        return refuse(*why, value=value)
    low, high = interval(samples)
    return bound(
        value, min(low, value), max(high, value), kind,
        problem=problem, caution=caution, scale=scale,
    )  # fmt: skip


def bound(
    value: float,
    low: float,
    high: float,
    kind: str,
    *,
    problem: Reasons = (),
    caution: Reasons = (),
    scale: float = 1.0,
) -> Estimate:
    """Make an estimate of a value and its 90 % bounds; the rest is as `judge` takes it."""
    half, limit = 0.5 * (high - low) / scale, THRESHOLDS[kind]
    wide: Reasons = ()
    if half > limit:
        wide = (Reason("half_width", half=half, limit=limit, relative=scale != 1.0),)
    least: Status = (
        "not identified" if problem else "weakly identified" if caution else "identified"
    )
    return Estimate(
        value=value,
        low=low,
        high=high,
        status=worst(grade(half, limit), least),
        reasons=(*problem, *caution, *wide),
    )


def exponentiate(log_value: float | None) -> float | None:
    """Return e^log_value; None where there is none or no float could hold it."""
    if log_value is None or abs(log_value) > _LARGEST_LOG:
        return None
    return float(np.exp(log_value))


def half_width(estimate: Estimate, *, log: bool = False) -> float | None:
    """Return half of an estimate's 90 % interval, or of its logarithm's.

    Returns
    -------
    float or None
        The distance from the value to its only bound where it has one, unless `log`; None
        without an interval, or where a logarithm has none.

    Examples
    --------
    >>> half_width(Estimate(value=1.0, low=0.5, high=2.5))
    1.0
    """
    ends = [end for end in (estimate.low, estimate.high) if end is not None and np.isfinite(end)]
    if len(ends) == 2:
        if log:
            return 0.5 * float(np.log(ends[1] / ends[0])) if ends[0] > 0.0 else None
        return 0.5 * abs(ends[1] - ends[0])
    if log or not ends or estimate.value is None:
        return None
    return abs(ends[0] - estimate.value)


def f_limit(level: float, terms: float, dof: float) -> float:
    """Return the F value that `terms` and `dof` degrees of freedom exceed with chance `level`."""
    # scipy.special starts in a fraction of the time of scipy.stats.
    return float(special.fdtri(terms, dof, 1.0 - level))


#: A line through two points has no error: a third is the least that gives an interval.
MIN_WIDTHS = 3


def fit_slope(widths: Sequence[int], values: Floats) -> Estimate:
    """Return the slope of ln(value) against ln(width), with its 90 % interval.

    Ordinary least squares on the means over seeds. What is left over after the line, curvature as
    well as noise, is the error, with Student's t at W − 2 degrees of freedom: seeds make the
    means better and never stand for widths.

    Parameters
    ----------
    widths : sequence of int, length W
        At least three different ones.
    values : ndarray, shape (W, S)
        Positive and finite; otherwise the slope is not identified.
    """
    assert len(set(widths)) >= MIN_WIDTHS, "checked where the widths come in"
    if not np.all(np.isfinite(values) & (values > 0.0)):
        return Estimate(value=None, status="not identified", reasons=(Reason("not_positive"),))
    x = np.log(np.asarray(widths, dtype=np.float64))
    (slope, _), covariance = np.polyfit(x, np.log(values).mean(axis=1), 1, cov=True)
    reach = float(special.stdtrit(len(x) - 2, 0.5 * (1.0 + LEVEL)) * np.sqrt(covariance[0, 0]))
    slope = float(slope)
    return Estimate(value=slope, low=slope - reach, high=slope + reach)


#: Columns of every result, after those of its group.
COLUMNS = ("width", "quantity", "unit", "value", "low", "high", "status", "reason")


class NamedEstimate(NamedTuple):
    """One estimate of a result: at which width (None: of the group), its name and its unit."""

    width: float | None
    name: str
    unit: str
    estimate: Estimate

    def __str__(self) -> str:
        where = "" if self.width is None else f" at width {self.width:g}"
        return f"{self.name}{where}: {self.estimate.say(self.unit)}"


def name_values(group: Mapping[str, object]) -> list[str]:
    """Say a group's values, each with its column where that is not the parameterization."""
    named = {key: "(blank)" if value == "" else value for key, value in group.items()}
    return [
        str(value) if key == "parameterization" else f"{key} {value}"
        for key, value in named.items()
    ]


class TidyResult:
    """A result that prints itself and converts to columns and to a JSON document."""

    def quantities(self) -> list[NamedEstimate]:
        """Every estimate of the result."""
        raise NotImplementedError

    def lines(self) -> Sequence[object]:
        """What is printed, below the group's name where the result is one group's."""
        return self.quantities()

    def __str__(self) -> str:
        group: Mapping[str, object] | None = getattr(self, "group", None)
        if group is None:
            return "\n".join(map(str, self.lines()))
        name = ", ".join(name_values(group)) or "all trials"
        return "\n".join([f"{name}:", *(f"  {line}" for line in self.lines())])

    def to_columns(self) -> dict[str, list[object]]:
        """Return the result as columns of equal length, a row for each estimate.

        They are those of the group, then ``width``, ``quantity``, ``unit``, ``value``, ``low``,
        ``high``, ``status`` and ``reason``. `hptransfer.tables.to_frame` makes a data frame of
        them.
        """
        rows = [
            (q.width, q.name, q.unit, e.value, e.low, e.high, e.status, e.reason)
            for q in self.quantities()
            for e in (q.estimate,)
        ]
        group: Mapping[str, object] = getattr(self, "group", {})
        columns: dict[str, list[object]] = {
            name: [value] * len(rows) for name, value in group.items() if name not in COLUMNS
        }
        return columns | {name: [row[k] for row in rows] for k, name in enumerate(COLUMNS)}

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"

    def to_dict(self) -> dict[str, Any]:
        """Return the result in the shape that ``--json`` documents."""
        return fields_to_document(self)


#: Metadata of a field that no document shows.
HIDDEN = {"key": None}


@dataclass(frozen=True, kw_only=True)
class BasinFit(TidyResult):
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
    flags : tuple of Reason
        What a reader must know, such as ``not bracketed``.
    x_low, x_high : float
        Ends of the window of ln(lr) that the fit used.
    coefficients : tuple of float
        (x*, L*, C, k): L(x) = L* + C·(e^(kz) − 1 − kz)/k² with z = x − x*, as of `minima.rise`;
        NaN where the points give no convex curve (fewer than three, or no minimum).
    cubic : bool
        Whether L(x) = L* + ½·C·z²·(1 + kz/3) was fitted instead, as with a held scatter of 0.
    """

    width: float
    lr: Estimate
    loss: Estimate
    curvature: Estimate
    bracketed: bool
    num_points: int
    num_diverged: int = 0
    flags: tuple[Reason, ...] = ()
    x_low: float = field(metadata=HIDDEN)
    x_high: float = field(metadata=HIDDEN)
    coefficients: tuple[float, float, float, float] = field(metadata=HIDDEN)
    cubic: bool = field(default=False, metadata=HIDDEN)

    @property
    def has_curve(self) -> bool:
        """Whether `curve` gives numbers."""
        return bool(np.isfinite(self.coefficients[0]))

    def curve(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the fitted loss at x = ln(lr), same shape as `x`, in nats."""
        optimum, loss, curvature, skew = self.coefficients
        return loss + rise(x - optimum, curvature, skew, cubic=self.cubic)

    def quantities(self) -> list[NamedEstimate]:
        """Learning rate, loss and curvature at the minimum."""
        return [
            NamedEstimate(self.width, "lr", "", self.lr),
            NamedEstimate(self.width, "loss", "nats", self.loss),
            NamedEstimate(self.width, "curvature", "nats", self.curvature),
        ]

    def lines(self) -> list[object]:
        """The estimates and the flags."""
        return [*self.quantities(), *(f"note: {flag}" for flag in self.flags)]


def join_columns(parts: Sequence[Mapping[str, list[object]]]) -> dict[str, list[object]]:
    """Return columns one below the other; None where a part has no such column."""
    names = dict.fromkeys(name for part in parts for name in part)
    sizes = [len(part["quantity"]) for part in parts]
    return {
        name: [v for part, n in zip(parts, sizes, strict=True) for v in part.get(name, [None] * n)]
        for name in names
    }
