"""What the published tables hold: fits of them, and intervals of what follows from the fits."""

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

TABLES = Path(__file__).parent / "tables"
#: Normal draws behind an interval that no fit gives.
NUM_DRAWS = 20_000
#: Standard deviations from the middle of a normal law to either end of its 90 % interval.
REACH = 1.6448536269514722

NAMES = {"sp": "SP", "sp+embd": "SP+Embd", "mup": "µP", "mup-embd": "µP−Embd"}

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Range:
    """A value with its 90 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, estimate: Mapping[str, Any]) -> "Range | None":
        """Return the range of an estimate of ``fit --json``; None where it has no interval."""
        if estimate["value"] is None or estimate["low"] is None or estimate["high"] is None:
            return None
        return cls(estimate["value"], estimate["low"], estimate["high"])

    @classmethod
    def of_draws(cls, value: float, draws: Floats) -> "Range":
        """Return a value with the 5 and 95 % quantiles of its draws."""
        low, high = np.quantile(draws, [0.05, 0.95])
        return cls(value, float(low), float(high))

    @property
    def values(self) -> tuple[float, float, float]:
        """Value and both ends."""
        return self.value, self.low, self.high

    @property
    def deviation(self) -> float:
        """Standard deviation of the normal law with this interval."""
        return (self.high - self.low) / (2 * REACH)

    def draws(self, seed: int) -> Floats:
        """Return draws of that law; other quantities take other seeds."""
        rng = np.random.default_rng(seed)
        return self.value + self.deviation * rng.standard_normal(NUM_DRAWS)

    def __neg__(self) -> "Range":
        return Range(-self.value, -self.high, -self.low)

    def __sub__(self, other: "Range") -> "Range":
        value = self.value - other.value
        reach = REACH * math.hypot(self.deviation, other.deviation)
        return Range(value, value - reach, value + reach)

    def show(self, form: str = "{:.3f}") -> str:
        """Write value and interval with one format."""
        return f"{form} [{form}, {form}]".format(self.value, self.low, self.high)


def show(found: Range | None, form: str = "{:.3f}") -> str:
    """Write a range, or a dash."""
    return "–" if found is None else found.show(form)


def table_of(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield a Markdown table."""
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(row) + " |"
    yield ""


def mean_range(values: list[float]) -> Range | None:
    """Return the mean of independent values with Student's 90 % interval; None below two."""
    from scipy.special import stdtrit

    if len(values) < 2:
        return None
    array = np.asarray(values)
    reach = stdtrit(len(array) - 1, 0.95) * array.std(ddof=1) / math.sqrt(len(array))
    return Range(float(array.mean()), float(array.mean() - reach), float(array.mean() + reach))


@dataclass(frozen=True)
class Basin:
    """A width's minimum: x is ln(lr)."""

    width: int
    x: Range
    loss: Range
    curvature: Range

    def regret(self, x: Range, seed: int) -> Range:
        """Return what a rate costs at this width, ½·C·(x − x*)², in nats; the median of draws."""
        shift = x.draws(seed) - self.x.draws(seed + 1)
        draws = 0.5 * np.maximum(self.curvature.draws(seed + 2), 0.0) * shift**2
        return Range.of_draws(float(np.median(draws)), draws)


@dataclass(frozen=True)
class Fit:
    """A group's part of ``hptransfer fit --json``."""

    document: Mapping[str, Any]

    @cached_property
    def basins(self) -> dict[int, Basin]:
        """Bracketed minima by width."""
        found = {}
        for each in self.document["basins"]:
            lr, loss, curvature = (Range.of(each[key]) for key in ("lr", "loss", "curvature"))
            if each["bracketed"] and lr and loss and curvature:
                width = int(each["width"])
                x = Range(*(math.log(v) for v in (lr.value, lr.low, lr.high)))
                found[width] = Basin(width, x, loss, curvature)
        return found

    @property
    def unbracketed(self) -> list[int]:
        """Widths without a bracketed minimum."""
        return [int(each["width"]) for each in self.document["basins"] if not each["bracketed"]]

    @property
    def gaps(self) -> dict[int, Range]:
        """R(n) by width."""
        ranges = {int(g["width"]): Range.of(g["gap"]) for g in self.document["gaps"]}
        return {width: found for width, found in ranges.items() if found is not None}

    @property
    def prices(self) -> dict[int, Range]:
        """Price of the narrowest width's optimum by width, in nats."""
        ranges = {int(r["width"]): Range.of(r["regret"]) for r in self.document["regrets"]}
        return {width: found for width, found in ranges.items() if found is not None}

    def number(self, *path: str) -> Range | None:
        """Return an estimate of the document, whatever its status."""
        found: Any = self.document
        for key in path:
            found = found.get(key) if found else None
        return Range.of(found) if found else None

    def status(self, *path: str) -> str:
        """Return an estimate's status."""
        found: Any = self.document
        for key in path:
            found = found[key]
        return str(found["status"])


