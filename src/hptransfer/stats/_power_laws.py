"""Fit power laws of width to a group's minima and their resamples: of loss, optimum, curvature.

    L*(n) = L∞ + A·n^-α,  x*(n) = x∞ + B·n^-β  (converging)  or  a − b·ln n  (power),  C(n) = C₀·n^γ

The loss law takes the minima's L* with their covariance, the optimum's law their x* (generalised
least squares); each has a scatter from size to size where the minima lie further from it than
their noise explains (DerSimonian & Laird 1986). γ is the slope that the basins share. Laws are
solved in t = ln(n / geometric mean) as y = level + drop·h(k, t), h = (e^(−kt) − 1)/k, with the
exponent k profiled out, so that shifts of x and scalings of n and L pass through.

Row 0 of every array is the fit, the rows below it the draws of its minima: how far noise, and what
is not known of the basins' shape, would move them. Shape letters: R rows or draws, W widths, K
exponents, N points, A axes.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import special

from hptransfer.stats.loss_table import Bools, Floats
from hptransfer.stats.minima import Minima
from hptransfer.stats.results import Form, TransferModel

#: Bounds of the exponents; reported whenever an estimate rests on one. L∞ ≥ 0 and A ≥ 0 too.
EXPONENT_BOUNDS = (0.01, 3.0)
#: Exponents of the first look, and the refinements of it.
_GRID, _FINE, _ROUNDS = 49, 9, 8
#: The exponent whose law is a straight line in ln n.
_STRAIGHT = 1e-9
#: Level of the test that minima scatter about a law beyond their noise.
_SCATTER_LEVEL = 0.01


class PowerLaw(NamedTuple):
    """Solutions of y = level + drop·h(k, t), arrays of shape (R,).

    `flat` marks those that would have risen and were held level, `floored` those whose limit
    would have been negative and was held at 0, `bound` those whose exponent sits at its bound.
    """

    exponent: Floats
    level: Floats
    drop: Floats
    cost: Floats
    flat: Bools
    floored: Bools
    bound: Bools

    @property
    def limit(self) -> Floats:
        """Value at infinite width, shape (R,)."""
        return np.where(self.floored, 0.0, self.level - self.drop / self.exponent)

    def at(self, t: float) -> Floats:
        """Values at t, shape (R,)."""
        return np.asarray(self.level + self.drop * _decay(self.exponent, t))


def _decay(k: Floats, t: Floats | float) -> Floats:
    return np.asarray(np.expm1(-k * t) / k)


class _Problem(NamedTuple):
    """Data (R, W) of a law at t (W,), and what whitens their errors, (W, W).

    A `falling` law neither rises nor ends below 0; a `straight` one is a line in t.
    """

    t: Floats
    y: Floats
    white: Floats
    falling: bool
    straight: bool

    @classmethod
    def of(
        cls, t: Floats, y: Floats, covariance: Floats, *, falling: bool = False,
        straight: bool = False,
    ) -> "_Problem":  # fmt: skip
        """Whiten data; a covariance that is no more than rounding counts all alike."""
        scale = float(np.mean(np.diag(covariance)))
        even = covariance / scale if scale > 0.0 else np.zeros_like(covariance)
        root = np.linalg.cholesky(even + 1e-9 * np.eye(len(t)) if scale > 0.0 else np.eye(len(t)))
        white = np.linalg.inv(root) / np.sqrt(scale if scale > 0.0 else 1.0)
        return cls(t, y, np.asarray(white), falling, straight)

    def solve(self, k: Floats) -> PowerLaw:
        """Best level and drop at exponents k (R, K) or (1, K), arrays of shape (R, K)."""
        y = (self.y @ self.white.T)[:, None, :]
        one = self.white.sum(axis=1)
        h = _decay(k[:, :, None], self.t) @ self.white.T
        a, b, c = float(one @ one), h @ one, np.sum(h * h, axis=-1)
        first, second = y @ one, np.sum(y * h, axis=-1)
        drop = (a * second - b * first) / np.maximum(a * c - b * b, 1e-300)
        flat = (drop < 0.0) if self.falling else np.zeros(drop.shape, dtype=bool)
        drop = np.where(flat, 0.0, drop)
        level = (first - b * drop) / a
        floored = np.zeros(drop.shape, dtype=bool)
        if self.falling:
            floored = ~flat & (level - drop / k < 0.0)
            decay = np.exp(-k[:, :, None] * self.t) @ self.white.T
            alone = np.sum(y * decay, axis=-1) / np.sum(decay * decay, axis=-1)
            level = np.where(floored, alone, level)
            drop = np.where(floored, k * alone, drop)
        left = y - level[:, :, None] * one - drop[:, :, None] * h
        cost = np.sum(left * left, axis=-1)
        k = np.broadcast_to(k, cost.shape)
        return PowerLaw(k, level, drop, cost, flat, floored, np.zeros(cost.shape, dtype=bool))

    def fit(self) -> PowerLaw:
        """Find each row's best exponent within its bounds, on ever finer grids of its logarithm."""
        if self.straight:
            return _pick_best(self.solve(np.array([[_STRAIGHT]])))
        low, high = np.log(EXPONENT_BOUNDS)
        grid = np.linspace(low, high, _GRID)
        found = _pick_best(self.solve(np.exp(grid)[None, :]))
        reach = grid[1] - grid[0]
        steps = np.linspace(-1.0, 1.0, _FINE)
        for _ in range(_ROUNDS):
            near = np.log(found.exponent)[:, None] + reach * steps
            found = _pick_best(self.solve(np.exp(np.clip(near, low, high))))
            reach *= 2.0 / (_FINE - 1)
        # A flat law has no exponent that could sit at a bound.
        edge, at = 1e-6 * (high - low), np.log(found.exponent)
        bound = ~found.flat & ((at <= low + edge) | (at >= high - edge))
        return found._replace(bound=bound)


