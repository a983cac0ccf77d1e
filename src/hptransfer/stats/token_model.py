"""The joint model of loss over width n, training tokens T and learning rate.

    L(n, T, x) = L*(n, T) + ½·C(n)·(u² + skew·u³),  u = x − x*(n, T)
    L*(n, T) = L∞ + A·n^-α + D₀·T^-δ,  C(n) = C₀·n^γ,  x*(n, T) = a − b·ln n + c·ln T

Like `joint_model`, it is solved in logarithms less their means, t = ln n − … and s = ln T − …, with
P = L*(0, 0), D = −∂L*/∂t and F = −∂L*/∂s there, so that shifts of x and scalings of n, T and L
leave the problem as it is. The curvature follows the width alone, as the design has it.

Shape letters: R problems, N points, S slices (a width at a token budget).
"""

from dataclasses import dataclass, replace

import numpy as np

from hptransfer.stats.cells import Bools, Floats
from hptransfer.stats.joint_model import power_law
from hptransfer.stats.judge import f_limit
from hptransfer.stats.least_squares import solve_batch

P, D, ALPHA, F, DELTA, LOG_C, GAMMA, Q, B, C, SKEW = range(11)
NUM = 11
#: Bounds of the exponents; A, D₀ and L∞ are not negative either.
BOUNDS = {ALPHA: (0.01, 3.0), DELTA: (0.01, 3.0), GAMMA: (-3.0, 3.0)}
NAMES = {ALPHA: "alpha", DELTA: "delta", GAMMA: "gamma"}
STARTS = (0.15, 0.5, 1.2)
#: Level of the test that keeps the skew, as in the joint model without tokens.
SKEW_LEVEL = 0.05


