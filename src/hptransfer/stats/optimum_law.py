"""Forecast x* = ln(lr*) at a size from the minima of smaller ones, with scatter between sizes.

Five forms make a forecast each: `same` keeps the widest minimum, `constant` averages them all,
`power` is a straight line in ln n, `converging` a drift that dies out, and `drift` a line with a
prior on its slope, which bends slowly (an integrated random walk: Wahba 1978), with scatter from
size to size. They are averaged with weights from how well each forecast the sizes from narrower
ones. The answer is a mixture of normals, one for each form; each has the form's own variance, the
scatter, and what a law may bend by there, which grows as the cube of the reach in ln n.

Shape letters: W sizes, K forms.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special

from hptransfer.errors import FitError
from hptransfer.stats._power_laws import extrapolate_law
from hptransfer.stats.estimate import LEVEL
from hptransfer.stats.minima import Minima
from hptransfer.stats.priors import FORMS, Prior

Floats = NDArray[np.float64]

#: Variances that a form adds to the minima's own for its weights.
_CONSTANT_SCATTER, _POWER_SCATTER = 0.10**2, 0.05**2
#: Exponents of the form `converging`, and the fewest sizes that it and `power` need.
DECAYS = (0.35, 0.8, 1.6)
_CONVERGING_SIZES, _POWER_SIZES = 4, 3
_BOUND_ROUNDS = 3
#: Variances of a minimum stay between these, in (ln lr)².
SMALLEST_VARIANCE, _LARGEST_VARIANCE = 0.02**2, 1.0
#: By how much the variance of x*'s slope may grow over one unit of ln n.
BENDS = np.array([0.001, 0.01, 0.1])
#: Times the prior's spread that a slope may lie from its mean, and how likely each is: the sweeps
#: that a prior is made from are of few families.
DOUBTS = {1.0: 0.75, 3.0: 0.25}
#: Standard deviations of the scatter between sizes, in ln lr, and the spread of ln σ about the
#: logarithm of the prior's.
SCATTERS = np.array([0.02, 0.04, 0.07, 0.10, 0.15, 0.22, 0.30])
SCATTER_SPREAD = 0.4
#: A rolling error counts as SHARE·error²/max(Δt, SHORTEST), at most MOST.
_ROLLING_SHARE, _ROLLING_SHORTEST, _ROLLING_MOST = 0.7, 0.2, 1.0
#: Variance of a form's forecast, in rolling errors, after one forecast made here.
_ROLLING_WIDTH = 2.0
#: How many forecasts the prior of a form's error counts for, and the error added to all.
_ROLLING_PRIOR, _ROLLING_FLOOR = 1.0, 0.03**2


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """A mixture of normals: where x* may lie.

    Attributes
    ----------
    weights, means, variances : ndarray, shape (K,)
    """

    weights: Floats
    means: Floats
    variances: Floats

    @property
    def mean(self) -> float:
        """Mean of the mixture."""
        return float(self.weights @ self.means)

    def cdf(self, x: float) -> float:
        """Return the probability that x* lies below x."""
        return float(self.weights @ special.ndtr((x - self.means) / np.sqrt(self.variances)))

    def quantile(self, share: float) -> float:
        """Return the x below which x* lies with probability `share`."""
        each = self.means + np.sqrt(self.variances) * special.ndtri(share)
        low, high = float(each.min()), float(each.max())
        for _ in range(60):
            middle = 0.5 * (low + high)
            if self.cdf(middle) < share:
                low = middle
            else:
                high = middle
        return 0.5 * (low + high)

    def regret(self, x: float, curvature: float) -> float:
        """Expected ½·C·(x − X)² in nats for X of the mixture."""
        return 0.5 * curvature * float(self.weights @ (self.variances + (self.means - x) ** 2))

    def interval(self) -> tuple[float, float]:
        """Ends of the 90 % interval of x*."""
        return self.quantile(0.5 - 0.5 * LEVEL), self.quantile(0.5 + 0.5 * LEVEL)

    def bound(self, x: float, curvature: float) -> float:
        """Regret in nats at x that is exceeded with probability 10 % at most."""
        low, high = self.interval()
        return 0.5 * curvature * max(x - low, high - x, 0.0) ** 2


def _bend(one: Floats, other: Floats) -> Floats:
    """Covariances of a Brownian motion's integral from 0 on either side, for unit variance."""
    a, b = np.abs(one)[:, None], np.abs(other)
    low, high = np.minimum(a, b), np.maximum(a, b)
    return low**2 * (3.0 * high - low) / 6.0 * (np.outer(one, other) > 0.0)


