"""Where to measure next: learning rates placed in rounds from what finished trials tell.

A pure function from a loss table to new (width, lr) points. Widths are searched in ascending
order: the narrowest from a coarse bracket, each wider one around the optimum that the narrower
ones predict. At one width the search brackets the minimum, narrows the bracket, and then adds the
points that lower the variance of the minimum most, until its standard error is below a target.

All learning rates lie on a lattice, whole multiples of a step in log2(lr). Units of this module
are octaves, log2(lr), where a name says nothing else. Shape letters: N points of a basin.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from hptransfer.stats.basins import BasinSet, draw, fit_basins
from hptransfer.stats.cells import Cells, Floats, build_cells
from hptransfer.stats.judge import interval
from hptransfer.stats.measure import measure_noise
from hptransfer.stats.neighbourhood import (
    REACH,
    RISE,
    Neighbourhood,
    Sweep,
    find_neighbourhood,
    sweep_of,
)
from hptransfer.stats.power import NORMAL_90
from hptransfer.stats.table import LossTable

OCTAVE = float(np.log(2.0))

#: Octaves between the points of the first bracket.
SPREAD = 2.0
#: Octaves of a step outwards where a minimum is not bracketed.
OUTWARD = 1.0
#: The first points of a wider width, in octaves from the predicted optimum. Divergence is near on
#: the right.
ARMS = (-2.0, -1.0, 0.0, 1.0)
#: A basin is fitted once no gap beside its best point is wider than this, in octaves.
WIDEST_GAP = 1.5
#: Points added at a time to a bracketed width: each is placed knowing the one before.
NUM_ADDED = 1
#: A minimum is not trusted on fewer points than this: three of them a parabola meets anyway.
FEWEST_POINTS = 4
#: Share of the basin's highest usable rise that a new point is expected to stay below.
SAFE_RISE = 0.9
#: A prior on the cubic term, in points' information per octave⁶: without it three points would
#: tell nothing of a minimum.
CUBIC_FLOOR = 1.0
#: Widths that the next one's optimum is extrapolated from, and the most it moves per doubling.
NUM_EXTRAPOLATED = 3
MOST_DRIFT = 1.0
#: Resamples behind a standard error; its own error is then about 5 %.
NUM_RESAMPLES = 200

State = Literal["search", "done", "stopped"]


@dataclass(frozen=True, kw_only=True)
class SearchRule:
    """What a search of one group's optima is told.

    Attributes
    ----------
    step : float
        Step of the lattice.
    start : tuple of (float, float)
        Ends of the first bracket at the narrowest width.
    limits : tuple of (float, float)
        No learning rate lies outside.
    error : float
        Standard error of log2(lr*) at which the widest width is done. A narrower one, a trial of
        which costs a share c as much, is done at error·c^¼ (half of it at least) and may have
        max_points·c^-½ learning rates (twice as many at most): it pays to measure where it is
        cheap, because the shape of the basin that all widths share is learned there too.
    max_points : int
        Most learning rates of the widest width.
    """

    step: float
    start: tuple[float, float]
    limits: tuple[float, float]
    error: float
    max_points: int

    def at(self, share: float) -> "SearchRule":
        """Return the rule of a width whose trials cost this share of the widest one's."""
        return replace(
            self,
            error=self.error * max(share**0.25, 0.5),
            max_points=int(self.max_points * min(share**-0.5, 2.0)),
        )

    def lattice(self, places: Sequence[float]) -> tuple[float, ...]:
        """Return the lattice points nearest to `places`, inside the limits, each once."""
        low, high = (round(end / self.step) for end in self.limits)
        found = {min(max(round(place / self.step), low), high) for place in places}
        return tuple(k * self.step for k in sorted(found))


@dataclass(frozen=True, kw_only=True)
class WidthSearch:
    """How far the search at one width has come.

    Attributes
    ----------
    width : float
        Model width.
    state : State
        ``search``: `points` are to be measured; ``done``; or ``stopped``.
    points : tuple of float
        log2(lr) to measure next, ascending.
    optimum, error : float
        log2(lr*) and its standard error; NaN and inf where the data give none.
    num_points : int
        Learning rates measured so far.
    reason : str
        Why, in words.
    """

    width: float
    state: State
    points: tuple[float, ...] = ()
    optimum: float = float("nan")
    error: float = float("inf")
    num_points: int = 0
    reason: str


