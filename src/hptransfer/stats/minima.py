"""Find each size's minimum in x = ln(lr), with the best loss free at every size.

    L(n, x) = L*(n) + C(n)·(e^(kz) − 1 − kz)/k²,  z = x − x*(n),  ln C(n) = c₀ + g·ln n + u_n

which is ½·C·z² near the minimum, rises like a straight line on one side and faster on the other.
L* and x* are free at every size; sizes share the slope g of the curvature and the skew k, and
their curvatures scatter about that line (u_n). A constant added to one size's losses therefore
moves no minimum, and shifts of x and scalings of n and of the losses pass through. Points are
chosen by their distance in x alone.

Shape letters: W sizes, N points, P parameters, R draws.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

#: Spread of the curvature's slope in ln n.
_SLOPE_SPREAD = 0.5
#: Noise before any is seen, as a share of the typical rise in the window, and its weight.
_NOISE_SHARE = 0.07
#: A point that rises this many times what the other side does is a cliff, and left out.
_STEEP = 6.0
#: Points nearer to the best, in ln(lr), are judged as if this far: their rise is mostly noise.
_NEAR = 0.5 * np.log(2.0)
#: Points that lie this many times the noise above their basin count less: a cliff.
_CLIFF = 4.0
_STEPS, _ROUNDS = 60, 6
#: Least noise, as a share of the typical rise in the window.
_LEAST_NOISE = 1e-10
#: Spread of a skew that is none.
_NO_SKEW = 1e-5


class Trust(NamedTuple):
    """How far the shape of a basin is believed.

    reach: of a basin, in ln(lr), to each side of the lowest point. misfit: share of C·z²/2 by
    which a point may miss its basin besides the noise. scatter: of ln C about its line. pool:
    weight of all sizes' noise in that of one. tilt: power of C that the noise's variance follows.
    start: weight of the noise expected before any is seen. skew: spread of the skew about none.
    tested: whether a skew counts only where it is this many times its error. cubic: whether a
    basin is ½·C·z²·(1 + kz/3), the source's, which turns down at z = −2/k.
    """

    reach: float
    misfit: float
    scatter: float
    pool: float
    tilt: float
    start: float
    skew: float
    tested: float = 0.0
    cubic: bool = False


REAL = Trust(reach=1.45, misfit=0.25, scatter=0.3, pool=6.0, tilt=1.0, start=1.0, skew=0.6)
#: The basins' shape and the power law of their curvature hold, with one noise for all points.
EXACT = Trust(
    reach=3.0, misfit=1e-9, scatter=1e-3, pool=1e6, tilt=0.0, start=1e-3, skew=0.5, tested=2.0,
    cubic=True,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Minima:
    """Minima of a group's sizes, ascending in size.

    Attributes
    ----------
    size : ndarray, shape (W,)
        Width, or whatever stands for it.
    x : ndarray, shape (W,)
        ln(lr*); NaN where the minimum is bounded on one side only.
    low, high : ndarray, shape (W,)
        What the measured points alone say: the minimum lies between these; -inf or inf where
        nothing bounds it on that side, both where nothing was measured.
    covariance : ndarray, shape (W, W)
        That of the minima in ln(lr), which share a skew; NaN where there is none.
    loss : ndarray, shape (W,)
        L* in nats; the lowest measured loss where there is no minimum.
    loss_covariance : ndarray, shape (W, W)
        Covariance of L*, of minima alone; NaN elsewhere.
    curvature : ndarray, shape (W,)
        C in nats per (ln lr)².
    slopes : ndarray, shape (A,)
        g of ln C = c₀ + g·ln n, or one for each axis.
    skew : float
        k.
    noise : ndarray, shape (W,)
        Standard deviation of a point about its basin, in nats.
    squares, freedom : ndarray, shape (W,)
        Mean square of the points about their basin, in nats², and its degrees of freedom.
    ends : ndarray, shape (W, 2)
        Ends in ln(lr) of the points that a basin was fitted to.
    points : tuple of ndarray of int
        Those points, by size.
    places : tuple of ndarray
        Their ln(lr).
    linear : Linear or None
        How the minima move with their points; None where there are none.
    cubic : bool
        Whether the basins are cubics, as of `rise`.
    """

    size: Floats
    x: Floats
    covariance: Floats
    low: Floats
    high: Floats
    loss: Floats
    loss_covariance: Floats
    curvature: Floats
    slopes: Floats
    skew: float
    noise: Floats
    squares: Floats
    freedom: Floats
    ends: Floats
    points: tuple[Ints, ...]
    places: tuple[Floats, ...]
    linear: "Linear | None" = None
    cubic: bool = False

    @property
    def variance(self) -> Floats:
        """Variance of the minima in ln(lr), shape (W,); NaN where there is none."""
        return np.diag(self.covariance)

    @property
    def found(self) -> Bools:
        """Sizes whose minimum is bracketed, shape (W,)."""
        return np.isfinite(self.x)

    def rise(self, place: int, x: Floats | float) -> Floats:
        """Loss at x above the minimum of size number `place`, in nats."""
        return rise(x - self.x[place], self.curvature[place], self.skew, self.cubic)


class Linear(NamedTuple):
    """A solution with its equations: what its parameters do when its points move.

    use (W',) are the sizes with a minimum, scale (W', M) the standard deviations that their points
    count with, in nats.
    """

    use: Ints
    basins: "_Basins"
    scale: Floats
    problem: "_Problem"
    step: "_Step"
    stretch: Floats
    freedom: float


def rise(z: Floats, curvature: Floats | float, skew: Floats | float, cubic: bool = False) -> Floats:
    """Return C·(e^(kz) − 1 − kz)/k² in nats, or the source's cubic: ½·C·z² near z = 0."""
    shape = _cubic if cubic else _linex
    return np.asarray(curvature * shape(np.asarray(z, dtype=np.float64), skew)[0])