@dataclass(frozen=True, kw_only=True)
class TokenJoint:
    """Solutions of the model: one or, from resamples, many.

    Attributes
    ----------
    theta : ndarray, shape (R, 11)
        Internal parameters, in scaled units.
    cost : ndarray, shape (R,)
        Weighted sum of squares in scaled units.
    floored : ndarray of bool, shape (R,)
        Where L∞ would have been negative and was held at 0.
    skewed : bool
        Whether the skew was kept.
    t, s, x, weights : ndarray, shape (N,)
        Points, less `centre`, and their weights.
    centre : tuple of float
        Means of ln n, ln T and x.
    loss_mean, loss_scale : float
        What the scaled losses were made with.
    """

    theta: Floats
    cost: Floats
    floored: Bools
    skewed: bool
    t: Floats
    s: Floats
    x: Floats
    weights: Floats
    centre: tuple[float, float, float]
    loss_mean: float
    loss_scale: float

    @property
    def num_parameters(self) -> int:
        """Free parameters."""
        return NUM - 1 + self.skewed

    @property
    def loss_inf(self) -> Floats:
        """Loss at infinite width and tokens in nats, shape (R,)."""
        p, d, f = self.theta[:, P], self.theta[:, D], self.theta[:, F]
        limit = p - d / self.theta[:, ALPHA] - f / self.theta[:, DELTA]
        return np.where(self.floored, 0.0, self.loss_mean + self.loss_scale * limit)

    def optimum(self, width: float, tokens: float) -> Floats:
        """x* at a width and budget, shape (R,)."""
        t, s = np.log(width) - self.centre[0], np.log(tokens) - self.centre[1]
        q, b, c = self.theta[:, Q], self.theta[:, B], self.theta[:, C]
        return np.asarray(self.centre[2] + q - b * t + c * s)

    def best_loss(self, width: float, tokens: float) -> Floats:
        """L* at a width and budget in nats, shape (R,)."""
        one = np.ones(len(self.theta))
        h = power_law(self.theta[:, ALPHA], one * (np.log(width) - self.centre[0]))[0]
        k = power_law(self.theta[:, DELTA], one * (np.log(tokens) - self.centre[1]))[0]
        level = self.theta[:, P] + self.theta[:, D] * h + self.theta[:, F] * k
        return np.asarray(self.loss_mean + self.loss_scale * level)

    def rise(self, width: float, tokens: float, x: Floats | float) -> Floats:
        """Loss above the best at x = ln(lr), in nats, shape (R,)."""
        u = x - self.optimum(width, tokens)
        exponent = self.theta[:, LOG_C] + self.theta[:, GAMMA] * (np.log(width) - self.centre[0])
        bend = np.maximum(1.0 + self.theta[:, SKEW] * u, 0.0)
        return np.asarray(0.5 * self.loss_scale * np.exp(exponent) * u**2 * bend)

    def predicted(self) -> Floats:
        """Losses of the fit's points in nats, shape (R, N)."""
        return self.loss_mean + self.loss_scale * self._predict(self.theta, floored=False)[0]

    def jacobian(self) -> Floats:
        """Derivatives of the first solution's losses in its free parameters, scaled, (N, P)."""
        free = ~(self._frozen(floored=bool(self.floored[0])) | self.held()[0])
        full = self._predict(self.theta[:1], floored=bool(self.floored[0]))[1][0]
        return np.asarray(full[:, free], dtype=np.float64)

    def held(self) -> Bools:
        """Which parameters sit at a bound, shape (R, 11)."""
        out = np.zeros(self.theta.shape, dtype=bool)
        for k, (low, high) in BOUNDS.items():
            out[:, k] = (self.theta[:, k] <= low + 1e-6) | (self.theta[:, k] >= high - 1e-6)
        out[:, D], out[:, F] = self.theta[:, D] <= 1e-9, self.theta[:, F] <= 1e-9
        return out

    def _frozen(self, *, floored: bool) -> Bools:
        frozen = np.zeros(NUM, dtype=bool)
        frozen[SKEW], frozen[P] = not self.skewed, floored
        return frozen

    def _predict(self, theta: Floats, *, floored: bool) -> tuple[Floats, Floats]:
        """Return scaled losses (R, N) and their Jacobian; `floored` holds L∞ at 0 nats."""
        t, s = self.t[None, :], self.s[None, :]
        p, d, alpha, f, delta, log_c, gamma, q, b, c, skew = (
            theta[:, k : k + 1] for k in range(NUM)
        )
        h, dh = power_law(alpha, t)
        k, dk = power_law(delta, s)
        if floored:
            p = np.full_like(p, -self.loss_mean / self.loss_scale)
            h, dh = h + 1.0 / alpha, dh - 1.0 / alpha**2
            k, dk = k + 1.0 / delta, dk - 1.0 / delta**2
        u = self.x[None, :] - q + b * t - c * s
        half = 0.5 * np.exp(log_c + gamma * t)
        rise = half * u**2 * (1.0 + skew * u)
        steer = -half * u * (2.0 + 3.0 * skew * u)
        jacobian = np.stack(
            [
                np.full_like(rise, 1.0 - floored), h + 0.0 * rise, d * dh, k + 0.0 * rise, f * dk,
                rise, t * rise, steer, -t * steer, s * steer, half * u**3,
            ],
            axis=2,
        )  # fmt: skip
        return p + d * h + f * k + rise, jacobian

    def solve(self, starts: Floats, losses: Floats, *, max_steps: int) -> "TokenJoint":
        """Solve for losses (R, N) in nats from starts (R, K, 11); keep each problem's best."""
        lower, upper = np.full(NUM, -1e6), np.full(NUM, 1e6)
        for k, (low, high) in BOUNDS.items():
            lower[k], upper[k] = low, high
        lower[D] = lower[F] = 0.0
        lower[LOG_C], upper[LOG_C] = -30.0, 30.0
        num, several, _ = starts.shape
        scaled = (losses - self.loss_mean) / self.loss_scale

        def run(first: Floats, data: Floats, floored: bool) -> tuple[Floats, Floats]:
            return solve_batch(
                lambda p: self._predict(p, floored=floored),
                first,
                data,
                self.weights,
                lower=lower,
                upper=upper,
                frozen=self._frozen(floored=floored),
                max_steps=max_steps,
            )

        theta, cost = run(starts.reshape(-1, NUM), np.repeat(scaled, several, axis=0), False)
        pick = np.argmin(cost.reshape(num, several), axis=1)
        rows = np.arange(num)
        theta, cost = (
            theta.reshape(num, several, NUM)[rows, pick],
            cost.reshape(num, -1)[rows, pick],
        )
        fit = replace(self, theta=theta, cost=cost, floored=np.zeros(num, dtype=bool))
        low_rows = fit.loss_inf < 0.0
        if np.any(low_rows):
            again, cost[low_rows] = run(theta[low_rows], scaled[low_rows], True)
            ends = again[:, D] / again[:, ALPHA] + again[:, F] / again[:, DELTA]
            again[:, P] = ends - self.loss_mean / self.loss_scale
            theta[low_rows] = again
        return replace(fit, theta=theta, cost=cost, floored=low_rows)


