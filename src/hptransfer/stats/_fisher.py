"""What a grid of trials can tell: Cramér-Rao bounds on the joint model's quantities.

Before a study is run its standard errors follow from the model's Jacobian at assumed parameters
and the noise of a trial (Fisher information of Gaussian data); no unbiased estimate does better.

Shape letters: W widths, L learning rates, N points, P parameters.

----

The trials that a joint fit rests on, and what it would know with more of them.

Cramér-Rao bounds as in `information`, at the fitted parameters, for the very cells of a table.
Only ratios of two bounds are used: an interval found by resampling is taken to narrow as its
bound does.

Shape letters: N points, M new points.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from hptransfer.errors import ConfigError
from hptransfer.stats._joint_model import (
    ALPHA,
    BETA,
    EXPONENT_BOUNDS,
    GAMMA,
    LOG_C,
    SKEW,
    D,
    Data,
    G,
    JointFit,
    P,
    Q,
    power_law,
    predict,
)
from hptransfer.stats._misfit import Misfit, cell_variances, rounding_of
from hptransfer.stats.cells import Bools, Cells, Floats
from hptransfer.stats.results import TransferModel
from hptransfer.stats.seed_noise import Noise

#: Directions whose information is below this share of the largest are not seen by the data.
BLIND = 1e-13
#: Part of a quantity's gradient along unseen directions from which its error is infinite.
LEAST_PART = 1e-6
#: Decay rate below which a converging drift is its limit, a line in ln n.
SMALLEST_RATE = 1e-9


def _theta(model: TransferModel, centre: float) -> Floats:
    """Internal parameters (1, 9) of a model around ln(width) = `centre`, in nats."""
    excess = model.A * np.exp(-model.alpha * centre)
    theta = np.zeros((1, 9))
    theta[0, P] = model.loss_inf + excess
    theta[0, D] = model.alpha * excess
    theta[0, ALPHA] = model.alpha
    theta[0, LOG_C] = np.log(model.C0) + model.gamma * centre
    theta[0, GAMMA] = model.gamma
    if model.form == "power":
        theta[0, Q], theta[0, G] = model.x_inf - model.B * centre, model.B
        theta[0, BETA] = 1.0
    else:
        reach = model.B * np.exp(-model.beta * centre)
        theta[0, Q], theta[0, G] = model.x_inf + reach, model.beta * reach
        theta[0, BETA] = max(model.beta, SMALLEST_RATE)
    theta[0, SKEW] = model.skew
    return theta


@dataclass(frozen=True, kw_only=True)
class Information:
    """Fisher information of a grid about the joint model, and the standard errors it allows.

    Attributes
    ----------
    model : TransferModel
        The parameters assumed true.
    theta : ndarray, shape (1, 9)
        Them, as `joint_model` orders them.
    centre : float
        Mean ln(width), which `theta` refers to.
    covariance : ndarray, shape (9, 9)
        Lowest covariance of an unbiased estimate of `theta`, along the directions that the data
        see; 0 for parameters that are not fitted.
    blind : ndarray, shape (9, M)
        Directions that the data do not see.
    """

    model: TransferModel
    theta: Floats
    centre: float
    covariance: Floats
    blind: Floats

    def error(self, gradient: Floats) -> float:
        """Standard error of a quantity with this gradient (9,) in `theta`; inf if unseen."""
        size = float(np.abs(gradient).max())
        if size == 0.0:
            return 0.0
        if np.abs(gradient @ self.blind).max(initial=0.0) > LEAST_PART * size:
            return float("inf")
        return float(np.sqrt(max(float(gradient @ self.covariance @ gradient), 0.0)))

    def _unit(self, *parts: tuple[int, float]) -> Floats:
        gradient = np.zeros(9)
        for k, value in parts:
            gradient[k] = value
        return gradient

    @property
    def alpha(self) -> float:
        """Standard error of α."""
        return self.error(self._unit((ALPHA, 1.0)))

    @property
    def beta(self) -> float:
        """Standard error of β; inf in form ``power``, and where there is no drift."""
        if self.model.form == "power":
            return float("inf")
        return self.error(self._unit((BETA, 1.0)))

    @property
    def gamma(self) -> float:
        """Standard error of γ."""
        return self.error(self._unit((GAMMA, 1.0)))

    @property
    def kappa(self) -> float:
        """Standard error of κ = α − 2β + γ; inf in form ``power``, and where there is no drift."""
        if self.model.form == "power":
            return float("inf")
        return self.error(self._unit((ALPHA, 1.0), (BETA, -2.0), (GAMMA, 1.0)))

    @property
    def slope(self) -> float:
        """Standard error of b, −dx*/d ln n at the widths' geometric mean."""
        return self.error(self._unit((G, 1.0)))

    @property
    def loss_inf(self) -> float:
        """Standard error of L∞, in nats."""
        d, alpha = float(self.theta[0, D]), float(self.theta[0, ALPHA])
        return self.error(self._unit((P, 1.0), (D, -1.0 / alpha), (ALPHA, d / alpha**2)))

    def optimum(self, width: float) -> float:
        """Standard error of x* at a width, measured or not, in ln(lr)."""
        t = np.array([np.log(width) - self.centre])
        if self.model.form == "power":
            return self.error(self._unit((Q, 1.0), (G, -float(t[0]))))
        h, dh = power_law(self.theta[:, BETA], t)
        g = float(self.theta[0, G])
        return self.error(self._unit((Q, 1.0), (G, float(h[0])), (BETA, g * float(dh[0]))))

    def best_loss(self, width: float) -> float:
        """Standard error of L* at a width, in nats."""
        t = np.array([np.log(width) - self.centre])
        h, dh = power_law(self.theta[:, ALPHA], t)
        d = float(self.theta[0, D])
        return self.error(self._unit((P, 1.0), (D, float(h[0])), (ALPHA, d * float(dh[0]))))

    def log_curvature(self, width: float) -> float:
        """Standard error of ln C at a width."""
        return self.error(self._unit((LOG_C, 1.0), (GAMMA, float(np.log(width)) - self.centre)))


