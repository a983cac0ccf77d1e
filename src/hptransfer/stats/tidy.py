"""Results as text and as tidy columns, one row for each estimate."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from hptransfer.stats.estimate import Estimate

#: Columns of every result, after those of its group.
COLUMNS = ("width", "quantity", "unit", "value", "low", "high", "status", "reason")


def name_values(group: Mapping[str, object]) -> list[str]:
    """Say a group's values, each with its column where that is not the parameterization."""
    return [
        str(value) if key == "parameterization" else f"{key} {value}"
        for key, value in group.items()
    ]


class Quantity(NamedTuple):
    """One estimate of a result: at which width (None: of the group), its name and its unit."""

    width: float | None
    name: str
    unit: str
    estimate: Estimate

    def __str__(self) -> str:
        e, unit = self.estimate, f" {self.unit}" if self.unit else ""
        where = "" if self.width is None else f" at width {self.width:g}"
        status = "" if e.status == "identified" else f" ({e.status}: {e.reason})"
        if e.value is None:
            return f"{self.name}{where}: {e.status}: {e.reason}"
        if e.low is None or e.high is None:
            return f"{self.name}{where}: {e.value:.4g}{unit}{status}"
        return f"{self.name}{where}: {e.value:.4g} [{e.low:.4g}, {e.high:.4g}]{unit}{status}"


class Tidy:
    """A result that prints itself and converts to columns."""

    def quantities(self) -> list[Quantity]:
        """Every estimate of the result."""
        raise NotImplementedError

    def to_columns(self) -> dict[str, list[object]]:
        """Return the result as columns of equal length, a row for each estimate.

        They are those of the group, then ``width``, ``quantity``, ``unit``, ``value``, ``low``,
        ``high``, ``status`` and ``reason``. `hptransfer.tables.to_frame` makes a data frame of
        them.
        """
        group: Mapping[str, object] = getattr(self, "group", {})
        found = self.quantities()
        columns: dict[str, list[object]] = {
            name: [value] * len(found) for name, value in group.items() if name not in COLUMNS
        }
        for name in COLUMNS:
            columns[name] = [
                getattr(q, name)
                if name in ("width", "unit")
                else q.name
                if name == "quantity"
                else getattr(q.estimate, name)
                for q in found
            ]
        return columns


def print_lines(group: Mapping[str, object], lines: Iterable[object]) -> str:
    """Return a heading with the group's name, and the lines below it, indented."""
    name = ", ".join(name_values(group)) or "all trials"
    return "\n".join([f"{name}:", *(f"  {line}" for line in lines)])
