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

----

Seed variance of a group's cells as a trend in width, and the cells that do not follow it.

Seed noise falls with width and grows towards divergence, so the variance of a trial is modelled
as

    σ²(n) = s₀·n^-q,

fitted to the variances of the cells near the minima by the likelihood of scaled χ² variables (a
gamma regression with logarithmic link, each cell weighted by its degrees of freedom). q is kept
only where a likelihood-ratio test asks for it. A cell whose seeds disagree far more than
the trend allows, as where one of them broke down, is `unsettled`: it takes its own variance and
has no say in the trend.

Shape letters: C cells.

----

Measuring the seed noise of groups whose trials are paired by seed.

Shape letters: C cells.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy import special

from hptransfer.stats.fit_window import REACH
from hptransfer.stats.loss_table import DEFAULT_WINDOW, Bools, Cells, Floats


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

    def of_means(self, cells: Cells) -> Floats:
        """Variance of the cells' means, shape (C,), in nats²."""
        return np.asarray(self.sigma**2 / np.maximum(cells.count, 1))


def _shared_fractions(
    groups: Sequence[Cells], sigmas: Sequence[Floats], insides: Sequence[Bools]
) -> tuple[float, float, int]:
    """Estimate ``shared``, ``common`` and the degrees of freedom behind them.

    The mean product of standardised residuals of different cells with the same width and seed,
    by the method of moments: within a group it estimates ``shared``, across groups ``common``.
    """
    within = across = 0.0
    within_pairs = across_pairs = dof = 0
    for width in sorted({float(w) for cells in groups for w in cells.widths}):
        owner: list[int] = []
        found: list[dict[tuple[int, int], float]] = []
        for g, (cells, sigma, inside) in enumerate(zip(groups, sigmas, insides, strict=True)):
            rows = cells.at(width)
            rows = rows[inside[rows] & (sigma[rows] > 0) & (cells.count[rows] > 1)]
            for row in cells.residuals()[rows] / sigma[rows, None]:
                seen = np.flatnonzero(np.isfinite(row)).tolist()
                found.append({cells.seeds[k]: row[k] for k in seen})
                owner.append(g)
        seeds = sorted(set.intersection(*map(set, found))) if len(found) > 1 else []
        num = len(seeds)
        if num < 2:
            continue
        z = np.array([[each[seed] for seed in seeds] for each in found])
        members = [z[np.array(owner) == g] for g in dict.fromkeys(owner)]
        mine = sum(float(np.sum(block.sum(axis=0) ** 2)) for block in members)
        within += (mine - float(np.sum(z**2))) / (num - 1)
        within_pairs += sum(len(block) * (len(block) - 1) for block in members)
        across += float(np.sum(z.sum(axis=0) ** 2) - mine) / (num - 1)
        across_pairs += len(z) ** 2 - sum(len(block) ** 2 for block in members)
        dof += num - 1
    shared = min(max(within / within_pairs, 0.0), 1.0) if within_pairs else 0.0
    common = min(max(across / across_pairs, 0.0), shared) if across_pairs else 0.0
    return shared, common, dof


def is_silent(cells: Cells, noise: Noise) -> bool:
    """Whether seeds measured no noise, or no more than rounding."""
    clean = cells.clean
    rounding = 1e-12 * float(np.abs(cells.mean[clean]).max()) if np.any(clean) else 0.0
    return not noise.known or float(noise.variance.max()) <= rounding**2


