"""Joint fits of several groups with one parameter in common: α, or L∞.

The sum of the groups' weighted squares is minimised over the shared value s by Newton steps on
its profile: given s, the groups are separate problems, each solved as always with s held; the
derivative of a group's profile is that of its squares along s alone, and its second derivative
the Schur complement of its normal matrix (variable projection across groups). Resamples are
solved side by side, so that groups paired by seed stay paired.

Shape letters: R problems, N points of a group, P parameters, K groups.

----

Groups of one setting refitted with a parameter in common, and the test of that assumption.

Sharing α makes R(∞) precise where each group alone knows α badly: L∞ and α of one group move
together, and what moves them is then common to both sides of the difference. Whether the groups
do have one α is tested on their own fits, by a Wald statistic whose covariance and distribution
come from the paired resamples, so that noise common to groups or to a width's learning rates
is no evidence against it.

Shape letters: R resamples, N points, K groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hptransfer.stats._group_fit import GroupFit
from hptransfer.stats._joint_fit import hold_alpha, hold_loss_inf
from hptransfer.stats._joint_model import ALPHA, BETA, EXPONENT_BOUNDS, SKEW, D, JointFit, predict
from hptransfer.stats._metrics import (
    describe_bound,
    estimate_drift,
    estimate_exponents,
    estimate_kappa,
)
from hptransfer.stats.cells import Bools, Floats
from hptransfer.stats.estimate import Estimate
from hptransfer.stats.reasons import Reason
from hptransfer.stats.results import SYMBOLS, Share, Shared

#: Newton steps of the shared value; most problems take three.
MOST_STEPS = 20
#: A step that promises less than this share of the squares is the last.
TOLERANCE = 1e-10


@dataclass(frozen=True, kw_only=True)
class Block:
    """One group's fit as a part of the sum of squares.

    Attributes
    ----------
    fit : JointFit
        Solutions of the group alone, to start from.
    losses : ndarray, shape (R, N)
        What they were fitted to, in nats.
    unit : float
        What makes the fit's cost comparable with those of other groups: a variance's inverse.
    """

    fit: JointFit
    losses: Floats
    unit: float

    def take(self, rows: Bools) -> "Block":
        """The problems `rows` (R,) of the block."""
        return replace(self, fit=self.fit.take(rows), losses=self.losses[rows])


def solve_shared(blocks: Sequence[Block], share: Share) -> list[JointFit]:
    """Solve every block with the shared parameter in common; one fit per block, R problems."""
    low, high = EXPONENT_BOUNDS[ALPHA] if share == "alpha" else (0.0, np.inf)
    own = np.stack(
        [block.fit.alpha if share == "alpha" else block.fit.loss_inf for block in blocks]
    )
    slopes = [_profile(block, block.fit, share) for block in blocks]
    steepness = np.stack([second for _, second in slopes])
    weights = np.maximum(steepness, 1e-12 * steepness.max(axis=0) + 1e-300)
    value = np.clip(np.sum(weights * own, axis=0) / np.sum(weights, axis=0), low, high)
    fits = [_hold(block, block.fit, value, share) for block in blocks]
    cost = _total(blocks, fits)
    reach = np.ones(len(value))
    active = np.ones(len(value), dtype=bool)
    for _ in range(MOST_STEPS):
        here = [block.take(active) for block in blocks]
        now = [fit.take(active) for fit in fits]
        first, second = np.sum(
            [_profile(block, fit, share) for block, fit in zip(here, now, strict=True)], axis=0
        )
        step = -first / np.maximum(second, 1e-300)
        trial = np.clip(value[active] + reach[active] * step, low, high)
        moved = [_hold(block, fit, trial, share) for block, fit in zip(here, now, strict=True)]
        found = _total(here, moved)
        better = found < cost[active]
        rows = np.flatnonzero(active)
        taken = rows[better]
        gained = cost[active] - found
        value[taken], cost[taken] = trial[better], found[better]
        fits = [fit.put(taken, new.take(better)) for fit, new in zip(fits, moved, strict=True)]
        reach[rows] = np.where(better, 1.0, 0.25 * reach[rows])
        done = (better & (gained <= TOLERANCE * found)) | (reach[rows] < 1e-3)
        active[rows[done]] = False
        if not np.any(active):
            break
    return fits


def _total(blocks: Sequence[Block], fits: Sequence[JointFit]) -> Floats:
    parts = [block.unit * fit.cost for block, fit in zip(blocks, fits, strict=True)]
    return np.asarray(np.sum(parts, axis=0), dtype=np.float64)


def _hold(block: Block, start: JointFit, value: Floats, share: Share) -> JointFit:
    hold = hold_alpha if share == "alpha" else hold_loss_inf
    return hold(start, block.losses, value)


def _profile(block: Block, fit: JointFit, share: Share) -> tuple[Floats, Floats]:
    """Halves of the first and second derivative of a block's squares in s, each (R,)."""
    weights = fit.data.weights
    zero = -fit.loss_mean / fit.loss_scale
    level, jacobian = predict(fit.theta, fit.data, fit.form, None)
    if np.any(fit.floored):
        rows = fit.floored
        level[rows], jacobian[rows] = predict(fit.theta[rows], fit.data, fit.form, zero)
    held = np.zeros((len(fit.theta), 9), dtype=bool)
    held[fit.floored, D] = True
    held[:, BETA] |= fit.form == "power"
    held[:, SKEW] |= not fit.skewed
    for k, (low, high) in EXPONENT_BOUNDS.items():
        held[:, k] |= (fit.theta[:, k] <= low + 1e-6) | (fit.theta[:, k] >= high - 1e-6)
    if share == "alpha":
        along = jacobian[:, :, ALPHA].copy()
        held[:, ALPHA] = True
    else:
        # With s held, L* = s + (P − s)·e^(−αt): D is no parameter of its own.
        decay = np.exp(-fit.alpha[:, None] * fit.data.t)
        excess = fit.theta[:, [D]] / fit.theta[:, [ALPHA]]
        jacobian[:, :, 0] = decay
        jacobian[:, :, ALPHA] = -excess * fit.data.t * decay
        along = (1.0 - decay) / fit.loss_scale
        held[:, D] = True
    scaled = (block.losses - fit.loss_mean) / fit.loss_scale
    root = np.sqrt(weights)
    residual = (level - scaled) * root
    along = along * root
    design = np.where(held[:, None, :], 0.0, jacobian * root[:, None])
    size = np.sqrt(np.sum(design**2, axis=1))
    design = design / np.where(size > 0.0, size, 1.0)[:, None, :]
    normal = np.matmul(design.transpose(0, 2, 1), design) + 1e-12 * np.eye(9)
    mixed = np.einsum("rnp,rn->rp", design, along)
    solved = np.linalg.solve(normal, mixed[:, :, None])[:, :, 0]
    second = np.sum(along**2, axis=1) - np.sum(mixed * solved, axis=1)
    first = np.sum(along * residual, axis=1)
    return block.unit * first, block.unit * np.maximum(second, 0.0)


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
    reason = Reason("own_differ", symbol=SYMBOLS[shared.parameter], p=shared.p_value)
    return replace(estimate, status="not identified", reasons=(reason, *estimate.reasons))


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