def _linex(z: Floats, skew: Floats | float) -> tuple[Floats, Floats, Floats]:
    """Return (e^u − 1 − u)/k², u = kz, and its derivatives in z and in k, shapes of z."""
    u = np.clip(skew * z, -30.0, 30.0)
    small = np.abs(u) < 1e-3
    safe = np.where(small, 1.0, u)
    one = np.where(small, 1.0 + u / 2.0 + u**2 / 6.0, np.expm1(safe) / safe)
    two = np.where(small, 0.5 + u / 6.0 + u**2 / 24.0, (one - 1.0) / safe)
    third = np.where(small, 1.0 / 6.0 + u / 12.0, (one - 2.0 * two) / safe)
    return z**2 * two, z * one, z**3 * third


def _cubic(z: Floats, skew: Floats | float) -> tuple[Floats, Floats, Floats]:
    """Return z²·(1 + kz/3)/2, and its derivatives in z and in k, shapes of z."""
    return z**2 * (0.5 + skew * z / 6.0), z * (1.0 + 0.5 * skew * z), z**3 / 6.0


@dataclass(frozen=True, kw_only=True)
class _Window:
    """Points of one size that its basin is fitted to, and what bounds its minimum."""

    x: Floats
    loss: Floats
    rows: Ints
    low: float
    high: float
    edge: float


def _choose(x: Floats, loss: Floats, places: Ints, reach: float) -> _Window:
    """Choose a size's points; `loss` is NaN where trials diverged."""

    def take(rows: Ints, low: float, high: float) -> _Window:
        edge = float(x[rows][-1]) if len(rows) else np.nan
        return _Window(x=x[rows], loss=loss[rows], rows=places[rows], low=low, high=high, edge=edge)

    clean = np.flatnonzero(np.isfinite(loss))
    if len(clean) == 0:
        return take(clean, -np.inf, float(x.min(initial=np.inf)))
    k = int(np.argmin(loss[clean]))
    best = clean[k]
    broken = x[(x > x[best]) & ~np.isfinite(loss)]
    # Of a convex basin, two neighbours' middle lies on the higher one's side of the minimum.
    low = 0.5 * (x[clean[k - 1]] + x[best]) if k > 0 else -np.inf
    high = 0.5 * (x[clean[k + 1]] + x[best]) if k + 1 < len(clean) else np.inf
    if not np.isfinite(high) and len(broken):
        high = float(broken.min())
    if len(broken):
        clean = clean[x[clean] < broken.min()]
    near = np.abs(x[clean] - x[best]) <= reach * (1.0 + 1e-9)
    order = np.argsort(np.abs(x[clean] - x[best]), kind="stable")
    near[order[:3]] = True
    return take(clean[near], low, high)


