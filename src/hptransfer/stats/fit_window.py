"""Which points of a width belong to its basin, and whether they bracket a minimum.

The joint fit's window (1.35 times the best loss) is far too wide for a parabola of language
model losses, so a basin uses the points near the minimum only: those within a factor of four in
learning rate of the best one whose loss is within a tenth of the best, and always the best
point's neighbours. A neighbour far up a cliff bounds the minimum all the same, but its height
says nothing of the basin's shape, so it is left out where enough points remain. So is no cell
whose seeds disagree: it weighs as little as its own variance says.
"""

from dataclasses import dataclass

import numpy as np

from hptransfer.stats.cells import Bools, Cells, Floats, Ints
from hptransfer.stats.reasons import Reason

#: Reach of the local fit, in ln(lr), to each side of the best measured point.
REACH = float(np.log(4.0))
#: Points further than the neighbours count only up to this rise, relative to the best loss.
RISE = 0.1


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Cells of one width.

    Attributes
    ----------
    x, mean : ndarray, shape (L,)
        ln(lr), ascending, and mean loss; NaN where the cell is not clean.
    highest : ndarray, shape (L,)
        Highest finite loss of each cell; NaN where there is none.
    diverged : ndarray of int, shape (L,)
        Diverged trials of each cell.
    unsettled : ndarray of bool, shape (L,)
        Cells whose seeds disagree far more than those of others.
    """

    x: Floats
    mean: Floats
    highest: Floats
    diverged: Ints
    unsettled: Bools

    @property
    def broken(self) -> Bools:
        """Unsettled cells in which a seed ended far above the best cell, shape (L,)."""
        if not np.any(np.isfinite(self.mean)):
            return np.zeros(len(self.x), dtype=bool)
        best = np.nanmin(self.mean)
        with np.errstate(invalid="ignore"):
            return np.asarray(self.unsettled & (self.highest > best + RISE * abs(best)))

    @property
    def cliff(self) -> float:
        """Lowest x above the best cell's at which a seed broke down; inf where none did."""
        if not np.any(self.broken):
            return np.inf
        settled = np.where(self.unsettled, np.inf, self.mean)
        best = np.nanmin(np.where(np.isfinite(settled), settled, np.inf))
        above = self.x > self.x[settled == best].min(initial=np.inf)
        return float(self.x[self.broken & above].min(initial=np.inf))


def sweep_of(cells: Cells, rows: Ints, unsettled: Bools) -> Sweep:
    """Take the cells `rows` of one width; `unsettled` (C,) is of all cells."""
    highest = np.where(cells.present[rows], cells.losses[rows], -np.inf).max(axis=1)
    return Sweep(
        x=cells.x[rows],
        mean=cells.mean[rows],
        highest=np.where(np.isfinite(highest), highest, np.nan),
        diverged=cells.diverged[rows],
        unsettled=unsettled[rows],
    )


@dataclass(frozen=True, kw_only=True)
class Neighbourhood:
    """Which points of a width a basin is fitted to.

    Attributes
    ----------
    points : ndarray of int
        Indices into the width's cells, ascending in x; empty where no cell is clean.
    best : int
        Index of the lowest clean and settled cell; -1 where there is none.
    bracketed : bool
        A measured point, or on the right a diverged one, lies on each side of the best.
    flags : tuple of Reason
        What a reader must know.
    right_edge : float
        x of the diverged cell that alone bounds the minimum on the right; inf otherwise.
    caution : tuple of Reason
        Why the minimum is bounded only weakly; empty otherwise.
    """

    points: Ints
    best: int
    bracketed: bool
    flags: tuple[Reason, ...]
    right_edge: float = np.inf
    caution: tuple[Reason, ...] = ()


def find_neighbourhood(sweep: Sweep) -> Neighbourhood:
    """Choose the points of one width's basin."""
    x, mean, diverged = sweep.x, sweep.mean, sweep.diverged
    clean = np.flatnonzero(np.isfinite(mean))
    if len(clean) == 0:
        kind = "all_diverged" if np.any(diverged > 0) else "no_losses"
        return Neighbourhood(points=clean, best=-1, bracketed=False, flags=(Reason(kind),))
    flags: list[Reason] = []
    loose = sweep.unsettled[clean]
    if np.all(loose):
        loose = np.zeros(len(clean), dtype=bool)
    place = int(np.argmin(np.where(loose, np.inf, mean[clean])))
    best = int(clean[place])
    beyond = diverged[x > x[best]] > 0
    right_edge = np.inf
    caution: tuple[Reason, ...] = ()
    left_ok, right_ok = bool(np.any(~loose[:place])), place + 1 < len(clean)
    if np.any(diverged[x < x[best]] > 0):
        flags.append(Reason("diverged_below"))
    if not right_ok and np.any(beyond):
        right_ok = True
        right_edge = float(x[x > x[best]][beyond][0])
        caution = (Reason("bounded_by_divergence"),)
        flags += caution
    elif right_ok and np.all(loose[place + 1 :]):
        caution = (Reason("bounded_by_disagreement"),)
        flags += caution
    if not (left_ok and right_ok):
        side = "lowest" if not left_ok else "highest"
        if not left_ok and not right_ok:
            side = "only"
        flags.insert(0, Reason("not_bracketed"))
        flags.append(Reason("best_at_end", side=side))
    ceiling = mean[best] + RISE * abs(mean[best])
    close = np.abs(x[clean] - x[best]) <= REACH * (1.0 + 1e-6)
    near = close & (mean[clean] <= ceiling)
    neighbours = np.zeros(len(clean), dtype=bool)
    neighbours[max(place - 1, 0) : place + 2] = True
    kept = _without_cliffs(near, neighbours, loose, place)
    near = near | neighbours if kept is None else kept
    order = np.argsort(np.abs(x[clean] - x[best]), kind="stable")
    for k in order:
        if near.sum() >= 3:
            break
        near[k] = True
    broken = sweep.broken
    for k in np.flatnonzero((near | close) & loose).tolist():
        lr, broke = float(np.exp(x[clean[k]])), bool(broken[clean[k]])
        flags.append(Reason("seeds_disagree", lr=lr, broke=broke))
    return Neighbourhood(
        points=clean[near],
        best=best,
        bracketed=left_ok and right_ok,
        flags=tuple(flags),
        right_edge=right_edge,
        caution=caution,
    )


def _without_cliffs(near: Bools, neighbours: Bools, loose: Bools, place: int) -> Bools | None:
    """Leave out what lies on or beyond a cliff; None where too few settled points remain.

    Points beyond a cliff, back below the ceiling, are another valley.
    """
    cliff = neighbours & ~near & ~loose
    if not np.any(cliff):
        return None
    kept = near | (neighbours & loose)
    for k in np.flatnonzero(cliff).tolist():
        if k < place:
            kept[: k + 1] = False
        else:
            kept[k:] = False
    return kept if int(np.sum(kept & ~loose)) >= 3 else None
