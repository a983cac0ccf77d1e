"""The trials that a joint fit rests on, and what it would know with more of them.

Cramér-Rao bounds as in `information`, at the fitted parameters, for the very cells of a table.
Only ratios of two bounds are used: an interval found by resampling is taken to narrow as its
bound does.

Shape letters: N points, M new points.
"""

from dataclasses import dataclass, replace

import numpy as np

from hptransfer.stats.cells import Bools, Cells, Floats
from hptransfer.stats.joint_model import (
    ALPHA,
    BETA,
    EXPONENT_BOUNDS,
    GAMMA,
    SKEW,
    D,
    Data,
    G,
    JointFit,
    P,
    Q,
    power_law,
    predict,
)
from hptransfer.stats.misfit import Misfit, cell_variances, rounding_of
from hptransfer.stats.noise import Noise

#: Learning rates closer than this in ln(lr) are one point.
SAME_PLACE = 1e-6


@dataclass(frozen=True, kw_only=True)
class Design:
    """Points of a joint fit with their trials and their noise.

    Attributes
    ----------
    joint : JointFit
        The point fit.
    width, x, count : ndarray, shape (N,)
        Width, ln(lr) and trials of each point.
    variance : ndarray, shape (N,)
        Variance of one trial in nats², less what a width's learning rates share.
    excess : float
        Variance in nats² that each point has however many trials it has.
    """

    joint: JointFit
    width: Floats
    x: Floats
    count: Floats
    variance: Floats
    excess: float

    @property
    def widths(self) -> Floats:
        """Distinct widths, ascending."""
        return np.unique(self.width)

    @property
    def step(self) -> float:
        """Typical distance of neighbouring points in ln(lr); ln 2 where no width has two."""
        gaps = np.concatenate([np.diff(np.sort(self.x[self.width == n])) for n in self.widths])
        return float(np.median(gaps)) if len(gaps) else float(np.log(2.0))

    def variance_at(self, width: Floats) -> Floats:
        """Variance of one trial at new widths (M,): between widths on a power law, beyond level."""
        near = [np.exp(np.mean(np.log(self.variance[self.width == n]))) for n in self.widths]
        return np.exp(np.interp(np.log(width), np.log(self.widths), np.log(near)))

    def precision(self, variance: Floats, count: Floats) -> Floats:
        """1/variance of points with `count` trials each, in nats⁻²; 0 without trials."""
        return np.where(count > 0, 1.0 / (variance / np.maximum(count, 1e-300) + self.excess), 0.0)

    def jacobian(self, width: Floats, x: Floats) -> Floats:
        """Derivatives of the losses at points (M,) in the nine parameters, in nats, (M, 9)."""
        t = np.log(width) - self.joint.log_width
        data = Data(t, x - self.joint.x_mean, np.ones(len(t)))
        slopes = predict(self.joint.theta[:1], data, self.joint.form, None)[1][0]
        return np.asarray(self.joint.loss_scale * slopes)

    def information(self) -> Floats:
        """Information of the points and of the bounds that exponents are fitted within, (9, 9).

        A bound counts as a uniform prior does, by its variance; what is not fitted is known.
        """
        jacobian = self.jacobian(self.width, self.x)
        root = np.sqrt(self.precision(self.variance, self.count))[:, None]
        total = (jacobian * root).T @ (jacobian * root)
        for k, (low, high) in EXPONENT_BOUNDS.items():
            total[k, k] += 12.0 / (high - low) ** 2
        held = [SKEW] * (not self.joint.skewed) + [BETA] * (self.joint.form == "power")
        for k in held:
            total[k], total[:, k], total[k, k] = 0.0, 0.0, 1.0
        return total

    def free(self, gradient: Floats) -> Floats:
        """The gradient (…, 9) less what is not fitted."""
        held = [SKEW] * (not self.joint.skewed) + [BETA] * (self.joint.form == "power")
        out = gradient.copy()
        out[..., held] = 0.0
        return out

    def with_points(self, width: Floats, x: Floats, count: Floats) -> "Design":
        """The design with `count` (M,) more trials at points (M,), new or there already."""
        old = self.count.copy()
        fresh = np.ones(len(width), dtype=bool)
        for k, (n, place) in enumerate(zip(width, x, strict=True)):
            there = np.flatnonzero((self.width == n) & (np.abs(self.x - place) < SAME_PLACE))
            if len(there):
                old[there[0]] += count[k]
                fresh[k] = False
        variance = self.variance_at(width[fresh])
        return replace(
            self,
            width=np.concatenate([self.width, width[fresh]]),
            x=np.concatenate([self.x, x[fresh]]),
            count=np.concatenate([old, count[fresh]]),
            variance=np.concatenate([self.variance, variance]),
        )

    def with_widths(self, num: int, ratio: float = 2.0) -> "Design":
        """The design with `num` more widths, each `ratio` times the last, sampled as the widest."""
        widest = float(self.widths[-1])
        here = self.width == widest
        size = int(here.sum())
        out = self
        for k in range(1, num + 1):
            wider = widest * ratio**k
            shift = float(self.joint.optimum(wider)[0] - self.joint.optimum(widest)[0])
            place = self.x[here] + self.step * np.round(shift / self.step)
            out = out.with_points(np.full(size, wider), place, self.count[here])
        return out

    def with_trials(self, factor: float) -> "Design":
        """The design with `factor` times the trials at each point."""
        return replace(self, count=self.count * factor)

    def error(self, gradient: Floats) -> float:
        """Standard error of a quantity with this gradient (9,), at best."""
        free = self.free(gradient)
        solved = solve_information(self.information(), free)
        return float(np.sqrt(max(float(free @ solved), 0.0)))

    def gradient_of(self, name: str) -> Floats:
        """Gradient (9,) of ``alpha``, ``beta``, ``gamma``, ``kappa``, ``b`` or ``loss_inf``."""
        out = np.zeros(9)
        if name == "loss_inf":
            scale = self.joint.loss_scale
            d, alpha = (float(self.joint.theta[0, k]) for k in (D, ALPHA))
            out[P], out[D], out[ALPHA] = scale, -scale / alpha, scale * d / alpha**2
            return out
        for k, weight in _EXPONENTS[name].items():
            out[k] = weight
        return out

    def gradient_of_optimum(self, width: float) -> Floats:
        """Gradient (9,) of x* at a width."""
        out = np.zeros(9)
        t = np.array([np.log(width) - self.joint.log_width])
        if self.joint.form == "power":
            out[Q], out[G] = 1.0, -float(t[0])
            return out
        h, dh = power_law(self.joint.theta[:1, BETA : BETA + 1], t[None, :])
        out[Q], out[G] = 1.0, float(h[0, 0])
        out[BETA] = float(self.joint.theta[0, G] * dh[0, 0])
        return out

    def gradient_of_loss(self, width: float) -> Floats:
        """Gradient (9,) of L* at a width, in nats."""
        out = np.zeros(9)
        t = np.array([np.log(width) - self.joint.log_width])
        h, dh = power_law(self.joint.theta[:1, ALPHA : ALPHA + 1], t[None, :])
        out[P], out[D] = 1.0, float(h[0, 0])
        out[ALPHA] = float(self.joint.theta[0, D] * dh[0, 0])
        return self.joint.loss_scale * out


