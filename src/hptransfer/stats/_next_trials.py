"""Choose the trials that narrow an answer most for their compute.

Sequential design: each further trial is the one with the largest fall of the variance of x* at the
target, by the Cramér-Rao bound, over its training FLOPs (c-optimal design; Fedorov 1972),
until half of what the study cost is spent. A point gets at most as many further trials as points
have (the median), so that the choice spreads over points: one that rests on few, far from the
minimum, would trust the model's shape more than a sweep can show. Candidates are trials at points
that are there, at learning rates half-way between them and one step beyond, and whole rows at new
widths.

Shape letters: M candidates.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hptransfer.stats._compute_regret import Flops
from hptransfer.stats._fisher import SAME_PLACE, Design, solve_information
from hptransfer.stats.cells import Bools, Floats, Ints
from hptransfer.stats.results import Proposal, Step

#: Spent at most, as a fraction of the compute of the trials that are there.
BUDGET = 0.5
#: Learning rates of a new width.
ROW = 5
#: Steps that gain less than this share of the half-width now are not worth a line.
LEAST_GAIN = 0.01
MOST_PICKS = 400


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Points at which further trials could be run; arrays of shape (M,).

    Attributes
    ----------
    width, x : ndarray
        Width and ln(lr).
    count : ndarray
        Trials there now.
    variance : ndarray
        Variance of one trial in nats².
    cost : ndarray
        Cost of one trial, as a fraction of the study's.
    open : ndarray of bool
        Whether a single trial may be added; the points of a new width open when its row is run.
    row : ndarray of int
        Number of the new width that a point is of; -1 for widths that are there.
    """

    width: Floats
    x: Floats
    count: Floats
    variance: Floats
    cost: Floats
    open: Bools
    row: Ints


def list_candidates(design: Design, target: float, flops: Flops, total: float) -> Candidates:
    """List where trials could be added.

    Parameters
    ----------
    target : float
        Width of the answer; new widths stay below it.
    flops : callable
        Training FLOPs of widths.
    total : float
        FLOPs of the study.
    """
    widths = design.widths
    u = design.x - np.array([float(design.joint.optimum(n)[0]) for n in design.width])
    reach = (float(u.min()) - SAME_PLACE, float(u.max()) + SAME_PLACE)
    fresh: list[tuple[float, float, int]] = []
    for n in widths.tolist():
        x = np.sort(design.x[design.width == n])
        tried = [*(0.5 * (x[:-1] + x[1:])), x[0] - design.step, x[-1] + design.step]
        centre = float(design.joint.optimum(n)[0])
        fresh += [(n, float(p), -1) for p in tried if reach[0] <= p - centre <= reach[1]]
    grid = np.unique(np.round(design.x, 6))
    for k, n in enumerate(list_widths(widths, target)):
        fresh += [
            (n, p, k) for p in choose_row(grid, design.step, float(design.joint.optimum(n)[0]))
        ]
    width = np.concatenate([design.width, [n for n, _, _ in fresh]])
    row = np.concatenate([np.full(len(design.x), -1), [k for _, _, k in fresh]]).astype(np.int64)
    num = len(design.x)
    return Candidates(
        width=width,
        x=np.concatenate([design.x, [p for _, p, _ in fresh]]),
        count=np.concatenate([design.count, np.zeros(len(fresh))]),
        variance=np.concatenate([design.variance, design.variance_at(width[num:])]),
        cost=flops(width) / total,
        open=row < 0,
        row=row,
    )


def list_widths(widths: Floats, target: float) -> list[float]:
    """New widths: half-way between those there, and in steps of 1.5 and 2 below the target."""
    between = (0.5 * (widths[:-1] + widths[1:])).tolist()
    beyond = []
    last = float(widths[-1])
    while last < target:
        beyond += [1.5 * last, 2.0 * last]
        last *= 2.0
    return [*between, *(n for n in beyond if n < target)]


