"""Measure what one switch of the lattice does to a metric, by pairs that differ in it alone.

Shape letters: N rows, P pairs, G blocks (pairs that count as one observation).
"""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hptransfer.errors import DataError
from hptransfer.stats.estimate import Estimate, Status, fields_to_document
from hptransfer.stats.reasons import Reason, Reasons

Effect = Literal["ratio", "difference"]
#: How the effect on each of our metrics is said: a ratio where they are positive.
EFFECTS: dict[str, Effect] = {
    "E": "ratio",
    "E_out": "ratio",
    "R_inf": "difference",
    "kappa": "difference",
}


@dataclass(frozen=True, kw_only=True)
class MetricsTable:
    """Metrics of parameterizations, one row each; all arrays have shape (N,).

    Attributes
    ----------
    switches : mapping of str to ndarray of bool
        For each switch whether it is on.
    setting : mapping of str to ndarray of object
        Columns that two rows must share to be compared, such as ``weight_decay``.
    metrics : mapping of str to ndarray of float
        Metrics by name; NaN where there is none.
    effects : mapping of str to Effect
        How the effect on each metric is said; all values of a ``ratio`` are positive.
    source : str
        Where the table came from, for messages.
    """

    switches: Mapping[str, NDArray[np.bool_]]
    setting: Mapping[str, NDArray[np.object_]] = field(default_factory=dict)
    metrics: Mapping[str, NDArray[np.float64]]
    effects: Mapping[str, Effect]
    source: str = "table"

    def __len__(self) -> int:
        return len(next(iter(self.switches.values())))


def _number_settings(table: MetricsTable) -> NDArray[np.int64]:
    """Return each row's setting as a number from 0, shape (N,)."""
    known: dict[tuple[object, ...], int] = {}
    rows = zip(*table.setting.values(), strict=True) if table.setting else [()] * len(table)
    return np.array([known.setdefault(tuple(row), len(known)) for row in rows], dtype=np.int64)


