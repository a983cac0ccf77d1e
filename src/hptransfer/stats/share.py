"""Groups of one setting refitted with a parameter in common, and the test of that assumption.

Sharing α makes R(∞) precise where each group alone knows α badly: L∞ and α of one group move
together, and what moves them is then common to both sides of the difference. Whether the groups
do have one α is tested on their own fits, by a Wald statistic whose covariance and distribution
come from the paired resamples, so that noise common to groups or to a width's learning rates
is no evidence against it.

Shape letters: R resamples, N points, K groups.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hptransfer.stats.cells import Floats
from hptransfer.stats.estimate import Estimate
from hptransfer.stats.joint_model import JointFit
from hptransfer.stats.metrics import (
    describe_bound,
    estimate_drift,
    estimate_exponents,
    estimate_kappa,
)
from hptransfer.stats.pool import Block, solve_shared
from hptransfer.stats.shared import SYMBOLS, Share, Shared
from hptransfer.stats.transfer import GroupFit

#: Resamples per group that a covariance of the groups' own values needs.
RESAMPLES_PER_GROUP = 5


def share_parameter(
    fits: Sequence[GroupFit], labels: Sequence[str], share: Share
) -> list[GroupFit]:
    """Refit the groups of one setting with a parameter in common.

    Parameters
    ----------
    fits : sequence of GroupFit
        Groups fitted alone, their resamples paired by index.
    labels : sequence of str
        What each is called.
    share : Share
        The parameter.

    Returns
    -------
    list of GroupFit
        In the same order. E, E_out and basins stay those of the group alone; groups without a
        joint fit, or with nobody to share with, stay as they are and say so.
    """
    out = list(fits)
    members = [k for k, fit in enumerate(fits) if fit.joint is not None]
    if len(members) < 2:
        note = f"{SYMBOLS[share]} is shared with no other group: none has a joint fit"
        return [_with_note(fit, note) for fit in fits]
    joints = [fit.joint for fit in fits if fit.joint is not None]
    blocks = [_block(fits[k], joints[j], fits[k].losses[None, :]) for j, k in enumerate(members)]
    points = solve_shared(blocks, share)
    samples = _resample(fits, members, points, share)
    shared = Shared(
        parameter=share,
        groups=tuple(labels[k] for k in members),
        own=tuple(float(_values(joint, share)[0]) for joint in joints),
        p_value=_test(fits, members, share),
    )
    for j, k in enumerate(members):
        out[k] = _replace(fits[k], points[j], None if samples is None else samples[j], shared)
    for k, fit in enumerate(fits):
        if k not in members:
            out[k] = _with_note(fit, f"{SYMBOLS[share]} is not shared: there is no joint fit")
    return out


def _values(fit: JointFit, share: Share) -> Floats:
    return fit.alpha if share == "alpha" else fit.loss_inf


def _block(group: GroupFit, fit: JointFit, losses: Floats) -> Block:
    # Weights are inverse variances in nats², or relative where the scatter is all there is.
    unit = fit.loss_scale**2
    misfit = group.misfit
    if misfit is not None and misfit.only_source and misfit.sigma > 0.0:
        unit /= misfit.sigma**2
    return Block(fit=fit, losses=losses, unit=unit)


def _resample(
    fits: Sequence[GroupFit], members: Sequence[int], points: Sequence[JointFit], share: Share
) -> list[JointFit] | None:
    """Refit to the groups' noise around the shared fit; None where some group has none."""
    blocks = []
    for k, point in zip(members, points, strict=True):
        alone, samples, resampled = fits[k].joint, fits[k].samples, fits[k].resampled
        if alone is None or samples is None or resampled is None:
            return None
        losses = point.predicted() + (resampled - alone.predicted())
        blocks.append(_block(fits[k], samples, losses))
    return solve_shared(blocks, share)


def _test(fits: Sequence[GroupFit], members: Sequence[int], share: Share) -> float | None:
    """Return the chance of own values as different as found, if they were one."""
    samples = [fits[k].samples for k in members]
    joints = [fits[k].joint for k in members]
    drawn = np.stack([_values(s, share) for s in samples if s is not None] or [np.zeros(0)])
    own = np.array([_values(j, share)[0] for j in joints if j is not None])
    if len(drawn) < len(own) or drawn.shape[1] < RESAMPLES_PER_GROUP * len(own):
        return None
    gaps, spread = np.diff(own), np.diff(drawn - own[:, None], axis=0)
    size = np.std(spread, axis=1)
    if np.any(size <= 1e-9 * np.abs(own).max()):
        return None
    inverse = np.linalg.pinv(np.cov(spread / size[:, None]).reshape(len(gaps), len(gaps)))

    def distance(d: Floats) -> Floats:
        return np.asarray(np.einsum("kr,kl,lr->r", d, inverse, d), dtype=np.float64)

    found = distance((gaps / size)[:, None])[0]
    as_far = distance(spread / size[:, None]) >= found
    return float((1 + np.sum(as_far)) / (1 + len(as_far)))


def _with_note(fit: GroupFit, note: str) -> GroupFit:
    return replace(fit, result=replace(fit.result, notes=(*fit.result.notes, note)))


def doubt(estimate: Estimate, shared: Shared) -> Estimate:
    """Return an estimate as not identified where the data contradict what it rests on."""
    if not shared.rejected:
        return estimate
    reason = f"the groups' own {SYMBOLS[shared.parameter]} differ (p = {shared.p_value:.2g})"
    return replace(
        estimate,
        status="not identified",
        reason="; ".join(part for part in (reason, estimate.reason) if part),
    )


def _replace(fit: GroupFit, joint: JointFit, samples: JointFit | None, shared: Shared) -> GroupFit:
    """Put a shared solution in place of a group's own."""
    result, usable = fit.result, fit.basins.usable
    drift = estimate_drift(joint, samples, usable[0], usable[-1])
    exponents = estimate_exponents(joint, samples, drift)
    price = describe_bound(result.regrets[usable[-1]], usable[-1])
    kappa = estimate_kappa(joint, samples, drift, price)
    for name in ("alpha", "loss_inf"):
        exponents[name] = doubt(exponents[name], shared)
    note = f"{shared.describe()}; E and E_out are those of this group fitted alone"
    return replace(
        fit,
        joint=joint,
        samples=samples,
        result=replace(
            result,
            exponents=exponents,
            metrics={**result.metrics, "kappa": doubt(kappa, shared)},
            drift=drift,
            model=joint.model(),
            shared=shared,
            notes=(*result.notes, note),
        ),
    )