def cell_variances(cells: Cells, noise: Noise) -> Floats:
    """Variance of cell means that fits weigh them by, shape (C,).

    In nats², without what all learning rates of a width share, which no basin's shape sees.
    Where no noise is known, or it is rounding, 1/trials.
    """
    count = np.maximum(cells.count, 1)
    if is_silent(cells, noise):
        return np.asarray(1.0 / count)
    own = np.where(noise.unsettled, 1.0, 1.0 - noise.shared)
    # A shared fraction near 1 leaves nothing to weigh by; a thousandth is as good as nothing.
    return np.asarray(noise.variance * np.maximum(own, 1e-3) / count)


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
    blocks = [(width, cells.at(width)) for width in cells.widths.tolist()]
    common, group = np.sqrt(noise.common), np.sqrt(noise.shared - noise.common)
    alone = (np.sqrt(1.0 - noise.shared) * scale)[:, None]

    def draw_common(width: float, label: int, repeat: int) -> Floats | float:
        if common == 0.0:
            return 0.0
        key = [seed, 2, abs(label), int(label < 0), repeat, int(np.float64(width).view(np.uint64))]
        return np.asarray(common * np.random.default_rng(key).standard_normal(num_resamples))

    if len(cells.seeds) <= _SEEDS_DRAWN:
        for k, labels in enumerate(cells.seeds):
            for width, rows in blocks:
                q = own.standard_normal(num_resamples)
                v = own.standard_normal((num_resamples, len(rows)))
                level = draw_common(width, *labels) + group * q
                means[:, rows] += ((shared_scale * level)[:, None] + alone * v) * weights[rows, k]
    else:
        # The same law with a draw for each cell, not for each trial: sums of normals are normal.
        means += alone * own.standard_normal(means.shape) * np.sqrt(np.sum(weights**2, axis=1))
        for width, rows in blocks:
            left, size, _ = np.linalg.svd(weights[rows], full_matrices=False)
            level = group * own.standard_normal((num_resamples, len(size))) @ (left * size).T
            for k, labels in enumerate(cells.seeds if common > 0.0 else ()):
                level += np.multiply.outer(draw_common(width, *labels), weights[rows, k])
            means[:, rows] += shared_scale[:, None] * level
    leaning = np.exp(0.5 * own.standard_normal(num_resamples)[:, None] * noise.tilt)
    return np.asarray(means * leaning)


#: Up to this many seeds every trial's noise is drawn, beyond it that of the means alone.
_SEEDS_DRAWN = 16
#: Cells with at least this many seeds use their own variance, not the trend's.
_SEEDS_FOR_OWN_VARIANCE = 5
#: Degrees of freedom with which the trend's variance then still counts.
_PRIOR_DOF = 4
#: Level of the test that keeps q.
_TREND_LEVEL = 0.05
#: Chance that any cell of a group that follows the trend is called unsettled.
_UNSETTLED_LEVEL = 0.01
#: Bound of |q|.
_LARGEST_SLOPE = 8.0
#: Largest ratio of variances between cells of one group that is told apart.
_LARGEST_RATIO = 1e8
_MOST_ROUNDS = 10


class _Curve(NamedTuple):
    """A trend fitted to some cells, evaluated at all (C,).

    `doubt` is the variance of ln σ², `dof` that of the whole fit.
    """

    variance: Floats
    tilt: Floats
    doubt: Floats
    dof: float


def _fit_slope(t: Floats, squares: Floats, dof: Floats) -> tuple[float, float]:
    """Return the maximum-likelihood q and −2 ln likelihood, s₀ profiled out.

    The profile is convex in q, so that its derivative has one root.
    """
    num, turn = float(dof.sum()), float(dof @ t)
    q, low, high = 0.0, -_LARGEST_SLOPE, _LARGEST_SLOPE
    for _ in range(40):
        q = 0.5 * (low + high)
        parts = squares * np.exp(q * t)
        low, high = (q, high) if num * (parts @ t) < turn * parts.sum() else (low, q)
    return q, num * float(np.log(squares @ np.exp(q * t) / num)) - q * turn