def fit_token_joint(
    width: Floats, tokens: Floats, x: Floats, losses: Floats, weights: Floats, slices: Floats
) -> TokenJoint:
    """Fit the model to cell means.

    Parameters
    ----------
    width, tokens, x, losses, weights : ndarray, shape (N,)
        Width, budget, ln(lr), mean loss in nats and relative weight of each cell.
    slices : ndarray, shape (S, 5)
        Width, budget, x*, L* and C of the basins, for the starting points.
    """
    logs = np.log(slices[:, :2])
    centre = (float(logs[:, 0].mean()), float(logs[:, 1].mean()), float(x.mean()))
    loss_mean, loss_scale = float(losses.mean()), float(losses.std())
    t, s = logs[:, 0] - centre[0], logs[:, 1] - centre[1]
    one = np.ones(len(t))

    def line(y: Floats, *columns: Floats) -> Floats:
        return np.asarray(np.linalg.lstsq(np.stack([one, *columns], axis=1), y, rcond=None)[0])

    steer = line(slices[:, 2] - centre[2], -t, s)
    tilt = line(np.log(slices[:, 4] / loss_scale), t)
    starts = []
    for alpha in STARTS:
        for delta in STARTS:
            h, k = np.expm1(-alpha * t) / alpha, np.expm1(-delta * s) / delta
            level = line((slices[:, 3] - loss_mean) / loss_scale, h, k)
            starts.append([level[0], max(level[1], 0.0), alpha, max(level[2], 0.0), delta,
                           tilt[0], tilt[1], *steer, 0.0])  # fmt: skip
    blank = TokenJoint(
        theta=np.zeros((1, NUM)),
        cost=np.zeros(1),
        floored=np.zeros(1, dtype=bool),
        skewed=False,
        t=np.log(width) - centre[0],
        s=np.log(tokens) - centre[1],
        x=x - centre[2],
        weights=weights,
        centre=centre,
        loss_mean=loss_mean,
        loss_scale=loss_scale,
    )
    plain = blank.solve(np.array([starts], dtype=np.float64), losses[None, :], max_steps=200)
    spare = len(losses) - plain.num_parameters - 1
    if spare < 1 or plain.cost[0] <= len(losses) * 1e-18:
        return plain
    seeds = np.repeat(plain.theta[:, None, :], 3, axis=1)
    seeds[0, :, SKEW] = [0.0, 0.2, -0.2]
    bent = replace(plain, skewed=True).solve(seeds, losses[None, :], max_steps=200)
    drop = float(plain.cost[0] - bent.cost[0])
    return bent if drop > f_limit(SKEW_LEVEL, 1, spare) * float(bent.cost[0]) / spare else plain


def refit_token_joint(fit: TokenJoint, losses: Floats) -> TokenJoint:
    """Refit to resampled losses (R, N) from the point fit and from two other pairs of exponents."""
    starts = np.tile(fit.theta[:1, None, :], (len(losses), 3, 1))
    for place, exponent in ((1, STARTS[0]), (2, STARTS[2])):
        starts[:, place, ALPHA] = starts[:, place, DELTA] = exponent
    return fit.solve(starts, losses, max_steps=60)