_EXPONENTS = {
    "alpha": {ALPHA: 1.0},
    "beta": {BETA: 1.0},
    "gamma": {GAMMA: 1.0},
    "b": {G: 1.0},
    "kappa": {ALPHA: 1.0, BETA: -2.0, GAMMA: 1.0},
}


def solve_information(total: Floats, right: Floats) -> Floats:
    """Solve total·y = right (9,) or (9, K) for a positive matrix (9, 9), whatever its units."""
    unit = 1.0 / np.sqrt(np.maximum(np.diag(total), 1e-300))
    scaled = total * np.outer(unit, unit) + 1e-12 * np.eye(len(total))
    each = unit if right.ndim == 1 else unit[:, None]
    return np.asarray(each * np.linalg.solve(scaled, each * right))


def design_of(
    joint: JointFit, cells: Cells, noise: Noise, misfit: Misfit, points: Bools
) -> Design | None:
    """The design of a joint fit to the cells `points` (C,); None where there is no noise."""
    rounding = rounding_of(cells)
    count = cells.count[points].astype(np.float64)
    silent = not noise.known or float(noise.variance.max()) <= rounding**2
    if silent:
        variance, excess = np.full(len(count), misfit.sigma**2), 0.0
    else:
        variance, excess = cell_variances(cells, noise)[points] * count, misfit.variance
    if not misfit.known or not np.all(variance > 0.0):
        return None
    return Design(
        joint=joint,
        width=cells.width[points],
        x=cells.x[points],
        count=count,
        variance=variance,
        excess=excess,
    )
