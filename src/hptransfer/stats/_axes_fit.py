"""Fit a loss table over size, training tokens and batch at once, and recommend a rate at a target.

Each cell (size, tokens, batch) has a basin with its best loss free; their minima follow the law of
`three_axes`. An axis that is absent, or that one value fills, is left to its prior.

Shape letters: C cells.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hptransfer.errors import FitError
from hptransfer.stats._advice import choose_prior, judge_answer, refuse_answer
from hptransfer.stats._group_data import split_table
from hptransfer.stats._three_axes import (
    CURVATURE_SLOPE_SPREAD,
    CURVATURE_SLOPES,
    PARAMETERS_SLOPE,
    AxesLaw,
    Places,
    fit_axes_law,
)
from hptransfer.stats.cells import LOG_LR_DIGITS, Ints
from hptransfer.stats.estimate import refuse
from hptransfer.stats.loss_table import LossTable
from hptransfer.stats.minima import Minima, find_minima
from hptransfer.stats.priors import NO_PRIOR, PRIORS, Prior, classify
from hptransfer.stats.reasons import Reason
from hptransfer.stats.results import Recommendation

#: Cells with a minimum, and their span, from which an answer may be usable.
_USABLE_CELLS = 6


@dataclass(frozen=True, kw_only=True)
class _AxesGroup:
    """One group's cells with their minima.

    Attributes
    ----------
    group : mapping of str to object
        The values that name the group.
    places : Places
        Where the cells lie.
    minima : Minima
        Their minima; its ``size`` is the number of the cell.
    rows : ndarray of int
        The group's rows in its table.
    """

    group: Mapping[str, object]
    places: Places
    minima: Minima
    rows: Ints


@dataclass(frozen=True, kw_only=True)
class AxesFit:
    """The cells of all groups of a table over size, tokens and batch; `fit_axes` makes one.

    Attributes
    ----------
    table : LossTable
        The trials.
    groups : tuple of _AxesGroup
        In order of first appearance.
    """

    table: LossTable
    groups: tuple[_AxesGroup, ...]

    def recommend(
        self,
        *,
        width: float,
        tokens: float | None = None,
        batch: float | None = None,
        scatter: float | None = None,
        priors: Mapping[str, Prior] | None = PRIORS,
    ) -> list[Recommendation]:
        """Recommend a learning rate at a size, token budget and batch, for every group.

        Parameters
        ----------
        width : float
            Target size.
        tokens, batch : float, optional
            The target's training tokens, and its batch in tokens; needed where the table has
            that axis, and refused where it has not.
        scatter : float, optional
            Standard deviation of each cell's ln lr* about the law, held; by default found.
        priors : mapping of str to Prior, or None
            Priors by kind of sweep; None for none on the slope in size.

        Raises
        ------
        FitError
            A target is no positive number, is missing, or names an axis that the table lacks, or
            `priors` lacks a group's kind of sweep.
        """
        asked = {"width": width, "tokens": tokens, "batch": batch}
        for name, value in asked.items():
            if value is not None and not (np.isfinite(value) and value > 0):
                raise FitError(f"{name}: expected a positive number, found {value}")
        for name, column in (("tokens", self.table.tokens), ("batch", self.table.batch)):
            if (column is None) != (asked[name] is None):
                lacks = "the table has no such axis" if column is None else "none was given"
                need = "no target" if column is None else "the target's, as the table has that axis"
                raise FitError(f"{self.table.source}: {name}: expected {need}, but {lacks}")
        target = Places(
            size=np.log([width]),
            tokens=None if tokens is None else np.log([tokens]),
            batch=None if batch is None else np.log([batch]),
        )
        found = [_advise(group, self.table, target, scatter, priors) for group in self.groups]
        return [answer.heed(self.table.doubts) for answer in found]


def fit_axes(table: LossTable, *, by: Sequence[str] | None = None) -> AxesFit:
    """Find the minimum of every cell of a table that spans sizes, tokens and batches.

    Parameters
    ----------
    table : LossTable
        Trials; `LossTable.tokens` and `LossTable.batch` are the axes beside the width.
    by : sequence of str, optional
        Group columns to split on; by default all of the table's.

    Raises
    ------
    FitError
        Nothing to fit, an unknown column, or an axis that is not positive.

    Examples
    --------
    >>> import numpy as np
    >>> n, t, x = (a.ravel() for a in np.meshgrid([64., 128], [1e9, 2e9], np.arange(-9., -3)))
    >>> loss = 3 + 4 / n**0.5 + 0.1 * (x + 5 + 0.4 * np.log(n / 64)) ** 2
    >>> table = LossTable(width=n, lr=np.exp(x), loss=loss, seed=np.zeros(24, int), tokens=t)
    >>> [answer] = fit_axes(table).recommend(width=256, tokens=4e9)
    >>> 0.002 < answer.lr.value < 0.005
    True
    """
    split = split_table(table, by)
    columns = {"width": table.width, "tokens": table.tokens, "batch": table.batch}
    for name, column in columns.items():
        if column is not None and not np.all(np.isfinite(column) & (column > 0)):
            raise FitError(f"{table.source}: column {name}: expected positive numbers")
    return AxesFit(
        table=table,
        groups=tuple(_gather(table, dict(g.key), g.rows) for g in split.groups),
    )


def _gather(table: LossTable, group: Mapping[str, object], rows: Ints) -> _AxesGroup:
    """Find the minima of one group's cells, means over seeds; a diverged trial spoils its point."""
    named = Places(table.width, table.tokens, table.batch).known
    axes = [np.log(axis[rows]) for axis in named.values()]
    cells, cell = np.unique(np.stack(axes, axis=1), axis=0, return_inverse=True)
    cell = np.asarray(cell).reshape(-1)
    x = np.log(table.lr[rows])
    points, point, count = np.unique(
        np.stack([cell, np.round(x, LOG_LR_DIGITS)], axis=1),
        axis=0, return_inverse=True, return_counts=True,
    )  # fmt: skip
    point = np.asarray(point).reshape(-1)
    # A NaN makes its point's mean NaN.
    mean = np.bincount(point, table.loss[rows]) / count
    slopes = dict(zip(Places._fields, CURVATURE_SLOPES, strict=True))
    minima = find_minima(
        points[:, 0],
        points[:, 1],
        mean,
        count.astype(np.float64),
        axes=cells,
        slopes=np.array([slopes[name] for name in named]),
        slope_spread=CURVATURE_SLOPE_SPREAD,
    )
    places = Places(**dict(zip(named, cells.T, strict=True)))
    return _AxesGroup(group=group, places=places, minima=minima, rows=rows)


