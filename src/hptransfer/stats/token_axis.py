"""Fits of a table with a token axis: width, training tokens and learning rate at once.

Cells at one width and one budget are a slice, with a basin of its own. Slices pass through the
code for widths under a number that stands for both, n·T^φ with the golden ratio's φ = 0.618…: it
differs wherever one of the two does, scales with either, and orders slices by size, along which
noise and the basins' shared lopsidedness may vary.

Shape letters: C cells, S slices, R resamples.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hptransfer.errors import FitError
from hptransfer.stats.basins import DEFAULT_RESAMPLES, DEFAULT_SEED, draw, fit_basins
from hptransfer.stats.cells import DEFAULT_WINDOW, Floats, build_cells
from hptransfer.stats.estimate import Estimate
from hptransfer.stats.judge import TOLERATED_SHARE, judge, judge_log, refuse
from hptransfer.stats.measure import measure_noise
from hptransfer.stats.metrics import square_error
from hptransfer.stats.recommend import RISKY_REGRET, USABLE_REGRET, Verdict, price
from hptransfer.stats.results import BasinFit
from hptransfer.stats.solution import solve_points
from hptransfer.stats.table import LossTable
from hptransfer.stats.token_model import (
    ALPHA,
    DELTA,
    GAMMA,
    NAMES,
    B,
    C,
    D,
    F,
    TokenJoint,
    fit_token_joint,
    refit_token_joint,
)

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
_SAID = {
    "loss_inf": "L∞ hit its bound of 0",
    "A": "the best loss does not fall with width",
    "D0": "the best loss does not fall with tokens",
    "alpha": "alpha hit a bound of its range",
    "delta": "delta hit a bound of its range",
    "gamma": "gamma hit a bound of its range",
}


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
        return {
            "width": self.width,
            "tokens": self.tokens,
            "lr": self.lr.to_dict(),
            "loss": self.loss.to_dict(),
            "regret": {name: e.to_dict() for name, e in self.regret.items()},
            "verdict": self.verdict,
            "because": self.because,
        }


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
            no = refuse(why)
            regret = {rule: no for rule in ("recommended", "same_lr", "inverse_width")}
            because = f"the table cannot support an answer: {why}"
            return TokenAdvice(width=width, tokens=tokens, lr=no, loss=no, regret=regret,
                               verdict="unusable", because=because)  # fmt: skip
        x = float(joint.optimum(width, tokens)[0])
        best = joint.best_loss(width, tokens)[0]
        caution = _say_bounds(joint, samples, "loss_inf")
        largest = max(_usable(self.basins), key=lambda b: (b.width, b.tokens))
        same = largest.basin.coefficients[0]
        choices = {"recommended": x, "same_lr": same,
                   "inverse_width": same - float(np.log(width / largest.width))}  # fmt: skip
        regret = {k: price(samples.rise(width, tokens, v)) for k, v in choices.items()}
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


def _say_bounds(point: TokenJoint, samples: TokenJoint | None, name: str) -> str:
    """Say in words which bounds an exponent rests on; "" if none."""

    def hits(fit: TokenJoint) -> dict[str, float]:
        held = np.mean(fit.held(), axis=0)
        shares = {"loss_inf": float(np.mean(fit.floored)), "A": held[D], "D0": held[F]}
        return shares | {NAMES[k]: float(held[k]) for k in NAMES}

    out = []
    at_samples = {} if samples is None else hits(samples)
    for part in _RESTS_ON[name]:
        if hits(point)[part] > 0.0:
            out.append(_SAID[part])
        elif at_samples.get(part, 0.0) > TOLERATED_SHARE:
            out.append(f"{_SAID[part]} in {100 * at_samples[part]:.0f} % of the resamples")
    return "; ".join(out)


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
    cells = build_cells(replace(plain, width=size))
    (noise,) = measure_noise([cells], window=window)
    draws = draw(cells, noise, num_resamples=num_resamples, seed=seed)
    found = fit_basins(cells, noise, draws, seed=seed)
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
        blank = {name: refuse(why) for name in _EXPONENTS}
        return TokenFit(basins=ordered, exponents=blank, error=refuse(why), problem=why,
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
        cells,
        noise,
        draws,
        points,
        lambda w: fit_token_joint(width, tokens, cells.x[points], losses, w, starts),
        refit_token_joint,
        seed=seed,
    )
    exponents = {}
    for name in _EXPONENTS:
        k = _PLACES.get(name)
        value, drawn = (
            None if f is None else (f.loss_inf if k is None else f.theta[:, k])
            for f in (joint, samples)
        )
        assert value is not None
        problem = _say_bounds(joint, samples, name)
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