class Table:
    """One published table."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.stem
        file = pq.ParquetFile(path)
        self.rows = file.read()
        metadata = file.schema_arrow.metadata or {}
        self.about: dict[str, Any] = json.loads(metadata.get(b"hptransfer", b"{}"))

    def column(self, name: str) -> list[Any]:
        """Return a column; [] where there is none."""
        known = name in self.rows.column_names
        return list(self.rows.column(name).to_pylist()) if known else []

    def values(self, name: str) -> list[Any]:
        """Return a column's different values, in order."""
        return sorted(set(self.column(name)))

    def setting(self, name: str) -> Any:
        """Return the one value of a column; None where it is missing or varies."""
        values = self.values(name)
        return values[0] if len(values) == 1 else None

    def fits(self, reference: str = "sp") -> dict[tuple[str, float], Fit]:
        """Return fits by parameterization and weight decay, gaps against a reference."""
        return _fit(self.path, reference)

    def flops_per_token(self, width: float) -> float:
        """Return training FLOPs per token at a width (6 per matrix weight, and attention)."""
        layers, vocab = self.setting("num_layers"), self.setting("vocab_size")
        matrices = layers * 12 * width**2 + width * vocab
        return 6 * matrices + 12 * layers * width * self.setting("context")

    def equal_width(self, fit: Fit, loss: float) -> float | None:
        """Return the width at which a group's best loss is `loss`, between measured widths.

        Linear in ln(width) between neighbours; None where no two neighbours enclose it.
        """
        basins = [fit.basins[width] for width in sorted(fit.basins)]
        for a, b in pairwise(basins):
            if b.loss.value <= loss <= a.loss.value:
                share = (a.loss.value - loss) / (a.loss.value - b.loss.value)
                return float(a.width * (b.width / a.width) ** share)
        return None

    def price_as_compute(self, better: Fit, worse: Fit, gap: Range, width: int) -> str:
        """Say what share of the worse group's compute at a width the better one needs.

        The better group reaches the worse one's loss at a smaller width of its own, with as many
        tokens. `gap` is how far the worse one lies above, in nats.
        """
        top = better.basins[width].loss.value
        narrowest = min(better.basins)
        if width == narrowest:
            return "–"
        least = self.flops_per_token(narrowest) / self.flops_per_token(width)
        shares = []
        for nats in (gap.value, gap.high, gap.low):
            equal = self.equal_width(better, top + max(nats, 0.0))
            if equal is None:
                shares.append(f"< {least:.2f}")
            else:
                shares.append(f"{self.flops_per_token(equal) / self.flops_per_token(width):.2f}")
        return f"{shares[0]} [{shares[1]}, {shares[2]}]"


@lru_cache
def _fit(path: Path, reference: str) -> dict[tuple[str, float], Fit]:
    """Fit a table with the command that everybody has."""
    command = ["fit", str(path), "--json", "--reference", reference]
    done = subprocess.run(
        [sys.executable, "-m", "hptransfer", *command], capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 3):
        raise SystemExit(f"hptransfer {' '.join(command)}: {done.stderr}")
    fits = json.loads(done.stdout)["fits"]
    return {
        (str(fit["group"]["parameterization"]), float(fit["group"].get("weight_decay", 0.0))): Fit(
            fit
        )
        for fit in fits
    }


def load_tables() -> dict[str, Table]:
    """Return the published tables by name."""
    return {path.stem: Table(path) for path in sorted(TABLES.glob("*.parquet"))}


def pairs_of_switch(
    switch: str, names: list[str], parse: Callable[[str], Any]
) -> list[tuple[str, str]]:
    """Return (off, on) for every pair of lattice entries that differ in one switch alone."""
    from hptransfer.scaling import LATTICE, SWITCHES

    def switches(name: str) -> frozenset[str]:
        first, *rest = parse(name).name.replace("-", "+").split("+")
        return frozenset(rest if first == "sp" else set(SWITCHES) - set(rest))

    by_switches = {switches(name): name for name in names if name in LATTICE}
    return [
        (name, by_switches[on | {switch}])
        for on, name in by_switches.items()
        if switch not in on and on | {switch} in by_switches
    ]