def information(
    model: TransferModel,
    *,
    widths: ArrayLike,
    x: ArrayLike,
    noise: ArrayLike,
    num_seeds: ArrayLike = 1,
    skew: bool = False,
    shared: float = 0.0,
) -> Information:
    """Compute the Fisher information of a grid of trials about the joint model.

    Parameters
    ----------
    model : TransferModel
        Parameters to assume; its form is the form that is fitted.
    widths : array, shape (W,)
        Model widths.
    x : array, shape (L,) or (W, L)
        ln(lr) of the points, for all widths or width by width; NaN where there is no point.
    noise : array, shape (), (W,) or (W, L)
        Standard deviation of one trial's loss in nats, positive.
    num_seeds : array of int, shape (), (W,) or (W, L)
        Trials per point.
    skew : bool
        Whether the shared skew coefficient is fitted too.
    shared : float
        Share of the noise variance that moves all learning rates of a width and seed together.

    Raises
    ------
    ConfigError
        A width, noise or number of seeds is not positive, or shapes do not fit together.

    Notes
    -----
    The information is Jᵀ·V⁻¹·J with the Jacobian J of the model and the covariance V of cell
    means; a quantity g of the parameters has variance ∇gᵀ·(Jᵀ·V⁻¹·J)⁻¹·∇g at least (Cramér 1946,
    Rao 1945).
    """
    width, places, sigma, counts = _check_grid(widths, x, noise, num_seeds)
    if not 0.0 <= shared < 1.0:
        raise ConfigError(f"shared: expected at least 0 and below 1, found {shared:g}")
    centre = float(np.mean(np.log(width)))
    theta = _theta(model, centre)
    free = np.ones(9, dtype=bool)
    free[BETA] = model.form == "converging"
    free[SKEW] = skew
    total = np.zeros((9, 9))
    for n, xs, deviations, trials in zip(width, places, sigma, counts, strict=True):
        here = np.isfinite(xs)
        if not np.any(here):
            continue
        t = np.full(int(here.sum()), np.log(n) - centre)
        jacobian = predict(theta, Data(t, xs[here], np.ones(len(t))), model.form, None)[1][0]
        spread = deviations[here] / np.sqrt(trials[here])
        covariance = np.outer(spread, spread) * shared + np.diag(spread**2 * (1.0 - shared))
        total += jacobian.T @ np.linalg.solve(covariance, jacobian)
    covariance, blind = _invert(total, free)
    return Information(model=model, theta=theta, centre=centre, covariance=covariance, blind=blind)


