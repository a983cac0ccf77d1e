"""Turn a value and its resamples into an estimate: interval, status and reasons."""

import numpy as np
from scipy import special

from hptransfer.stats.cells import Floats
from hptransfer.stats.estimate import Estimate, Status
from hptransfer.stats.reasons import Reason, Reasons

#: 90 % half-widths up to which a quantity is identified; weakly identified up to twice that.
#: beta's follows from kappa's:
#: √(0.2² + (2·0.2)² + 0.2²) ≈ 0.5; b is an exponent like it. log_lr is a factor of √2.
#: curvature is relative to the value. error is for the root of E, in nats.
THRESHOLDS = {
    "alpha": 0.2,
    "beta": 0.2,
    "gamma": 0.2,
    "b": 0.2,
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

_ORDER: tuple[Status, ...] = ("identified", "weakly identified", "not identified")


def refuse(*reasons: Reason, value: float | None = None, remedy: Reason | None = None) -> Estimate:
    """Return a `not identified` estimate with its reasons and, perhaps, a value to look at.

    Examples
    --------
    >>> print(refuse(Reason("no_losses")))
    not identified: no losses
    """
    return Estimate(value=value, status="not identified", reasons=reasons, remedy=remedy)


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
    problem: Reasons = (),
    caution: Reasons = (),
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
    problem : tuple of Reason
        Reasons, if there are any, for which nothing could identify the quantity.
    caution : tuple of Reason
        Reasons for which it is at best weakly identified.
    scale : float
        The half-width is divided by this before it meets the threshold.
    """
    if not np.isfinite(value):
        return refuse(*(problem or (Reason("no_value"),)))
    if samples is None:
        return refuse(*(problem or (Reason("no_noise"),)), value=value)
    failed = float(np.mean(~np.isfinite(samples)))
    if failed > TOLERATED_SHARE:
        why = problem or (Reason("failed_resamples", percent=100 * failed),)
        return refuse(*why, value=value)
    low, high = interval(samples)
    low, high = min(low, value), max(high, value)
    half, limit = 0.5 * (high - low) / scale, THRESHOLDS[kind]
    status = grade(half, limit)
    wide: Reasons = ()
    if half > limit:
        wide = (Reason("half_width", half=half, limit=limit, relative=scale != 1.0),)
    if caution:
        status = worst(status, "weakly identified")
    if problem:
        status = "not identified"
    reasons = (*problem, *caution, *wide)
    return Estimate(value=value, low=low, high=high, status=status, reasons=reasons)


def judge_log(
    log_value: float,
    log_samples: Floats | None,
    kind: str = "log_lr",
    *,
    problem: Reasons = (),
    caution: Reasons = (),
) -> Estimate:
    """Like `judge` for a quantity known by its logarithm; bounds are on its own scale."""
    e = judge(log_value, log_samples, kind, problem=problem, caution=caution)
    return Estimate(
        value=exponentiate(e.value),
        low=exponentiate(e.low),
        high=exponentiate(e.high),
        status=e.status,
        reasons=e.reasons,
    )


def exponentiate(log_value: float | None) -> float | None:
    """Return e^log_value; None where there is none or no float could hold it."""
    if log_value is None or abs(log_value) > LARGEST_LOG:
        return None
    return float(np.exp(log_value))


def half_width(estimate: Estimate, *, log: bool = False) -> float | None:
    """Return half of an estimate's 90 % interval, or of its logarithm's.

    Returns
    -------
    float or None
        The distance from the value to its only bound where it has one, unless `log`; None
        without an interval, or where a logarithm has none.

    Examples
    --------
    >>> half_width(Estimate(value=1.0, low=0.5, high=2.5))
    1.0
    """
    ends = [end for end in (estimate.low, estimate.high) if end is not None and np.isfinite(end)]
    if len(ends) == 2:
        if log:
            return 0.5 * float(np.log(ends[1] / ends[0])) if ends[0] > 0.0 else None
        return 0.5 * abs(ends[1] - ends[0])
    if log or not ends or estimate.value is None:
        return None
    return abs(ends[0] - estimate.value)


def f_limit(level: float, terms: int, dof: int) -> float:
    """Return the F value that `terms` and `dof` degrees of freedom exceed with chance `level`."""
    # scipy.special starts in a fraction of the time of scipy.stats.
    return float(special.fdtri(terms, dof, 1.0 - level))
