"""Fit a table with a token axis: width, training tokens and learning rate at once.

Cells at one width and one budget are a slice, with a basin of its own. Slices pass through the
code for widths under a number that stands for both, n·T^φ with the golden ratio's φ = 0.618…: it
differs wherever one of the two does, scales with either, and orders slices by size, along which
noise and the basins' shared lopsidedness may vary.

L(n, T, x) = L*(n, T) + ½·C(n)·(u² + skew·u³),  u = x − x*(n, T)
    L*(n, T) = L∞ + A·n^-α + D₀·T^-δ,  C(n) = C₀·n^γ,  x*(n, T) = a − b·ln n + c·ln T

Like `joint_model`, it is solved in logarithms less their means, t = ln n − … and s = ln T − …, with
P = L*(0, 0), D = −∂L*/∂t and F = −∂L*/∂s there, so that shifts of x and scalings of n, T and L
leave the problem as it is. The curvature follows the width alone, as the design has it.

Shape letters: R problems, N points, S slices (a width at a token budget).
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hptransfer.errors import FitError
from hptransfer.stats._advice import RISKY_REGRET, USABLE_REGRET, Verdict
from hptransfer.stats._joint_fit import solve_points
from hptransfer.stats._joint_model import power_law
from hptransfer.stats._least_squares import solve_batch
from hptransfer.stats._metrics import square_error
from hptransfer.stats.basin import fit_basins
from hptransfer.stats.cells import DEFAULT_WINDOW, Bools, Floats, build_cells
from hptransfer.stats.estimate import Estimate, fields_to_document
from hptransfer.stats.group_data import DEFAULT_RESAMPLES, DEFAULT_SEED, gather_groups
from hptransfer.stats.identifiability import TOLERATED_SHARE, f_limit, judge, judge_log, refuse
from hptransfer.stats.loss_table import LossTable
from hptransfer.stats.reasons import Reason, Reasons
from hptransfer.stats.results import BasinFit

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


GOLDEN = 0.5 * (5.0**0.5 - 1.0)
#: Widths, and budgets, that a power law with its limit needs.
LEAST_VALUES = 3
#: Slices that the model's nine slopes and levels need.
LEAST_SLICES = 6
#: Width and tokens move together when this share of either's spread, or less, is its own.
OWN_SPREAD = 0.01

_EXPONENTS = ("alpha", "delta", "b", "c", "gamma", "loss_inf")
_PLACES = {"alpha": ALPHA, "delta": DELTA, "b": B, "c": C, "gamma": GAMMA}
_RESTS_ON = {"alpha": ("A", "alpha"), "delta": ("D0", "delta"), "gamma": ("gamma",), "b": (),
             "c": (), "loss_inf": ("loss_inf", "A", "D0", "alpha", "delta")}  # fmt: skip


def why_no_axis(width: Floats, tokens: Floats) -> str:
    """Say in words why slices (S,) span no token axis beside their widths; "" if they do."""
    for name, values in (("widths", width), ("token budgets", tokens)):
        found = len(np.unique(values))
        if found < LEAST_VALUES:
            return f"a token axis needs {LEAST_VALUES} {name}, found {found}"
    t, s = np.log(width), np.log(tokens)
    t, s = t - t.mean(), s - s.mean()
    slope = float(np.sum(t * s) / np.sum(t**2))
    if np.sum((s - slope * t) ** 2) <= OWN_SPREAD * np.sum(s**2):
        return (
            f"width and tokens move together (tokens as width^{slope:.2g}), so that nothing tells "
            "what each does: train some width with another budget"
        )
    if len(width) < LEAST_SLICES:
        return f"a token axis needs {LEAST_SLICES} widths by budgets, found {len(width)}"
    return ""


@dataclass(frozen=True, kw_only=True)
class TokenBasin:
    """The basin of one width at one token budget."""

    width: float
    tokens: float
    basin: BasinFit

    def to_dict(self) -> dict[str, Any]:
        """Return the basin by name."""
        return {**self.basin.to_dict(), "width": self.width, "tokens": self.tokens}


@dataclass(frozen=True, kw_only=True)
class TokenAdvice:
    """The learning rate to use at a width and a token budget, and the price of being wrong.

    Attributes
    ----------
    width, tokens : float
        The target.
    lr, loss : Estimate
        Learning rate to use on the table's axis; loss expected there, in nats.
    regret : mapping of str to Estimate
        Loss above the best, in nats, of ``recommended``, of ``same_lr`` (the optimum of the
        largest slice unchanged) and of ``inverse_width`` (that times the ratio of widths).
    verdict, because : str
        ``usable``, ``risky`` or ``unusable``, and why.
    """

    width: float
    tokens: float
    lr: Estimate
    loss: Estimate
    regret: dict[str, Estimate]
    verdict: Verdict
    because: str

    def to_dict(self) -> dict[str, Any]:
        """Return the advice by name."""
        return fields_to_document(self)


@dataclass(frozen=True, kw_only=True)
class TokenFit:
    """The joint model of a group with a token axis.

    Attributes
    ----------
    basins : tuple of TokenBasin
        By width, then by tokens.
    exponents : mapping of str to Estimate
        ``alpha``, ``delta``, ``b``, ``c``, ``gamma`` and ``loss_inf`` of
        L* = L∞ + A·n^-α + D₀·T^-δ, x* = a − b·ln n + c·ln T, C = C₀·n^γ.
    error : Estimate
        E, the mean squared residual over the points of the window, in nats².
    notes : tuple of str
        Facts about the fit in words.
    problem : str
        Why there is no joint fit; "" where there is one.
    joint, samples : TokenJoint or None
        Point fit and its resamples.
    """

    basins: tuple[TokenBasin, ...]
    exponents: dict[str, Estimate]
    error: Estimate
    notes: tuple[str, ...] = ()
    problem: str = ""
    joint: TokenJoint | None = None
    samples: TokenJoint | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return what was found by name."""
        return {
            "form": "power",
            "basins": [basin.to_dict() for basin in self.basins],
            "exponents": {name: e.to_dict() for name, e in self.exponents.items()},
            "metrics": {"E": self.error.to_dict()},
            "notes": list(self.notes),
        }

    def recommend(self, *, width: float, tokens: float) -> TokenAdvice:
        """Recommend a learning rate at a width and a token budget.

        Raises
        ------
        FitError
            `width` or `tokens` is not a positive number.
        """
        for name, value in (("width", width), ("tokens", tokens)):
            if not (np.isfinite(value) and value > 0):
                raise FitError(f"{name}: expected a positive number, found {value}")
        joint, samples = self.joint, self.samples
        if joint is None or samples is None:
            why = self.problem or self.exponents["alpha"].reason
            no = refuse(Reason("text", text=why))
            regret = {rule: no for rule in ("recommended", "same_lr", "inverse_width")}
            because = f"the table cannot support an answer: {why}"
            return TokenAdvice(width=width, tokens=tokens, lr=no, loss=no, regret=regret,
                               verdict="unusable", because=because)  # fmt: skip
        x = float(joint.optimum(width, tokens)[0])
        best = joint.best_loss(width, tokens)[0]
        caution = _find_bounds(joint, samples, "loss_inf")
        largest = max(_usable(self.basins), key=lambda b: (b.width, b.tokens))
        same = largest.basin.coefficients[0]
        choices = {"recommended": x, "same_lr": same,
                   "inverse_width": same - float(np.log(width / largest.width))}  # fmt: skip
        drawn = {k: samples.rise(width, tokens, v) for k, v in choices.items()}
        regret = {k: judge(float(np.nanmean(v)), v, "regret") for k, v in drawn.items()}
        verdict, because = self._judge(width, tokens, x, regret["recommended"])
        return TokenAdvice(
            width=width,
            tokens=tokens,
            lr=judge_log(x, samples.optimum(width, tokens)),
            loss=judge(float(best), samples.best_loss(width, tokens), "loss", caution=caution),
            regret=regret,
            verdict=verdict,
            because=because,
        )

    def _judge(
        self, width: float, tokens: float, x: float, regret: Estimate
    ) -> tuple[Verdict, str]:
        if regret.high is None:
            return "unusable", regret.reason
        said = f"with 90 % confidence it costs at most {regret.high:.2g} nats over the best"
        if regret.high > RISKY_REGRET:
            return "unusable", f"{said}, more than {RISKY_REGRET:g}"
        worries = [f"that is more than {USABLE_REGRET:g}"] if regret.high > USABLE_REGRET else []
        usable = _usable(self.basins)
        for name, value, known in (
            ("width", width, [b.width for b in usable]),
            ("budget", tokens, [b.tokens for b in usable]),
        ):
            factor, span = value / max(known), max(known) / min(known)
            if factor > span:
                worries.append(
                    f"it reaches {factor:.3g} times beyond the largest {name}, and those measured "
                    f"span only {span:.3g} times"
                )
        if not min(b.basin.x_low for b in usable) <= x <= max(b.basin.x_high for b in usable):
            worries.append("that learning rate lies outside those measured near the minima")
        return ("risky", f"{said}, but " + "; ".join(worries)) if worries else ("usable", said)


