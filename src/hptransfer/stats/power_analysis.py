"""Tell before it is run what a grid of trials would tell: Cramér-Rao bounds on the joint model.

Standard errors follow from the model's Jacobian at assumed parameters and the noise of a trial
(Fisher information of Gaussian data); no unbiased estimate does better.

Shape letters: W widths, L learning rates, N points.
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
    LIMIT,
    SKEW,
    G,
    Q,
    power_law,
    predict,
)
from hptransfer.stats.estimate import NORMAL_90, THRESHOLDS, Status, grade
from hptransfer.stats.loss_table import DEFAULT_WINDOW, Bools, Floats
from hptransfer.stats.results import TransferModel

#: Directions whose information is below this share of the largest are not seen by the data.
_BLIND = 1e-13
#: Part of a quantity's gradient along unseen directions from which its error is infinite.
_LEAST_PART = 1e-6
#: Decay rate below which a converging drift is its limit, a line in ln n.
_SMALLEST_RATE = 1e-9
#: The quantities that are sums of parameters.
_SUMS: Mapping[str, Mapping[int, float]] = {
    "alpha": {ALPHA: 1.0},
    "beta": {BETA: 1.0},
    "gamma": {GAMMA: 1.0},
    "b": {G: 1.0},
    "kappa": {ALPHA: 1.0, BETA: -2.0, GAMMA: 1.0},
    "loss_inf": {LIMIT: 1.0},
}
#: Those that the power form lacks.
_CONVERGING = ("beta", "kappa")


def _theta(model: TransferModel, centre: float) -> Floats:
    """Internal parameters (1, 9) of a model around ln(width) = `centre`, in nats."""
    excess = model.A * np.exp(-model.alpha * centre)
    log_c = np.log(model.C0) + model.gamma * centre
    beta = max(model.beta, _SMALLEST_RATE)
    reach = model.B * np.exp(-model.beta * centre)
    drift = (model.x_inf + reach, model.beta * reach, beta)
    if model.form == "power":
        drift = (model.x_inf - model.B * centre, model.B, 1.0)
    head = (model.loss_inf, excess, model.alpha, log_c, model.gamma)
    return np.array([[*head, *drift, model.skew]], dtype=np.float64)


class Information:
    """Fisher information of trials about the joint model, and the standard errors it allows.

    Parameters
    ----------
    model : TransferModel
        Parameters to assume; its form is the form that is fitted.
    width, x : array, shape (N,)
        Width and ln(lr) of the points; arrays that broadcast together will do.
    sigma : array, shape (N,)
        Standard deviation of each point's mean loss in nats.

    Attributes
    ----------
    centre : float
        Mean ln(width), which `theta` refers to.
    theta : ndarray, shape (1, 9)
        The parameters, as `predict` orders them.
    covariance : ndarray, shape (9, 9)
        Lowest covariance of an unbiased estimate of `theta`, along the directions that the data
        see; 0 for parameters that are not fitted.
    blind : ndarray, shape (9, M)
        Directions that the data do not see.

    Raises
    ------
    ConfigError
        A width or standard deviation is not positive.

    Notes
    -----
    The information is Jᵀ·V⁻¹·J with the Jacobian J of the model and the variances V of the
    means; a quantity g of the parameters has variance ∇gᵀ·(Jᵀ·V⁻¹·J)⁻¹·∇g at least (Cramér 1946,
    Rao 1945).
    """

    def __init__(
        self, model: TransferModel, *, width: ArrayLike, x: ArrayLike, sigma: ArrayLike
    ) -> None:
        both = np.broadcast_arrays(width, x, sigma)
        width, x, sigma = (np.asarray(each, dtype=np.float64).reshape(-1) for each in both)
        for name, array in (("width", width), ("sigma", sigma)):
            bad = ~(np.isfinite(array) & (array > 0))
            if np.any(bad):
                raise ConfigError(f"{name}: expected positive numbers, found {array[bad][0]:g}")
        self.model, self.centre = model, float(np.mean(np.log(np.unique(width))))
        self.theta = _theta(model, self.centre)
        free = np.ones(9, dtype=bool)
        free[BETA], free[SKEW] = model.form == "converging", False
        slopes = predict(self.theta, np.log(width) - self.centre, x, model.form)[1][0]
        jacobian = slopes / sigma[:, None]
        self.covariance, self.blind = _invert(jacobian.T @ jacobian, free)

    def propagate(self, parts: Mapping[int, float]) -> float:
        """Standard error of a quantity with this gradient in `theta`; inf if unseen."""
        gradient = np.zeros(9)
        gradient[list(parts)] = list(parts.values())
        size = float(np.abs(gradient).max())
        if np.abs(gradient @ self.blind).max(initial=0.0) > _LEAST_PART * size:
            return float("inf")
        return float(np.sqrt(max(float(gradient @ self.covariance @ gradient), 0.0)))

    def error(self, name: str) -> float:
        """Standard error of an exponent, ``kappa`` or ``loss_inf``; inf where there is none.

        ``b`` is −dx*/d ln n at the widths' geometric mean.
        """
        if self.model.form == "power" and name in _CONVERGING:
            return float("inf")
        return self.propagate(_SUMS[name])

    def optimum(self, width: float) -> float:
        """Standard error of x* at a width, measured or not, in ln(lr)."""
        t = np.array([np.log(width) - self.centre])
        if self.model.form == "power":
            return self.propagate({Q: 1.0, G: -float(t[0])})
        h, slope = power_law(self.theta[0, BETA], t)
        return self.propagate({Q: 1.0, G: float(h[0]), BETA: float(self.theta[0, G] * slope[0])})


def _invert(total: Floats, free: Bools) -> tuple[Floats, Floats]:
    """Return the covariance (9, 9) and the unseen directions (9, M) of an information matrix."""
    # Parameters are scaled to unit information first, so that units do not decide what is unseen.
    rows = np.flatnonzero(free)
    scale = np.sqrt(np.diag(total))[rows]
    unit = 1.0 / np.where(scale > 0.0, scale, 1.0)
    values, vectors = np.linalg.eigh(total[np.ix_(rows, rows)] * np.outer(unit, unit))
    span = np.zeros((9, len(rows)))
    span[rows] = vectors * unit[:, None]
    good = values > _BLIND * values.max()
    blind = span[:, ~good] / np.linalg.norm(span[:, ~good], axis=0)
    return (span[:, good] / values[good]) @ span[:, good].T, blind


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


#: What is expected of a grid, by the kind of its threshold, in the order in which it is told.
_EXPECTED = {"x_star": "log_lr"} | {
    name: name for name in ("kappa", "R_inf", "loss_inf", "alpha", "beta", "gamma")
}


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
) -> tuple[Expectation, ...]:
    """Return what a grid would tell of a parameterization, were `model` the truth.

    x* is that of four times the widest width. Points outside the window of the joint fit tell
    nothing.

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

    Raises
    ------
    ConfigError
        If a number is not positive.

    Notes
    -----
    R(∞) is the difference of two L∞ known equally well and independently, an upper bound where
    trials are paired by seed.
    """
    for name, value in (("noise", noise), ("num_seeds", num_seeds)):
        if value <= 0:
            raise ConfigError(f"{name}: expected a positive number, found {value:g}")
    n, at = np.meshgrid(np.asarray(widths, dtype=np.float64), x, indexing="ij")
    best, u = model.best_loss(n), at - model.optimum(n)
    seen = 0.5 * model.curvature(n) * (u**2 + model.skew * u**3) <= (DEFAULT_WINDOW - 1.0) * best
    known = Information(model, width=n[seen], x=at[seen], sigma=noise / np.sqrt(num_seeds))
    errors = {"x_star": known.optimum(4.0 * float(n.max()))}
    errors |= {name: known.error(name) for name in ("kappa", "loss_inf", "alpha", "beta", "gamma")}
    errors["R_inf"] = float(np.sqrt(2.0)) * errors["loss_inf"]
    return tuple(
        Expectation(
            name=name,
            standard_error=errors[name],
            status=grade(NORMAL_90 * errors[name], THRESHOLDS[kind]),
        )
        for name, kind in _EXPECTED.items()
        if model.form == "converging" or name not in _CONVERGING
    )