def _advise(
    found: _AxesGroup,
    table: LossTable,
    target: Places,
    scatter: float | None,
    priors: Mapping[str, Prior] | None,
) -> Recommendation:
    """Make one group's recommendation."""
    name = found.group.get("parameterization")
    kind = classify(table.size, table.axis, None if name is None else str(name))
    prior = NO_PRIOR if priors is None else choose_prior(priors, kind)
    if kind == "parameters" and prior == PRIORS[kind]:
        # Parameter counts that move alone shift less than those that take their tokens along.
        prior = replace(prior, slope=PARAMETERS_SLOPE[0], spread=PARAMETERS_SLOPE[1])
    minima, width = found.minima, float(np.exp(target.size[0]))
    ok = minima.found
    no_loss = refuse(Reason("no_loss_over_axes"))
    blank = refuse_answer(table, found.group, width, prior, refuse(Reason("no_minimum")))
    blank = replace(blank, loss=no_loss)
    if not ok.any():
        return blank
    places = found.places.take(ok)
    x, variance = minima.x[ok], minima.variance[ok]
    law = fit_axes_law(places, x, variance, slope=(prior.slope, prior.spread), scatter=scatter)
    [where] = law.forecast(target)
    near = _nearest(places, target)
    ratio = float(target.size[0] - places.size[near])
    answer = judge_answer(
        blank, table, where, float(minima.curvature[ok][near]), float(x[near]), ratio,
        _worry(law, places, target),
    )  # fmt: skip
    forms = dict.fromkeys(law.fits, 1.0 / len(law.fits))
    return replace(answer, forms=forms, scatter=law.scatter)


def _nearest(places: Places, target: Places) -> int:
    """Return the cell nearest to the target in the logarithms of its axes."""
    both = zip(places.known.values(), target.known.values(), strict=True)
    off = sum(np.abs(a - b) for a, b in both)
    return int(np.argmin(np.asarray(off)))


def _worry(law: AxesLaw, places: Places, target: Places) -> list[str]:
    """Say what makes an answer at a target risky, besides its price."""
    worries = []
    if len(places.size) < _USABLE_CELLS:
        worries.append(f"only {len(places.size)} cells have a minimum: the prior answers for much")
    worries += [
        f"{pair.replace(', ', ' and ')} move together (correlation {value:.2f}): the prior tells "
        "them apart"
        for pair, value in law.correlations.items()
    ]
    for name, axis in places.known.items():
        at = target.known[name]
        beyond = max(float(at[0] - axis.max()), float(axis.min() - at[0]))
        if np.ptp(axis) > 0.0 and beyond > np.ptp(axis):
            worries.append(
                f"the {name} asked for lies {np.exp(beyond):.3g} times beyond those measured, "
                f"which span only {np.exp(np.ptp(axis)):.3g} times"
            )
    return worries
