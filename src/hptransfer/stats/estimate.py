"""One estimated number: its value, its 90 % interval, and whether the data identify it."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal

from hptransfer.stats.reasons import Reason, join_reasons

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
        the half-width is at most the threshold in `identifiability.THRESHOLDS`.
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
        status = "" if self.status == "identified" else f"{self.status}: {self.reason}"
        if self.value is None:
            return status
        bounded = self.low is not None and self.high is not None
        interval = f" [{self.low:.4g}, {self.high:.4g}]" if bounded else ""
        return f"{self.value:.4g}{interval}{f' ({status})' if status else ''}"

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