def forecast_drift(
    t: Floats, x: Floats, variance: Floats, targets: Floats, prior: Prior, scatter: float | None
) -> tuple[Floats, Floats, float]:
    """Forecast x* at several ln n (T,) from sizes t (W,): flat level, prior slope, bend, scatter.

    Returns
    -------
    ndarray, ndarray, float
        Means (T,), variances (T,), and the scatter that was found.
    """
    # The slope bends from the widest size on: what lies on its two sides is independent.
    z, at = t - t[-1], targets - t[-1]
    sigmas = SCATTERS if scatter is None else np.array([scatter])
    doubt, bend, sigma = (
        each.reshape(-1, 1) for each in np.meshgrid([*DOUBTS], BENDS, sigmas, indexing="ij")
    )
    slope = (doubt * prior.spread) ** 2
    covariance = slope[..., None] * np.outer(z, z) + bend[..., None] * _bend(z, z)
    covariance = covariance + (variance + sigma**2)[..., None] * np.eye(len(t))
    across = slope[..., None] * np.outer(z, at) + bend[..., None] * _bend(z, at)
    own = slope * at**2 + bend * np.abs(at) ** 3 / 3.0
    y = x - prior.slope * z
    level_and_y = np.broadcast_to(np.stack([np.ones_like(z), y], axis=1), (*across.shape[:2], 2))
    solved = np.linalg.solve(covariance, np.concatenate([level_and_y, across], axis=2))
    one, gain_y, gain_k = solved[:, :, 0], solved[:, :, 1], solved[:, :, 2:]
    h = one.sum(axis=1)
    level = (one @ y) / h
    centred = gain_y - level[:, None] * one
    mean = level[:, None] + prior.slope * at + np.sum(centred[..., None] * across, axis=1)
    left = (1.0 - gain_k.sum(axis=1)) ** 2 / h[:, None]
    spread = own - np.sum(gain_k * across, axis=1) + left + sigma**2
    squares = centred @ y - level * centred.sum(axis=1)
    logs = -0.5 * (np.linalg.slogdet(covariance)[1] + np.log(h) + squares)
    logs = logs + np.log(np.repeat([*DOUBTS.values()], len(BENDS) * len(sigmas)))
    if scatter is None:
        logs = logs - 0.5 * (np.log(sigma[:, 0] / prior.scatter) / SCATTER_SPREAD) ** 2
    weights = np.exp(logs - logs.max())
    weights /= weights.sum()
    middle = weights @ mean
    variances = weights @ (spread + (mean - middle) ** 2)
    return middle, variances, float(weights @ sigma[:, 0])


class Known(NamedTuple):
    """What is known of the optimum at each size, arrays of shape (W,).

    size, ascending, and x, the minimum in ln lr, with its variance: NaN where a size has no
    minimum. low, high: between which it lies there, ±inf where nothing bounds it.
    """

    size: Floats
    x: Floats
    variance: Floats
    low: Floats
    high: Floats

    @classmethod
    def of(cls, minima: Minima) -> "Known":
        """Take it from minima."""
        return cls(minima.size, minima.x, minima.variance, minima.low, minima.high)


def add_bounds(known: Known, prior: Prior, scatter: float | None) -> tuple[Floats, Floats]:
    """Turn bounds of minima into minima with variances, for `drift` alone.

    Expectation propagation: where x is NaN and a bound is known, the forecast from all other
    sizes is cut at the bounds, and what the cut adds becomes that size's minimum.

    Returns
    -------
    x, variance : ndarray, shape (W,)
        NaN stays where a bound says nothing.
    """
    t, low, high = np.log(known.size), known.low, known.high
    x, variance = known.x.copy(), known.variance.copy()
    bounded = np.flatnonzero(~np.isfinite(x) & (np.isfinite(low) | np.isfinite(high)))
    for _ in range(_BOUND_ROUNDS):
        for k in bounded:
            others = np.isfinite(x)
            others[k] = False
            if not others.any():
                continue
            seen = t[others], x[others], variance[others]
            [centre], [wide], _ = forecast_drift(*seen, t[[k]], prior, scatter)
            mean, spread = _cut(float(centre), float(wide), float(low[k]), float(high[k]))
            gain = 1.0 / spread - 1.0 / wide
            known = gain > 1e-3 / wide
            variance[k] = 1.0 / gain if known else np.nan
            x[k] = variance[k] * (mean / spread - centre / wide) if known else np.nan
    return x, variance