def _check_grid(
    widths: ArrayLike, x: ArrayLike, noise: ArrayLike, num_seeds: ArrayLike
) -> tuple[Floats, Floats, Floats, Floats]:
    """Return widths (W,) and x, noise and seeds, each (W, L)."""
    width = np.atleast_1d(np.asarray(widths, dtype=np.float64))
    places = np.atleast_2d(np.asarray(x, dtype=np.float64))
    if places.shape[0] not in (1, len(width)):
        raise ConfigError(
            f"x: expected one row or {len(width)}, one per width, found {places.shape[0]}"
        )
    places = np.broadcast_to(places, (len(width), places.shape[1]))
    out = []
    for name, value in (("noise", noise), ("num_seeds", num_seeds)):
        array = np.asarray(value, dtype=np.float64)
        array = array[:, None] if array.ndim == 1 else array
        try:
            array = np.broadcast_to(array, places.shape)
        except ValueError:
            raise ConfigError(
                f"{name}: expected one value, one per width or shape {places.shape}, "
                f"found shape {np.shape(value)}"
            ) from None
        out.append(array)
    for name, array in (("widths", width), ("noise", out[0]), ("num_seeds", out[1])):
        bad = ~(np.isfinite(array) & (array > 0))
        if np.any(bad):
            raise ConfigError(f"{name}: expected positive numbers, found {array[bad].flat[0]:g}")
    return width, places, out[0], out[1]


def _invert(total: Floats, free: Bools) -> tuple[Floats, Floats]:
    """Return the covariance (9, 9) and the unseen directions (9, M) of an information matrix."""
    # Parameters are scaled to unit information first, so that units do not decide what is unseen.
    scale = np.sqrt(np.diag(total))
    seen = free & (scale > 0.0)
    lost = np.flatnonzero(free & ~seen)
    blind = [np.eye(9)[:, k] for k in lost]
    covariance = np.zeros((9, 9))
    if np.any(seen):
        rows = np.flatnonzero(seen)
        unit = 1.0 / scale[rows]
        values, vectors = np.linalg.eigh(total[np.ix_(rows, rows)] * np.outer(unit, unit))
        good = values > BLIND * values.max()
        span = vectors[:, good] * unit[:, None]
        covariance[np.ix_(rows, rows)] = (span / values[good]) @ span.T
        for vector in (vectors[:, ~good] * unit[:, None]).T:
            direction = np.zeros(9)
            direction[rows] = vector / np.linalg.norm(vector)
            blind.append(direction)
    return covariance, np.stack(blind, axis=1) if blind else np.zeros((9, 0))


def expected_errors(
    model: TransferModel,
    *,
    widths: ArrayLike,
    x: ArrayLike,
    noise: ArrayLike,
    num_seeds: ArrayLike = 1,
    target: float | None = None,
    skew: bool = False,
    shared: float = 0.0,
) -> dict[str, float]:
    """Return the standard errors to expect of a study, by name.

    Parameters
    ----------
    target : float
        Width to extrapolate x* and L* to; the default is four times the widest.
    model, widths, x, noise, num_seeds, skew, shared
        As for `information`.

    Returns
    -------
    dict of str to float
        ``alpha``, ``beta``, ``gamma``, ``kappa`` (form ``power``: ``b`` in place of ``beta`` and
        ``kappa``), ``loss_inf`` in nats, ``x_star`` (in ln(lr)) and ``loss`` (in nats) at
        `target`, and ``x_star@N`` at each width N of the grid; inf where the grid cannot tell.

    Raises
    ------
    ConfigError
        As for `information`, or `target` is not positive.
    """
    bound = information(
        model, widths=widths, x=x, noise=noise, num_seeds=num_seeds, skew=skew, shared=shared
    )
    grid = np.atleast_1d(np.asarray(widths, dtype=np.float64)).tolist()
    goal = 4.0 * max(grid) if target is None else float(target)
    if not (np.isfinite(goal) and goal > 0):
        raise ConfigError(f"target: expected a positive width, found {goal:g}")
    out = {"alpha": bound.alpha}
    if model.form == "power":
        out["b"] = bound.slope
    else:
        out["beta"] = bound.beta
    out["gamma"] = bound.gamma
    if model.form == "converging":
        out["kappa"] = bound.kappa
    out["loss_inf"] = bound.loss_inf
    out["x_star"] = bound.optimum(goal)
    out["loss"] = bound.best_loss(goal)
    out.update({f"x_star@{n:g}": bound.optimum(n) for n in grid})
    return out


