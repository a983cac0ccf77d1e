"""Where to measure next: learning rates placed in rounds from what finished trials tell.

A pure function from a loss table to new (width, lr) points. Widths are searched in ascending
order: the narrowest from a coarse bracket, each wider one around the optimum that the narrower
ones predict. At one width the search brackets the minimum, narrows the bracket, and then adds the
points that lower the variance of the minimum most, until its standard error is below a target.

With ``stop="regret"``, once every width has a minimum, the optimum at the target is forecast from
them by the law that recommends learning rates. A point at a width makes its minimum's variance
smaller, and with it the bound of the regret; the search adds points at the widths where the bound
falls most for a point's share of the budget, and ends where it is met, or hardly falls any more.

All learning rates lie on a lattice, whole multiples of a step in log2(lr). Units of this module
are octaves, log2(lr), where a name says nothing else.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from hptransfer.search._next_points import (
    OCTAVE,
    OptimumFit,
    c_optimal_point,
    expand_bracket,
    fit_optima,
    initial_points,
    is_near,
    refine_bracket,
    say_no_minimum,
    warm_start_points,
)
from hptransfer.search._search_rule import FEWEST_POINTS, MOST_POINTS, SearchRule
from hptransfer.stats.fit_window import find_neighbourhood
from hptransfer.stats.loss_table import Cells, Floats, LossTable, build_cells
from hptransfer.stats.minima import Minima, find_minima
from hptransfer.stats.optimum_law import SMALLEST_VARIANCE, Known, forecast
from hptransfer.stats.priors import find_prior
from hptransfer.stats.seed_noise import measure_noise

#: A round has points at all widths at which they are worth this share of the best one's gain.
WORTH = 0.5
#: The search ends where minima known to `SMALLEST_VARIANCE` would lower the bound by less than
#: this share: what is left is the law's own, not the trials'.
HARDLY = 0.1
#: The target where none is named, as a multiple of the widest width.
TARGET = 4.0

State = Literal["search", "done", "stopped"]


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
    group : mapping of str to object
        Keys of the search, where there are several.

    Examples
    --------
    >>> known = WidthSearch(width=64, state="search", points=(-8, -6), reason="no minimum")
    >>> known.describe()
    'width 64: 2 learning rates to come (no minimum)'
    """

    width: float
    state: State
    points: tuple[float, ...] = ()
    optimum: float = float("nan")
    error: float = float("inf")
    num_points: int = 0
    reason: str
    group: Mapping[str, object] = field(default_factory=dict)

    def describe(self) -> str:
        """Return the state in words."""
        count = len(self.points)
        to_come = f"{count} learning rate{'s' * (count != 1)} to come"
        doing = to_come if self.state == "search" else self.state
        name = "".join(f"{key} {value}, " for key, value in self.group.items())
        return f"{name}width {self.width:g}: {doing} ({self.reason})"


