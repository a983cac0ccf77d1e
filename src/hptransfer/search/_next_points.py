"""Choose which learning rates to measure next: first brackets, and what tells most of a minimum.

Units of this module are octaves, log2(lr), where a name says nothing else. Shape letters: N points
of a basin.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hptransfer.search.search_rule import SearchRule
from hptransfer.stats.basin import BasinSet, fit_basins
from hptransfer.stats.cells import Bools, Cells, Floats
from hptransfer.stats.fit_window import REACH, RISE, Neighbourhood, Sweep, sweep_of
from hptransfer.stats.group_data import GroupData, draw
from hptransfer.stats.identifiability import interval
from hptransfer.stats.power_analysis import NORMAL_90
from hptransfer.stats.reasons import join_reasons
from hptransfer.stats.results import BasinFit
from hptransfer.stats.seed_noise import measure_noise

OCTAVE = float(np.log(2.0))

#: Resamples behind a standard error; its own error is then about 5 %.
NUM_RESAMPLES = 200
#: Octaves between the points of the first bracket.
SPREAD = 2.0
#: Octaves of a step outwards where a minimum is not bracketed.
OUTWARD = 1.0
#: The first points of a wider width, in octaves from the predicted optimum. Divergence is near on
#: the right.
ARMS = (-2.0, -1.0, 0.0, 1.0)
#: A basin is fitted once no gap beside its best point is wider than this, in octaves.
WIDEST_GAP = 1.5
#: Share of the basin's highest usable rise that a new point is expected to stay below.
SAFE_RISE = 0.9
#: A prior on the cubic term, in points' information per ln(lr)⁶: without it three points would
#: tell nothing of a minimum.
CUBIC_FLOOR = 1.0
#: Share of the rise at `REACH` that a parabola may miss there, as a term that no fit has.
QUARTIC_SHARE = 0.1
#: Widths that the next one's optimum is extrapolated from, and the most it moves per doubling.
NUM_EXTRAPOLATED = 3
MOST_DRIFT = 1.0
#: An optimum is taken to be known no better than this, in octaves.
LEAST_ERROR = 1e-3


@dataclass(frozen=True, kw_only=True)
class OptimumFit:
    """What the search sees of the finished trials.

    Attributes
    ----------
    sweeps : mapping of float to Sweep
        Cells by width.
    basins : BasinSet
        Basins with resamples.
    optima : mapping of float to (float, float)
        log2(lr*) by width and its standard error, a normal's of equal 90 % interval; NaN and inf
        where there is none.
    """

    sweeps: Mapping[float, Sweep]
    basins: BasinSet
    optima: Mapping[float, tuple[float, float]]


def fit_optima(cells: Cells) -> OptimumFit:
    """Fit the basins of one group's finished trials."""
    (noise,) = measure_noise([cells])
    draws = draw(cells, noise, num_resamples=NUM_RESAMPLES, seed=0)
    basins = fit_basins(GroupData(cells=cells, noise=noise, draws=draws))
    widths = cells.widths.tolist()
    return OptimumFit(
        sweeps={w: sweep_of(cells, cells.at(w), noise.unsettled) for w in widths},
        basins=basins,
        optima={w: _optimum_at(w, basins) for w in widths},
    )


def _optimum_at(width: float, basins: BasinSet) -> tuple[float, float]:
    """Return log2(lr*) and its standard error: a normal's, of equal 90 % interval."""
    if width not in basins.usable:
        return float("nan"), float("inf")
    basin = next(each for each in basins.basins if each.width == width)
    optimum = basin.coefficients[0] / OCTAVE
    samples = basins.samples.get(width)
    if samples is None:
        return optimum, float("inf")
    x = samples[:, 0]
    if np.mean(np.isfinite(x)) < 0.5:
        return optimum, float("inf")
    low, high = interval(x)
    return optimum, (high - low) / (2.0 * NORMAL_90 * OCTAVE)


def initial_points(rule: SearchRule, most: int) -> tuple[float, ...]:
    """Return the first, coarse bracket of the narrowest width, `most` points at most."""
    low, high = rule.log2_lr
    count = min(most, max(3, 1 + round((high - low) / SPREAD)))
    return rule.snap(np.linspace(low, high, count).tolist())


def warm_start_points(place: float, rule: SearchRule) -> tuple[float, ...]:
    """Return the first points of a width whose optimum is predicted at `place`."""
    return rule.snap([place + arm for arm in ARMS])


def extrapolate(
    width: float, widths: Sequence[float], optima: Sequence[float], errors: Sequence[float]
) -> float:
    """Return the optimum that a line in ln(width) through the widest known ones predicts.

    Weighted by their errors; the optimum moves by `MOST_DRIFT` per doubling at most, and with
    one known width it stays.
    """
    t = np.log2(np.asarray(widths[-NUM_EXTRAPOLATED:]))
    y = np.asarray(optima[-NUM_EXTRAPOLATED:])
    if len(t) == 1:
        return float(y[0])
    spread = np.asarray(errors[-NUM_EXTRAPOLATED:])
    # Losses without noise have errors of 0: all such optima count alike.
    weights = 1.0 / np.maximum(np.where(np.isfinite(spread), spread, 1.0), LEAST_ERROR) ** 2
    middle, level = np.average(t, weights=weights), np.average(y, weights=weights)
    slope = float(np.sum(weights * (t - middle) * (y - level)))
    slope /= float(np.sum(weights * (t - middle) ** 2))
    drift = float(np.clip(slope, -MOST_DRIFT, MOST_DRIFT))
    return float(level + drift * (np.log2(width) - middle))