def _cut(mean: float, variance: float, low: float, high: float) -> tuple[float, float]:
    """Mean and variance of a normal cut to between `low` and `high`."""
    scale = np.sqrt(variance)
    a, b = (low - mean) / scale, (high - mean) / scale
    if a > 0.0:  # reflected, so that no tail probability rounds to 0
        back, spread = _cut(-mean, variance, -high, -low)
        return -back, spread
    share = special.ndtr(b) - special.ndtr(a)
    if share < 1e-12:
        # All of it lies beyond an end: the cut normal hugs that end.
        end = high if b < 0.0 else low
        return float(end), float(variance / (1.0 + min(a * a, b * b)))

    def density(z: float) -> float:
        return float(np.exp(-0.5 * z * z) / np.sqrt(2.0 * np.pi)) if np.isfinite(z) else 0.0

    shift = (density(a) - density(b)) / share
    ends = sum(sign * z * density(z) for sign, z in ((1.0, a), (-1.0, b)) if np.isfinite(z))
    spread = max(1.0 + ends / share - shift**2, 1e-6)
    return float(mean + scale * shift), float(variance * spread)


def _fit_line(z: Floats, x: Floats, weights: Floats, at: Floats) -> tuple[Floats, Floats, float]:
    """Weighted line through (z, x): its values at `at` (T,), their variances, and its squares."""
    design = np.stack([np.ones_like(z), z], axis=1)
    inverse = np.linalg.pinv(design.T @ (design * weights[:, None]), hermitian=True)
    found = inverse @ design.T @ (weights * x)
    there = np.stack([np.ones_like(at), at], axis=1)
    left = float(np.sum(weights * (x - design @ found) ** 2))
    return there @ found, np.sum(there @ inverse * there, axis=1), left


def forecast_forms(
    t: Floats, x: Floats, variance: Floats, targets: Floats
) -> dict[str, tuple[Floats, Floats]]:
    """Forecast x* at several ln n (T,) by every form but `drift` that the sizes t (W,) allow.

    Returns
    -------
    dict of str to (ndarray, ndarray)
        Each form's forecasts (T,), and their variances were the form true.
    """
    z, at = t - t[-1], targets - t[-1]
    weights = 1.0 / (variance + _CONSTANT_SCATTER)
    flat = np.ones(len(at))
    out = {
        "same": (x[-1] * flat, variance[-1] * flat),
        "constant": (weights @ x / weights.sum() * flat, flat / weights.sum()),
    }
    if len(t) >= _POWER_SIZES:
        weights = 1.0 / (variance + _POWER_SCATTER)
        out["power"] = _fit_line(z, x, weights, at)[:2]
        if len(t) >= _CONVERGING_SIZES:
            lines = [_fit_line(np.exp(-b * z), x, weights, np.exp(-b * at)) for b in DECAYS]
            value, spread = (np.array([line[k] for line in lines]) for k in range(2))
            squares = np.array([line[2] for line in lines])
            share = np.exp(-0.5 * (squares - squares.min()))
            share /= share.sum()
            middle = share @ value
            out["converging"] = middle, share @ (spread + (value - middle) ** 2)
    return out


