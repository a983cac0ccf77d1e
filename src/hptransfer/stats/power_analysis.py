"""Tell before it is run what a grid of trials would tell: Cramér-Rao bounds on the joint model.

Standard errors follow from the model's Jacobian at assumed parameters and the noise of a trial
(Fisher information of Gaussian data); no unbiased estimate does better.

Shape letters: W widths, L learning rates, N points, P parameters.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from hptransfer.errors import ConfigError
from hptransfer.stats._source_error import (
    ALPHA,
    BETA,
    GAMMA,
    LOG_C,
    SKEW,
    D,
    G,
    P,
    Q,
    power_law,
    predict,
)
from hptransfer.stats.cells import DEFAULT_WINDOW, Bools, Floats
from hptransfer.stats.estimate import NORMAL_90, THRESHOLDS, Status, grade
from hptransfer.stats.results import TransferModel

#: Directions whose information is below this share of the largest are not seen by the data.
_BLIND = 1e-13
#: Part of a quantity's gradient along unseen directions from which its error is infinite.
_LEAST_PART = 1e-6
#: Decay rate below which a converging drift is its limit, a line in ln n.
_SMALLEST_RATE = 1e-9


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
        theta[0, BETA] = max(model.beta, _SMALLEST_RATE)
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
        Them, as `predict` orders them.
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
        if np.abs(gradient @ self.blind).max(initial=0.0) > _LEAST_PART * size:
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
        jacobian = predict(theta, t, xs[here], model.form)[1][0]
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
        good = values > _BLIND * values.max()
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


#: What a study without a forerunner is judged at: the best loss of the narrowest width lies
#: `excess` nats above L∞ and falls with α; the curvature there, in nats per (ln lr)², grows with
#: γ; the optimum has `drift` to go, in ln(lr), and decays with β. `noise` is one trial's standard
#: deviation in nats.
STATED: Mapping[str, float] = MappingProxyType(
    {
        "loss_inf": 2.0,
        "excess": 0.7,
        "alpha": 0.5,
        "curvature": 0.05,
        "gamma": 0.1,
        "drift": 0.5,
        "beta": 0.7,
        "noise": 0.005,
    }
)


@dataclass(frozen=True, kw_only=True)
class Expectation:
    """The standard error to expect of one quantity, and what it would be called.

    Attributes
    ----------
    name : str
        ``x_star`` (at the target width, in ln(lr)), ``kappa``, ``R_inf`` and ``loss_inf`` (nats),
        ``alpha``, ``beta`` or ``gamma``.
    standard_error : float
        The Cramér-Rao bound: no unbiased estimate does better; inf where the grid cannot tell.
    status : Status
        By the thresholds of `estimate`, were the bound reached.
    """

    name: str
    standard_error: float
    status: Status

    def to_dict(self) -> dict[str, Any]:
        """Return the expectation by name; an infinite error is None."""
        error = self.standard_error if np.isfinite(self.standard_error) else None
        return {"name": self.name, "standard_error": error, "status": self.status}


def state_model(widths: ArrayLike, x: ArrayLike) -> TransferModel:
    """Return the model of `STATED` on a grid, its optimum in the middle of the learning rates.

    Parameters
    ----------
    widths : array, shape (W,)
        Model widths.
    x : array, shape (L,)
        ln(lr).
    """
    narrowest = float(np.min(np.asarray(widths, dtype=np.float64)))
    places = np.asarray(x, dtype=np.float64)
    middle = 0.5 * float(places.min() + places.max())
    return TransferModel(
        form="converging",
        loss_inf=STATED["loss_inf"],
        A=STATED["excess"] * narrowest ** STATED["alpha"],
        alpha=STATED["alpha"],
        C0=STATED["curvature"] * narrowest ** -STATED["gamma"],
        gamma=STATED["gamma"],
        x_inf=middle - 0.5 * STATED["drift"],
        B=STATED["drift"] * narrowest ** STATED["beta"],
        beta=STATED["beta"],
    )


def expect_errors(
    model: TransferModel,
    *,
    widths: ArrayLike,
    x: ArrayLike,
    noise: float,
    num_seeds: int,
    target: float | None = None,
    window: float = DEFAULT_WINDOW,
) -> tuple[Expectation, ...]:
    """Return what a grid would tell of a parameterization, were `model` the truth.

    Parameters
    ----------
    model : TransferModel
        From `state_model`, or from the fit of an earlier study.
    widths : array, shape (W,)
        Model widths of the grid.
    x : array, shape (L,)
        ln(lr) of the grid.
    noise : float
        Standard deviation of one trial's loss, in nats.
    num_seeds : int
        Seeds of each point.
    target : float, optional
        Width that x* is extrapolated to; four times the widest by default.
    window : float
        Points whose loss exceeds this multiple of their width's best tell nothing.

    Raises
    ------
    ConfigError
        If a number is not positive.

    Notes
    -----
    R(∞) is the difference of two L∞ known equally well and independently, an upper bound where
    trials are paired by seed.
    """
    width = np.asarray(widths, dtype=np.float64)[:, None]
    grid = np.broadcast_to(np.asarray(x, dtype=np.float64), (len(width), np.size(x)))
    best = model.best_loss(width)
    u = grid - model.optimum(width)
    loss = best + 0.5 * model.curvature(width) * (u**2 + model.skew * u**3)
    places = np.where(loss <= window * best, grid, np.nan)
    errors = expected_errors(
        model, widths=width[:, 0], x=places, noise=noise, num_seeds=num_seeds, target=target
    )
    errors["R_inf"] = float(np.sqrt(2.0)) * errors["loss_inf"]
    kinds = {"x_star": "log_lr", "kappa": "kappa", "R_inf": "R_inf"}
    kinds |= {name: name for name in ("loss_inf", "alpha", "beta", "gamma") if name in errors}
    return tuple(
        Expectation(
            name=name,
            standard_error=errors[name],
            status=grade(NORMAL_90 * errors[name], THRESHOLDS[kind]),
        )
        for name, kind in kinds.items()
        if name in errors
    )