def search_optima(
    table: LossTable | None, costs: Mapping[float, float], rule: SearchRule
) -> tuple[WidthSearch, ...]:
    """Return the search's state at each width, up to the first that needs points.

    With ``stop="optima"`` each width in turn is measured until its optimum is known to the rule's
    standard error; with ``stop="regret"`` until it has a minimum, and then all together where that
    lowers the regret at the target most.

    Parameters
    ----------
    table : LossTable or None
        Finished trials of one group; None where there are none.
    costs : mapping of float to float
        What a trial costs at each width of the study, in any unit.
    rule : SearchRule
        Lattice, target and caps.

    Returns
    -------
    tuple of WidthSearch
        Ascending in width; those in the state ``search`` have points to measure. Widths after
        them are not in it yet, and the search is done where none is.

    Notes
    -----
    Equal tables give equal points: the only randomness is the fits' own, of fixed seed.

    Examples
    --------
    >>> [first] = search_optima(None, {64: 1.0, 128: 4.0}, SearchRule(log2_lr=(-8, -4)))
    >>> first.width, first.points
    (64.0, (-7.0, -6.0, -5.0))
    """
    ordered = sorted(map(float, costs))
    prices = [costs[width] for width in ordered]
    if table is None or len(table) == 0:
        return (_start(ordered[0], rule, rule.points_for_width(prices)),)
    cells = build_cells(table)
    fits = fit_optima(cells)
    for_regret, whole = rule.stop == "regret", rule
    if for_regret:
        rule = rule.model_copy(update={"error": float("inf")})
    found: list[WidthSearch] = []
    spent, left = 0.0, _left_over(costs, fits, rule)
    left_points = int(_left_over(dict.fromkeys(costs, 1.0), fits, rule))
    for done, width in enumerate(ordered):
        if width in cells.widths:
            share = prices[done] / max(prices)
            num_points = len(fits.sweeps[width].x)
            most = num_points + int(left / prices[done] + 1e-9)
            if for_regret:
                # A minimum at every width comes first, whatever of the budget that takes.
                most = min(most, num_points + left_points, int(MOST_POINTS * rule.max_points))
            else:
                # One that was done may want more after wider ones have taken what it left.
                most = min(most, rule.points_for_width(prices, spent=spent, done=done))
            found.append(_search_width(width, fits, rule.with_cost_share(share), most))
            spent += prices[done] * num_points
        elif fits.minima.found.any():
            found.append(_enter(width, fits.minima, table, rule))
        elif not found:
            found.append(_start(width, rule, rule.points_for_width(prices)))
        else:
            reason = "no narrower width tells where its optimum may be"
            found.append(WidthSearch(width=width, state="stopped", reason=reason))
        if found[-1].state == "search":
            return tuple(found)
    return (
        _place_for_regret(table, cells, fits, found, costs, whole) if for_regret else tuple(found)
    )


def _left_over(costs: Mapping[float, float], fits: OptimumFit, rule: SearchRule) -> float:
    """Return what is left of the budget, less what the widths to come need at least."""
    taken = sum(
        cost * (len(fits.sweeps[width].x) if width in fits.sweeps else FEWEST_POINTS)
        for width, cost in costs.items()
    )
    return max(0.0, rule.max_points * sum(costs.values()) - taken)


def _start(width: float, rule: SearchRule, most: int) -> WidthSearch:
    """Bracket the narrowest width coarsely."""
    points = initial_points(rule, most)
    return WidthSearch(width=width, state="search", points=points, reason="first bracket")


def _enter(width: float, minima: Minima, table: LossTable, rule: SearchRule) -> WidthSearch:
    """Place the first points of a width around what the minima of narrower ones predict."""
    prior = find_prior(table, np.arange(len(table)))
    found = forecast(Known.of(minima), width, prior=prior)
    place = found.where.mean / OCTAVE
    return WidthSearch(
        width=width,
        state="search",
        points=warm_start_points(place, rule),
        reason=f"the narrower widths predict an optimum at 2^{place:.2f}",
    )


def _search_width(width: float, fits: OptimumFit, rule: SearchRule, most: int) -> WidthSearch:
    """Judge a width that has been measured, and place its next points: `most` in all."""
    sweep = fits.sweeps[width]
    optimum, error = fits.optima[width]
    tried = sweep.x / OCTAVE
    near = find_neighbourhood(sweep)
    enough = near.bracketed and np.isfinite(optimum)
    enough = enough and len(fits.points(width)) >= FEWEST_POINTS

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
    room = most - len(tried)
    if room <= 0:
        said = f"standard error {error:.2g} octaves" if enough else say_no_minimum(near)
        return answer("stopped", f"{said} after {len(tried)} learning rates")
    places, reason = expand_bracket(tried, near, rule)
    if not places and near.bracketed:
        places, reason = refine_bracket(tried, near, rule), "the bracket is narrowed"
    if not places and near.bracketed:
        places = c_optimal_point(width, near, fits, rule)
        reason = f"standard error {error:.2g} octaves"
    fresh = [place for place in places if not is_near(place, tried, rule)]
    if not fresh:
        said = f"standard error {error:.2g} octaves" if enough else say_no_minimum(near)
        return answer("stopped", f"{said}, and no learning rate left would tell more")
    return answer("search", reason, sorted(fresh[:room]))


