"""Fit a loss table over size, training tokens and batch at once, and recommend a rate at a target.

Each cell (size, tokens, batch) has a basin with its best loss free; an axis that is absent, or that
one value fills, is left to its prior. x* = ln(lr*) of the minima follows one law.

With N' = ln(n/n₀), T' = ln(T/T₀) and v = ln(B/B₀) − k₀ − k·T' − k_N·N' (B in tokens), in the forms

    Q  x* = a − b·N' + c·T' + d₁·v + d₂·v²       H  x* = a − b·N' + c·T' − ln cosh(v/2)
    S  x* = a − b·N' + c·T' − p·ln(1 + e^−v)     SN the same with k_N free

each with scatter: cells of one size and budget share a deviation, and every cell has its own. The
coefficients have priors, which carry whatever the table's design does not show. Forms weigh the
same: on public tables weights by likelihood give all to one form and make the tail errors grow.

Shape letters: C cells, P coefficients, K forms.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import NamedTuple

import numpy as np

from hptransfer.errors import FitError
from hptransfer.stats._advice import (
    answer_measured,
    judge_answer,
    refuse_answer,
)
from hptransfer.stats._group_fit import check_positive, check_scatter
from hptransfer.stats.estimate import refuse
from hptransfer.stats.loss_table import LOG_LR_DIGITS, Bools, Floats, Ints, LossTable, split_table
from hptransfer.stats.minima import Minima, find_minima
from hptransfer.stats.optimum_law import Forecast, Mixture
from hptransfer.stats.priors import PRIORS, Prior, find_prior
from hptransfer.stats.reasons import Reason
from hptransfer.stats.results import Recommendation

#: Where tokens and batch (in tokens) have the logarithm 0.
TOKENS_0, BATCH_0 = 2e10, 256.0 * 2048.0
#: Standard deviations tried for the scatter, shared and own, and the spread of their logarithms
#: about the logarithm of the centre.
SCATTERS = np.array([0.02, 0.04, 0.06, 0.10, 0.15, 0.20, 0.30])
SCATTER_CENTRE, SCATTER_SPREAD = 0.12, 0.6
#: Variance of x* for one unit of a log axis beyond what was measured.
_BEND = 0.014
#: Variance added to every minimum's own.
_FLOOR = 0.03**2
#: Two log axes with a correlation beyond this are not told apart.
_MOST_CORRELATION = 0.9

#: Mean and standard deviation of each coefficient, by form; `a` is flat, `b` comes from the size.
_SOFT = {"c": (0.23, 0.12), "p": (1.0, 0.4), "k": (0.6, 0.2), "k0": (-0.8, 1.2)}
_BENT = {"c": (0.23, 0.12), "k": (0.45, 0.15), "k0": (0.0, 1.5)}
_COEFFICIENTS: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "Q": _BENT | {"d1": (0.40, 0.15), "d2": (-0.055, 0.05)},
    "S": _SOFT,
    "SN": _SOFT | {"kN": (0.0, 0.3)},
    "H": _BENT,
}
#: Prior mean and standard deviation of d ln lr*/d ln n for parameter counts, all else held.
PARAMETERS_SLOPE = (-0.5, 0.2)
#: Slopes of ln C in ln n, ln T and ln B, as `find_minima` takes them, and their spread.
CURVATURE_SLOPES, CURVATURE_SLOPE_SPREAD = np.array([-0.20, -0.39, 0.14]), 0.15


class Places(NamedTuple):
    """Where cells lie: logarithms of size, tokens and batch in tokens, shape (C,) each.

    `tokens` or `batch` is None where a table does not say.
    """

    size: Floats
    tokens: Floats | None = None
    batch: Floats | None = None

    @property
    def known(self) -> dict[str, Floats]:
        """The axes that are there, by name."""
        return {name: axis for name, axis in self._asdict().items() if axis is not None}

    def take(self, keep: Bools) -> "Places":
        """Return some of the places."""
        return Places(**{name: axis[keep] for name, axis in self.known.items()})

    def cells(self) -> Ints:
        """Number of each cell's (size, tokens), shape (C,)."""
        axes = [axis for axis in self[:2] if axis is not None]
        _, cell = np.unique(np.stack(axes, axis=1).round(9), axis=0, return_inverse=True)
        return np.asarray(cell).reshape(-1)

    def centred(self, centre: float) -> tuple[Floats, Floats, Floats]:
        """The axes about where their logarithms are 0; 0 for those that are not there."""
        zero = np.zeros(len(self.size))
        return (
            self.size - centre,
            zero if self.tokens is None else self.tokens - np.log(TOKENS_0),
            zero if self.batch is None else self.batch - np.log(BATCH_0),
        )


