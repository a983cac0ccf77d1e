"""Adaptive learning rates against full grids on synthetic basins, whose minima are known.

Three widths, two seeds, 13 learning rates at half-octave steps in the grid; a search has half the
grid's compute, quarter-octave steps, and the grid's own standard error as its target. Printed are
root mean square errors against the true minima, which no estimate of noise enters.

    python benchmarks/adaptive_truth.py [--draws N]
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hptransfer.search._next_points import OCTAVE, fit_optima
from hptransfer.search._search_rule import SearchRule
from hptransfer.search.optimum_search import search_optima
from hptransfer.stats import LossTable
from hptransfer.stats.loss_table import build_cells

WIDTHS = (32.0, 64.0, 128.0)
COSTS = {width: (width / WIDTHS[-1]) ** 1.6 for width in WIDTHS}
NUM_RATES = 13
NUM_SEEDS = 2
NOISE = 0.004
#: A seed's effect on all learning rates of a width, in nats: it moves no minimum.
SHARED = 0.02

Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Basin:
    """A basin's shape: curvature in nats, skew, and what lies right of the minimum, in ln(lr).

    From `edge` on seeds end up to `kick` nats per ln(lr) higher; beyond `cliff` they diverge.
    """

    curvature: float
    skew: float = 0.0
    edge: float = np.inf
    kick: float = 0.0
    cliff: float = np.inf


BASINS = {
    "even": Basin(curvature=0.15),
    "lopsided": Basin(curvature=0.25, skew=0.25),
    "unstable on the right": Basin(curvature=0.25, skew=0.1, edge=0.8, kick=0.4),
    "diverging on the right": Basin(curvature=0.25, skew=0.15, cliff=1.0),
}


@dataclass(frozen=True, kw_only=True)
class Truth:
    """One draw: log2(lr*), the shift of the edge and the seeds' effects, by width."""

    minima: Mapping[float, float]
    edges: Mapping[float, float]
    seeds: Mapping[float, Sequence[float]]
    number: int


def draw_truth(number: int) -> tuple[Truth, list[Point]]:
    """Draw minima around a drift, and a grid that knows nothing of them."""
    rng = np.random.default_rng(1000 + number)
    truth = Truth(
        minima={w: -5 - 0.4 * np.log2(w / WIDTHS[0]) + rng.uniform(-0.3, 0.3) for w in WIDTHS},
        edges={w: rng.uniform(-0.25, 0.25) for w in WIDTHS},
        seeds={w: SHARED * rng.standard_normal(NUM_SEEDS) for w in WIDTHS},
        number=number,
    )
    first = -8.0 + round(4 * rng.uniform(0, 0.5)) / 4
    return truth, [(w, first + 0.5 * k) for w in WIDTHS for k in range(NUM_RATES)]


def measure(points: Sequence[Point], basin: Basin, truth: Truth) -> LossTable:
    """Train: a trial's noise depends on where it is, not on when."""
    rows = []
    for width, place in points:
        u = (place - truth.minima[width]) * OCTAVE
        rise = 0.5 * basin.curvature * (u**2 + basin.skew * u**3) / (1 + u**2 / 30)
        beyond = u - basin.edge - truth.edges[width]
        for seed in range(NUM_SEEDS):
            rng = np.random.default_rng(
                [int(width), round(place * 100) + 10_000, seed, truth.number]
            )
            own, kicked = rng.standard_normal(2)
            loss = 4 + 4 * width**-0.5 + rise + truth.seeds[width][seed] + NOISE * own
            if beyond > 0:
                loss += basin.kick * (1 + abs(kicked)) * (beyond + 0.2)
            rows.append((width, 2.0**place, np.nan if u > basin.cliff else loss, seed))
    width, lr, loss, seed = (np.array(column) for column in zip(*rows, strict=True))
    return LossTable(width=width, lr=lr, loss=loss, seed=seed.astype(np.int64))


def search(basin: Basin, truth: Truth, rule: SearchRule) -> list[Point]:
    """Return what a search asked for until it was done."""
    points: list[Point] = []
    while True:
        table = measure(points, basin, truth) if points else None
        found = search_optima(table, COSTS, rule)
        asked = [(each.width, place) for each in found for place in each.points]
        if not asked:
            return points
        points += asked


def compare(basin: Basin, draws: int) -> tuple[float, float, float, float, float]:
    """Return the grid's error, the search's over it, in all and at the widest, and its compute."""
    errors: dict[str, list[list[float]]] = {"grid": [], "search": []}
    shares = []
    for number in range(draws):
        truth, grid = draw_truth(number)
        full = fit_optima(build_cells(measure(grid, basin, truth))).optima
        target = float(np.sqrt(np.mean([e**2 for _, e in full.values() if np.isfinite(e)])))
        rule = SearchRule(
            step=0.25,
            log2_lr=(-8.0, -2.0),
            limits=(-14.0, 4.0),
            error=target,
            max_points=0.5 * NUM_RATES,
            stop="optima",
        )
        points = search(basin, truth, rule)
        part = fit_optima(build_cells(measure(points, basin, truth))).optima
        for name, found in (("grid", full), ("search", part)):
            errors[name].append([found[w][0] - truth.minima[w] for w in WIDTHS])
        shares.append(sum(COSTS[w] for w, _ in points) / sum(COSTS[w] for w, _ in grid))
    mean = {name: np.sqrt(np.nanmean(np.square(each), axis=0)) for name, each in errors.items()}
    whole = {name: float(np.sqrt(np.mean(each**2))) for name, each in mean.items()}
    return (
        whole["grid"],
        whole["search"] / whole["grid"],
        float(mean["search"][-1] / mean["grid"][-1]),
        float(np.mean(shares)),
        max(shares),
    )


def main() -> None:
    """Print a table of the basins."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=60)
    args = parser.parse_args()
    print("| basin | error of the grid, octaves | ratio | at widest | compute | most compute |")
    print("|---|---|---|---|---|---|")
    for name, basin in BASINS.items():
        cells = (f"{value:.3f}" for value in compare(basin, args.draws))
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