def _pick_best(found: PowerLaw) -> PowerLaw:
    rows, best = np.arange(len(found.cost)), np.argmin(found.cost, axis=1)
    return PowerLaw._make(each[rows, best] for each in found)


def _scatter(problem: _Problem, law: PowerLaw) -> float:
    """Variance from size to size that makes row 0's squares as large as expected; 0 if they are."""
    parameters = _tangent(problem, law)
    spare = len(problem.t) - parameters.shape[1]
    excess = float(law.cost[0]) - spare
    if spare <= 0 or law.cost[0] <= special.chdtri(spare, _SCATTER_LEVEL):
        return 0.0
    precision = problem.white.T @ problem.white
    seen = precision @ parameters
    hat = seen @ np.linalg.pinv(parameters.T @ seen, hermitian=True) @ seen.T
    free = float(np.trace(precision - hat))
    return excess / free if free > 0.0 else 0.0


def _tangent(problem: _Problem, law: PowerLaw) -> Floats:
    """Derivatives of row 0's values in its free parameters, shape (W, P)."""
    t, k = problem.t, float(law.exponent[0])
    h, fall = _decay(np.array(k), t), np.exp(-k * t)
    if law.floored[0]:
        columns, bend = [fall], -t * fall
    else:
        columns, bend = [np.ones_like(t), h], (-t * fall - h) / k
    if law.flat[0]:
        columns = columns[:1]
    elif not problem.straight and not law.bound[0]:
        columns.append(law.drop[0] * bend)
    return np.stack(columns, axis=1)


def extrapolate_law(t: Floats, y: Floats, variance: Floats, at: float) -> tuple[float, float]:
    """Return a converging law through y (W,) with variances (W,), at a t, and its variance."""
    problem = _Problem.of(t, y[None, :], np.diag(variance))
    # An exponent at its bound is no better known for that.
    law = problem.fit()._replace(bound=np.zeros(1, dtype=bool))
    seen = problem.white @ _tangent(problem, law)
    [there] = _tangent(problem._replace(t=np.array([at])), law)
    spread = float(there @ np.linalg.pinv(seen.T @ seen, hermitian=True) @ there)
    return float(law.at(at)[0]), spread


class MinimaDraws(NamedTuple):
    """Resamples of minima; NaN at sizes without one.

    Attributes
    ----------
    x, loss, curvature : ndarray, shape (R, W)
    slopes : ndarray, shape (R, A)
        Of ln C.
    skew : ndarray, shape (R,)
    cubic : bool
        Whether the basins are cubics.
    """

    x: Floats
    loss: Floats
    curvature: Floats
    slopes: Floats
    skew: Floats
    cubic: bool = False


