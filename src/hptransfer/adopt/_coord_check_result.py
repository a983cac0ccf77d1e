"""Hold the result of a coordinate check: slopes against width, verdicts, and their words.

Shape letters: W widths, S seeds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hptransfer.adopt._module_outputs import LOGITS
from hptransfer.adopt._user_model import shorten_names
from hptransfer.errors import ConfigError
from hptransfer.stats.estimate import Estimate, fit_slope

Floats = NDArray[np.float64]

DEFAULT_TOLERANCE = 0.25

_UNALIGNED = -0.5


@dataclass(frozen=True, kw_only=True, eq=False)
class ModuleCheck:
    """One module's outputs against width.

    Attributes
    ----------
    name, kind : str
        Path in the model and class name.
    widths : tuple of int
        The W widths.
    activation : ndarray, shape (1 + steps, W, S)
        RMS of the output on the first batch, before the first step and after each.
    change : ndarray, shape (steps, W, S)
        RMS of the output's change since before the first step, on the same batch.
    tolerance : float
        How far from ``expected`` a slope may be.
    own_change : ndarray, shape (steps, W, S), or None
        Of a matrix with a fixed number of outputs, such as a readout: RMS of what its own update
        adds to its output. Such a module is judged by it: the rest of its change goes through its
        initial weights, which fall faster than they have to under µP, and that is no fault.
    expected : float
        The exponent of width with which the rule lets the module's change go.
    expected_init : float or None
        The exponent with which the rule's scale lets attention logits go at init; None where that
        is not judged.
    """

    name: str
    kind: str
    widths: tuple[int, ...]
    activation: Floats
    change: Floats
    tolerance: float
    own_change: Floats | None = None
    expected: float = 0.0
    expected_init: float | None = None

    @cached_property
    def change_slope(self) -> Estimate:
        """Slope of ln(RMS of the change after the last step) against ln(width)."""
        return fit_slope(self.widths, self.change[-1])

    @cached_property
    def init_slope(self) -> Estimate:
        """Slope of ln(RMS of the output before the first step) against ln(width)."""
        return fit_slope(self.widths, self.activation[0])

    @cached_property
    def final_slope(self) -> Estimate:
        """Slope of ln(RMS of the output after the last step) against ln(width)."""
        return fit_slope(self.widths, self.activation[-1])

    @property
    def judged_change(self) -> Floats:
        """What is judged: what the module's own update adds where that is known."""
        return self.change if self.own_change is None else self.own_change

    @cached_property
    def judged_slope(self) -> Estimate:
        """Slope of ln(RMS of what is judged after the last step) against ln(width)."""
        return fit_slope(self.widths, self.judged_change[-1])

    @property
    def passed(self) -> bool:
        """Whether the change goes with width as expected, and the output does not grow."""
        return not self.reason

    @property
    def reason(self) -> str:
        """Why the module fails, in words; "" if it passes."""
        if not np.isfinite(self.activation).all():
            step, width, _ = (int(axis[0]) for axis in np.nonzero(~np.isfinite(self.activation)))
            return f"output not finite at width {self.widths[width]} after step {step}"
        change, final, judged = self.change_slope, self.final_slope, self.judged_slope
        if change.value is None:
            width = int(np.nonzero(self.change[-1] <= 0.0)[0][0])
            return f"output never changed at width {self.widths[width]}"
        if judged.value is None:
            return "its own update adds nothing to its output"
        allowed, tolerance = self._allowed, self.tolerance
        init, wanted = self.init_slope.value, self.expected_init
        if init is not None and wanted is not None and abs(init - wanted) > tolerance:
            return (
                f"at init they go as width^{_say(self.init_slope, interval=False)}, where the "
                f"rule's attention scale lets them go as width^{wanted:+.2f}: is it "
                "applied?".replace("-", "−")
            )
        if _is_beyond(change, (-math.inf, allowed[1]), tolerance):
            # The slope that is shown is then another: what the module's own update adds.
            whole = "" if self.own_change is None else f" as a whole, as width^{_say(change)}"
            return f"change grows{whole}, {say_ratio(self.widths, self.change[-1])}"
        if beyond := _is_beyond(judged, allowed, tolerance):
            what = "change" if self.own_change is None else "what its update adds"
            verb = "grows" if beyond > 0 else "shrinks"
            return f"{what} {verb}, {say_ratio(self.widths, self.judged_change[-1])}"
        if _is_beyond(final, (-math.inf, tolerance), tolerance):
            return f"output grows, {say_ratio(self.widths, self.activation[-1])}"
        return ""

    @property
    def _allowed(self) -> tuple[float, float]:
        """The smallest and largest slope that is no fault.

        A sum over many inputs has a part that is aligned, and keeps its size, and one that is not,
        and falls as width^−½: attention logits, and what a readout's update adds, may go between.
        """
        is_sum = self.kind == LOGITS or self.own_change is not None
        low = self.expected - self.tolerance + (_UNALIGNED if is_sum else 0.0)
        return low, self.expected + self.tolerance

    @property
    def decided(self) -> bool:
        """Whether the interval of the change's slope is clear of the tolerance's two ends."""
        low, high = self.judged_slope.low, self.judged_slope.high
        if low is None or high is None:
            return True  # what never changed, or is not finite, is no question of noise
        return not any(low < end < high for end in self._allowed)

    def to_dict(self) -> dict[str, Any]:
        """Return the module's part of `CoordinateCheck.to_dict`."""
        return {
            "name": self.name,
            "kind": self.kind,
            "passed": self.passed,
            "reason": self.reason,
            "decided": self.decided,
            "change": self.change_slope.to_dict(),
            "init": self.init_slope.to_dict(),
            "final": self.final_slope.to_dict(),
            "rms_activation": _to_lists(self.activation),
            "rms_change": _to_lists(self.change),
            "expected": self.expected,
            "own_change": None if self.own_change is None else self.judged_slope.to_dict(),
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class CoordinateCheck:
    """Hold the verdict of ``coordinate_check`` on each module; ``print`` shows it.

    Attributes
    ----------
    name : str
        What was checked, such as the parameterization's name.
    widths, seeds : tuple of int
        Of the models that were trained.
    tolerance : float
        How far from 0 a module's slope may be.
    modules : tuple of ModuleCheck
        In the order in which they ran.
    constant : tuple of str
        Modules without trained parameters whose output never changes, such as rotary positions;
        they have no verdict.
    unjudged : tuple of (str, str)
        Modules without a verdict for another reason, and the reason: they did not run at every
        width, or their output changed its shape, as an expert's does with its tokens. What a module
        puts out beside its first tensor stands here too.
    unseen : tuple of str
        Trained parameters of no module that was looked at, and ``[product]`` of a tied table whose
        logits were not seen.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from hptransfer.adopt import coordinate_check
    >>> def make(width):
    ...     return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))
    >>> check = coordinate_check(
    ...     make, [32, 64, 128], batches=[torch.eye(4)],
    ...     optimizer=lambda width, model: torch.optim.AdamW(model.parameters(), lr=0.01 / width),
    ...     loss=lambda model, batch: model(batch).square().mean(),
    ... )
    >>> check.passed, [module.name for module in check.modules if not module.passed]
    (False, ['0', '1'])
    >>> check["0"].change_slope.value < -0.9
    True
    """

    name: str
    widths: tuple[int, ...]
    seeds: tuple[int, ...]
    tolerance: float
    modules: tuple[ModuleCheck, ...]
    constant: tuple[str, ...] = ()
    unjudged: tuple[tuple[str, str], ...] = ()
    unseen: tuple[str, ...] = ()

    @property
    def steps(self) -> int:
        """Number of optimizer steps."""
        return len(self.modules[0].change)

    @property
    def passed(self) -> bool:
        """Whether every module passes."""
        return all(module.passed for module in self.modules)

    @property
    def median_slope(self) -> float:
        """Median absolute slope of the changes, of those modules that have one."""
        slopes = [module.change_slope.value for module in self.modules]
        return float(np.median([abs(value) for value in slopes if value is not None] or [math.nan]))

    @property
    def verdict(self) -> str:
        """The check in a few lines, with the numbers."""
        failed = [module for module in self.modules if not module.passed]
        count, span = len(self.modules), f"from width {min(self.widths)} to {max(self.widths)}"
        within = f"slope within ±{self.tolerance:g}; median |slope| {self.median_slope:.2f}"
        if failed:
            names = ", ".join(module.name for module in failed)
            lines = [f"FAIL: {len(failed)} of {count} modules {span} ({within}): {names}"]
        else:
            lines = [f"PASS: all {count} modules change alike {span} ({within})"]
        if shrinking := [
            f"{m.name} as width^{_say(m.change_slope)}, {say_ratio(m.widths, m.change[-1])}"
            for m in failed
            if m.kind == "Embedding" and (m.change_slope.value or 0.0) < 0.0
        ]:
            lines.append(
                f"the embedding update shrinks with width: {'; '.join(shrinking)}; "
                "an embedding learning rate that does not fall with width mends it"
            )
        if unsure := [module.name for module in self.modules if not module.decided]:
            lines.append(
                f"the interval of {', '.join(unsure)} crosses the tolerance: more widths would tell"
            )
        return "\n".join(lines)

    def __getitem__(self, name: str) -> ModuleCheck:
        for module in self.modules:
            if module.name == name:
                return module
        raise KeyError(name)

    def against(self, other: "CoordinateCheck") -> dict[str, Estimate]:
        """Return how each module's change goes with width relative to another check's.

        Returns
        -------
        dict of str to Estimate
            Slope of ln(RMS of the change here / there) against ln(width), by module; −1 where
            the change here shrinks as 1/width beside the other's. Seeds are paired.

        Raises
        ------
        ConfigError
            If the two were not run at the same widths and seeds.
        """
        if (self.widths, self.seeds) != (other.widths, other.seeds):
            raise ConfigError(
                f"against: expected checks at the same widths and seeds, found widths "
                f"{list(self.widths)} and {list(other.widths)}, seeds {list(self.seeds)} and "
                f"{list(other.seeds)}"
            )
        there = {module.name: module.change[-1] for module in other.modules}
        with np.errstate(divide="ignore", invalid="ignore"):
            return {
                module.name: fit_slope(self.widths, module.change[-1] / there[module.name])
                for module in self.modules
                if module.name in there
            }

    def say_against(self, other: "CoordinateCheck") -> str:
        """Say which modules' updates shrink or grow with width beside another check's."""
        lines = []
        for name, slope in self.against(other).items():
            if slope.value is None or abs(slope.value) <= self.tolerance:
                continue
            ratio = self[name].change[-1] / other[name].change[-1]
            verb = "grows" if slope.value > 0 else "shrinks"
            lines.append(
                f"{name}: the update of {self.name} {verb} as width^{_say(slope)} relative to "
                f"{other.name}'s, {say_ratio(self.widths, ratio)}"
            )
        return "\n".join(lines) or f"no update goes with width otherwise than {other.name}'s"

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data, for JSON and for the report's figure."""
        return {
            "schema": 1,
            "name": self.name,
            "widths": list(self.widths),
            "seeds": list(self.seeds),
            "steps": self.steps,
            "tolerance": self.tolerance,
            "passed": self.passed,
            "verdict": self.verdict,
            "median_slope": None if math.isnan(self.median_slope) else self.median_slope,
            "modules": [module.to_dict() for module in self.modules],
            "constant": list(self.constant),
            "unjudged": [{"name": name, "reason": why} for name, why in self.unjudged],
            "unseen": list(self.unseen),
        }

    def __str__(self) -> str:
        """Return the check as a table, one line per module, the verdict below."""
        rows = [("module", "type", "change", "at init", "at the end", "")]
        rows += [
            (
                module.name,
                module.kind,
                _say(module.judged_slope),
                _say(module.init_slope, interval=False),
                _say(module.final_slope, interval=False),
                f"fail: {module.reason}" if module.reason else "pass",
            )
            for module in self.modules
        ]
        name, kind, *slopes = [
            max(map(len, column)) for column in list(zip(*rows, strict=True))[:5]
        ]
        lines = [
            f"coordinate check of {self.name}: widths {', '.join(map(str, self.widths))}; "
            f"{len(self.seeds)} seed(s); {self.steps} step(s)",
            "slope of ln(RMS) against ln(width) of each module's change (of a readout, what its "
            "own update adds), with its 90 % interval, and of its output",
        ]
        for row in rows:
            numbers = [text.rjust(width) for text, width in zip(row[2:5], slopes, strict=True)]
            cells = [row[0].ljust(name), row[1].ljust(kind), *numbers, row[5]]
            lines.append("  ".join(cells).rstrip())
        if self.constant:
            lines.append(f"no verdict, as the output never changes: {', '.join(self.constant)}")
        for why in dict.fromkeys(reason for _, reason in self.unjudged):
            names = [name for name, reason in self.unjudged if reason == why]
            lines.append(f"no verdict, as {why}: {shorten_names(names)}")
        if self.unseen:
            lines.append(f"parameters of no module looked at: {shorten_names(self.unseen)}")
        return "\n".join([*lines, self.verdict])


def rms(tensors: list[Tensor], before: list[Tensor] | None = None) -> float:
    """Return the root mean square of all entries, or of their change since ``before``.

    Returns
    -------
    float
        NaN where the shapes are no longer the same ones, or there are no entries.
    """
    total, count = 0.0, 0
    if before is not None and not same_shapes(tensors, before):
        return math.nan
    for k, tensor in enumerate(tensors):
        wide = tensor.double()
        if before is not None:
            wide = wide - before[k].double()
        total += float(wide.square().sum())
        count += wide.numel()
    return math.sqrt(total / count) if count else math.nan


def same_shapes(tensors: list[Tensor], before: list[Tensor]) -> bool:
    """Tell whether two lists of tensors have the same shapes."""
    return [t.shape for t in tensors] == [t.shape for t in before]


def _is_beyond(slope: Estimate, allowed: tuple[float, float], margin: float) -> int:
    """Return 1 for a slope above what is allowed, −1 for one below, 0 for one that is no fault.

    A slope whose interval holds 0 is none; nor is one so near to the end of what is allowed, by a
    ``margin``, that its interval holds the end: more widths would tell.
    """
    if slope.value is None:
        return 0
    for sign, end in zip((-1, 1), allowed, strict=True):
        beyond = sign * (slope.value - end)
        near = slope.low if sign > 0 else slope.high
        if beyond <= 0:
            continue
        if near is None or (sign * near > 0 and (sign * (near - end) > 0 or beyond > margin)):
            return sign
    return 0


def say_ratio(widths: Sequence[int], values: Floats) -> str:
    """Return ``16 times smaller at width 1024 than at 64`` for values of shape (W, S)."""
    means = np.exp(np.log(values).mean(axis=1))
    narrow, wide = int(np.argmin(widths)), int(np.argmax(widths))
    ratio = float(means[wide] / means[narrow])
    word = "larger" if ratio > 1.0 else "smaller"
    times = max(ratio, 1.0 / ratio)
    return f"{times:.3g} times {word} at width {widths[wide]} than at {widths[narrow]}"


def _say(slope: Estimate, *, interval: bool = True) -> str:
    if slope.value is None:
        return slope.reason
    text = f"{slope.value:+.2f}"
    if interval and slope.low is not None and slope.high is not None:
        text += f" [{slope.low:+.2f}, {slope.high:+.2f}]"
    return text.replace("-", "−")


def _to_lists(values: Floats) -> Any:
    """Return nested lists, what is not finite as None."""
    whole = values.astype(object)
    whole[~np.isfinite(values)] = None
    return whole.tolist()