def correlate_axes(places: Places) -> dict[str, float]:
    """Return the correlations between log axes that are not told apart, by ``"size, batch"``."""
    axes = [(name, axis) for name, axis in places.known.items() if np.ptp(axis) > 0]
    pairs = {
        f"{name}, {other}": float(np.corrcoef(axis, beside)[0, 1])
        for (name, axis), (other, beside) in combinations(axes, 2)
    }
    return {name: value for name, value in pairs.items() if abs(value) > _MOST_CORRELATION}


class _Model(NamedTuple):
    """One form: names, prior means and spreads of its coefficients, and the function itself."""

    names: tuple[str, ...]
    mean: Floats
    spread: Floats
    predict: Callable[[Floats, Floats, Floats, Floats], Floats]


def _model(form: str, slope: tuple[float, float], places: Places) -> _Model:
    """Return the form with priors for the axes that `places` has; `slope` is −b's."""
    priors = {"a": (0.0, 1e3), "b": (-slope[0], slope[1])} | dict(_COEFFICIENTS[form])
    if places.batch is None:
        priors = {name: priors[name] for name in ("a", "b", "c")}
        tokens = PRIORS["tokens"]  # which are of a fixed batch
        priors["c"] = tokens.slope, tokens.spread
    if places.tokens is None:
        priors = {name: value for name, value in priors.items() if name not in ("c", "k")}
    names = tuple(priors)

    def predict(theta: Floats, n: Floats, t: Floats, b: Floats) -> Floats:
        at = defaultdict[str, float](float, zip(names, theta.tolist(), strict=True))
        x = at["a"] - at["b"] * n + at["c"] * t
        v = b - at["k0"] - at["k"] * t - at["kN"] * n
        if places.batch is None:
            return np.asarray(x)
        if form == "Q":
            return np.asarray(x + at["d1"] * v + at["d2"] * v**2)
        if form == "H":
            return np.asarray(x - (np.logaddexp(0.5 * v, -0.5 * v) - np.log(2.0)))
        return np.asarray(x - at["p"] * np.logaddexp(0.0, -v))

    both = np.array(list(priors.values()))
    return _Model(names, both[:, 0], both[:, 1], predict)


def _jacobian(model: _Model, theta: Floats, axes: tuple[Floats, Floats, Floats]) -> Floats:
    """Central differences in each coefficient, shape (C, P)."""
    columns = [
        (model.predict(theta + step, *axes) - model.predict(theta - step, *axes)) / 2e-5
        for step in 1e-5 * np.eye(len(theta))
    ]
    return np.stack(columns, axis=1)


class _Scatter(NamedTuple):
    """Inverse of D + τ²·(same size and budget), D diagonal, applied without forming it."""

    precision: Floats
    shared: float
    cell: Ints

    def solve(self, y: Floats) -> Floats:
        """Apply the inverse to (C,) or (C, P)."""
        num = int(self.cell.max()) + 1
        total = np.bincount(self.cell, self.precision, num)
        factor = self.shared / (1.0 + self.shared * total)
        scaled = (y.T * self.precision).T
        sums = np.zeros((num, *y.shape[1:]))
        np.add.at(sums, self.cell, scaled)
        back = (sums.T * factor).T[self.cell]
        return np.asarray(scaled - (back.T * self.precision).T)

    def log_determinant(self) -> float:
        """Logarithm of the determinant of D + τ²·(…)."""
        total = np.bincount(self.cell, self.precision)
        return float(np.sum(np.log1p(self.shared * total)) - np.sum(np.log(self.precision)))


class _Fit(NamedTuple):
    """One form's coefficients, their covariance, and the scatter it found."""

    model: _Model
    theta: Floats
    covariance: Floats
    weights: _Scatter
    residual: Floats
    own: float