def _drop_cliff(w: _Window, curvature: float) -> _Window:
    """Leave out points that rise far more than the left side, or a basin of `curvature`, would.

    The minimum lies within half a gap of the best point, which bounds what a basin would rise.
    """
    k = int(np.argmin(w.loss)) if len(w.loss) else 0
    if k >= len(w.x) - 1:
        return w
    gap = 0.5 * (w.x[k + 1] - w.x[k])
    up = w.loss - w.loss[k]
    left = 2.0 * up[:k] / (w.x[k] - w.x[:k] + gap) ** 2
    # A side of three points speaks for itself.
    own = float(left.max(initial=0.0))
    curvature = own if k >= 3 and own > 0.0 else max(own, curvature)
    far = np.maximum(w.x[k + 1 :] - w.x[k], _NEAR)
    steep = up[k + 1 :] > 0.5 * _STEEP * curvature * (far + gap) ** 2
    if not steep.any():
        return w
    end = k + 1 + int(np.argmax(steep))
    edge = 0.5 * (w.x[end - 1] + w.x[end])
    kept = {name: getattr(w, name)[:end] for name in ("x", "loss", "rows")}
    return replace(w, **kept, edge=float(edge))


def find_minima(
    cell: Floats,
    x: Floats,
    loss: Floats,
    weight: Floats | None = None,
    *,
    variance: Floats | None = None,
    trust: Trust = REAL,
    axes: Floats | None = None,
    slopes: Floats | None = None,
    slope_spread: float = _SLOPE_SPREAD,
) -> Minima:
    """Find the minima of all sizes of a group together.

    Parameters
    ----------
    cell, x, loss : ndarray, shape (N,)
        Size, ln(lr) and mean loss of each point; the loss is NaN where trials diverged.
    weight : ndarray, shape (N,), optional
        Relative precision of each point, such as its number of seeds; 1 by default.
    variance : ndarray, shape (N,), optional
        Variance of each loss in nats² where seeds measured it: noise is no less.
    trust : Trust
        How far the shape of a basin is believed; `EXACT` takes it to hold.
    axes : ndarray, shape (W, A), optional
        What ln C is linear in, for each distinct value of `cell`, ascending; by default its
        logarithm.
    slopes : ndarray, shape (A,), optional
        Where the slopes of ln C are expected; 0 by default.
    slope_spread : float
        How far from there.

    Returns
    -------
    Minima
        Empty where there are no points.
    """
    sizes = np.unique(cell)
    windows = []
    for n in sizes:
        rows = np.flatnonzero(cell == n)
        rows = rows[np.argsort(x[rows], kind="stable")]
        windows.append(_choose(x[rows], loss[rows], rows, trust.reach))
    starts = _start(windows)
    typical = starts[np.isfinite(starts[:, 2]), 2]
    kept = [_drop_cliff(w, float(np.median(typical)) if len(typical) else 0.0) for w in windows]
    # What looks like a cliff is none where no size would have a curvature without it.
    if np.isfinite(_start(kept)[:, 2]).any():
        windows, starts = kept, _start(kept)
    nan = np.full((5, len(sizes)), np.nan)
    square = np.full((2, len(sizes), len(sizes)), np.nan)
    out = Minima(
        size=sizes,
        x=nan[0],
        covariance=square[0],
        low=np.array([w.low for w in windows]),
        high=np.array([w.high for w in windows]),
        loss=np.array([w.loss.min() if len(w.loss) else np.nan for w in windows]),
        loss_covariance=square[1],
        curvature=nan[1],
        slopes=np.zeros(0 if axes is None else axes.shape[1]),
        skew=0.0,
        noise=nan[2],
        squares=nan[3],
        freedom=nan[4],
        ends=np.array([(w.x[0], w.x[-1]) if len(w.x) else (np.nan, np.nan) for w in windows]),
        points=tuple(w.rows for w in windows),
        places=tuple(w.x for w in windows),
    )
    bounded = np.isfinite(out.low) & np.isfinite(out.high)
    use = np.flatnonzero(bounded & np.array([len(w.x) >= 3 for w in windows], dtype=bool))
    if not np.isfinite(starts[use, 2]).any():
        return out
    lines = np.log(sizes)[use, None] if axes is None else axes[use]
    lines = np.hstack([np.ones((len(use), 1)), lines - lines.mean(axis=0)])
    about = np.zeros(lines.shape[1] - 1) if slopes is None else slopes
    tight = np.concatenate([[1e-6], np.full(len(about), slope_spread**-2)])
    about = np.concatenate([[0.0], about])

    def solve(trust: Trust) -> tuple[Minima, float]:
        chosen = [windows[k] for k in use]
        own = (chosen, starts[use], lines, about, tight, weight, variance)
        return _Basins(*own, trust).fit(out, use)

    found, doubt = solve(trust)
    if abs(found.skew) < trust.tested * doubt:
        found, _ = solve(trust._replace(skew=_NO_SKEW))
    return found