#: Learning rates closer than this in ln(lr) are one point.
SAME_PLACE = 1e-6


@dataclass(frozen=True, kw_only=True)
class Design:
    """Points of a joint fit with their trials and their noise.

    Attributes
    ----------
    joint : JointFit
        The point fit.
    width, x, count : ndarray, shape (N,)
        Width, ln(lr) and trials of each point.
    variance : ndarray, shape (N,)
        Variance of one trial in nats², less what a width's learning rates share.
    excess : float
        Variance in nats² that each point has however many trials it has.
    """

    joint: JointFit
    width: Floats
    x: Floats
    count: Floats
    variance: Floats
    excess: float

    @property
    def widths(self) -> Floats:
        """Distinct widths, ascending."""
        return np.unique(self.width)

    @property
    def step(self) -> float:
        """Typical distance of neighbouring points in ln(lr); ln 2 where no width has two."""
        gaps = np.concatenate([np.diff(np.sort(self.x[self.width == n])) for n in self.widths])
        return float(np.median(gaps)) if len(gaps) else float(np.log(2.0))

    def variance_at(self, width: Floats) -> Floats:
        """Variance of one trial at new widths (M,): between widths on a power law, beyond level."""
        near = [np.exp(np.mean(np.log(self.variance[self.width == n]))) for n in self.widths]
        return np.exp(np.interp(np.log(width), np.log(self.widths), np.log(near)))

    def precision(self, variance: Floats, count: Floats) -> Floats:
        """1/variance of points with `count` trials each, in nats⁻²; 0 without trials."""
        return np.where(count > 0, 1.0 / (variance / np.maximum(count, 1e-300) + self.excess), 0.0)

    def jacobian(self, width: Floats, x: Floats) -> Floats:
        """Derivatives of the losses at points (M,) in the nine parameters, in nats, (M, 9)."""
        t = np.log(width) - self.joint.log_width
        data = Data(t, x - self.joint.x_mean, np.ones(len(t)))
        slopes = predict(self.joint.theta[:1], data, self.joint.form, None)[1][0]
        return np.asarray(self.joint.loss_scale * slopes)

    def information(self) -> Floats:
        """Information of the points and of the bounds that exponents are fitted within, (9, 9).

        A bound counts as a uniform prior does, by its variance; what is not fitted is known.
        """
        jacobian = self.jacobian(self.width, self.x)
        root = np.sqrt(self.precision(self.variance, self.count))[:, None]
        total = (jacobian * root).T @ (jacobian * root)
        for k, (low, high) in EXPONENT_BOUNDS.items():
            total[k, k] += 12.0 / (high - low) ** 2
        held = [SKEW] * (not self.joint.skewed) + [BETA] * (self.joint.form == "power")
        for k in held:
            total[k], total[:, k], total[k, k] = 0.0, 0.0, 1.0
        return total

    def free(self, gradient: Floats) -> Floats:
        """The gradient (…, 9) less what is not fitted."""
        held = [SKEW] * (not self.joint.skewed) + [BETA] * (self.joint.form == "power")
        out = gradient.copy()
        out[..., held] = 0.0
        return out

    def with_points(self, width: Floats, x: Floats, count: Floats) -> "Design":
        """The design with `count` (M,) more trials at points (M,), new or there already."""
        old = self.count.copy()
        fresh = np.ones(len(width), dtype=bool)
        for k, (n, place) in enumerate(zip(width, x, strict=True)):
            there = np.flatnonzero((self.width == n) & (np.abs(self.x - place) < SAME_PLACE))
            if len(there):
                old[there[0]] += count[k]
                fresh[k] = False
        variance = self.variance_at(width[fresh])
        return replace(
            self,
            width=np.concatenate([self.width, width[fresh]]),
            x=np.concatenate([self.x, x[fresh]]),
            count=np.concatenate([old, count[fresh]]),
            variance=np.concatenate([self.variance, variance]),
        )

    def with_widths(self, num: int, ratio: float = 2.0) -> "Design":
        """The design with `num` more widths, each `ratio` times the last, sampled as the widest."""
        widest = float(self.widths[-1])
        here = self.width == widest
        size = int(here.sum())
        out = self
        for k in range(1, num + 1):
            wider = widest * ratio**k
            shift = float(self.joint.optimum(wider)[0] - self.joint.optimum(widest)[0])
            place = self.x[here] + self.step * np.round(shift / self.step)
            out = out.with_points(np.full(size, wider), place, self.count[here])
        return out

    def with_trials(self, factor: float) -> "Design":
        """The design with `factor` times the trials at each point."""
        return replace(self, count=self.count * factor)

    def error(self, gradient: Floats) -> float:
        """Standard error of a quantity with this gradient (9,), at best."""
        free = self.free(gradient)
        solved = solve_information(self.information(), free)
        return float(np.sqrt(max(float(free @ solved), 0.0)))

    def gradient_of(self, name: str) -> Floats:
        """Gradient (9,) of ``alpha``, ``beta``, ``gamma``, ``kappa``, ``b`` or ``loss_inf``."""
        out = np.zeros(9)
        if name == "loss_inf":
            scale = self.joint.loss_scale
            d, alpha = (float(self.joint.theta[0, k]) for k in (D, ALPHA))
            out[P], out[D], out[ALPHA] = scale, -scale / alpha, scale * d / alpha**2
            return out
        for k, weight in _EXPONENTS[name].items():
            out[k] = weight
        return out

    def gradient_of_optimum(self, width: float) -> Floats:
        """Gradient (9,) of x* at a width."""
        out = np.zeros(9)
        t = np.array([np.log(width) - self.joint.log_width])
        if self.joint.form == "power":
            out[Q], out[G] = 1.0, -float(t[0])
            return out
        h, dh = power_law(self.joint.theta[:1, BETA : BETA + 1], t[None, :])
        out[Q], out[G] = 1.0, float(h[0, 0])
        out[BETA] = float(self.joint.theta[0, G] * dh[0, 0])
        return out

    def gradient_of_loss(self, width: float) -> Floats:
        """Gradient (9,) of L* at a width, in nats."""
        out = np.zeros(9)
        t = np.array([np.log(width) - self.joint.log_width])
        h, dh = power_law(self.joint.theta[:1, ALPHA : ALPHA + 1], t[None, :])
        out[P], out[D] = 1.0, float(h[0, 0])
        out[ALPHA] = float(self.joint.theta[0, D] * dh[0, 0])
        return self.joint.loss_scale * out