def _fit_form(
    model: _Model,
    axes: tuple[Floats, Floats, Floats],
    x: Floats,
    variance: Floats,
    cell: Ints,
    scatter: float | None,
) -> _Fit:
    """Most probable coefficients at the most probable scatter."""
    theta = model.mean.copy()
    theta[0] = float(np.mean(x - model.predict(theta, *axes)))
    prior = model.spread**-2.0
    pairs = [(s, o) for s in SCATTERS for o in SCATTERS] if scatter is None else [(0.0, scatter)]
    best: tuple[float, _Fit] | None = None
    weights = _Scatter(1.0 / (variance + _FLOOR + SCATTER_CENTRE**2), SCATTER_CENTRE**2, cell)
    theta = _climb(model, axes, x, weights, theta, prior)[0]
    for shared, own in pairs:
        weights = _Scatter(1.0 / (variance + _FLOOR + own**2), shared**2, cell)
        # Coefficients move little with the scatter: a few steps from those at its centre find them.
        found, inverse = _climb(model, axes, x, weights, theta, prior, steps=3)
        residual = x - model.predict(found, *axes)
        off = found[1:] - model.mean[1:]
        score = weights.log_determinant() - np.linalg.slogdet(inverse)[1]
        score += float(residual @ weights.solve(residual)) + float(prior[1:] @ off**2)
        if scatter is None:
            logs = np.log(np.array([shared, own]) / SCATTER_CENTRE) / SCATTER_SPREAD
            score += float(logs @ logs)
        if best is None or score < best[0]:
            best = score, _Fit(model, found, inverse, weights, residual, own)
    assert best is not None
    return best[1]


