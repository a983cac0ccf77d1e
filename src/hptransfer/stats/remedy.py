"""Which data would identify what these do not, in words: the one home of such phrases.

What is too uncertain is answered from the information matrix of the fit's own trials
(`Design`): the fewest further widths, and the number of trials, with which the interval would
meet its threshold. What a basin lacks is read off its flags.
"""

import math
from dataclasses import replace

import numpy as np

from hptransfer.stats.basins import BasinSet
from hptransfer.stats.cells import Cells, Floats
from hptransfer.stats.design import Design
from hptransfer.stats.estimate import Estimate
from hptransfer.stats.judge import say_lr
from hptransfer.stats.metrics import WIDTHS_FOR_JOINT
from hptransfer.stats.power import NORMAL_90
from hptransfer.stats.results import BasinFit

#: How every remedy begins, at the end of a reason.
HELP = "would help: "
#: More widths, and times as many trials, than these are no help worth naming.
MOST_WIDTHS = 3
MOST_TIMES = 30

NUMBERS = ("no", "one", "two", "three", "four")
PHRASES = {
    "widths": "{number} more width{s} above {width:g}",
    "times": "{times} times the trials",
    "times_at": "{times} times the trials at width {width:g}",
    "both": "{widths}, or {times}",
    "neither": "more than {most} times the trials, or widths further apart",
    "right": "a point to the right of {lr} at width {width:g}",
    "left": "a point to the left of {lr} at width {width:g}",
    "sides": "points on both sides of {lr} at width {width:g}",
    "lower": "learning rates below {lr} at width {width:g}, where none diverges",
    "near": "more points within a factor of 4 of {lr} at width {width:g}",
    "between": "a point between {lr} and {end} at width {width:g}",
    "seed": "a second seed, or more learning rates than the fit has parameters",
    "reference": "a second group of the same setting, or one whose L∞ is identified",
    "at": "a point at {lr} at width {width:g}",
    "points": "more learning rates at each width",
    "flat": "longer training, or widths further apart: here a wider model is no better",
}


def add_help(estimate: Estimate, remedy: str) -> Estimate:
    """End the reason of an estimate that is not identified with what would help."""
    if estimate.status == "identified" or not remedy or HELP in estimate.reason:
        return estimate
    return replace(estimate, reason=f"{estimate.reason}; {HELP}{remedy}")


def find_missing(basins: BasinSet, cells: Cells, *, needed: int = WIDTHS_FOR_JOINT) -> list[str]:
    """Name the points and widths without which there is no joint fit; empty where none lack."""
    if len(basins.usable) >= needed:
        return []
    broken = [b for b in basins.basins if b.width not in basins.usable]
    out = [say_point(b, basins, cells) for b in broken]
    lacking = needed - len(basins.basins)
    if lacking > 0:
        out.append(say_widths(lacking, float(cells.width.max())))
    return out


def say_widths(num: int, width: float) -> str:
    """Say ``two more widths above 512``."""
    return PHRASES["widths"].format(number=NUMBERS[num], s="s" * (num > 1), width=width)


def say_point(basin: BasinFit, basins: BasinSet, cells: Cells) -> str:
    """Say which point would give a width its minimum."""
    rows = cells.at(basin.width)
    x, mean = cells.x[rows], cells.mean[rows]
    if not np.any(np.isfinite(mean)):
        return PHRASES["lower"].format(lr=say_lr(float(x.min())), width=basin.width)
    clean = np.flatnonzero(np.isfinite(mean))
    best = int(clean[np.argmin(mean[clean])])
    local = basins.fits.get(basin.width)
    if local is not None and local.near.best >= 0:
        best = local.near.best
    flags = " ".join(basin.flags)
    bad = x[(cells.diverged[rows] > 0) & (x > x[best])]
    kind = "near"
    if not basin.bracketed:
        kind = next((k for word, k in _SIDES.items() if word in flags), "sides")
    elif len(bad) and "divergence" in flags:
        kind = "between"
    end = say_lr(float(bad.min())) if len(bad) else ""
    return PHRASES[kind].format(lr=say_lr(float(x[best])), width=basin.width, end=end)


_SIDES = {"is the highest": "right", "is the lowest": "left", "is the only": "sides"}


def help_interval(
    design: Design | None, gradient: Floats | None, half: float | None, limit: float
) -> str:
    """Say how many widths, or trials, would bring a 90 % half-width down to its threshold."""
    if design is None or gradient is None:
        return PHRASES["seed"] if half is None else say_times(half, limit)
    now = design.error(gradient)
    # An interval cut off by a bound says less than the information does.
    start = max(half or 0.0, NORMAL_90 * now) if now > 0.0 else (half or 0.0)

    def after(other: Design) -> float:
        return start * other.error(gradient) / now if now > 0.0 else start

    num = next(
        (k for k in range(1, MOST_WIDTHS + 1) if after(design.with_widths(k)) <= limit), None
    )
    times = next(
        (k for k in range(2, MOST_TIMES + 1) if after(design.with_trials(k)) <= limit), None
    )
    widths = "" if num is None else say_widths(num, float(design.widths[-1]))
    trials = "" if times is None else PHRASES["times"].format(times=f"about {times}")
    if widths and trials:
        return PHRASES["both"].format(widths=widths, times=trials)
    return widths or trials or PHRASES["neither"].format(most=MOST_TIMES)


def say_times(half: float, limit: float, width: float | None = None, power: float = 2.0) -> str:
    """Say how many times the trials bring a half-width down to its threshold."""
    need = (half / limit) ** power
    few = not need > MOST_TIMES
    times = f"about {max(2, math.ceil(need))}" if few else f"more than {MOST_TIMES}"
    key = "times" if width is None else "times_at"
    return PHRASES[key].format(times=times, width=width)