def expand_bracket(
    tried: Floats, near: Neighbourhood, rule: SearchRule
) -> tuple[tuple[float, ...], str]:
    """Return where to look for the side of the minimum that was not measured."""
    if near.bracketed:
        return (), ""
    if near.best < 0:
        return rule.snap([tried[0] - SPREAD]), "every learning rate diverged"
    best = tried[near.best]
    clean_left = np.any(tried < best)
    sides = [] if clean_left else [best - OUTWARD]
    if not np.any(tried > best):
        sides.append(best + OUTWARD)
    # Points on both sides, but none that counts: their seeds disagree.
    sides = sides or [tried[0] - OUTWARD, tried[-1] + OUTWARD]
    return rule.snap(sides), say_no_minimum(near)


def refine_bracket(tried: Floats, near: Neighbourhood, rule: SearchRule) -> tuple[float, ...]:
    """Halve the gaps beside the best point, to `WIDEST_GAP`, or to the step before an edge."""
    best = tried[near.best]
    places = []
    for neighbours, widest in (
        (tried[tried < best][-1:], WIDEST_GAP),
        (tried[tried > best][:1], rule.step if np.isfinite(near.right_edge) else WIDEST_GAP),
    ):
        if len(neighbours) and abs(neighbours[0] - best) > widest + 0.5 * rule.step:
            places.append(0.5 * (best + neighbours[0]))
    return rule.snap(places)


def c_optimal_point(
    width: float, near: Neighbourhood, fits: OptimumFit, rule: SearchRule
) -> tuple[float, ...]:
    """Return the lattice point that makes the minimum's error least, if one is left.

    Greedy design for the minimum (c-optimal, and even enough about it that a quartic term moves it
    little): noise is equal at all points, and the cubic term is known as well as the other widths
    tell it.
    """
    sweep, basins = fits.sweeps[width], fits.basins
    best = float(sweep.x[near.best])
    places = _lattice_within((best - REACH) / OCTAVE, (best + REACH) / OCTAVE, rule)
    tried = sweep.x / OCTAVE
    places = places[[not is_near(place, tried, rule) for place in places.tolist()]]
    basin = _basin_at(width, basins)
    fit = basins.fits.get(width)
    if fit is None or not basin.has_curve:
        order = np.argsort(np.abs(places * OCTAVE - best), kind="stable")
        return rule.snap(places[order][:1].tolist())
    places = places[_is_safe(places * OCTAVE, basin, sweep, float(sweep.mean[near.best]))]
    if len(places) == 0:
        return ()
    shape = _Shape(
        known=_cubic_known(width, basins),
        quartic=0.5 * basin.coefficients[2] * QUARTIC_SHARE / REACH**2 * fit.weights.mean() ** 0.5,
    )
    x = places * OCTAVE - basin.coefficients[0]
    errors = [shape.error(np.append(fit.x - basin.coefficients[0], each)) for each in x]
    return rule.snap([float(places[int(np.argmin(errors))])])


def is_near(place: float, tried: Floats, rule: SearchRule) -> bool:
    """Whether a learning rate has been tried, up to half a step of the lattice."""
    return bool(np.any(np.abs(tried - place) < 0.5 * rule.step))


def say_no_minimum(near: Neighbourhood) -> str:
    """Return why there is no minimum, in words."""
    return join_reasons(near.flags) or "no minimum"


@dataclass(frozen=True, kw_only=True)
class _Shape:
    """What a design is for: a basin whose cubic term is partly known, and quartic term not fitted.

    Attributes
    ----------
    known : float
        Information of other widths about the cubic term, in units of one point's.
    quartic : float
        Size to guard against, in standard deviations of a point at ln(lr) = 1 from the minimum.
    """

    known: float
    quartic: float

    def error(self, u: Floats) -> float:
        """Mean squared error of the minimum from points `u` in ln(lr) around it, up to a factor.

        Around the minimum a₁ = 0, so the gradient of x* is along a₁ alone. What the quartic term
        adds to a₁ is bias: points that lie evenly about the minimum have none.
        """
        powers = np.vander(u, 4, increasing=True)
        information = powers.T @ powers
        information[3, 3] += self.known
        covariance = np.linalg.pinv(information, hermitian=True)
        bias = self.quartic * float(covariance[1] @ (powers.T @ u**4))
        return float(covariance[1, 1]) + bias**2


def _basin_at(width: float, basins: BasinSet) -> BasinFit:
    return next(each for each in basins.basins if each.width == width)


def _lattice_within(low: float, high: float, rule: SearchRule) -> Floats:
    """Return the lattice points from `low` to `high`, inside the limits."""
    low, high = max(low, rule.limits[0]), min(high, rule.limits[1])
    first, last = np.ceil(low / rule.step - 1e-6), np.floor(high / rule.step + 1e-6)
    return np.asarray(np.arange(first, last + 1) * rule.step, dtype=np.float64)


def _is_safe(x: Floats, basin: BasinFit, sweep: Sweep, lowest: float) -> Bools:
    """Which ln(lr) are expected to count: below the rise of a basin, left of divergence."""
    bad = sweep.x[sweep.diverged > 0]
    right = min(bad[bad > basin.coefficients[0]].min(initial=np.inf), sweep.cliff)
    with np.errstate(over="ignore"):
        low = basin.curve(x) <= lowest + SAFE_RISE * RISE * abs(lowest)
    return np.asarray(low & (x < right))


def _cubic_known(width: float, basins: BasinSet) -> float:
    """Information of other widths about a width's cubic term, in units of a point of its own."""
    own = basins.fits[width]
    told = sum(
        float(np.sum(fit.weights * (fit.residual_maker @ fit.cube) ** 2))
        for other, fit in basins.fits.items()
        if other != width and fit.near.bracketed and fit.dof > 0
    )
    return told / (float(own.weights.mean()) * own.bend**2) + CUBIC_FLOOR