def _climb(
    model: _Model,
    axes: tuple[Floats, Floats, Floats],
    x: Floats,
    weights: _Scatter,
    theta: Floats,
    prior: Floats,
    steps: int = 30,
) -> tuple[Floats, Floats]:
    """Gauss-Newton with halved steps; return the coefficients and their covariance."""

    def cost(at: Floats) -> float:
        residual = x - model.predict(at, *axes)
        return float(residual @ weights.solve(residual)) + float(prior @ (at - model.mean) ** 2)

    now, moving = cost(theta), True
    for k in range(steps + 1):
        jacobian = _jacobian(model, theta, axes)
        solved = weights.solve(jacobian)
        inverse = np.linalg.inv(jacobian.T @ solved + np.diag(prior))
        if k == steps or not moving:
            break
        residual = x - model.predict(theta, *axes)
        step = inverse @ (solved.T @ residual - prior * (theta - model.mean))
        part = 1.0
        while part > 1e-3 and cost(theta + part * step) > now:
            part *= 0.5
        if part <= 1e-3:
            break
        before, theta = now, theta + part * step
        now = cost(theta)
        moving = before - now >= 1e-9 * (1.0 + now)
    return theta, np.asarray(inverse, dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class AxesLaw:
    """The law fitted in every form.

    Attributes
    ----------
    places : Places
        Where its minima lie.
    correlations : mapping of str to float
        Axes that move together in this table, so that priors tell them apart.
    """

    places: Places
    correlations: Mapping[str, float]
    fits: Mapping[str, "_Fit"]
    centre: float

    def forecast(self, places: Places) -> list[Mixture]:
        """Where x* lies at each of the places, which name the axes that the law has."""
        axes, measured = places.centred(self.centre), self.places
        means, variances = [], []
        both = zip(places[:2], measured[:2], strict=True)
        same = np.all(
            [abs(a[:, None] - b) < 1e-9 for a, b in both if a is not None and b is not None], axis=0
        )
        # Beyond what was measured the law may bend, in proportion to the way along each axis.
        beyond = sum(
            np.maximum(np.maximum(at - seen.max(), seen.min() - at), 0.0)
            for at, seen in zip(places.known.values(), measured.known.values(), strict=True)
        )
        for fit in self.fits.values():
            jacobian = _jacobian(fit.model, fit.theta, axes)
            across = fit.weights.shared * same.astype(np.float64)
            solved = fit.weights.solve(across.T).T
            slope = jacobian - solved @ _jacobian(
                fit.model, fit.theta, measured.centred(self.centre)
            )
            spread = np.einsum("cp,pq,cq->c", slope, fit.covariance, slope)
            spread += fit.weights.shared - np.sum(solved * across, axis=1) + fit.own**2
            means.append(fit.model.predict(fit.theta, *axes) + solved @ fit.residual)
            variances.append(spread + _BEND * beyond)
        weights = np.full(len(self.fits), 1.0 / len(self.fits))
        return [
            Mixture(weights=weights, means=mean, variances=variance)
            for mean, variance in zip(np.array(means).T, np.array(variances).T, strict=True)
        ]

    @property
    def scatter(self) -> float:
        """Standard deviation of a new cell about the law, mean over forms."""
        each = [np.sqrt(fit.weights.shared + fit.own**2) for fit in self.fits.values()]
        return float(np.mean(each))


def fit_axes_law(
    places: Places,
    x: Floats,
    variance: Floats,
    *,
    slope: tuple[float, float],
    scatter: float | None = None,
) -> AxesLaw:
    """Fit the law to minima x (C,) with variances (C,).

    Parameters
    ----------
    places : Places
        Where the minima lie; axes that are None are left out of the law.
    slope : (float, float)
        Prior mean and standard deviation of d ln lr*/d ln n, all else held.
    scatter : float, optional
        Standard deviation of the scatter of each cell, held; by default found.
    """
    centre = float(np.mean(places.size))
    axes, cell = places.centred(centre), places.cells()
    forms = _COEFFICIENTS if places.batch is not None else ("S",)
    fits = {
        form: _fit_form(_model(form, slope, places), axes, x, variance, cell, scatter)
        for form in forms
    }
    return AxesLaw(places=places, correlations=correlate_axes(places), fits=fits, centre=centre)


#: Fewest cells with a minimum from which an answer may be usable.
_USABLE_CELLS = 6
#: A target within this of a measured cell, in the logarithms of the axes, is that cell.
_SAME_PLACE = 1e-9


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
            Standard deviation of each cell's ln lr* about the law, held; by default found. With
            0 only the scatter is held: basins keep what each says of its own shape.
        priors : mapping of str to Prior, or None
            Priors by kind of sweep; None for none on the slope in size.

        Raises
        ------
        FitError
            A target is no positive number, is missing, or names an axis that the table lacks,
            `scatter` is out of range, or `priors` lacks a group's kind of sweep.
        """
        check_scatter(scatter)
        asked = {"width": width, "tokens": tokens, "batch": batch}
        for name, value in asked.items():
            if value is not None or name == "width":
                check_positive(name, value)
        for name, column in (("tokens", self.table.tokens), ("batch", self.table.batch)):
            if (column is None) != (asked[name] is None):
                lacks = "the table has no such axis" if column is None else "none was given"
                need = "no target" if column is None else "the target's, as the table has that axis"
                raise FitError(f"{self.table.source}: {name}: expected {need}, but {lacks}")
        rest = (None if value is None else np.log([value]) for value in (tokens, batch))
        target = Places(np.log([width]), *rest)
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
    groups = split_table(table, by)
    columns = {"width": table.width, "tokens": table.tokens, "batch": table.batch}
    for name, column in columns.items():
        if column is not None and not np.all(np.isfinite(column) & (column > 0)):
            raise FitError(f"{table.source}: column {name}: expected positive numbers")
    return AxesFit(
        table=table,
        groups=tuple(_gather(table, *group) for group in groups),
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
    prior = find_prior(table, found.rows, priors)
    if prior == PRIORS["parameters"]:
        # Parameter counts that move alone shift less than those that take their tokens along.
        prior = replace(prior, slope=PARAMETERS_SLOPE[0], spread=PARAMETERS_SLOPE[1])
    ok, width = found.minima.found, float(np.exp(target.size[0]))
    blank = refuse_answer(table, found.group, width, prior, refuse(Reason("no_minimum")))
    blank = replace(blank, loss=refuse(Reason("no_loss_over_axes")))
    if not ok.any():
        return blank
    places = found.places.take(ok)
    x, variance, bend = (
        axis[ok] for axis in (found.minima.x, found.minima.variance, found.minima.curvature)
    )
    near, off = _nearest(places, target)
    worries: list[str] = []
    if off < _SAME_PLACE:
        answered = answer_measured(x[near], variance[near])
    else:
        slope = (prior.slope + prior.trend, prior.spread)  # with what growing tokens move
        law = fit_axes_law(places, x, variance, slope=slope, scatter=scatter)
        [where] = law.forecast(target)
        forms = dict.fromkeys(law.fits, 1.0 / len(law.fits))
        answered = Forecast(where=where, forms=forms, scatter=law.scatter)
        worries = _worry(law, places, target)
    proxy = float(x[near]), float(np.exp(places.size[near]))
    return judge_answer(blank, table, found.rows, answered, float(bend[near]), *proxy, worries)


def _nearest(places: Places, target: Places) -> tuple[int, float]:
    """Return the cell nearest to the target in the logarithms of its axes, and how far it is."""
    both = zip(places.known.values(), target.known.values(), strict=True)
    off = np.asarray(sum(np.abs(a - b) for a, b in both))
    return int(np.argmin(off)), float(off.min())


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
