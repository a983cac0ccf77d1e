"""Choose which learning rates to measure next: first brackets, and what tells most of a minimum.

Units of this module are octaves, log2(lr), where a name says nothing else. Shape letters: N points
of a basin.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hptransfer.search._search_rule import SearchRule
from hptransfer.stats.fit_window import REACH, RISE, Neighbourhood, Sweep, sweep_of
from hptransfer.stats.loss_table import Bools, Cells, Floats
from hptransfer.stats.minima import Minima, Trust, find_minima
from hptransfer.stats.reasons import Reason, join_reasons
from hptransfer.stats.seed_noise import cell_variances, is_silent, measure_noise

OCTAVE = float(np.log(2.0))

#: Near its minimum a basin is taken to have its shape, and all points to have one noise.
NEAR = Trust(reach=REACH, misfit=1e-9, scatter=0.3, pool=1e6, tilt=0.0, start=1e-3, skew=0.6)
#: Octaves between the points of the first bracket.
SPREAD = 2.0
#: Octaves of a step outwards where a minimum is not bracketed.
OUTWARD = 1.0
#: The first points of a wider width, in octaves from the predicted optimum.
ARMS = (-1.5, -0.5, 0.5, 1.5)
#: A basin is fitted once no gap beside its best point is wider than this, in octaves.
WIDEST_GAP = 1.5
#: Share of the basin's highest usable rise that a new point is expected to stay below.
SAFE_RISE = 0.9
#: A prior on the cubic term, in points' information per ln(lr)⁶: without it three points would
#: tell nothing of a minimum.
CUBIC_FLOOR = 1.0
#: Share of the rise at `REACH` that a parabola may miss there, as a term that no fit has.
QUARTIC_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class OptimumFit:
    """What the search sees of the finished trials.

    Attributes
    ----------
    sweeps : mapping of float to Sweep
        Cells by width.
    minima : Minima
        Their minima.
    optima : mapping of float to (float, float)
        log2(lr*) by width and its standard error; NaN and inf where there is none.
    """

    sweeps: Mapping[float, Sweep]
    minima: Minima
    optima: Mapping[float, tuple[float, float]]

    def place(self, width: float) -> int:
        """Return a width's number among the minima."""
        return int(np.flatnonzero(self.minima.size == width)[0])

    def points(self, width: float) -> Floats:
        """ln(lr) of the points that a width's basin is fitted to."""
        return self.minima.places[self.place(width)]


def fit_optima(cells: Cells) -> OptimumFit:
    """Find the minima of one group's finished trials."""
    (noise,) = measure_noise([cells])
    variance = cell_variances(cells, noise)
    minima = find_minima(
        cells.width,
        cells.x,
        cells.mean,
        1.0 / variance,
        variance=None if is_silent(cells, noise) else variance,
        trust=NEAR,
    )
    widths = cells.widths.tolist()
    # As many points as parameters tell a minimum, and nothing of its error.
    spare = noise.known or sum(map(len, minima.places)) > 3 * len(widths)
    optima = {}
    for width, x, square in zip(widths, minima.x, minima.variance, strict=True):
        error = float(np.sqrt(square)) if np.isfinite(x) and spare else np.inf
        optima[width] = float(x) / OCTAVE, error / OCTAVE
    return OptimumFit(
        sweeps={w: sweep_of(cells, cells.at(w), noise.unsettled) for w in widths},
        minima=minima,
        optima=optima,
    )


def initial_points(rule: SearchRule, most: int) -> tuple[float, ...]:
    """Return the first points of the narrowest width, `most` at most, inside the first bracket.

    Its ends are measured only where the best of these lies beside them.
    """
    low, high = rule.log2_lr
    count = min(most, max(3, round((high - low) / SPREAD) - 1))
    return rule.snap(np.linspace(low, high, count + 2)[1:-1].tolist())