def _fit_curve(cells: Cells, squares: Floats, dof: Floats, train: Bools, spread: float) -> _Curve:
    """Fit the trend to the cells `train`; `spread` is how much more than χ² variances vary."""
    t = np.log(cells.width) - np.log(cells.width[train]).mean()
    here, weight = (t[train], squares[train], dof[train]), dof[train]
    total, slope = float(weight.sum()), 0.0
    if np.ptp(here[0]) > 0.0:
        found, sloped = _fit_slope(*here)
        level = total * float(np.log(squares[train].sum() / total))
        # Few independent variances, as where a width's are shared, have longer tails than χ².
        spare = max(total / spread - 2.0, 1.0)
        if (level - sloped) / spread > special.fdtri(1, spare, 1.0 - _TREND_LEVEL):
            slope = found
    size = float(squares[train] @ np.exp(slope * here[0])) / total
    tilt = np.zeros(len(cells))
    if slope != 0.0:
        tilt = t - float(weight @ here[0]) / total
        tilt = tilt * np.sqrt(spread / (0.5 * float(weight @ tilt[train] ** 2)))
    doubt = 2.0 * spread / total + tilt**2
    return _Curve(size * np.exp(-slope * t), tilt, doubt, total / spread)


def _start_curve(cells: Cells, squares: Floats, dof: Floats, train: Bools) -> _Curve:
    """Start a trend from the median variance of each width, which broken cells hardly move."""
    found = []
    for width in np.unique(cells.width[train]):
        rows = train & (cells.width == width)
        # The median of χ²(ν)/ν lies below its mean of 1.
        typical = special.chdtri(dof[rows], 0.5) / dof[rows]
        middle = float(np.median(squares[rows] / dof[rows] / typical))
        if middle > 0.0:
            found.append((np.log(width), np.log(middle), dof[rows].sum()))
    blank = np.zeros(len(cells))
    if not found:
        return _Curve(blank, blank, blank, 1.0)
    x, y, w = np.array(found).T
    total = float(w.sum())
    centre = float(np.sum(w * x)) / total
    t, slope, doubt = np.log(cells.width) - centre, 0.0, blank + 2.0 / total
    if len(x) > 1:
        squared = float(np.sum(w * (x - centre) ** 2))
        slope = float(np.sum(w * (x - centre) * y)) / squared
        slope = float(np.clip(slope, -_LARGEST_SLOPE, _LARGEST_SLOPE))
        doubt = doubt + 2.0 * t**2 / squared
    return _Curve(np.exp(float(np.sum(w * y)) / total + slope * t), blank, doubt, total)


def _settled(squares: Floats, dof: Floats, curve: _Curve, rows: Bools) -> Bools:
    """Whether cells follow the trend, by a χ² test that allows for the trend's own error.

    The error of ln σ² is taken as normal. For a trend known from few degrees of freedom that is
    too kind, so that an F test has to agree.
    """
    out = np.ones(len(rows), dtype=bool)
    rows = rows & (curve.variance > 0.0)
    if not np.any(rows):
        return out
    ratio, num = squares[rows] / curve.variance[rows], dof[rows]
    points, weights = np.polynomial.hermite_e.hermegauss(31)
    shifted = ratio[:, None] * np.exp(np.sqrt(curve.doubt[rows])[:, None] * points)
    chance = special.chdtrc(num[:, None], shifted) @ weights / weights.sum()
    chance = np.maximum(chance, special.fdtrc(num, curve.dof, ratio / num))
    out[rows] = chance >= _UNSETTLED_LEVEL / int(rows.sum())
    return out


def _spread(cells: Cells, curve: _Curve, rows: Bools) -> float:
    """Inflation of a width's mean variance by noise that its learning rates share.

    The mean of K squares with pairwise correlation ρ varies 1 + (K − 1)·ρ² times as much as
    that of independent ones.
    """
    sigma = np.zeros(len(cells))
    squares = np.nansum(cells.residuals() ** 2, axis=1)
    for width in cells.widths:
        here = rows & (cells.width == width)
        if np.any(here):
            # Relative to the width's own size, so that no trend looks like shared noise.
            own = squares[here] / curve.variance[here] / np.maximum(cells.count[here] - 1, 1)
            sigma[here] = np.sqrt(curve.variance[here] * own.mean())
    shared, _, _ = _shared_fractions([cells], [sigma], [rows])
    per_width = float(rows.sum()) / max(len(np.unique(cells.width[rows])), 1)
    return 1.0 + (per_width - 1.0) * shared**2


