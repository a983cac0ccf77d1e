"""Exponents and metrics of a joint fit, each judged by the design's rules.

An estimate rests on parameters; where one of them sits at a bound, in the point fit or in more
than a few per cent of the resamples, it is not identified, whatever its interval says.

Shape letters: N points, R resamples.
"""

from collections.abc import Callable

import numpy as np

from hptransfer.stats.cells import Bools, Floats
from hptransfer.stats.estimate import Estimate
from hptransfer.stats.joint_model import EXPONENT_BOUNDS, NAMES, JointFit
from hptransfer.stats.judge import TOLERATED_SHARE, judge, refuse

_SAID = {
    "loss_inf": "L∞ hit its bound of 0",
    "A": "the best loss does not fall with width",
    **{
        NAMES[k]: f"{NAMES[k]} hit a bound of its range {low:g} to {high:g}"
        for k, (low, high) in EXPONENT_BOUNDS.items()
    },
}
_GETTERS: dict[str, Callable[[JointFit], Floats]] = {
    "alpha": lambda fit: fit.alpha,
    "beta": lambda fit: fit.beta,
    "gamma": lambda fit: fit.gamma,
    "b": lambda fit: fit.slope,
    "loss_inf": lambda fit: fit.loss_inf,
}
NO_DRIFT = "no drift seen"
NO_REFERENCE = "no reference"
#: Widths of a group that a fit without the widest still needs three of.
WIDTHS_FOR_JOINT = 3
WIDTHS_FOR_OUT = WIDTHS_FOR_JOINT + 1


def say_bounds(point: JointFit, samples: JointFit | None, *names: str) -> str:
    """Say in words which of the named parameters rest on a bound; "" if none does."""
    out = []
    at_point = point.at_bound()
    at_samples = {} if samples is None else samples.at_bound()
    for name in names:
        share = float(np.mean(at_samples[name])) if name in at_samples else 0.0
        if at_point[name][0]:
            out.append(_SAID[name])
        elif share > TOLERATED_SHARE:
            out.append(f"{_SAID[name]} in {100 * share:.0f} % of the resamples")
    return "; ".join(out)


def estimate_drift(
    point: JointFit, samples: JointFit | None, narrowest: float, widest: float
) -> Estimate:
    """Estimate x*(widest) − x*(narrowest), in ln(lr)."""
    value = float((point.optimum(widest) - point.optimum(narrowest))[0])
    drawn = None if samples is None else samples.optimum(widest) - samples.optimum(narrowest)
    return judge(value, drawn, "log_lr")


def holds_zero(estimate: Estimate) -> bool:
    """Whether an estimate's interval holds 0; False where there is none."""
    if estimate.low is None or estimate.high is None:
        return False
    return estimate.low <= 0.0 <= estimate.high


def estimate_exponents(
    point: JointFit, samples: JointFit | None, drift: Estimate
) -> dict[str, Estimate]:
    """Estimate alpha, gamma, loss_inf and beta (form ``power``: b)."""

    def one(name: str, value: Floats, drawn: Floats | None, *rests_on: str) -> Estimate:
        return judge(float(value[0]), drawn, name, problem=say_bounds(point, samples, *rests_on))

    drawn: dict[str, Floats] = {}
    if samples is not None:
        drawn = {name: getter(samples) for name, getter in _GETTERS.items()}
    out = {"alpha": one("alpha", point.alpha, drawn.get("alpha"), "loss_inf", "A", "alpha")}
    if point.form == "power":
        out["b"] = one("b", point.slope, drawn.get("b"))
    else:
        out["beta"] = (
            refuse(f"{NO_DRIFT}, so that beta has no meaning")
            if holds_zero(drift)
            else one("beta", point.beta, drawn.get("beta"), "beta")
        )
    out["gamma"] = one("gamma", point.gamma, drawn.get("gamma"), "gamma")
    out["loss_inf"] = one(
        "loss_inf", point.loss_inf, drawn.get("loss_inf"), "loss_inf", "A", "alpha"
    )
    return out


def estimate_kappa(
    point: JointFit, samples: JointFit | None, drift: Estimate, price: str
) -> Estimate:
    """Estimate κ = α − 2β + γ (Kalra & Barkeshli 2026, eq. for transfer robustness).

    Parameters
    ----------
    price : str
        What stands in for κ where no drift is seen: the bound on the regret, in words.
    """
    if point.form == "power":
        return refuse("kappa exists only in the converging form")
    if holds_zero(drift):
        # Only a drift known to be small is good news; one lost in noise is not.
        news = ", which is good news" if drift.status == "identified" else " above the noise"
        return refuse(f"{NO_DRIFT}{news}: {price}" if price else f"{NO_DRIFT}{news}")
    value = float((point.alpha - 2.0 * point.beta + point.gamma)[0])
    drawn = None if samples is None else samples.alpha - 2.0 * samples.beta + samples.gamma
    problem = say_bounds(point, samples, "loss_inf", "A", "alpha", "beta", "gamma")
    return judge(value, drawn, "kappa", problem=problem)


def square_error(value: float, drawn: Floats | None, *, problem: str = "") -> Estimate:
    """Judge a mean squared error in nats² by the half-width of its root, in nats."""
    root = judge(
        float(np.sqrt(value)), None if drawn is None else np.sqrt(drawn), "error", problem=problem
    )
    return Estimate(
        value=value,
        low=None if root.low is None else root.low**2,
        high=None if root.high is None else root.high**2,
        status=root.status,
        reason=root.reason,
    )


def estimate_error(
    point: JointFit, losses: Floats, samples: JointFit | None, resampled: Floats | None
) -> Estimate:
    """Estimate E, the mean squared residual over points of the window, in nats².

    Parameters
    ----------
    losses : ndarray, shape (N,)
        Cell means the point fit saw.
    resampled : ndarray, shape (R, N)
        Those that `samples` saw.
    """
    value = float(np.mean((point.predicted()[0] - losses) ** 2))
    problem = ""
    if len(losses) <= point.num_parameters:
        problem = f"{len(losses)} points for {point.num_parameters} parameters leave no residual"
    drawn = None
    if samples is not None and resampled is not None:
        drawn = np.mean((samples.predicted() - resampled) ** 2, axis=1)
    return square_error(value, drawn, problem=problem)


def estimate_error_out(
    point: JointFit,
    losses: Floats,
    samples: JointFit | None,
    resampled: Floats | None,
    *,
    width: float,
    x: Floats,
    out: Bools,
) -> Estimate:
    """Estimate E_out: the mean squared error at `width`, which the fits did not see, in nats².

    `x` and `out` (N,) are ln(lr) and the mask of the points of that width.
    """
    value = float(np.mean((point.loss_at(width, x[out])[0] - losses[out]) ** 2))
    drawn = None
    if samples is not None and resampled is not None:
        misses = samples.loss_at(width, x[out]) - resampled[:, out]
        drawn = np.mean(misses**2, axis=1)
    return square_error(value, drawn)


def pair_difference(
    value: float, drawn: Floats | None, other: float, other_drawn: Floats | None, problem: str
) -> Estimate:
    """Estimate a difference in nats between two groups from resamples paired by their index."""
    both = None if drawn is None or other_drawn is None else drawn - other_drawn
    return judge(value - other, both, "R_inf", problem=problem)


def describe_bound(regret: Estimate, width: float) -> str:
    """Say what keeping the narrowest width's lr costs at most at a width; "" if unknown."""
    if regret.high is None:
        return ""
    return (
        f"keeping the narrowest width's lr at width {width:g} costs "
        f"at most {regret.high:.2g} nats (90 %)"
    )
