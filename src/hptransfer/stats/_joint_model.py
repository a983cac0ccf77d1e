"""The joint model of loss over width and learning rate, and solutions of it.

    L(n, x) = L*(n) + ½·C(n)·(u² + skew·u³),  u = x − x*(n)
    L*(n) = L∞ + A·n^-α,  C(n) = C₀·n^γ
    x*(n) = x∞ + B·n^-β  (converging)  or  a − b·ln n  (power)

It is solved in t = ln(n / geometric mean) with P = L*(0), D = −dL*/dt(0), c = ln C(0), q = x*(0)
and G = −dx*/dt(0), so that L* = P + D·h(α, t), h(k, t) = (e^(−kt) − 1)/k, and x* likewise: at
the centre the parameters hardly correlate, the power form is the limit β → 0, and shifts of x
and scalings of n and L leave the problem as it is.

Shape letters: R problems, N points, P parameters.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from hptransfer.stats.cells import Bools, Floats, Ints
from hptransfer.stats.results import Form, TransferModel

P, D, ALPHA, LOG_C, GAMMA, Q, G, BETA, SKEW = range(9)

#: Bounds of the exponents; reported whenever an estimate rests on one. L∞ ≥ 0 and A ≥ 0 too.
EXPONENT_BOUNDS = {ALPHA: (0.01, 3.0), GAMMA: (-3.0, 3.0), BETA: (0.01, 3.0)}
NAMES = {D: "A", ALPHA: "alpha", GAMMA: "gamma", BETA: "beta"}
#: Free parameters of the converging form without skew.
PARAMETERS = 8


class Data(NamedTuple):
    """Points of a fit, each of shape (N,): t, x less its mean, and weights."""

    t: Floats
    x: Floats
    weights: Floats


def power_law(k: Floats, t: Floats) -> tuple[Floats, Floats]:
    """Return h(k, t) = (e^(−kt) − 1)/k and its derivative in k, shapes (R, N)."""
    h = np.expm1(-k * t) / k
    return h, (-t * np.exp(-k * t) - h) / k


def predict(
    theta: Floats, data: Data, form: Form, zero: Floats | float | None
) -> tuple[Floats, Floats]:
    """Return losses (R, N) in scaled units and their Jacobian (R, N, 9).

    `zero` is the scaled L∞, a number or (R, 1), for the variant in which it is held: there
    D = α·(P − zero) is no parameter of its own.
    """
    t, x = data.t[None, :], data.x[None, :]
    p, d, alpha, log_c, gamma, q, g, beta, skew = (theta[:, k : k + 1] for k in range(9))
    jacobian = np.zeros((*np.broadcast_shapes(p.shape, t.shape), 9))
    if zero is None:
        h, dh = power_law(alpha, t)
        level = p + d * h
        jacobian[:, :, P] = 1.0
        jacobian[:, :, D] = h
        jacobian[:, :, ALPHA] = d * dh
    else:
        decay = np.exp(-alpha * t)
        level = zero + (p - zero) * decay
        jacobian[:, :, P] = decay
        jacobian[:, :, ALPHA] = -(p - zero) * t * decay
    if form == "power":
        optimum = q - g * t
        slope_g = -t
    else:
        hb, dhb = power_law(beta, t)
        optimum = q + g * hb
        slope_g = hb
        jacobian[:, :, BETA] = g * dhb
    u = x - optimum
    half = 0.5 * np.exp(log_c + gamma * t)
    rise = half * u**2 * (1.0 + skew * u)
    steer = -half * u * (2.0 + 3.0 * skew * u)
    jacobian[:, :, LOG_C] = rise
    jacobian[:, :, GAMMA] = t * rise
    jacobian[:, :, Q] = steer
    jacobian[:, :, G] = steer * slope_g
    jacobian[:, :, BETA] *= steer
    jacobian[:, :, SKEW] = half * u**3
    return level + rise, jacobian


@dataclass(frozen=True, kw_only=True)
class JointFit:
    """Solutions of the joint model: one or, from resamples, many.

    Attributes
    ----------
    theta : ndarray, shape (R, 9)
        Internal parameters, in scaled units.
    cost : ndarray, shape (R,)
        Weighted sum of squares in scaled units.
    floored : ndarray of bool, shape (R,)
        Where L∞ would have been negative and was held at 0.
    form : Form
        Form of the optimum.
    skewed : bool
        Whether the skew coefficient was kept.
    log_width, x_mean, loss_mean, loss_scale : float
        What the scaled units were made with.
    data : Data
        Points.
    """

    theta: Floats
    cost: Floats
    floored: Bools
    form: Form
    skewed: bool
    log_width: float
    x_mean: float
    loss_mean: float
    loss_scale: float
    data: Data

    def take(self, rows: Bools) -> "JointFit":
        """Those of the solutions that `rows` (R,) marks."""
        return replace(
            self, theta=self.theta[rows], cost=self.cost[rows], floored=self.floored[rows]
        )

    def put(self, rows: Ints, other: "JointFit") -> "JointFit":
        """A copy whose solutions `rows` are those of `other`."""
        theta, cost, floored = self.theta.copy(), self.cost.copy(), self.floored.copy()
        theta[rows], cost[rows], floored[rows] = other.theta, other.cost, other.floored
        return replace(self, theta=theta, cost=cost, floored=floored)

    @property
    def num_parameters(self) -> int:
        """Free parameters."""
        return PARAMETERS - (self.form == "power") + self.skewed

    @property
    def alpha(self) -> Floats:
        """Exponent of the best loss, shape (R,)."""
        return self.theta[:, ALPHA]

    @property
    def gamma(self) -> Floats:
        """Exponent of the curvature, shape (R,)."""
        return self.theta[:, GAMMA]

    @property
    def beta(self) -> Floats:
        """Exponent of the optimum's drift (converging), shape (R,)."""
        return self.theta[:, BETA]

    @property
    def slope(self) -> Floats:
        """b of the power form: −dx*/d ln n at the widths' geometric mean, shape (R,)."""
        return self.theta[:, G]

    @property
    def loss_inf(self) -> Floats:
        """Loss at infinite width in nats, shape (R,)."""
        limit = self.theta[:, P] - self.theta[:, D] / self.theta[:, ALPHA]
        return np.where(self.floored, 0.0, self.loss_mean + self.loss_scale * limit)

    def model(self) -> TransferModel:
        """The first solution in the units of the table."""
        theta = self.theta[0]
        alpha, beta = float(theta[ALPHA]), float(theta[BETA])
        scale, centre = self.loss_scale, self.log_width
        excess = scale * float(theta[D]) / alpha
        if self.form == "power":
            x_inf, b, beta = float(theta[Q] + theta[G] * centre), float(theta[G]), 0.0
        else:
            x_inf = float(theta[Q] - theta[G] / beta)
            b = float(theta[G]) / beta * float(np.exp(beta * centre))
        return TransferModel(
            form=self.form,
            loss_inf=float(self.loss_inf[0]),
            A=excess * float(np.exp(alpha * centre)),
            alpha=alpha,
            C0=scale * float(np.exp(theta[LOG_C] - theta[GAMMA] * centre)),
            gamma=float(theta[GAMMA]),
            x_inf=self.x_mean + x_inf,
            B=b,
            beta=beta,
            skew=float(theta[SKEW]),
        )

    def _t(self, width: float) -> float:
        return float(np.log(width)) - self.log_width

    def optimum(self, width: float) -> Floats:
        """x* at a width, shape (R,)."""
        t = self._t(width)
        if self.form == "power":
            h = np.full(len(self.theta), -t)
        else:
            h = power_law(self.beta, np.full(len(self.theta), t))[0]
        return np.asarray(self.x_mean + self.theta[:, Q] + self.theta[:, G] * h)

    def best_loss(self, width: float) -> Floats:
        """L* at a width in nats, shape (R,)."""
        h = power_law(self.alpha, np.full(len(self.theta), self._t(width)))[0]
        return np.asarray(
            self.loss_mean + self.loss_scale * (self.theta[:, P] + self.theta[:, D] * h)
        )

    def curvature(self, width: float) -> Floats:
        """C at a width in nats per (ln lr)², shape (R,)."""
        exponent = self.theta[:, LOG_C] + self.gamma * self._t(width)
        return np.asarray(self.loss_scale * np.exp(exponent))

    def rise(self, width: float, x: Floats | float) -> Floats:
        """Loss above the best at x = ln(lr), in nats, shape (R,)."""
        u = x - self.optimum(width)
        bend = np.maximum(1.0 + self.theta[:, SKEW] * u, 0.0)
        return np.asarray(0.5 * self.curvature(width) * u**2 * bend)

    def predicted(self) -> Floats:
        """Losses of the fit's points in nats, shape (R, N)."""
        return self.loss_mean + self.loss_scale * predict(self.theta, self.data, self.form, None)[0]

    def jacobian(self) -> Floats:
        """Derivatives of the first solution's losses in its free parameters, shape (N, P).

        In scaled units; parameters at a bound are not free.
        """
        held = {k for k in (D, ALPHA, GAMMA, BETA) if self.at_bound().get(NAMES[k], [False])[0]}
        zero = None
        if self.floored[0]:
            zero = -self.loss_mean / self.loss_scale
            held.add(D)
        if self.form == "power":
            held.add(BETA)
        if not self.skewed:
            held.add(SKEW)
        full = predict(self.theta[:1], self.data, self.form, zero)[1][0]
        return np.asarray(full[:, [k for k in range(9) if k not in held]], dtype=np.float64)

    def loss_at(self, width: float, x: Floats) -> Floats:
        """Losses at one width and x of shape (M,), in nats, shape (R, M)."""
        t = np.full(len(x), self._t(width))
        data = Data(t, x - self.x_mean, np.ones(len(x)))
        return self.loss_mean + self.loss_scale * predict(self.theta, data, self.form, None)[0]

    def at_bound(self) -> dict[str, Bools]:
        """Which solutions rest on a bound, by parameter, each of shape (R,)."""
        hits = {"loss_inf": self.floored, "A": ~self.floored & (self.theta[:, D] <= 1e-9)}
        for k, (low, high) in EXPONENT_BOUNDS.items():
            if k == BETA and self.form == "power":
                continue
            hits[NAMES[k]] = (self.theta[:, k] <= low + 1e-6) | (self.theta[:, k] >= high - 1e-6)
        return hits