def _place_for_regret(
    table: LossTable,
    cells: Cells,
    fits: OptimumFit,
    found: Sequence[WidthSearch],
    costs: Mapping[float, float],
    rule: SearchRule,
) -> tuple[WidthSearch, ...]:
    """Return the widths' states with points where they lower the regret at the target most.

    Parameters
    ----------
    table, cells, fits
        Finished trials of one group, and what the search sees of them.
    found : sequence of WidthSearch
        Every width's state; none of them searches.
    costs : mapping of float to float
        What a trial costs at each width.
    rule : SearchRule
        Target width, bound of the regret and budget.

    Returns
    -------
    tuple of WidthSearch
        As `found` where no width has a minimum.
    """
    minima = _find_minima(cells)
    if not minima.found.any():
        return tuple(found)
    target = rule.target_width or TARGET * max(costs)
    prior = find_prior(table, np.arange(len(table)))
    curvature = float(minima.curvature[minima.found][-1])

    def bound_regret(variance: Floats) -> float:
        """Return the regret at the target that is exceeded with probability 10 % at most."""
        known = Known.of(minima)._replace(variance=variance)
        where = forecast(known, target, prior=prior).where
        return where.bound(where.mean, curvature)

    bound = bound_regret(minima.variance)
    least = bound_regret(np.full(len(minima.size), SMALLEST_VARIANCE))
    said = f"regret at width {target:g} at most {bound:.2g} nats with 90 % confidence"
    if bound <= rule.regret:
        return tuple(_done(each, said) for each in found)
    if bound - least < HARDLY * bound:
        return tuple(_done(each, f"{said}, which more trials would hardly lower") for each in found)
    gains = _weigh(minima, bound, bound_regret, costs, fits, rule)
    out = list(found)
    spent = sum(costs[width] * len(sweep.x) for width, sweep in fits.sweeps.items())
    num = sum(len(sweep.x) for sweep in fits.sweeps.values())
    best = 0.0
    for width, gain in sorted(gains.items(), key=lambda item: -item[1]):
        fits_budget = spent + costs[width] <= rule.max_points * sum(costs.values()) * (1 + 1e-9)
        full = len(fits.sweeps[width].x) + 1 > MOST_POINTS * rule.max_points
        if full or not fits_budget or num + 1 > rule.max_points * len(costs):
            continue
        if gain < WORTH * best:
            break
        near = find_neighbourhood(fits.sweeps[width])
        places = c_optimal_point(width, near, fits, rule) if near.bracketed else ()
        if not places:
            continue
        best = max(best, gain)
        spent, num = spent + costs[width], num + 1
        place = next(k for k, each in enumerate(out) if each.width == width)
        out[place] = replace(out[place], state="search", points=places, reason=said)
    if best == 0.0:
        return tuple(_done(each, f"{said}, and no trial left would lower it") for each in found)
    return tuple(out)


def _weigh(
    minima: Minima,
    bound: float,
    bound_regret: Callable[[Floats], float],
    costs: Mapping[float, float],
    fits: OptimumFit,
    rule: SearchRule,
) -> dict[float, float]:
    """Return how far a point at each width lowers the bound, for its share of the budgets.

    The budget is one of compute and one of points: a point's price is its share of both.
    """
    gains = {}
    for place, width in enumerate(minima.size.tolist()):
        if not minima.found[place] or width not in costs:
            continue
        num = len(fits.sweeps[width].x)
        variance = minima.variance.copy()
        variance[place] *= num / (num + 1.0)
        price = costs[width] / sum(costs.values()) + 1.0 / len(costs)
        gain = bound - bound_regret(variance)
        # A variance at its floor still has a price: the first of equals is the cheapest.
        gains[width] = max(gain, 1e-12) / (price / rule.max_points)
    return gains


def _find_minima(cells: Cells) -> Minima:
    (noise,) = measure_noise([cells])
    count = np.maximum(cells.count, 1).astype(np.float64)
    variance = noise.sigma**2 / count if noise.known else None
    return find_minima(cells.width, cells.x, cells.mean, count, variance=variance)


def _done(each: WidthSearch, reason: str) -> WidthSearch:
    return each if each.state == "stopped" else replace(each, state="done", reason=reason)
