"""Place learning rates where they lower the regret at the target width most for what they cost.

Once every width has a bracketed minimum, the optimum at the target is forecast from the minima by
the law that recommends learning rates. A point at a width makes its minimum's variance smaller,
and with it the bound of the regret; the search adds points at the widths where the bound falls
most for a point's share of the budget, and ends where it is met, or more would hardly lower it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from hptransfer.search.next_points import OptimumFit, c_optimal_point
from hptransfer.search.search_rule import MOST_POINTS, SearchRule
from hptransfer.search.width_search import WidthSearch
from hptransfer.stats.cells import Cells, Floats
from hptransfer.stats.fit_window import find_neighbourhood
from hptransfer.stats.loss_table import LossTable
from hptransfer.stats.minima import Minima, find_minima
from hptransfer.stats.optimum_law import SMALLEST_VARIANCE, Mixture, forecast
from hptransfer.stats.priors import PRIORS, Prior, classify
from hptransfer.stats.seed_noise import measure_noise

#: A round has points at all widths at which they are worth this share of the best one's gain.
WORTH = 0.5
#: The search ends where minima known to `SMALLEST_VARIANCE` would lower the bound by less than
#: this share: what is left is the law's own, not the trials'.
HARDLY = 0.1


def place_for_regret(
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
    prior = _find_prior(table)
    bound = bound_regret(minima, target, prior, minima.variance)
    least = bound_regret(minima, target, prior, np.full(len(minima.size), SMALLEST_VARIANCE))
    said = f"regret at width {target:g} at most {bound:.2g} nats with 90 % confidence"
    if bound <= rule.regret:
        return tuple(_done(each, said) for each in found)
    if bound - least < HARDLY * bound:
        return tuple(_done(each, f"{said}, which more trials would hardly lower") for each in found)
    gains = _weigh(minima, target, prior, bound, costs, fits, rule)
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


#: The target where none is named, as a multiple of the widest width.
TARGET = 4.0


def bound_regret(minima: Minima, target: float, prior: Prior, variance: Floats) -> float:
    """Return the regret at a width that is exceeded with probability 10 % at most, in nats.

    Parameters
    ----------
    minima : Minima
        At least one width has one.
    target : float
        The width.
    prior : Prior
        What is known of this kind of sweep.
    variance : ndarray, shape (W,)
        The minima's variances, in (ln lr)².
    """
    last = int(np.flatnonzero(minima.found)[-1])
    where = locate(minima, target, prior, variance)
    return where.bound(where.mean, float(minima.curvature[last]))


def locate(minima: Minima, target: float, prior: Prior, variance: Floats) -> Mixture:
    """Return where ln(lr*) lies at a width."""
    return forecast(
        minima.size,
        minima.x,
        variance,
        target,
        prior=prior,
        low=minima.low,
        high=minima.high,
    ).where


def _weigh(
    minima: Minima,
    target: float,
    prior: Prior,
    bound: float,
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
        gain = bound - bound_regret(minima, target, prior, variance)
        # A variance at its floor still has a price: the first of equals is the cheapest.
        gains[width] = max(gain, 1e-12) / (price / rule.max_points)
    return gains


def _find_minima(cells: Cells) -> Minima:
    (noise,) = measure_noise([cells])
    count = np.maximum(cells.count, 1).astype(np.float64)
    variance = noise.sigma**2 / count if noise.known else None
    return find_minima(cells.width, cells.x, cells.mean, count, variance=variance)


def _find_prior(table: LossTable) -> Prior:
    names = table.groups.get("parameterization")
    name = None if names is None or len(names) == 0 else str(names[0])
    return PRIORS[classify("width", table.axis, name)]


def _done(each: WidthSearch, reason: str) -> WidthSearch:
    return each if each.state == "stopped" else replace(each, state="done", reason=reason)
