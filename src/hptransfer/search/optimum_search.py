"""Where to measure next: learning rates placed in rounds from what finished trials tell.

A pure function from a loss table to new (width, lr) points. Widths are searched in ascending
order: the narrowest from a coarse bracket, each wider one around the optimum that the narrower
ones predict. At one width the search brackets the minimum, narrows the bracket, and then adds the
points that lower the variance of the minimum most, until its standard error is below a target.

All learning rates lie on a lattice, whole multiples of a step in log2(lr). Units of this module
are octaves, log2(lr), where a name says nothing else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from hptransfer.search.next_points import (
    OCTAVE,
    OptimumFit,
    c_optimal_point,
    expand_bracket,
    extrapolate,
    fit_optima,
    initial_points,
    is_near,
    refine_bracket,
    say_no_minimum,
    warm_start_points,
)
from hptransfer.search.regret_search import place_for_regret
from hptransfer.search.search_rule import FEWEST_POINTS, MOST_POINTS, SearchRule
from hptransfer.search.width_search import State, WidthSearch
from hptransfer.stats.cells import build_cells
from hptransfer.stats.fit_window import find_neighbourhood
from hptransfer.stats.loss_table import LossTable


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

    Notes
    -----
    Equal tables give equal points: the only randomness is the fits' own, of fixed seed.
    """
    ordered = sorted(map(float, costs))
    prices = [costs[width] for width in ordered]
    if table is None or len(table) == 0:
        return (_start(ordered[0], rule, rule.points_for_width(prices)),)
    cells = build_cells(table)
    fits = fit_optima(cells)
    for_regret, whole = rule.stop == "regret", rule
    if for_regret:
        rule = replace(rule, error=float("inf"))
    found: list[WidthSearch] = []
    spent, left = 0.0, _left_over(costs, fits, rule)
    left_points = int(_left_over(dict.fromkeys(costs, 1.0), fits, rule))
    for done, width in enumerate(ordered):
        known = [each for each in found if np.isfinite(each.optimum)]
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
        elif known:
            found.append(_enter(width, known, rule))
        elif not found:
            found.append(_start(width, rule, rule.points_for_width(prices)))
        else:
            reason = "no narrower width tells where its optimum may be"
            found.append(WidthSearch(width=width, state="stopped", reason=reason))
        if found[-1].state == "search":
            return tuple(found)
    return place_for_regret(table, cells, fits, found, costs, whole) if for_regret else tuple(found)


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
        points=warm_start_points(place, rule),
        reason=f"the narrower widths predict an optimum at 2^{place:.2f}",
    )


def _search_width(width: float, fits: OptimumFit, rule: SearchRule, most: int) -> WidthSearch:
    """Judge a width that has been measured, and place its next points: `most` in all."""
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
