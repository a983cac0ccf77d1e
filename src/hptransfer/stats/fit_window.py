"""Whether the points of a width bracket a minimum, and where one of several seeds broke down.

A neighbour far up a cliff bounds the minimum all the same. A cell whose seeds disagree far more
than those of others is not called the best, and bounds a minimum only weakly.
"""

from dataclasses import dataclass

import numpy as np

from hptransfer.stats.loss_table import Bools, Cells, Floats, Ints
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
        Highest finite loss of each cell; -inf where there is none.
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
        best = np.min(self.mean, initial=np.inf, where=np.isfinite(self.mean))
        return np.asarray(self.unsettled & (self.highest > best + RISE * abs(best)))

    @property
    def cliff(self) -> float:
        """Lowest x above the best cell's at which a seed broke down; inf where none did."""
        settled = np.where(self.unsettled | ~np.isfinite(self.mean), np.inf, self.mean)
        best = self.x[settled == settled.min()].min()
        return float(self.x[self.broken & (self.x > best)].min(initial=np.inf))


def sweep_of(cells: Cells, rows: Ints, unsettled: Bools) -> Sweep:
    """Take the cells `rows` of one width; `unsettled` (C,) is of all cells."""
    highest = np.where(cells.present[rows], cells.losses[rows], -np.inf).max(axis=1)
    return Sweep(
        x=cells.x[rows],
        mean=cells.mean[rows],
        highest=highest,
        diverged=cells.diverged[rows],
        unsettled=unsettled[rows],
    )


@dataclass(frozen=True, kw_only=True)
class Neighbourhood:
    """The lowest point of a width, and what bounds its minimum.

    Attributes
    ----------
    best : int
        Index of the lowest clean and settled cell; -1 where there is none.
    bracketed : bool
        A measured point, or on the right a diverged one, lies on each side of the best.
    flags : tuple of Reason
        What a reader must know.
    caution : tuple of Reason
        Why the minimum is bounded only weakly; empty otherwise.
    """

    best: int
    bracketed: bool
    flags: tuple[Reason, ...]
    caution: tuple[Reason, ...] = ()


def find_neighbourhood(sweep: Sweep) -> Neighbourhood:
    """Find what bounds one width's minimum."""
    x, mean, diverged = sweep.x, sweep.mean, sweep.diverged
    clean = np.flatnonzero(np.isfinite(mean))
    if len(clean) == 0:
        kind = "all_diverged" if np.any(diverged > 0) else "no_losses"
        return Neighbourhood(best=-1, bracketed=False, flags=(Reason(kind),))
    flags: list[Reason] = []
    loose = sweep.unsettled[clean]
    if np.all(loose):
        loose = np.zeros(len(clean), dtype=bool)
    place = int(np.argmin(np.where(loose, np.inf, mean[clean])))
    best = int(clean[place])
    beyond = diverged[x > x[best]] > 0
    caution: tuple[Reason, ...] = ()
    left_ok, right_ok = bool(np.any(~loose[:place])), place + 1 < len(clean)
    if np.any(diverged[x < x[best]] > 0):
        flags.append(Reason("diverged_below"))
    if not right_ok and np.any(beyond):
        right_ok = True
        caution = (Reason("bounded_by_divergence"),)
        flags += caution
    elif right_ok and np.all(loose[place + 1 :]):
        caution = (Reason("bounded_by_disagreement"),)
        flags += caution
    if not (left_ok and right_ok):
        side = "highest" if left_ok else "lowest" if right_ok else "only"
        flags.insert(0, Reason("not_bracketed"))
        flags.append(Reason("best_at_end", side=side))
    seen = np.abs(x[clean] - x[best]) <= REACH * (1.0 + 1e-6)
    seen[max(place - 1, 0) : place + 2] = True
    broken = sweep.broken
    for k in np.flatnonzero(seen & loose).tolist():
        lr, broke = float(np.exp(x[clean[k]])), bool(broken[clean[k]])
        flags.append(Reason("seeds_disagree", lr=lr, broke=broke))
    return Neighbourhood(
        best=best,
        bracketed=left_ok and right_ok,
        flags=tuple(flags),
        caution=caution,
    )
