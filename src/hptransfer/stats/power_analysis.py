"""Power before spending: what a grid of trials would tell, were it run.

Shape letters: W widths, L learning rates.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from hptransfer.stats._fisher import expected_errors
from hptransfer.stats.cells import DEFAULT_WINDOW
from hptransfer.stats.estimate import Status
from hptransfer.stats.identifiability import THRESHOLDS, grade
from hptransfer.stats.results import TransferModel

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

#: Half-width of a 90 % interval in standard errors.
NORMAL_90 = 1.645


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
        By the thresholds of `identifiability`, were the bound reached.
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
