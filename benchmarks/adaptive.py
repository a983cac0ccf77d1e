"""Adaptive learning rates against full grids: the same regret at the target for less compute?

Replays recorded sweeps: the search asks for points at all widths but the widest, the recorded table
answers, and the learning rate recommended for the widest is priced by what was recorded there. Its
budget is a third of the full grid's compute, or four learning rates a width.

    python benchmarks/adaptive.py studies/recorded/*.csv [--data DIR] [-o FILE]
"""

import argparse
import csv
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hptransfer.search import SearchRule, WidthSearch, search_optima
from hptransfer.search._search_rule import FEWEST_POINTS
from hptransfer.stats import LossTable, fit_table
from hptransfer.stats.loss_table import build_cells
from hptransfer.stats.minima import find_minima
from sweeps import LOADERS, Group, load_study, read_rows, select

#: Step of the lattice that grids are compared on, in octaves.
STEP = 0.5
#: A grid counts as full from this many learning rates at each width.
FEWEST_RATES = 9
#: Tables of --data whose learning rates are half an octave apart or closer.
DENSE = ("mup_mlp_sgd.csv", "steplaw_dense.csv")
#: Share of the full grid's compute that a search may take.
BUDGET = 1 / 3


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A full grid, and perhaps steps half as wide, with a trial's cost by width.

    `grid` marks the full grid's trials; the search may ask for the others too.
    """

    name: str
    table: LossTable
    step: float
    grid: NDArray[np.bool_]
    costs: Mapping[float, float]


def sweep_of(group: Group, costs: Mapping[float, float]) -> Sweep | None:
    """Put a group on a lattice; None where its grid is not dense enough to count as full."""
    table = group.losses
    exponents = np.round(np.log2(table.lr), 3)
    by_width = [set(exponents[table.width == width].tolist()) for width in costs]
    places = sorted(set.intersection(*by_width))
    if len(places) < FEWEST_RATES or len(costs) < 3:
        return None
    step = float(np.min(np.diff(places)))
    grid_step = STEP if abs(step - 0.5 * STEP) < 0.01 else step
    if step > STEP + 0.01 or np.max(np.diff(places)) > STEP + 0.01:
        return None
    shared = np.isin(exponents, places)
    table, exponents = select(table, shared), exponents[shared]
    # Fits are equivariant to shifts of ln(lr): the lowest rate becomes a lattice point.
    moved = np.round((exponents - places[0]) / step) * step
    grid = np.isclose(moved / grid_step, np.round(moved / grid_step), atol=0.02)
    table = LossTable(
        width=table.width, lr=2.0**moved, loss=table.loss, seed=table.seed, source=table.source
    )
    return Sweep(name=f"{group.table} {group.name}", table=table, step=step, grid=grid, costs=costs)


def load_recorded(path: Path) -> Iterator[Sweep]:
    """Every parameterization of a recorded table, which says what a trial of a width costs."""
    with path.open(newline="", encoding="utf-8") as file:
        costs = {float(row["width"]): float(row["flops"]) for row in csv.DictReader(file)}
    for group in load_study(path):
        named = Group(table=path.stem, name=group.name, losses=group.losses, widths=group.widths)
        if (sweep := sweep_of(named, costs)) is not None:
            yield sweep


def load_public(folder: Path) -> Iterator[Sweep]:
    """Dense tables of others; a trial's cost grows as the square of the width or size."""
    for name in DENSE:
        for group in LOADERS[name](read_rows(folder / name)):
            costs = {float(w): float(w) ** 2 for w in np.unique(group.losses.width)}
            if (sweep := sweep_of(group, costs)) is not None:
                yield sweep