def _start(windows: list[_Window]) -> Floats:
    """x*, L* and C (W, 3) of parabolas through the lowest points and their neighbours.

    C is NaN where there is none, all are where there is no point.
    """
    out = np.full((len(windows), 3), np.nan)
    for row, w in zip(out, windows, strict=True):
        k = int(np.argmin(w.loss)) if len(w.loss) else 0
        if len(w.loss):
            row[:2] = w.x[k], w.loss[k]
        if len(w.x) < 3 or not 0 < k < len(w.x) - 1:
            continue
        x, y = w.x[k - 1 : k + 2] - w.x[k], w.loss[k - 1 : k + 2] - w.loss[k]
        a = (y[2] / x[2] - y[0] / x[0]) / (x[2] - x[0])
        if a > 0.0:
            b = y[2] / x[2] - a * x[2]
            z = float(np.clip(-0.5 * b / a, x[0], x[2]))
            row[:] = w.x[k] + z, w.loss[k] + b * z + a * z * z, 2.0 * a
    return out


class _Problem(NamedTuple):
    """Gauss-Newton equations: a block of (L*, x*, ln C) for each size, bordered by what is shared.

    own (W, M, 3) and shared (W, M, S) are the Jacobians of the standardised residuals.
    """

    residual: Floats
    own: Floats
    shared: Floats
    cost: float


class _Step(NamedTuple):
    """Solution of the equations: steps, and the covariances of the parameters."""

    own: Floats
    shared: Floats
    block: Floats
    gain: Floats
    corner: Floats

    def move(self, p: _Problem, residual: Floats, doubt: Floats) -> tuple[Floats, Floats]:
        """Steps (R, W, 3) and (R, S) that take up residuals (R, W, M) and priors' doubts (R, S)."""
        slope = np.einsum("wmk,rwm->rwk", p.own, residual)
        down = np.einsum("wms,rwm->rs", p.shared, residual) + doubt
        shared = (down - np.einsum("wks,rwk->rs", self.gain, slope)) @ self.corner
        own = np.einsum("wkl,rwl->rwk", self.block, slope)
        return own - np.einsum("wks,rs->rwk", self.gain, shared), shared