def search_optima(
    table: LossTable | None, costs: Mapping[float, float], rule: SearchRule
) -> tuple[WidthSearch, ...]:
    """Return the search's state at each width, up to the first that needs points.

    Parameters
    ----------
    table : LossTable or None
        Finished trials of one group; None where there are none.
    costs : mapping of float to float
        What a trial costs at each width of the study, in any unit.
    rule : SearchRule
        Lattice, target and caps.

    Notes
    -----
    Equal tables give equal points: the only randomness is the fits' own, of fixed seed.
    """
    ordered = sorted(map(float, costs))
    most = max(costs.values())
    if table is None or len(table) == 0:
        return (_start(ordered[0], rule),)
    cells = build_cells(table)
    fits = fit_for_search(cells)
    found: list[WidthSearch] = []
    for width in ordered:
        known = [each for each in found if np.isfinite(each.optimum)]
        if width in cells.widths:
            found.append(_search_width(width, fits, rule.at(costs[width] / most)))
        elif known:
            found.append(_enter(width, known, rule))
        elif not found:
            found.append(_start(width, rule))
        else:
            reason = "no narrower width tells where its optimum may be"
            found.append(WidthSearch(width=width, state="stopped", reason=reason))
        if found[-1].state == "search":
            break
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class SearchFit:
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


def fit_for_search(cells: Cells) -> SearchFit:
    """Fit the basins of one group's finished trials."""
    (noise,) = measure_noise([cells])
    basins = fit_basins(cells, noise, draw(cells, noise, num_resamples=NUM_RESAMPLES, seed=0))
    widths = cells.widths.tolist()
    return SearchFit(
        sweeps={w: sweep_of(cells, cells.at(w), noise.unsettled) for w in widths},
        basins=basins,
        optima={w: _optimum_at(w, basins) for w in widths},
    )


def _start(width: float, rule: SearchRule) -> WidthSearch:
    """Bracket the narrowest width coarsely."""
    low, high = rule.start
    count = max(3, 1 + round((high - low) / SPREAD))
    return WidthSearch(
        width=width,
        state="search",
        points=rule.lattice(np.linspace(low, high, count).tolist()),
        reason="first bracket",
    )


def _enter(width: float, known: Sequence[WidthSearch], rule: SearchRule) -> WidthSearch:
    """Place the first points of a width around what the narrower ones predict."""
    place = extrapolate(
        width,
        [each.width for each in known],
        [each.optimum for each in known],
        [each.error for each in known],
    )
    return WidthSearch(
        width=width,
        state="search",
        points=rule.lattice([place + arm for arm in ARMS]),
        reason=f"the narrower widths predict an optimum at 2^{place:.2f}",
    )


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
    weights = 1.0 / np.where(np.isfinite(spread), spread, 1.0) ** 2
    middle, level = np.average(t, weights=weights), np.average(y, weights=weights)
    slope = float(np.sum(weights * (t - middle) * (y - level)))
    slope /= float(np.sum(weights * (t - middle) ** 2))
    drift = float(np.clip(slope, -MOST_DRIFT, MOST_DRIFT))
    return float(level + drift * (np.log2(width) - middle))


def _search_width(width: float, fits: SearchFit, rule: SearchRule) -> WidthSearch:
    """Judge a width that has been measured, and place its next points."""
    sweep, basins = fits.sweeps[width], fits.basins
    optimum, error = fits.optima[width]
    tried = sweep.x / OCTAVE
    near = find_neighbourhood(sweep)
    enough = near.bracketed and width in basins.fits and np.isfinite(optimum)
    enough = enough and len(basins.fits[width].x) >= FEWEST_POINTS

    def answer(state: State, reason: str, places: Sequence[float] = ()) -> WidthSearch:
        return WidthSearch(
            width=width,
            state=state,
            points=tuple(places),
            optimum=optimum,
            error=error,
            num_points=len(tried),
            reason=reason,
        )

    if enough and error <= rule.error:
        return answer("done", f"standard error {error:.2g} octaves")
    room = rule.max_points - len(tried)
    if room <= 0:
        said = f"standard error {error:.2g} octaves" if enough else _describe(near)
        return answer("stopped", f"{said} after {len(tried)} learning rates")
    places, reason = _bracket(tried, near, rule)
    if not places and near.bracketed:
        places, reason = _narrow(tried, near, rule), "the bracket is narrowed"
    if not places and near.bracketed:
        places = _sharpen(width, sweep, near, basins, rule)
        reason = f"standard error {error:.2g} octaves"
    fresh = [place for place in places if not _is_near(place, tried, rule)]
    if not fresh:
        said = f"standard error {error:.2g} octaves" if enough else _describe(near)
        return answer("stopped", f"{said}, and no learning rate left would tell more")
    return answer("search", reason, sorted(fresh[:room]))


def _describe(near: Neighbourhood) -> str:
    return "; ".join(near.flags) or "no minimum"


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