def replay(sweep: Sweep, rule: SearchRule) -> tuple[NDArray[np.bool_], tuple[WidthSearch, ...]]:
    """Let the search ask until it is done; return which trials it asked for, and its ends."""
    table = sweep.table
    place = np.round(np.log2(table.lr) / rule.step).astype(np.int64)
    known = np.zeros(len(table), dtype=bool)
    while True:
        found = search_optima(select(table, known) if known.any() else None, sweep.costs, rule)
        asked = [(each.width, point) for each in found for point in each.points]
        if not asked:
            return known, found
        for width, point in asked:
            # What was not recorded is answered by the nearest rate that was.
            left = (table.width == width) & ~known
            if not left.any():
                raise SystemExit(f"{sweep.name}: width {width:g} has no rate left to give")
            places = place[left]
            nearest = places[np.argmin(np.abs(places - round(point / rule.step)))]
            known |= left & (place == nearest)


def leave_widest(sweep: Sweep) -> tuple[Sweep, float]:
    """Return the sweep less its widest width, and that width."""
    target = max(sweep.costs)
    kept = sweep.table.width < target
    costs = {width: cost for width, cost in sweep.costs.items() if width < target}
    proxies = replace(sweep, table=select(sweep.table, kept), grid=sweep.grid[kept], costs=costs)
    return proxies, target


def price(sweep: Sweep, part: LossTable, target: float) -> float:
    """Return the regret in nats, by the recorded losses, of what trials recommend at a width."""
    [answer] = fit_table(part).recommend(width=target)
    if answer.lr.value is None:
        return float("nan")
    cells = build_cells(sweep.table)
    minima = find_minima(cells.width, cells.x, cells.mean, cells.count.astype(np.float64))
    [place] = np.flatnonzero(minima.size == target)
    return float(minima.rise(int(place), np.log(answer.lr.value)))


def compare(sweep: Sweep) -> dict[str, str | float]:
    """Replay one sweep and set it beside its full grid."""
    proxies, target = leave_widest(sweep)
    table, whole = proxies.table, select(proxies.table, proxies.grid)
    ends = float(np.log2(table.lr.min())), float(np.log2(table.lr.max()))
    rates = len(np.unique(whole.lr))
    rule = SearchRule(
        step=sweep.step,
        log2_lr=ends,
        limits=ends,
        max_points=max(BUDGET * rates, FEWEST_POINTS),
        target_width=target,
    )
    known, ended = replay(proxies, rule)
    cost = np.array([proxies.costs[width] for width in table.width])
    return {
        "sweep": sweep.name,
        "proxies": len(proxies.costs),
        "target": f"{target / max(proxies.costs):.3g}x",
        "lrs": rates,
        "asked": "+".join(str(each.num_points) for each in ended),
        "compute": float(cost[known].sum() / cost[proxies.grid].sum()),
        "trials": float(np.sum(known) / np.sum(proxies.grid)),
        "regret grid": price(sweep, whole, target),
        "regret search": price(sweep, select(table, known), target),
    }


def main() -> None:
    """Replay every sweep and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "tables", type=Path, nargs="*", help="recorded tables, or study directories"
    )
    parser.add_argument("--data", type=Path, help="the folder of public sweeps")
    parser.add_argument("-o", "--output", type=Path, help="also write the table here")
    args = parser.parse_args()
    sweeps = [sweep for path in args.tables for sweep in load_recorded(path)]
    if args.data:
        sweeps += load_public(args.data)
    rows = [compare(sweep) for sweep in sweeps]
    if not rows:
        raise SystemExit("no sweep is dense enough")
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    for row in rows:
        cells = (f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values())
        lines.append("| " + " | ".join(cells) + " |")
    compute, grid, search = (
        np.array([float(row[name]) for row in rows])
        for name in ("compute", "regret grid", "regret search")
    )
    lines += [
        "",
        f"{len(rows)} sweeps: compute median {np.median(compute):.2f} of the grid's (largest "
        f"{compute.max():.2f}); regret mean {np.nanmean(search):.4f} nats (the grid's "
        f"{np.nanmean(grid):.4f}), median {np.nanmedian(search):.4f} ({np.nanmedian(grid):.4f}).",
        f"No more regret than the grid, or at most 0.001 nats more: "
        f"{int(np.sum(search <= grid + 0.001))}.",
    ]
    text = "\n".join(lines) + "\n"
    sys.stdout.write(text)
    if args.output:
        args.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
