"""From a value and its resamples to an estimate: interval, status, and the reason in words."""

import numpy as np
from scipy import special

from hptransfer.stats.cells import Floats
from hptransfer.stats.estimate import Estimate, Status

#: 90 % half-widths up to which a quantity is identified; weakly identified up to twice that.
#: alpha, gamma, kappa, loss_inf and R_inf are the design's. beta's follows from kappa's:
#: √(0.2² + (2·0.2)² + 0.2²) ≈ 0.5; b is an exponent like it. log_lr is a factor of √2.
#: curvature is relative to the value. error is for the root of E, in nats.
THRESHOLDS = {
    "alpha": 0.2,
    "beta": 0.2,
    "gamma": 0.2,
    "b": 0.2,
    "delta": 0.2,
    "c": 0.2,
    "kappa": 0.5,
    "loss_inf": 0.1,
    "R_inf": 0.1,
    "loss": 0.1,
    "log_lr": 0.5 * float(np.log(2.0)),
    "curvature": 0.5,
    "error": 0.1,
    "regret": 0.1,
}

#: Share of resamples that may fail, or sit at a bound, before an estimate stops counting.
TOLERATED_SHARE = 0.05

#: Logarithms beyond this size have no float; a bound there says nothing.
LARGEST_LOG = 700.0

#: Level of every interval that is shown.
LEVEL = 0.9

NO_NOISE = "no interval: one seed and no spare points to judge the noise by"

_ORDER: tuple[Status, ...] = ("identified", "weakly identified", "not identified")


def refuse(reason: str, value: float | None = None) -> Estimate:
    """Return a `not identified` estimate with its reason and, perhaps, a value to look at."""
    return Estimate(value=value, status="not identified", reason=reason)


def worst(*statuses: Status) -> Status:
    """Return the weakest of several statuses."""
    return max(statuses, key=_ORDER.index)


def grade(half: float, limit: float) -> Status:
    """Return what a 90 % half-width is called against the threshold of its quantity."""
    return _ORDER[int(half > limit) + int(half > 2.0 * limit)]


def interval(samples: Floats, level: float = LEVEL) -> tuple[float, float]:
    """Return the percentiles between which a share `level` of the finite samples lies."""
    tails = [50.0 * (1.0 - level), 50.0 * (1.0 + level)]
    low, high = np.percentile(samples[np.isfinite(samples)], tails)
    return float(low), float(high)


def judge(
    value: float,
    samples: Floats | None,
    kind: str,
    *,
    problem: str = "",
    caution: str = "",
    scale: float = 1.0,
) -> Estimate:
    """Make an estimate of a value and its resamples.

    Parameters
    ----------
    value : float
        Point estimate.
    samples : ndarray, shape (R,), or None
        Its resamples, NaN where one failed; None where no noise is known.
    kind : str
        Key of `THRESHOLDS`.
    problem : str
        A reason, if there is one, for which nothing could identify the quantity.
    caution : str
        A reason for which it is at best weakly identified.
    scale : float
        The half-width is divided by this before it meets the threshold.
    """
    if not np.isfinite(value):
        return refuse(problem or "the fit gave no finite value")
    if samples is None:
        return refuse(problem or NO_NOISE, value)
    failed = float(np.mean(~np.isfinite(samples)))
    if failed > TOLERATED_SHARE:
        return refuse(problem or f"no value in {100 * failed:.0f} % of the resamples", value)
    low, high = interval(samples)
    low, high = min(low, value), max(high, value)
    half, limit = 0.5 * (high - low) / scale, THRESHOLDS[kind]
    status = grade(half, limit)
    reasons = []
    if half > limit:
        reasons.append(say_half(half, limit, " of its value" if scale != 1.0 else ""))
    if caution:
        status = worst(status, "weakly identified")
        reasons.insert(0, caution)
    if problem:
        status = "not identified"
        reasons.insert(0, problem)
    return Estimate(value=value, low=low, high=high, status=status, reason="; ".join(reasons))


def say_half(half: float, limit: float, relative: str = "") -> str:
    """Say that a 90 % half-width is above the threshold of its quantity."""
    return f"90 % half-width {half:.2g}{relative} is above {limit:.2g}"


def say_lr(x: float) -> str:
    """Say a learning rate, given as ln(lr), as sweeps do: ``2^-7`` where it is one."""
    log2 = x / float(np.log(2.0))
    if abs(4.0 * log2 - round(4.0 * log2)) < 1e-4:
        return f"2^{round(4.0 * log2) / 4.0:g}"
    return f"{np.exp(x):.3g}"


def judge_log(
    log_value: float,
    log_samples: Floats | None,
    kind: str = "log_lr",
    *,
    problem: str = "",
    caution: str = "",
) -> Estimate:
    """Like `judge` for a quantity known by its logarithm; bounds are on its own scale."""
    e = judge(log_value, log_samples, kind, problem=problem, caution=caution)
    return Estimate(
        value=exponentiate(e.value),
        low=exponentiate(e.low),
        high=exponentiate(e.high),
        status=e.status,
        reason=e.reason,
    )


def exponentiate(log_value: float | None) -> float | None:
    """Return e^log_value; None where there is none or no float could hold it."""
    if log_value is None or abs(log_value) > LARGEST_LOG:
        return None
    return float(np.exp(log_value))


def f_limit(level: float, terms: int, dof: int) -> float:
    """Return the F value that `terms` and `dof` degrees of freedom exceed with chance `level`."""
    # scipy.special starts in a fraction of the time of scipy.stats.
    return float(special.fdtri(terms, dof, 1.0 - level))