class _Basins:
    """Points of all sizes, padded to M, with losses from each size's lowest in units of a rise.

    Shared parameters S: the line of ln C (its level and slopes), then the skew; `about` says where
    they are expected, `tight` how surely. A point that is not there has no weight.
    """

    def __init__(
        self,
        windows: list[_Window],
        starts: Floats,
        lines: Floats,
        about: Floats,
        tight: Floats,
        weight: Floats | None,
        variance: Floats | None,
        trust: Trust,
    ) -> None:
        middle = float(np.nanmedian(np.log(starts[:, 2])))
        self.unit = unit = 0.5 * float(np.exp(middle))
        longest = max(len(w.x) for w in windows)
        self.x, self.y, self.root = (np.zeros((len(windows), longest)) for _ in range(3))
        self.rows = np.full(self.x.shape, -1)
        self.loss = np.array([w.loss.min() for w in windows])
        for k, w in enumerate(windows):
            num = len(w.x)
            self.x[k], self.x[k, :num], self.rows[k, :num] = w.x[0], w.x, w.rows
            self.y[k, :num] = (w.loss - self.loss[k]) / unit
            self.root[k, :num] = 1.0 if weight is None else np.sqrt(weight[w.rows])
        self.root /= np.sqrt(np.mean(self.root[self.root > 0.0] ** 2))
        self.variance = np.zeros_like(self.x) if variance is None else variance[self.rows]
        self.ends = np.array([(w.x[0], w.edge, w.x[1] - w.x[0]) for w in windows])
        level = (starts[:, 1] - self.loss) / unit
        log_c = np.clip(np.nan_to_num(np.log(starts[:, 2]) - middle), -1.0, 1.0)
        self.start = np.stack([level, starts[:, 0], log_c], axis=1)
        self.lines, self.trust = lines, trust
        self.about, self.tight = np.append(about, 0.0), np.append(tight, trust.skew**-2)

    def rise(self, own: Floats, skew: float) -> tuple[Floats, ...]:
        """Rises above each size's L* at its points, (W, M), and their slopes in z and the skew."""
        c = 2.0 * np.exp(own[:, 2:3])
        z = self.x - own[:, 1:2]
        return tuple(c * each for each in (_cubic if self.trust.cubic else _linex)(z, skew))

    def problem(self, own: Floats, shared: Floats, scale: Floats) -> _Problem:
        """Standardised residuals and Jacobians; `scale` (W, M) is inf where there is no point."""
        up, steep, bend = self.rise(own, float(shared[-1]))
        num, longest = self.x.shape
        residual = np.zeros((num, longest + 1))
        left = np.zeros((num, longest + 1, 3))
        right = np.zeros((num, longest + 1, len(shared)))
        residual[:, :-1] = (own[:, :1] + up - self.y) / scale
        left[:, :-1, 0], left[:, :-1, 1], left[:, :-1, 2] = 1.0 / scale, -steep / scale, up / scale
        right[:, :-1, -1] = bend / scale
        residual[:, -1] = (own[:, 2] - self.lines @ shared[:-1]) / self.trust.scatter
        left[:, -1, 2] = 1.0 / self.trust.scatter
        right[:, -1, :-1] = -self.lines / self.trust.scatter
        prior = self.tight @ (shared - self.about) ** 2
        return _Problem(residual, left, right, float(np.sum(residual**2) + prior))

    def solve(self, p: _Problem, shared: Floats, damp: float) -> _Step:
        """Solve the bordered equations by eliminating each size's block."""
        turned = p.own.transpose(0, 2, 1)
        hessian = turned @ p.own
        hessian = hessian + damp * hessian * np.eye(3) + 1e-9 * np.eye(3)
        cross = turned @ p.shared
        corner = np.einsum("wms,wmt->st", p.shared, p.shared) + np.diag(self.tight)
        block = np.linalg.inv(hessian)
        gain = block @ cross
        corner = np.linalg.inv(corner - np.einsum("wks,wkt->st", cross, gain))
        slope = np.einsum("wmk,wm->wk", p.own, p.residual)
        down = np.einsum("wms,wm->s", p.shared, p.residual) + self.tight * (shared - self.about)
        step = -corner @ (down - np.einsum("wks,wk->s", gain, slope))
        own = -np.einsum("wkl,wl->wk", block, slope) - gain @ step
        return _Step(own, step, np.asarray(block, dtype=np.float64), gain, corner)

    def search(self, own: Floats, shared: Floats, scale: Floats) -> tuple[Floats, Floats, _Step]:
        """Minimise by Levenberg-Marquardt for given scales of the points (W, M)."""
        damp = 1e-3
        now = self.problem(own, shared, scale)
        for _ in range(_STEPS):
            step = self.solve(now, shared, damp)
            longest = max(np.abs(step.own[:, 1:]).max(), np.abs(step.shared).max())
            part = min(1.0, 1.0 / max(longest, 1e-12))
            there = own + part * step.own, shared + part * step.shared
            new = self.problem(*there, scale)
            if new.cost <= now.cost:
                done = now.cost - new.cost < 1e-10 * (1.0 + now.cost)
                (own, shared), now, damp = there, new, max(damp / 10.0, 1e-9)
                if done:
                    break
            else:
                damp *= 10.0
                if damp > 1e8:
                    break
        return own, shared, self.solve(now, shared, 0.0)

    def fit(self, out: Minima, use: Ints) -> tuple[Minima, float]:
        """Fit, weighing points by the noise they show, and fill in the sizes `use` of `out`.

        Returns the minima, and the standard error of their skew.
        """
        own, shared = self.start, self.about
        sigma = np.full(len(own), _NOISE_SHARE)
        cliff = np.ones_like(self.x)
        there = self.root > 0.0
        # What the seeds say of a point of mean weight; the square of a tiny unit is zero.
        known = np.sum(self.variance * self.root**2, axis=1) / there.sum(axis=1)
        least = np.maximum(known / self.unit / self.unit, _LEAST_NOISE**2)
        for _ in range(_ROUNDS):
            z = self.x - own[:, 1:2]
            misfit = self.trust.misfit * np.exp(own[:, 2:3]) * z**2 / sigma[:, None]
            with np.errstate(divide="ignore"):
                ratio = np.where(there, np.sqrt(self.root**-2.0 + misfit**2), np.inf)
            scale = sigma[:, None] * ratio / cliff
            own, shared, found = self.search(own, shared, scale)
            residual = self.y - own[:, :1] - self.rise(own, float(shared[-1]))[0]
            at = self.problem(own, shared, scale)
            beside = at.shared - at.own @ found.gain
            lever = np.einsum("wmk,wkl,wml->wm", at.own, found.block, at.own)
            lever += np.einsum("wms,st,wmt->wm", beside, found.corner, beside)
            # Points far out weigh less: were there no misfit, they would make the noise too small.
            weight = np.where(there, (cliff / ratio) ** 2, 0.0)
            squares = np.sum(weight * residual**2, axis=1)
            spare = np.sum(weight * (1.0 - lever[:, :-1]), axis=1)
            # Sizes share the ratio of the noise's variance to what is expected of it.
            c = np.exp(own[:, 2])
            pool, start, tilt = self.trust.pool, self.trust.start, c**self.trust.tilt
            # What is expected of a size is what its seeds say, else a share of its rise.
            expected = np.where(
                (known > 0.0) & (self.trust.tilt > 0.0), least, _NOISE_SHARE**2 * tilt
            )
            pooled = expected * (np.sum(squares / expected) + start) / (spare.sum() + start)
            sigma = np.sqrt(np.maximum((squares + pool * pooled) / (spare + pool), least))
            above = np.maximum(residual / (sigma[:, None] * ratio), 0.0)
            cliff = 1.0 / np.sqrt(1.0 + (above / _CLIFF) ** 2)
        levels, places = (
            np.diag(found.block[:, k, k]) + found.gain[:, k] @ found.corner @ found.gain[:, k].T
            for k in (0, 1)
        )
        # A minimum beyond its own points, or at a cliff, is held at their end.
        inside = np.clip(own[:, 1], self.ends[:, 0], self.ends[:, 1])
        least = np.where(inside != own[:, 1], self.ends[:, 2] ** 2 / 12.0, 0.0)
        stretch = np.ones((len(use), 3))
        stretch[:, 1] = np.sqrt(np.maximum(1.0, least / np.diag(places)))

        def put(into: Floats, values: Floats) -> Floats:
            filled = into.copy()
            filled[np.ix_(*[use] * values.ndim)] = values
            return filled

        # A noise that few points, no prior and no seeds tell: the variance of Student's t.
        alone = self.trust.start < 1.0 and not self.variance.any()
        freedom = max(float(spare.sum()), 1.0) if alone else np.inf
        student = 1.0 + 2.0 / (max(freedom, 3.0) - 2.0)
        linear = Linear(
            use=use,
            basins=self,
            scale=self.unit * scale,
            problem=at,
            step=found,
            stretch=stretch,
            freedom=freedom,
        )
        minima = replace(
            out,
            x=put(out.x, inside),
            loss=put(out.loss, self.loss + self.unit * own[:, 0]),
            covariance=put(out.covariance, student * stretch[:, 1] * (stretch[:, 1] * places).T),
            loss_covariance=put(out.loss_covariance, self.unit**2 * levels),
            curvature=put(out.curvature, 2.0 * self.unit * np.exp(own[:, 2])),
            slopes=shared[1:-1],
            skew=float(shared[-1]),
            noise=put(out.noise, self.unit * sigma),
            squares=put(out.squares, self.unit**2 * squares / np.maximum(spare, 1e-9)),
            freedom=put(out.freedom, np.maximum(spare, 0.0)),
            linear=linear,
            cubic=self.trust.cubic,
        )
        return minima, float(np.sqrt(max(float(found.corner[-1, -1]), 0.0)))
