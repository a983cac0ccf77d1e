"""Seed noise of cells, and random draws of it for resampling.

A trial's deviation from its cell's mean is modelled as sigma times

    √common·p(width, seed) + √(shared − common)·q(group, width, seed) + √(1 − shared)·v(trial)

with standard normal p, q and v: trials of one seed start from the same draws and see the same
data, so part of their noise moves all learning rates of a width together (``shared``), and part
of that moves all groups together (``common``). Gaps between groups are then as precise as
pairing makes them. The variances are unbiased (divided by S − 1), which is what inflating
residuals by √(S/(S−1)) does, and follow the trend in width that `trend` fits when a cell has
fewer than five seeds.

Shape letters: C cells, S seeds, R resamples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hptransfer.stats.cells import Bools, Cells, Floats


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Seed noise of one group's cells.

    Attributes
    ----------
    sigma : ndarray, shape (C,)
        Standard deviation of one trial in nats; 0 where no cell has two seeds.
    dof : int
        Degrees of freedom behind it; 0 with one seed per cell.
    shared, common : float
        Fractions of the variance shared by a width's learning rates, and by all groups.
    shared_dof : int
        Degrees of freedom behind the shared part.
    variance : ndarray, shape (C,)
        Variance of one trial in nats² that fits weigh cells by: smooth in width, so that a
        cell that is quiet by chance gets no weight for it.
    tilt : ndarray, shape (C,)
        Standard deviation of ln σ² that comes from not knowing how σ falls with width; signed.
    unsettled : ndarray of bool, shape (C,)
        Cells whose seeds disagree far more than those of others.
    """

    sigma: Floats
    dof: int
    shared: float = 0.0
    common: float = 0.0
    shared_dof: int = 0
    variance: Floats
    tilt: Floats
    unsettled: Bools

    @property
    def known(self) -> bool:
        """Whether repeated seeds measured the noise at all."""
        return self.dof > 0


def shared_fractions(
    groups: Sequence[Cells], sigmas: Sequence[Floats], insides: Sequence[Bools]
) -> tuple[float, float, int]:
    """Estimate ``shared``, ``common`` and the degrees of freedom behind them.

    The mean product of standardised residuals of different cells with the same width and seed,
    by the method of moments: within a group it estimates ``shared``, across groups ``common``.
    """
    within = across = 0.0
    within_pairs = across_pairs = 0
    dof = 0
    for width in sorted({float(w) for cells in groups for w in cells.widths}):
        blocks: list[tuple[int, Floats, dict[tuple[int, int], int]]] = []
        for g, (cells, sigma, inside) in enumerate(zip(groups, sigmas, insides, strict=True)):
            rows = cells.at(width)
            rows = rows[inside[rows] & (sigma[rows] > 0) & (cells.count[rows] > 1)]
            residuals = cells.residuals()[rows] / sigma[rows, None]
            for row in residuals:
                seen = np.flatnonzero(np.isfinite(row)).tolist()
                blocks.append((g, row, {cells.seeds[k]: k for k in seen}))
        if len(blocks) < 2:
            continue
        common_seeds = sorted(set.intersection(*(set(places) for _, _, places in blocks)))
        num = len(common_seeds)
        if num < 2:
            continue
        z = np.array([row[[places[seed] for seed in common_seeds]] for _, row, places in blocks])
        owner = np.array([g for g, _, _ in blocks])
        total = np.sum(z.sum(axis=0) ** 2)
        mine = 0.0
        for g in np.unique(owner):
            block = z[owner == g]
            square = float(np.sum(block.sum(axis=0) ** 2))
            mine += square
            within += (square - float(np.sum(block**2))) / (num - 1)
            within_pairs += len(block) * (len(block) - 1)
        across += float(total - mine) / (num - 1)
        across_pairs += len(z) ** 2 - sum(int(np.sum(owner == g)) ** 2 for g in np.unique(owner))
        dof += num - 1
    shared = min(max(within / within_pairs, 0.0), 1.0) if within_pairs else 0.0
    common = min(max(across / across_pairs, 0.0), shared) if across_pairs else 0.0
    return shared, common, dof


def shared_covariance(cells: Cells, noise: Noise) -> Floats:
    """Covariance of cell means from what a width's learning rates share, (C, C), in nats²."""
    each = noise.sigma / np.maximum(cells.count, 1)
    present = cells.present.astype(np.float64)
    together = (present @ present.T) * (cells.width[:, None] == cells.width[None, :])
    return np.asarray(noise.shared * np.outer(each, each) * together)


def draw_noise(cells: Cells, noise: Noise, *, num_resamples: int, seed: int, stream: int) -> Floats:
    """Draw the noise of cell means, shape (R, C), in nats.

    Parameters
    ----------
    seed : int
        Seed of all draws; groups drawn with the same one share ``p`` by (width, seed).
    stream : int
        Number of the group, which makes its ``q`` and ``v`` its own.

    Notes
    -----
    Each resample is scaled by √(ν/χ²(ν)), so that a noise known from few degrees of freedom ν
    gives the wide intervals it should (a Student rather than a normal); where a trend in width
    was fitted, its slope is drawn too.
    """
    means = np.zeros((num_resamples, len(cells)))
    if not noise.known:
        return means
    own = np.random.default_rng([seed, 1, stream])
    together = np.random.default_rng([seed, 0])
    scale = np.sqrt(noise.dof / own.chisquare(noise.dof, num_resamples))
    shared_dof = max(noise.shared_dof, 1)
    shared_scale = np.sqrt(shared_dof / together.chisquare(shared_dof, num_resamples))
    each = noise.sigma / np.maximum(cells.count, 1)
    weights = np.where(cells.present, each[:, None], 0.0)
    places = [(width, cells.at(width)) for width in cells.widths]
    for k, (label, repeat) in enumerate(cells.seeds):
        for width, rows in places:
            keyed = np.random.default_rng(
                [
                    seed,
                    2,
                    abs(label),
                    int(label < 0),
                    repeat,
                    int(np.float64(width).view(np.uint64)),
                ]
            )
            p = keyed.standard_normal(num_resamples)
            q = own.standard_normal(num_resamples)
            v = own.standard_normal((num_resamples, len(rows)))
            level = np.sqrt(noise.common) * p + np.sqrt(noise.shared - noise.common) * q
            part = (shared_scale * level)[:, None]
            part = part + np.sqrt(1.0 - noise.shared) * scale[:, None] * v
            means[:, rows] += part * weights[rows, k]
    leaning = np.exp(0.5 * own.standard_normal(num_resamples)[:, None] * noise.tilt)
    return np.asarray(means * leaning)