def match_pairs(table: MetricsTable, switch: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows with a switch off and their partners with it on, each of shape (P,).

    Raises
    ------
    DataError
        If two rows have the same switches and setting.
    """
    place = list(table.switches).index(switch)
    bits = zip(*(column.tolist() for column in table.switches.values()), strict=True)
    rows: dict[tuple[int, tuple[bool, ...]], int] = {}
    for row, key in enumerate(zip(_number_settings(table).tolist(), bits, strict=True)):
        if (first := rows.setdefault(key, row)) != row:
            raise DataError(
                f"{table.source}: rows {first + 1} and {row + 1} have the same switches and "
                f"setting; expected each cell once"
            )
    pairs = []
    for (setting, off), row in rows.items():
        partner = setting, (*off[:place], True, *off[place + 1 :])
        if not off[place] and partner in rows:
            pairs.append((row, rows[partner]))
    both = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


#: Level of a 90 % interval's test.
LEVEL = 0.1
#: With fewer blocks no sign test rejects anything at that level: its least p is 2^(1−G).
_MIN_BLOCKS = 5
#: How often an extreme value stands in a column before it can be a bound.
_MIN_REPEATS = 3
#: Sums that the sign test tells apart; those of more pairs are rounded to as many.
_MOST_SUMS = 20_000


@dataclass(frozen=True, kw_only=True)
class Factor:
    """The effect of switching one switch on, over the pairs that differ in it alone.

    Attributes
    ----------
    metric, switch : str
        What is measured, and what is switched.
    effect : Effect
        ``ratio``: on divided by off; ``difference``: on less off.
    size : Estimate
        Median over the pairs with its 90 % interval.
    pairs, falling, rising : int
        Pairs, and those in which the metric falls or rises; the rest are unchanged.
    unit : str
        What counts as independent: ``pair``, ``setting``, or the name of a column of the
        setting, all pairs of one value being one unit.
    units : int
        How many of them there are.
    p_value : float
        Two-sided sign test over the units (`sign_test`).
    absent, at_bound : int
        Pairs left out because a side has no value, or because it sits at a bound.
    """

    metric: str
    switch: str
    effect: Effect
    size: Estimate = field(metadata={"key": None})
    pairs: int
    falling: int
    rising: int
    unit: str
    units: int
    p_value: float
    absent: int
    at_bound: int

    @property
    def direction(self) -> str:
        """``falls`` or ``rises`` where the interval says so, else ``unclear``."""
        if self.size.low is None or self.size.high is None:
            return "unclear"
        none = 1.0 if self.effect == "ratio" else 0.0
        return "falls" if self.size.high < none else "rises" if self.size.low > none else "unclear"

    def to_dict(self) -> dict[str, Any]:
        """Return the factor in the shape that ``--json`` documents."""
        return {
            **fields_to_document(self),
            **self.size.to_dict(),
            "direction": self.direction,
        }


def compute_factors(table: MetricsTable) -> tuple[Factor, ...]:
    """Return the matched-pair effect of every switch on every metric, metric by metric.

    Pairs of one setting share its data, seeds and reference, so they are not independent. The
    interval holds all medians that a sign test which flips whole settings does not reject
    (`sign_test`, `number_blocks`); the other switches are no sample, since a lattice holds all
    of their combinations. With fewer than five settings each pair is flipped alone (then this
    is the order-statistic interval), and the status says so. For a difference, rows that sit at a
    bound (`find_bounds`) are left out and counted.

    Raises
    ------
    DataError
        If values of a ratio are not positive, two rows are the same cell, or no two rows make
        a pair of any switch.
    """
    pairs = {switch: match_pairs(table, switch) for switch in table.switches}
    if not any(len(off) for off, _ in pairs.values()):
        setting = ", ".join(table.setting) or "nothing else"
        raise DataError(
            f"{table.source}: expected rows that differ in one switch alone at equal {setting}, "
            f"found no such pair among {len(table)} rows; name the setting with --by COLUMN"
        )
    factors = []
    for metric, values in table.metrics.items():
        if table.effects[metric] == "ratio" and (values <= 0).any():
            raise DataError(
                f"{table.source}: column {metric!r}: expected positive numbers for a ratio, "
                f"found {np.nanmin(values):g}"
            )
        factors += [_measure(table, metric, switch, *each) for switch, each in pairs.items()]
    return tuple(factors)


def find_bounds(values: NDArray[np.float64]) -> dict[float, int]:
    """Return the values that look like the bound of a fit, and how often each stands.

    A fit that hits its bound returns the same number each time, and no fit goes beyond it: so
    the smallest or the largest value, if it stands at least three times and more than twice as
    often as any value between the two. Zero is none: it is a reference compared with itself.

    Parameters
    ----------
    values : ndarray, shape (N,)
        A metric; NaN where there is none.
    """
    distinct, counts = np.unique(values[np.isfinite(values)], return_counts=True)
    between = counts[1:-1][distinct[1:-1] != 0]
    if len(between) < _MIN_REPEATS:  # too few other values to say that this one stands out
        return {}
    enough = max(_MIN_REPEATS, 2 * int(between.max()) + 1)
    return {
        float(distinct[end]): int(counts[end])
        for end in (0, -1)
        if counts[end] >= enough and distinct[end] != 0
    }


def number_blocks(table: MetricsTable) -> tuple[str, NDArray[np.int64]]:
    """Return what pairs are resampled by, and each row's block as a number, shape (N,).

    That is the column of the setting with the fewest values of those that have at least five:
    of eight weight decays and six seeds the seeds, since all weight decays of a seed share its
    draws, and of eight weight decays and three seeds the weight decays. Without such a column
    it is the whole setting.
    """
    counts = {name: len(set(column.tolist())) for name, column in table.setting.items()}
    enough = [name for name, count in counts.items() if count >= _MIN_BLOCKS]
    if not enough:
        return "setting", _number_settings(table)
    unit = min(enough, key=counts.__getitem__)
    return unit, _number_settings(replace(table, setting={unit: table.setting[unit]}))


def sign_test(balance: NDArray[np.int64]) -> float:
    """Return the two-sided p of a sign test in which each block's signs flip together.

    The statistic is the sum of all signs. Under no effect each block's sum is as likely to be
    its opposite, however dependent the signs within it are, so the distribution over all 2^G
    flips is exact. Blocks of one pair each make this the ordinary sign test.

    Parameters
    ----------
    balance : ndarray, shape (G,)
        Pairs that rise less those that fall, in each block.
    """
    step = max(1.0, np.abs(balance).sum() / _MOST_SUMS)
    balance = np.rint(balance / step).astype(np.int64)
    sizes, seen = np.abs(balance), abs(int(balance.sum()))
    total = int(sizes.sum())
    law = np.zeros(2 * total + 1)  # probability of each sum from −total to total
    law[total] = 1.0
    for size in sizes[sizes > 0]:
        half, law = law / 2, np.zeros_like(law)
        law[size:] += half[:-size]
        law[:-size] += half[size:]
    sums = np.abs(np.arange(-total, total + 1))
    return float(min(1.0, law[sums >= seen].sum()))


def _measure(
    table: MetricsTable,
    metric: str,
    switch: str,
    off: NDArray[np.int64],
    on: NDArray[np.int64],
) -> Factor:
    values, effect = table.metrics[metric], table.effects[metric]
    unit, block = number_blocks(table)
    bounds = list(find_bounds(values)) if effect == "difference" else []
    bounded = np.isin(values[off], bounds) | np.isin(values[on], bounds)
    known = np.isfinite(values[off]) & np.isfinite(values[on])
    off, on = off[known & ~bounded], on[known & ~bounded]
    before, after = values[off], values[on]
    sign = (after > before).astype(np.int64) - (after < before)
    with np.errstate(all="ignore"):  # of numbers near the largest, changes may be infinite
        change = after / before if effect == "ratio" else after - before
        value = float(np.median(change)) if len(off) else None

    blocks = np.unique(block[off], return_inverse=True)[1]
    num_blocks = len(np.unique(blocks))
    reasons: Reasons = ()
    if num_blocks < _MIN_BLOCKS:
        reasons = (Reason("pairs_independent", found=num_blocks, needed=_MIN_BLOCKS),)
        unit, blocks, num_blocks = "pair", np.arange(len(off)), len(off)
    size = Estimate(
        value=value, status="not identified",
        reasons=(Reason("few_pairs", found=len(off), needed=_MIN_BLOCKS),),
    )  # fmt: skip
    if num_blocks >= _MIN_BLOCKS:
        low, high = _bound_median(change, blocks), -_bound_median(-change, blocks)
        status: Status = "weakly identified" if reasons else "identified"
        size = Estimate(value=value, low=low, high=high, status=status, reasons=reasons)
    balance = np.bincount(blocks, weights=sign, minlength=num_blocks).astype(np.int64)
    return Factor(
        metric=metric, switch=switch, effect=effect, size=size, pairs=len(off),
        falling=int((sign < 0).sum()), rising=int((sign > 0).sum()),
        unit=unit, units=num_blocks,
        p_value=sign_test(balance), absent=int((~known).sum()), at_bound=int(bounded.sum()),
    )  # fmt: skip


def _bound_median(change: NDArray[np.float64], blocks: NDArray[np.int64]) -> float:
    """Return the lower bound of the median: the least that `sign_test` does not reject."""
    order = np.argsort(change, kind="stable")
    change, blocks = change[order], blocks[order]
    sizes = np.bincount(blocks)

    def accept(below: int) -> bool:
        balance = sizes - 2 * np.bincount(blocks[:below], minlength=len(sizes))
        return sign_test(balance) >= LEVEL

    # The middle is always accepted.
    below = bisect_left(range(len(change) // 2), True, key=accept)
    return float(change[max(below, 1) - 1])