def roll_forecasts(
    t: Floats, x: Floats, variance: Floats, prior: Prior, scatter: float | None = None
) -> Iterator[tuple[float, dict[str, float]]]:
    """Forecast every size from those before any narrower one, and square each form's errors.

    Yields
    ------
    weight, errors : float, dict of str to float
        The weights of the sizes forecast from the same ones add up to 1; a form is missing where
        it needs more sizes.
    """
    for j in range(1, len(t)):
        seen = t[:j], x[:j], variance[:j], t[j:]
        found = forecast_forms(*seen) | {"drift": forecast_drift(*seen, prior, scatter)[:2]}
        for k in range(j, len(t)):
            scale = _ROLLING_SHARE / max(float(t[k] - t[j - 1]), _ROLLING_SHORTEST)
            yield (
                1.0 / (len(t) - j),
                {
                    name: min(scale * float(x[k] - value[k - j]) ** 2, _ROLLING_MOST)
                    for name, (value, _) in found.items()
                },
            )


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Where x* lies at a size, and which form says so.

    Attributes
    ----------
    where : Mixture
        In the order of `forms`.
    forms : mapping of str to float
        Weight of each form; they add up to 1.
    scatter : float
        Standard deviation of x* from size to size about the law, in ln lr.
    """

    where: Mixture
    forms: Mapping[str, float]
    scatter: float


#: Fewest sizes that each form needs where it answers alone.
_FEWEST = {"same": 1, "constant": 1, "power": 2, "converging": 3, "drift": 1}


def forecast(
    known: Known,
    target: float,
    *,
    prior: Prior,
    scatter: float | None = None,
    form: str | None = None,
) -> Forecast:
    """Forecast x* = ln(lr*) at a size from the minima of others.

    Parameters
    ----------
    known : Known
        The others; at least one has a minimum.
    target : float
        The size asked for.
    prior : Prior
        What is known of this kind of sweep.
    scatter : float, optional
        Standard deviation of x* from size to size, held; by default found.
    form : str, optional
        Let this form alone answer, by weighted least squares.

    Returns
    -------
    Forecast
        Of the forms that the number of sizes allows.

    Raises
    ------
    FitError
        The form is unknown, or needs more sizes than there are.
    """
    t, at, ok = np.log(known.size), np.log([target]), np.isfinite(known.x)
    if form in (None, "drift"):
        # The average is of what remains beside the tokens' trend, which ends at the target.
        x, low, high = (each - prior.trend * (t - at) for each in (known.x, known.low, known.high))
        known = known._replace(x=x, low=low, high=high)
    if form is not None and form not in _FEWEST:
        raise FitError(f"form: expected one of {', '.join(_FEWEST)}, found {form}")
    if form is not None and ok.sum() < _FEWEST[form]:
        raise FitError(
            f"form {form}: expected {_FEWEST[form]} sizes or more with a minimum, found {ok.sum()}"
        )
    # A form that answers alone takes the minima's variances as they are.
    ends = (SMALLEST_VARIANCE, _LARGEST_VARIANCE) if form is None else (1e-12, np.inf)
    variance = np.clip(np.where(ok, known.variance, np.nan), *ends)
    tt, xx, vv = t[ok], known.x[ok], variance[ok]
    bounded = tt, xx, vv
    if form in (None, "drift") and not ok.all():
        x, doubt = add_bounds(known._replace(variance=variance), prior, scatter)
        bounded = t[np.isfinite(x)], x[np.isfinite(x)], doubt[np.isfinite(x)]
    *drift, sigma = forecast_drift(*bounded, at, prior, scatter)
    if form is not None:
        alone = drift if form == "drift" else _forecast_alone(form, tt, xx, vv + sigma**2, at)
        own = alone[1] + (0.0 if form in ("drift", "same") else sigma**2)
        where = Mixture(weights=np.ones(1), means=alone[0], variances=own)
        return Forecast(where=where, forms={form: 1.0}, scatter=sigma)
    squares = {name: _ROLLING_PRIOR * prior.errors[name] ** 2 for name in FORMS}
    for weight, errors in roll_forecasts(tt, xx, vv, prior, scatter):
        # A form is not preferred for what it could not be tried on.
        worst = max(errors.values())
        for name in FORMS:
            squares[name] += weight * errors.get(name, worst)
    made = len(tt) - 1
    found = forecast_forms(tt, xx, vv, at) | {"drift": (drift[0], drift[1])}
    reach = max(float(np.abs(at - tt).min()), _ROLLING_SHORTEST)
    rolled = {name: squares[name] / (_ROLLING_PRIOR + made) for name in found}
    # The evidence of `made` normal errors, whose variance is as seen, besides the form's prior.
    weights = np.array(
        [(square + _ROLLING_FLOOR) ** -(2.0 + 0.5 * made) for square in rolled.values()]
    )
    weights /= weights.sum()
    # The fewer forecasts a form has made here, the more its own rolling error says of this one.
    spread = _ROLLING_WIDTH * reach / max(made, 1)
    beyond = sigma**2 + BENDS[-1] * reach**3 / 3.0
    variances = [
        float(own[0]) if name == "drift" else max(float(own[0]) + beyond, rolled[name] * spread)
        for name, (_, own) in found.items()
    ]
    means = np.concatenate([value for value, _ in found.values()])
    return Forecast(
        where=Mixture(weights=weights, means=means, variances=np.array(variances)),
        forms=dict(zip(found, weights.tolist(), strict=True)),
        scatter=sigma,
    )


def _forecast_alone(
    form: str, t: Floats, x: Floats, variance: Floats, at: Floats
) -> tuple[Floats, Floats]:
    """Forecast by one form, minima weighed by `variance`, which the scatter is a part of."""
    z, there = t - t[-1], at - t[-1]
    if form == "same":
        return x[-1:], variance[-1:]
    if form == "constant":
        total = np.array([np.sum(1.0 / variance)])
        return np.sum(x / variance) / total, 1.0 / total
    if form == "power":
        return _fit_line(z, x, 1.0 / variance, there)[:2]
    value, spread = extrapolate_law(z, x, variance, float(there[0]))
    return np.array([value]), np.array([spread])