def resample_minima(
    minima: Minima,
    noise: Floats | None,
    unit: Floats,
    rng: np.random.Generator,
    least: Floats | float = 0.0,
) -> MinimaDraws | None:
    """Move a fit with its points and with the means of its priors, as if both were drawn again.

    To first order (randomised maximum likelihood: Oliver et al. 1996).

    Parameters
    ----------
    minima : Minima
        The fit.
    noise : ndarray, shape (R, N), or None
        What seeds make of the points, in nats; None where seeds measured nothing.
    unit : ndarray, shape (R, N)
        Standard normal draws, for what the points scatter beyond that.
    rng : Generator
        Draws the priors, and a noise that few points tell: apart for each group.
    least : ndarray, shape (N,), or float
        Variance in nats² that a point has at least.

    Returns
    -------
    MinimaDraws or None
        None where there is no minimum, or nothing to judge the noise by.
    """
    fit = minima.linear
    if fit is None:
        return None
    num, rows = len(unit), fit.basins.rows
    there = rows >= 0
    if noise is None and np.sum(there) <= 3 * len(fit.use):
        return None
    scale = np.where(there, fit.scale, 1.0)
    square = np.maximum(scale**2, np.broadcast_to(least, unit.shape[1:])[rows])
    error = unit[:, rows] * np.sqrt(np.maximum(square - fit.basins.variance, 0.0))
    if noise is not None:
        error = error + noise[:, rows]
    elif np.isfinite(fit.freedom):
        # Student-like where few points, and no prior, tell the noise.
        error = error * np.sqrt(fit.freedom / rng.chisquare(fit.freedom, num))[:, None, None]
    moved = np.zeros((num, *fit.problem.residual.shape))
    moved[:, :, :-1] = np.where(there, error / scale, 0.0)
    moved[:, :, -1] = rng.standard_normal(moved.shape[:2])
    doubt = np.sqrt(fit.basins.tight)
    doubt = doubt * rng.standard_normal((num, len(doubt)))
    own, shared = fit.step.move(fit.problem, moved, doubt)
    own = own * fit.stretch

    def put(values: Floats) -> Floats:
        out = np.full((num, len(minima.size)), np.nan)
        out[:, fit.use] = values
        return out

    grown = np.exp(np.clip(own[:, :, 2], -30.0, 30.0))
    return MinimaDraws(
        x=put(minima.x[fit.use] + own[:, :, 1]),
        loss=put(minima.loss[fit.use] + fit.basins.unit * own[:, :, 0]),
        curvature=put(minima.curvature[fit.use] * grown),
        slopes=minima.slopes + shared[:, 1:-1],
        skew=minima.skew + shared[:, -1],
        cubic=minima.cubic,
    )


@dataclass(frozen=True, kw_only=True)
class Laws:
    """The laws of one group; arrays hold the fit and, below it, its draws, shape (R,).

    Attributes
    ----------
    form : Form
        Form of the optimum.
    centre : float
        ln n where t = 0.
    best, place : PowerLaw
        Laws of L* in nats and of x*.
    gamma : ndarray, shape (R,)
        Slope of ln C.
    log_c, skew : float
        Level of ln C, and the basins' skew.
    scatter, loss_scatter : float
        Standard deviations from size to size of x* and, in nats, of L*.
    miss : float
        What the loss law of all widths but the widest misses there, in nats; 0 where the laws are
        taken to hold exactly, or there are fewer than four.
    widths : ndarray, shape (W,)
        Widths with a minimum.
    """

    form: Form
    centre: float
    best: PowerLaw
    place: PowerLaw
    gamma: Floats
    log_c: float
    skew: float
    scatter: float
    loss_scatter: float
    miss: float
    widths: Floats

    @property
    def drawn(self) -> bool:
        """Whether there are draws."""
        return len(self.gamma) > 1

    @property
    def kappa(self) -> Floats:
        """α − 2β + γ, shape (R,)."""
        return np.asarray(self.best.exponent - 2.0 * self.place.exponent + self.gamma)

    def optimum(self, width: float) -> Floats:
        """x* at a width, shape (R,)."""
        return self.place.at(float(np.log(width)) - self.centre)

    def best_loss(self, width: float) -> Floats:
        """L* at a width in nats, shape (R,)."""
        return self.best.at(float(np.log(width)) - self.centre)

    def at_bound(self, name: str) -> Bools:
        """Which rows rest on a bound of ``loss_inf``, ``A``, ``alpha`` or ``beta``."""
        return {
            "loss_inf": self.best.floored,
            "A": self.best.flat,
            "alpha": self.best.bound,
            "beta": self.place.bound,
        }[name]

    def model(self) -> TransferModel:
        """The fit in the units of the table."""
        alpha, beta = float(self.best.exponent[0]), float(self.place.exponent[0])
        drop, level = float(self.place.drop[0]), float(self.place.level[0])
        gamma = float(self.gamma[0])
        if self.form == "power":
            x_inf, b, beta = level + drop * self.centre, drop, 0.0
        else:
            x_inf, b = level - drop / beta, drop / beta * float(np.exp(beta * self.centre))
        excess = float(self.best.drop[0]) / alpha
        return TransferModel(
            form=self.form,
            loss_inf=float(self.best.limit[0]),
            A=excess * float(np.exp(alpha * self.centre)),
            alpha=alpha,
            C0=float(np.exp(self.log_c - gamma * self.centre)),
            gamma=gamma,
            x_inf=x_inf,
            B=b,
            beta=beta,
            skew=self.skew / 3.0,
        )