def choose_row(grid: Floats, step: float, centre: float) -> list[float]:
    """`ROW` places in ln(lr) around `centre`, on the study's own grid where it reaches."""
    anchor = float(grid[np.argmin(np.abs(grid - centre))])
    middle = anchor + step * np.round((centre - anchor) / step)
    return [float(middle + step * k) for k in range(-(ROW // 2), ROW // 2 + 1)]


def pick_greedily(
    information: Floats,
    gradient: Floats,
    jacobian: Floats,
    found: Candidates,
    excess: float,
    *,
    budget: float = BUDGET,
    most: int,
) -> Ints:
    """Choose trials one by one, best ratio of variance saved to cost first.

    Parameters
    ----------
    information : ndarray, shape (P, P)
        Of the trials that are there.
    gradient : ndarray, shape (P,)
        Of the quantity whose variance is to fall.
    jacobian : ndarray, shape (M, P)
        Of the losses at the candidates.
    excess : float
        Variance of a point's mean beyond that of its trials.
    budget : float
        Cost to spend at most.
    most : int
        Trials added at a candidate at most.

    Returns
    -------
    ndarray of int, shape (M,)
        Trials added at each candidate.
    """
    count, is_open = found.count.copy(), found.open.copy()
    added = np.zeros(len(count), dtype=np.int64)
    total = information.copy()
    rows = np.unique(found.row[found.row >= 0]).tolist()

    def precision(number: Floats) -> Floats:
        spread = found.variance / np.maximum(number, 1.0) + excess
        return np.where(number > 0, 1.0 / spread, 0.0)

    for _ in range(MOST_PICKS):
        solved = solve_information(total, np.column_stack([gradient, jacobian.T]))
        along = jacobian @ solved[:, 0]
        leverage = np.einsum("mp,pm->m", jacobian, solved[:, 1:])
        more = precision(count + 1.0) - precision(count)
        saved = more * along**2 / (1.0 + more * leverage)
        ratio = np.where(is_open & (found.cost <= budget), saved / found.cost, -np.inf)
        best = int(np.argmax(ratio))
        chosen, score = np.array([best]), float(ratio[best])
        variance = float(gradient @ solved[:, 0])
        for k in rows:
            members = np.flatnonzero(found.row == k)
            price = float(found.cost[members].sum())
            if np.any(added[members]) or price > budget:
                continue
            part = jacobian[members] * np.sqrt(more[members])[:, None]
            after = float(gradient @ solve_information(total + part.T @ part, gradient))
            if (variance - after) / price > score:
                chosen, score = members, (variance - after) / price
        if not score > 0.0:
            break
        part = jacobian[chosen] * np.sqrt(more[chosen])[:, None]
        total = total + part.T @ part
        count[chosen] += 1.0
        added[chosen] += 1
        is_open[chosen] = True
        is_open &= added < most
        budget -= float(found.cost[chosen].sum())
    return added


def propose_trials(
    design: Design, half_width: float, target: float, flops: Flops, total: float, basis: str
) -> Proposal:
    """Propose trials that narrow lr* at a target width.

    Parameters
    ----------
    half_width : float
        90 % half-width of ln(lr*) at the target now.
    flops, total : callable, float
        Training FLOPs of widths, and of all trials of the group.
    basis : str
        What the FLOPs are taken from, in words.
    """
    found = list_candidates(design, target, flops, total)
    gradient = design.free(design.gradient_of_optimum(target))
    jacobian = design.free(design.jacobian(found.width, found.x))
    most = max(int(np.median(design.count)), 1)
    added = pick_greedily(design.information(), gradient, jacobian, found, design.excess, most=most)
    parts = [np.flatnonzero((found.width == n) & (added > 0)) for n in np.unique(found.width)]
    steps = _rank(design, found, added, [p for p in parts if len(p)], half_width, target)
    return Proposal(half_width=half_width, steps=tuple(steps), cost_basis=basis)


def _rank(
    design: Design,
    found: Candidates,
    added: Ints,
    parts: Sequence[Ints],
    half_width: float,
    target: float,
) -> list[Step]:
    """Order the chosen trials, a width at a time, by what each width adds for its cost."""
    start = design.error(design.gradient_of_optimum(target))
    steps: list[Step] = []
    before, left = half_width, list(parts)
    while left:
        tried = []
        for part in left:
            count = added[part].astype(np.float64)
            wider = design.with_points(found.width[part], found.x[part], count)
            error = wider.error(wider.gradient_of_optimum(target))
            cost = float(np.sum(count * found.cost[part]))
            tried.append(((before - half_width * error / start) / half_width, cost, part, wider))
        gain, cost, part, design = max(tried, key=lambda each: each[0] / each[1])
        left = [other for other in left if other is not part]
        if gain < LEAST_GAIN:
            continue
        before -= gain * half_width
        order = part[np.argsort(found.x[part])]
        steps.append(
            Step(
                width=float(found.width[part[0]]),
                new=bool(found.row[part[0]] >= 0),
                lrs=tuple(np.exp(found.x[order]).tolist()),
                trials=tuple(added[order].tolist()),
                cost=cost,
                half_width=before,
                gain=gain / cost,
            )
        )
    return steps
