"""Forecast x* = ln(lr*) from minima over size, training tokens and batch together.

With N' = ln(n/n₀), T' = ln(T/T₀) and v = ln(B/B₀) − k₀ − k·T' − k_N·N' (B in tokens), in the forms

    Q  x* = a − b·N' + c·T' + d₁·v + d₂·v²       H  x* = a − b·N' + c·T' − ln cosh(v/2)
    S  x* = a − b·N' + c·T' − p·ln(1 + e^−v)     SN the same with k_N free

each with scatter: cells of one size and budget share a deviation, and every cell has its own. The
coefficients have priors, which carry whatever the table's design does not show. Forms weigh the
same: on public tables weights by likelihood give all to one form and make the tail errors grow.

Shape letters: C cells, P coefficients, K forms.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hptransfer.stats.optimum_law import Mixture

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

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
_COEFFICIENTS: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "Q": {
        "c": (0.23, 0.12),
        "d1": (0.40, 0.15),
        "d2": (-0.055, 0.05),
        "k": (0.45, 0.15),
        "k0": (0.0, 1.5),
    },
    "S": {"c": (0.23, 0.12), "p": (1.0, 0.4), "k": (0.6, 0.2), "k0": (-0.8, 1.2)},
    "SN": {
        "c": (0.23, 0.12),
        "p": (1.0, 0.4),
        "k": (0.6, 0.2),
        "k0": (-0.8, 1.2),
        "kN": (0.0, 0.3),
    },
    "H": {"c": (0.23, 0.12), "k": (0.45, 0.15), "k0": (0.0, 1.5)},
}
#: Prior mean and standard deviation of d ln lr*/d ln n for parameter counts, all else held.
PARAMETERS_SLOPE = (-0.5, 0.2)
#: Prior of c where no batch is known: that of tokens at a fixed batch.
_TOKENS_AT_FIXED_BATCH = (0.02, 0.18)
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

    def take(self, keep: NDArray[np.bool_]) -> "Places":
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
        priors["c"] = _TOKENS_AT_FIXED_BATCH
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
        # Coefficients move little with the scatter: one or two steps from the last find them.
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

    now = cost(theta)
    for _ in range(steps):
        jacobian = _jacobian(model, theta, axes)
        solved = weights.solve(jacobian)
        inverse = np.linalg.inv(jacobian.T @ solved + np.diag(prior))
        residual = x - model.predict(theta, *axes)
        step = inverse @ (solved.T @ residual - prior * (theta - model.mean))
        part = 1.0
        while part > 1e-3 and cost(theta + part * step) > now:
            part *= 0.5
        if part <= 1e-3:
            break
        before, theta = now, theta + part * step
        now = cost(theta)
        if before - now < 1e-9 * (1.0 + now):
            break
    jacobian = _jacobian(model, theta, axes)
    inverse = np.linalg.inv(jacobian.T @ weights.solve(jacobian) + np.diag(prior))
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
        # Beyond what was measured the law may bend, as the walk of a law in one size does.
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