def _usable(basins: tuple[TokenBasin, ...]) -> list[TokenBasin]:
    """Basins whose minimum is bracketed and inside a convex fit."""
    return [
        b
        for b in basins
        if b.basin.bracketed and b.basin.x_low <= b.basin.coefficients[0] <= b.basin.x_high
    ]


def _find_bounds(point: TokenJoint, samples: TokenJoint | None, name: str) -> Reasons:
    """Return which bounds an exponent rests on; empty if none."""

    def hits(fit: TokenJoint) -> dict[str, float]:
        held = np.mean(fit.held(), axis=0)
        shares = {"loss_inf": float(np.mean(fit.floored)), "A": held[D], "D0": held[F]}
        return shares | {NAMES[k]: float(held[k]) for k in NAMES}

    out = []
    at_samples = {} if samples is None else hits(samples)
    for part in _RESTS_ON[name]:
        share = at_samples.get(part, 0.0)
        if hits(point)[part] > 0.0:
            out.append(Reason("at_bound", parameter=part))
        elif share > TOLERATED_SHARE:
            out.append(Reason("at_bound", parameter=part, percent=100 * share))
    return tuple(out)


def fit_tokens(
    table: LossTable,
    *,
    window: float = DEFAULT_WINDOW,
    num_resamples: int = DEFAULT_RESAMPLES,
    seed: int = DEFAULT_SEED,
) -> TokenFit:
    """Fit the joint model of width, tokens and learning rate to a table of one group.

    Parameters
    ----------
    table : LossTable
        Trials with `tokens`, of one group.
    window, num_resamples, seed
        As for `fit_transfer`.

    Raises
    ------
    FitError
        The table has no tokens, or they are not positive numbers, or it holds several groups.
    """
    if table.tokens is None:
        raise FitError(f"{table.source}: no column tokens, so there is no token axis to fit")
    bad = np.flatnonzero(~(np.isfinite(table.tokens) & (table.tokens > 0)))
    if len(bad):
        raise FitError(
            f"{table.source}: column tokens, row {int(bad[0]) + 1}: expected a positive number, "
            f"found {float(table.tokens[bad[0]])}"
        )
    for name, column in table.groups.items():
        if len(set(column.tolist())) > 1:
            raise FitError(f"{table.source}: column {name}: expected one value, found several")
    plain = replace(table, tokens=None)
    build_cells(plain)  # checks widths and learning rates under their own names
    size = table.width * table.tokens**GOLDEN
    names, first = np.unique(size, return_index=True)
    place = {float(key): row for key, row in zip(names, first.tolist(), strict=True)}
    (data,) = gather_groups(
        replace(plain, width=size), window=window, num_resamples=num_resamples, seed=seed
    )
    cells, noise = data.cells, data.noise
    found = fit_basins(data)
    basins = []
    for basin in found.basins:
        row = place[basin.width]
        width, tokens = float(table.width[row]), float(table.tokens[row])
        shown = replace(basin, width=width)
        basins.append(TokenBasin(width=width, tokens=tokens, basin=shown))
    ordered = tuple(sorted(basins, key=lambda b: (b.width, b.tokens)))
    usable = np.array([key for key in found.usable])
    rows = np.array([place[float(key)] for key in usable], dtype=np.int64)
    why = why_no_axis(table.width[rows], table.tokens[rows])
    if why:
        no = refuse(Reason("text", text=why))
        blank = dict.fromkeys(_EXPONENTS, no)
        return TokenFit(basins=ordered, exponents=blank, error=no, problem=why,
                        notes=(why,))  # fmt: skip
    points = cells.in_window(window) & np.isin(cells.width, usable)
    at = np.array([place[float(key)] for key in cells.width[points]])
    starts = np.array(
        [
            [table.width[place[b.width]], table.tokens[place[b.width]], *b.coefficients[:3]]
            for b in found.basins
            if b.width in found.usable
        ]
    )
    width, tokens, losses = table.width[at], table.tokens[at], cells.mean[points]
    joint, misfit, samples, resampled = solve_points(
        data,
        points,
        lambda w: fit_token_joint(width, tokens, cells.x[points], losses, w, starts),
        refit_token_joint,
    )
    exponents = {}
    for name in _EXPONENTS:
        k = _PLACES.get(name)
        value, drawn = (
            None if f is None else (f.loss_inf if k is None else f.theta[:, k])
            for f in (joint, samples)
        )
        assert value is not None
        problem = _find_bounds(joint, samples, name)
        exponents[name] = judge(float(value[0]), drawn, name, problem=problem)
    squares = None
    if samples is not None and resampled is not None:
        squares = np.mean((samples.predicted() - resampled) ** 2, axis=1)
    notes = [] if noise.known else ["one seed per point: intervals come from the scatter"]
    if misfit.sigma > 0.0 and noise.known:
        notes.append(f"the joint model misses by {misfit.sigma:.2g} nats beyond seed noise")
    if joint.skewed:
        notes.append("the basins are lopsided: one skew shared by all was kept")
    return TokenFit(
        basins=ordered,
        exponents=exponents,
        error=square_error(float(np.mean((joint.predicted()[0] - losses) ** 2)), squares),
        notes=tuple(notes),
        joint=joint,
        samples=samples,
    )
