"""Does the best loss follow one power law of width? The loss predicted at a width, and a test.

The fit to all widths and one to the wider half of them agree, up to noise, where
L*(n) = L∞ + A·n^-α holds throughout (a specification test: Hausman 1978). Where they disagree
more than the paired resamples of the two explain, α changes with width: the prediction then
spans both, and is at best weakly identified.

Shape letters: R resamples, N points.
"""

import math

import numpy as np

from hptransfer.stats.estimate import Estimate
from hptransfer.stats.joint import refit_joint
from hptransfer.stats.judge import THRESHOLDS, grade, interval, judge, say_half, worst
from hptransfer.stats.metrics import WIDTHS_FOR_JOINT, WIDTHS_FOR_OUT, say_bounds
from hptransfer.stats.transfer import GroupFit

#: Level of the test that one power law holds.
LAW_LEVEL = 0.05


def predict_loss(fit: GroupFit, width: float) -> Estimate:
    """Predict the best loss at a width, in nats, from a fit that has a joint model.

    Not identified where A or α rests on a bound: no falling law was seen. At best weakly
    identified where L∞ rests on its bound, or where the law changes with width; the interval
    then spans what both fits say.
    """
    joint, samples = fit.joint, fit.samples
    assert joint is not None
    value = float(joint.best_loss(width)[0])
    drawn = None if samples is None else samples.best_loss(width)
    problem = say_bounds(joint, samples, "A", "alpha")
    caution = say_bounds(joint, samples, "loss_inf")
    plain = judge(value, drawn, "loss", problem=problem, caution=caution)
    other = _reject_law(fit, width)
    if other is None or problem or plain.low is None or plain.high is None:
        return plain
    found, low, high = other
    low, high = min(plain.low, low), max(plain.high, high)
    half, limit = 0.5 * (high - low), THRESHOLDS["loss"]
    said = (
        f"the best loss does not follow one power law: the wider half of the widths alone says "
        f"{found:.4g} nats, further off than noise explains"
    )
    reasons = [said, caution, say_half(half, limit) if half > limit else ""]
    return Estimate(
        value=value,
        low=low,
        high=high,
        status=worst(grade(half, limit), "weakly identified"),
        reason="; ".join(filter(None, reasons)),
    )


def _reject_law(fit: GroupFit, width: float) -> tuple[float, float, float] | None:
    """Value and interval, in nats, of the wider half's fit where it rejects the law, or None."""
    joint, samples, resampled = fit.joint, fit.samples, fit.resampled
    usable = fit.basins.usable
    if joint is None or samples is None or resampled is None or len(usable) < WIDTHS_FOR_OUT:
        return None
    num = max(WIDTHS_FOR_JOINT, math.ceil(len(usable) / 2))
    keep = np.exp(joint.data.t + joint.log_width) > np.sqrt(usable[-num] * usable[-num - 1])
    if int(np.sum(keep)) < joint.num_parameters:
        return None
    value = float(joint.best_loss(width)[0])
    apart = float(refit_joint(joint, fit.losses[None, :], keep=keep).best_loss(width)[0]) - value
    drawn = refit_joint(joint, resampled, keep=keep).best_loss(width)
    gaps = np.abs(drawn - samples.best_loss(width))
    if not abs(apart) > np.quantile(gaps, 1.0 - LAW_LEVEL):
        return None
    # Resamples are drawn around the fit to all widths; their spread is the wider half's own.
    low, high = interval(drawn)
    return value + apart, low + apart, high + apart