def warm_start_points(place: float, rule: SearchRule) -> tuple[float, ...]:
    """Return the first points of a width whose optimum is predicted at `place`."""
    return rule.snap([place + arm for arm in ARMS])


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
    places, at_edge = [], Reason("bounded_by_divergence") in near.caution
    for neighbours, widest in (
        (tried[tried < best][-1:], WIDEST_GAP),
        (tried[tried > best][:1], rule.step if at_edge else WIDEST_GAP),
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
    sweep, minima, k = fits.sweeps[width], fits.minima, fits.place(width)
    best = float(sweep.x[near.best])
    places = _lattice_within((best - REACH) / OCTAVE, (best + REACH) / OCTAVE, rule)
    tried = sweep.x / OCTAVE
    places = places[[not is_near(place, tried, rule) for place in places.tolist()]]
    if not minima.found[k]:
        order = np.argsort(np.abs(places * OCTAVE - best), kind="stable")
        return rule.snap(places[order][:1].tolist())
    lowest = float(sweep.mean[near.best])
    places = places[_is_safe(places * OCTAVE, minima, k, sweep, lowest)]
    if len(places) == 0:
        return ()
    bend = float(minima.curvature[k]) * QUARTIC_SHARE / REACH**2
    known, quartic = _cubic_known(k, minima), 0.5 * bend / float(minima.noise[k])
    own = minima.places[k] - minima.x[k]
    designs = (np.append(own, each) for each in places * OCTAVE - minima.x[k])
    errors = [_design_error(u, known=known, quartic=quartic) for u in designs]
    return rule.snap([float(places[int(np.argmin(errors))])])


def is_near(place: float, tried: Floats, rule: SearchRule) -> bool:
    """Whether a learning rate has been tried, up to half a step of the lattice."""
    return bool(np.any(np.abs(tried - place) < 0.5 * rule.step))


def say_no_minimum(near: Neighbourhood) -> str:
    """Return why there is no minimum, in words."""
    return join_reasons(near.flags) or "no minimum"


def _design_error(u: Floats, *, known: float, quartic: float) -> float:
    """Return the mean squared error of the minimum from points around it, up to a factor.

    Around the minimum a₁ = 0, so the gradient of x* is along a₁ alone. What the quartic term adds
    to a₁ is bias: points that lie evenly about the minimum have none.

    Parameters
    ----------
    u : ndarray, shape (N,)
        The points' ln(lr), from the minimum.
    known : float
        Information of other widths about the cubic term, in units of one point's.
    quartic : float
        A term that is not fitted, in standard deviations of a point at u = 1: what to guard
        against.
    """
    powers = np.vander(u, 4, increasing=True)
    information = powers.T @ powers
    information[3, 3] += known
    covariance = np.linalg.pinv(information, hermitian=True)
    bias = quartic * float(covariance[1] @ (powers.T @ u**4))
    return float(covariance[1, 1]) + bias**2


def _lattice_within(low: float, high: float, rule: SearchRule) -> Floats:
    """Return the lattice points from `low` to `high`, inside the limits."""
    low, high = max(low, rule.limits[0]), min(high, rule.limits[1])
    first, last = np.ceil(low / rule.step - 1e-6), np.floor(high / rule.step + 1e-6)
    return np.asarray(np.arange(first, last + 1) * rule.step, dtype=np.float64)


def _is_safe(x: Floats, minima: Minima, k: int, sweep: Sweep, lowest: float) -> Bools:
    """Which ln(lr) are expected to count: below the rise of a basin, left of divergence."""
    bad = sweep.x[sweep.diverged > 0]
    right = min(bad[bad > minima.x[k]].min(initial=np.inf), sweep.cliff)
    loss = minima.loss[k] + minima.rise(k, x)
    return np.asarray((loss <= lowest + SAFE_RISE * RISE * abs(lowest)) & (x < right))


def _cubic_known(k: int, minima: Minima) -> float:
    """Information of other widths about a width's cubic term, in units of a point of its own."""
    told = CUBIC_FLOOR
    for other in np.flatnonzero(minima.found):
        if other == k or len(minima.places[other]) <= 3:
            continue
        u = minima.places[other] - minima.x[other]
        design = np.vander(u, 3)
        left = u**3 - design @ np.linalg.lstsq(design, u**3, rcond=None)[0]
        # Widths share the shape of the basin, so that a cubic grows as the curvature.
        scale = minima.curvature[other] * minima.noise[k] / minima.curvature[k]
        told += float(left @ left) * float(scale / minima.noise[other]) ** 2
    return told