def fit_laws(
    minima: Minima,
    draws: MinimaDraws | None,
    form: Form,
    rng: np.random.Generator,
    *,
    shared: Floats,
    scatter: float | None,
) -> Laws:
    """Fit the laws to three minima or more, and to draws of them around the fit.

    Parameters
    ----------
    minima, draws
        The widths' minima, and what noise makes of them; None where no noise is known.
    shared : ndarray, shape (W,)
        Variance of each width's losses, in nats², that all its learning rates share.
    rng : Generator
        Draws the scatter from size to size: apart for each group.
    scatter : float or None
        Standard deviation of x* from size to size, held; None finds it. With 0 the laws are taken
        to hold at every width, that of the losses too.
    """
    ok = np.flatnonzero(minima.found)
    t = np.log(minima.size[ok])
    centre = float(t.mean())
    t = t - centre
    noise = minima.loss_covariance[np.ix_(ok, ok)] + np.diag(shared[ok])
    exact = scatter == 0.0

    def fit(
        y: Floats, covariance: Floats, moved: Floats | None, held: float | None, **kind: bool
    ) -> tuple[PowerLaw, float]:
        """Fit one law with a scatter that is held, or found where that is None."""
        problem = _Problem.of(t, y[None, :], covariance, **kind)
        law = problem.fit()
        found = _scatter(problem, law) if held is None else held**2
        if found > 0.0:
            problem = _Problem.of(t, y[None, :], covariance + found * np.eye(len(t)), **kind)
            law = problem.fit()
        if moved is not None:
            # Draws are of the fitted law: what scatters about it is drawn again.
            around = law.level[0] + law.drop[0] * _decay(law.exponent[0], t)
            scattered = np.sqrt(found) * rng.standard_normal(moved.shape)
            law = problem._replace(y=np.vstack([y, around + moved + scattered])).fit()
        return law, float(np.sqrt(found))

    def moves(name: str) -> Floats | None:
        if draws is None:
            return None
        return np.asarray(getattr(draws, name)[:, ok] - getattr(minima, name)[ok])

    losses = (minima.loss[ok], noise, moves("loss"), 0.0 if exact else None)
    best, loss_scatter = fit(*losses, falling=True)
    spread = minima.covariance[np.ix_(ok, ok)]
    miss = 0.0
    if len(t) > 3 and not exact:
        fewer = noise[:-1, :-1] + loss_scatter**2 * np.eye(len(t) - 1)
        alone = _Problem.of(t[:-1], minima.loss[ok][None, :-1], fewer, falling=True).fit()
        miss = abs(float(alone.at(float(t[-1]))[0] - minima.loss[ok][-1]))
    place, spread_of_x = fit(minima.x[ok], spread, moves("x"), scatter, straight=form == "power")
    gamma = np.append(minima.slopes[:1], [] if draws is None else draws.slopes[:, 0])
    return Laws(
        form=form,
        centre=centre,
        best=best,
        place=place,
        gamma=gamma,
        log_c=float(np.log(minima.curvature[ok]).mean()),
        skew=minima.skew,
        scatter=spread_of_x,
        loss_scatter=loss_scatter,
        miss=miss,
        widths=minima.size[ok],
    )