def _is_near(place: float, tried: Floats, rule: SearchRule) -> bool:
    return bool(np.any(np.abs(tried - place) < 0.5 * rule.step))


def _bracket(tried: Floats, near: Neighbourhood, rule: SearchRule) -> tuple[tuple[float, ...], str]:
    """Return where to look for the side of the minimum that was not measured."""
    if near.bracketed:
        return (), ""
    if near.best < 0:
        return rule.lattice([tried[0] - SPREAD]), "every learning rate diverged"
    best = tried[near.best]
    clean_left = np.any(tried < best)
    sides = [] if clean_left else [best - OUTWARD]
    if not np.any(tried > best):
        sides.append(best + OUTWARD)
    # Points on both sides, but none that counts: their seeds disagree.
    sides = sides or [tried[0] - OUTWARD, tried[-1] + OUTWARD]
    return rule.lattice(sides), _describe(near)


def _narrow(tried: Floats, near: Neighbourhood, rule: SearchRule) -> tuple[float, ...]:
    """Halve the gaps beside the best point, to `WIDEST_GAP`, or to the step before an edge."""
    best = tried[near.best]
    places = []
    for neighbours, widest in (
        (tried[tried < best][-1:], WIDEST_GAP),
        (tried[tried > best][:1], rule.step if np.isfinite(near.right_edge) else WIDEST_GAP),
    ):
        if len(neighbours) and abs(neighbours[0] - best) > widest + 0.5 * rule.step:
            places.append(0.5 * (best + neighbours[0]))
    return rule.lattice(places)


def _sharpen(
    width: float, sweep: Sweep, near: Neighbourhood, basins: BasinSet, rule: SearchRule
) -> tuple[float, ...]:
    """Return the lattice points that lower the variance of the minimum most.

    Greedy c-optimal design: noise is equal at all points, and the cubic term is known as well as
    the other widths tell it.
    """
    best = sweep.x[near.best]
    ends = rule.lattice([(best - REACH) / OCTAVE, (best + REACH) / OCTAVE])
    steps = range(round(ends[0] / rule.step), round(ends[-1] / rule.step) + 1)
    places: Floats = np.array(
        [k * rule.step for k in steps if not _is_near(k * rule.step, sweep.x / OCTAVE, rule)],
        dtype=np.float64,
    )
    basin = next(each for each in basins.basins if each.width == width)
    if len(places) == 0:
        return ()
    inside = np.abs(places * OCTAVE - best) <= REACH * (1.0 + 1e-6)
    bad = sweep.x[sweep.diverged > 0]
    inside &= places * OCTAVE < min(bad[bad > best].min(initial=np.inf), sweep.cliff)
    fit = basins.fits.get(width)
    if fit is None or not basin.has_curve:
        order = np.argsort(np.abs(places * OCTAVE - best), kind="stable")
        return tuple(float(p) for p in places[order][inside[order]][:NUM_ADDED])
    lowest = float(sweep.mean[near.best])
    with np.errstate(over="ignore"):
        inside &= basin.curve(places * OCTAVE) <= lowest + SAFE_RISE * RISE * abs(lowest)
    candidates = places[inside] * OCTAVE
    known = _cubic_known(width, basins)
    chosen: list[float] = []
    u = fit.x - basin.coefficients[0]
    for _ in range(min(NUM_ADDED, len(candidates))):
        left = [c for c in candidates.tolist() if c not in chosen]
        added = [c - basin.coefficients[0] for c in chosen]
        scores = [
            _variance(np.concatenate([u, added, [c - basin.coefficients[0]]]), known) for c in left
        ]
        chosen.append(left[int(np.argmin(scores))])
    return rule.lattice([c / OCTAVE for c in chosen])


def _variance(u: Floats, known: float) -> float:
    """Variance of the minimum of a cubic through points `u` around it, up to a factor.

    Around the minimum a₁ = 0, so the gradient of x* is along a₁ alone. `known` is what the other
    widths tell of the cubic term, in units of one point's information.
    """
    information = np.vander(u, 4, increasing=True)
    information = information.T @ information
    information[3, 3] += known
    return float(np.linalg.pinv(information, hermitian=True)[1, 1])


def _cubic_known(width: float, basins: BasinSet) -> float:
    """Information of the other widths about the shared cubic, in units of a point's own."""
    own = basins.fits[width]
    unit = float(own.weights.mean()) * own.bend**2
    return (
        sum(
            float(np.sum(fit.weights * (fit.residual_maker @ fit.cube) ** 2)) / unit * own.bend**2
            for other, fit in basins.fits.items()
            if other != width and fit.near.bracketed and fit.dof > 0
        )
        + CUBIC_FLOOR
    )
