"""Name the data that would help: what an estimate lacks, and which trials to run next.

What is too uncertain is answered from the Fisher information of the fit's own trials: the fewest
further widths, and the number of trials, with which an interval would meet its threshold. What a
basin lacks is read off its flags. Which trials to run next is answered by the law that forecasts
the optimum: those that narrow its interval at the target most for their training FLOPs.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from hptransfer.stats._group_fit import GroupData
from hptransfer.stats.estimate import NORMAL_90, BasinFit, Estimate
from hptransfer.stats.joint_model import WIDTHS_FOR_JOINT, Information
from hptransfer.stats.loss_table import Cells, Floats
from hptransfer.stats.minima import Minima
from hptransfer.stats.optimum_law import Forecast, Known
from hptransfer.stats.reasons import Reason
from hptransfer.stats.results import Proposal, Step, TransferModel
from hptransfer.stats.seed_noise import cell_variances, is_silent

#: More widths, and times as many trials, than these are no help worth naming.
_MOST_WIDTHS = 3
_MOST_TIMES = 30

#: Quantities of which the Fisher information tells what more trials would make of them.
_BOUNDED = ("alpha", "beta", "gamma", "b", "kappa", "loss_inf")


def find_missing(basins: tuple[BasinFit, ...], usable: Floats, cells: Cells) -> tuple[Reason, ...]:
    """Return the points and widths without which there are no laws; empty where none lack."""
    if len(usable) >= WIDTHS_FOR_JOINT:
        return ()
    out = [find_point(b, cells) for b in basins if b.width not in usable]
    lacking = WIDTHS_FOR_JOINT - len(basins)
    if lacking > 0:
        out.append(Reason("widths", num=lacking, width=float(cells.width.max())))
    return tuple(out)


def find_point(basin: BasinFit, cells: Cells) -> Reason:
    """Return which point would give a width its minimum."""
    rows = cells.at(basin.width)
    x, mean = cells.x[rows], cells.mean[rows]
    if not np.any(np.isfinite(mean)):
        return Reason("lower", x=float(x.min()), width=basin.width)
    clean = np.flatnonzero(np.isfinite(mean))
    best = int(clean[np.argmin(mean[clean])])
    here = {"x": float(x[best]), "width": basin.width}
    bad = x[(cells.diverged[rows] > 0) & (x > x[best])]
    if not basin.bracketed:
        sides = (flag.numbers["side"] for flag in basin.flags if flag.kind == "best_at_end")
        return Reason(_TOWARDS[next(sides, "only")], **here)
    if len(bad) and any(flag.kind == "bounded_by_divergence" for flag in basin.flags):
        return Reason("between", end=float(bad.min()), **here)
    return Reason("near", **here)


_TOWARDS = {"highest": "right", "lowest": "left", "only": "sides"}


def narrow_interval(
    data: GroupData,
    usable: Floats,
    model: TransferModel | None,
    name: str,
    half: float | None,
    limit: float,
) -> Reason:
    """Return how many widths, or trials, would bring a 90 % half-width down to its threshold."""
    cells = data.cells
    silent = is_silent(cells, data.noise)
    if half is None and silent:
        return Reason("seed")
    if silent or model is None or name not in _BOUNDED:
        return repeat_trials(half or math.inf, limit)
    rows = cells.clean & np.isin(cells.width, usable)
    width = cells.width[rows]
    sigma = np.maximum(np.sqrt(cell_variances(cells, data.noise)[rows]), 1e-300)
    u, last = cells.x[rows] - model.optimum(width), width == width.max()

    def bound(num: int) -> float:
        """Standard error with `num` more widths, each twice the last, sampled as the widest."""
        new = np.repeat(width.max() * 2.0 ** np.arange(1, num + 1), last.sum())
        n = np.append(width, new)
        off, error = (np.append(each, np.tile(each[last], num)) for each in (u, sigma))
        return Information(model, width=n, x=model.optimum(n) + off, sigma=error).error(name)

    now = bound(0)
    if not 0.0 < now < math.inf:
        return repeat_trials(half or math.inf, limit)
    # An interval cut off by a bound says less than the information does.
    start = max(half or 0.0, NORMAL_90 * now)
    enough = (k for k in range(1, _MOST_WIDTHS + 1) if start * bound(k) / now <= limit)
    num = next(enough, None)
    trials = repeat_trials(start, limit)
    few = trials.numbers["times"] is not None
    if num is None:
        return trials if few else Reason("neither", most=_MOST_TIMES)
    widths = Reason("widths", num=num, width=float(width.max()))
    return Reason("widths_or_times", widths=widths, times=trials) if few else widths


def repeat_trials(
    half: float, limit: float, width: float | None = None, power: float = 2.0
) -> Reason:
    """Return how many times the trials bring a half-width down to its threshold."""
    need = (half / limit) ** power
    times = None if need > _MOST_TIMES or math.isnan(need) else max(2, math.ceil(need))
    return Reason("times", times=times, most=_MOST_TIMES, width=width)


def falls_flat(estimate: Estimate) -> bool:
    """Tell whether an estimate rests on a best loss that does not fall with width."""
    reasons = list(estimate.reasons)
    for reason in reasons:
        reasons += reason.numbers.get("of", ())
    return any(each.kind == "at_bound" and each.numbers["parameter"] == "A" for each in reasons)


#: Spent at most, as a fraction of the compute of the trials that are there.
BUDGET = 0.5
#: Learning rates of a new width, and steps that gain less than this share of the half-width now.
_ROW, _LEAST_GAIN = 5, 0.01


class _Candidate(NamedTuple):
    """Trials at one width that could be run: their ln(lr), cost, and the variance they leave.

    `variance` is that of a new width's minimum, or a share of that of one that is there.
    """

    width: float
    new: bool
    x: tuple[float, ...]
    cost: float
    variance: float

    def grow(self, known: Known) -> Known:
        """Return what would be known with these trials."""
        at = int(np.searchsorted(known.size, self.width))
        if self.new:
            new = (self.width, self.x[len(self.x) // 2], self.variance, -np.inf, np.inf)
            return Known(*(np.insert(a, at, value) for a, value in zip(known, new, strict=True)))
        variance = known.variance.copy()
        variance[at] *= self.variance
        return known._replace(variance=variance)


def propose_trials(
    minima: Minima,
    target: float,
    locate: Callable[[Known, float], Forecast],
    flops: Callable[[Floats], Floats],
    total: float,
    basis: str,
) -> Proposal:
    """Propose trials that narrow lr* at a target width: greedily, most for their FLOPs first.

    Parameters
    ----------
    minima : Minima
        The widths' minima, at least one.
    target : float
        Width of the answer.
    locate : callable
        From what is known and a width to where x* lies there.
    flops, total : callable, float
        Training FLOPs of widths, and of all trials of the group.
    basis : str
        What the FLOPs are taken from, in words.

    Returns
    -------
    Proposal
        Without steps where nothing is to be gained.
    """

    def halves(known: Known) -> float:
        low, high = locate(known, target).where.interval()
        return 0.5 * (high - low)

    known = Known.of(minima)
    start = before = halves(known)
    left = _list_candidates(
        minima, target, lambda at: locate(Known.of(minima), at).where.mean, flops, total
    )
    budget, steps = BUDGET, list[Step]()
    while True:
        tried = [
            ((before - halves(each.grow(known))) / start, each)
            for each in left
            if each.cost <= budget * (1.0 + 1e-9)
        ]
        tried = [(gain, each) for gain, each in tried if gain >= _LEAST_GAIN]
        if not tried:
            return Proposal(half_width=start, steps=tuple(steps), cost_basis=basis)
        gain, best = max(tried, key=lambda each: each[0] / each[1].cost)
        left.remove(best)
        known, budget, before = best.grow(known), budget - best.cost, before - gain * start
        steps.append(
            Step(
                width=best.width,
                new=best.new,
                lrs=tuple(np.exp(best.x).tolist()),
                trials=(1,) * len(best.x),
                cost=best.cost,
                half_width=before,
                gain=gain / best.cost,
            )
        )


def _list_candidates(
    minima: Minima,
    target: float,
    optimum: Callable[[float], float],
    flops: Callable[[Floats], Floats],
    total: float,
) -> list[_Candidate]:
    """List rates half-way between the points around each minimum, and rows at new widths."""
    found = np.flatnonzero(minima.found)
    every = [np.sort(minima.places[k]) for k in found]
    gaps = np.concatenate([np.diff(x) for x in every])
    step = float(np.median(gaps)) if len(gaps) else math.log(2.0)
    out = []

    def add(width: float, new: bool, x: Sequence[float], variance: float) -> None:
        cost = len(x) * float(flops(np.array([width]))[0]) / total
        out.append(_Candidate(width, new, tuple(x), cost, variance))

    for k, x in zip(found.tolist(), every, strict=True):
        middles = 0.5 * (x[:-1] + x[1:])
        near = np.argsort(np.abs(middles - minima.x[k]), kind="stable")[:4]
        add(
            float(minima.size[k]), False, np.sort(middles[near]).tolist(),
            len(x) / (len(x) + len(near)),
        )  # fmt: skip
    grid = np.concatenate(every)
    for width in list_widths(minima.size, target):
        # On the study's own grid where it reaches.
        centre = optimum(width)
        anchor = float(grid[np.argmin(np.abs(grid - centre))])
        middle = anchor + step * round((centre - anchor) / step)
        row = [middle + step * k for k in range(-(_ROW // 2), _ROW // 2 + 1)]
        add(width, True, row, float(np.median(minima.variance[found])))
    return out


def list_widths(widths: Floats, target: float) -> list[float]:
    """New widths: half-way between those there, and in steps of 1.5 and 2 below the target."""
    between = (0.5 * (widths[:-1] + widths[1:])).tolist()
    beyond = []
    last = float(widths[-1])
    while last < target:
        beyond += [1.5 * last, 2.0 * last]
        last *= 2.0
    return [*between, *(n for n in beyond if n < target)]