_EXPONENTS = {
    "alpha": {ALPHA: 1.0},
    "beta": {BETA: 1.0},
    "gamma": {GAMMA: 1.0},
    "b": {G: 1.0},
    "kappa": {ALPHA: 1.0, BETA: -2.0, GAMMA: 1.0},
}


def solve_information(total: Floats, right: Floats) -> Floats:
    """Solve total·y = right (9,) or (9, K) for a positive matrix (9, 9), whatever its units."""
    unit = 1.0 / np.sqrt(np.maximum(np.diag(total), 1e-300))
    scaled = total * np.outer(unit, unit) + 1e-12 * np.eye(len(total))
    each = unit if right.ndim == 1 else unit[:, None]
    return np.asarray(each * np.linalg.solve(scaled, each * right))


def design_of(
    joint: JointFit, cells: Cells, noise: Noise, misfit: Misfit, points: Bools
) -> Design | None:
    """The design of a joint fit to the cells `points` (C,); None where there is no noise."""
    rounding = rounding_of(cells)
    count = cells.count[points].astype(np.float64)
    silent = not noise.known or float(noise.variance.max()) <= rounding**2
    if silent:
        variance, excess = np.full(len(count), misfit.sigma**2), 0.0
    else:
        variance, excess = cell_variances(cells, noise)[points] * count, misfit.variance
    if not misfit.known or not np.all(variance > 0.0):
        return None
    return Design(
        joint=joint,
        width=cells.width[points],
        x=cells.x[points],
        count=count,
        variance=variance,
        excess=excess,
    )