def fit_trend(cells: Cells, near: Bools) -> Noise:
    """Fit the trend of the seed variance to the cells `near` (C,), with nothing shared."""
    squares = np.nansum(cells.residuals() ** 2, axis=1)
    dof = np.where(cells.clean, cells.count - 1, 0).astype(np.float64)
    tested = dof > 0
    train = tested & near if np.any(tested & near) else tested
    settled = np.ones(len(cells), dtype=bool)
    total = int(dof[train].sum())
    if squares[train].sum() <= 0.0:
        blank = np.zeros(len(cells))
        return Noise(sigma=blank, dof=total, variance=blank, tilt=blank, unsettled=~settled)
    curve = _start_curve(cells, squares, dof, train)
    settled = _settled(squares, dof, curve, tested)
    for _ in range(_MOST_ROUNDS):
        rows = train & settled
        if 2 * dof[rows].sum() < total or squares[rows].sum() <= 0.0:
            # Where most cells disagree with a trend, there is none to judge cells by.
            settled[:] = True
            rows = train
        plain = _fit_curve(cells, squares, dof, rows, 1.0)
        curve = _fit_curve(cells, squares, dof, rows, _spread(cells, plain, rows))
        now = _settled(squares, dof, curve, tested)
        if rows is train or np.array_equal(now, settled):
            break
        settled = now
    unsettled = tested & ~settled
    # Ratios beyond this only cost digits.
    variance = np.maximum(curve.variance, curve.variance[train].max() / _LARGEST_RATIO)
    own = np.minimum(squares / np.maximum(dof, 1.0), _LARGEST_RATIO * variance)
    mixed = (squares + _PRIOR_DOF * variance) / (dof + _PRIOR_DOF)
    drawn = np.where(tested & (cells.count >= _SEEDS_FOR_OWN_VARIANCE), mixed, variance)
    num = int(dof[train & ~unsettled].sum()) or total
    return Noise(
        sigma=np.sqrt(np.where(unsettled, own, drawn)),
        dof=max(num - bool(curve.tilt.any()), 1),
        variance=np.where(unsettled, own, variance),
        tilt=curve.tilt,
        unsettled=unsettled,
    )


def _near_minima(cells: Cells, unsettled: Bools) -> Bools:
    """Clean cells near each width's lowest settled one, and always its neighbours, shape (C,)."""
    near = np.zeros(len(cells), dtype=bool)
    for width in cells.widths:
        rows = cells.at(width)
        rows = rows[cells.clean[rows]]
        loose = unsettled[rows] & ~np.all(unsettled[rows])
        if len(rows):
            mean, x = cells.mean[rows], cells.x[rows]
            best = int(np.argmin(np.where(loose, np.inf, mean)))
            low = mean <= mean[best] + (DEFAULT_WINDOW - 1.0) * abs(mean[best])
            near[rows] = low & (np.abs(x - x[best]) <= REACH * (1.0 + 1e-6))
            near[rows[max(best - 1, 0) : best + 2]] = True
    return near


def measure_noise(groups: Sequence[Cells]) -> list[Noise]:
    """Estimate the seed noise of groups whose trials are paired by seed, one `Noise` each."""
    near, measured = [], []
    for cells in groups:
        first = _near_minima(cells, np.zeros(len(cells), dtype=bool))
        noise = fit_trend(cells, first)
        here = _near_minima(cells, noise.unsettled)
        near.append(here)
        measured.append(noise if np.array_equal(here, first) else fit_trend(cells, here))
    marks = [each & ~noise.unsettled for each, noise in zip(near, measured, strict=True)]
    sigmas = [noise.sigma for noise in measured]
    _, common, _ = _shared_fractions(groups, sigmas, marks)
    out = []
    for cells, noise, settled in zip(groups, measured, marks, strict=True):
        shared, _, dof = _shared_fractions([cells], [noise.sigma], [settled])
        noise = replace(noise, shared=shared, common=min(common, shared), shared_dof=dof)
        out.append(noise)
    return out
