"""Joint fits of several groups with one parameter in common: α, or L∞.

The sum of the groups' weighted squares is minimised over the shared value s by Newton steps on
its profile: given s, the groups are separate problems, each solved as always with s held; the
derivative of a group's profile is that of its squares along s alone, and its second derivative
the Schur complement of its normal matrix (variable projection across groups). Resamples are
solved side by side, so that groups paired by seed stay paired.

Shape letters: R problems, N points of a group, P parameters, K groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hptransfer.stats.cells import Bools, Floats
from hptransfer.stats.joint import hold_alpha, hold_loss_inf
from hptransfer.stats.joint_model import ALPHA, BETA, EXPONENT_BOUNDS, SKEW, D, JointFit, predict
from hptransfer.stats.shared import Share

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
