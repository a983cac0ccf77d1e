"""Adaptive learning rates against full grids: equal standard errors for how much less compute?

Replays recorded sweeps: the search asks for points, the recorded table answers, and what it asked
for is fitted like the full grid. Its target is the full grid's own standard error, its budget half
the grid's compute.

    python benchmarks/adaptive.py studies/recorded/*.csv [--data DIR] [-o FILE]
"""

import argparse
import csv
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hptransfer.search.next_points import fit_optima
from hptransfer.search.optimum_search import WidthSearch, search_optima
from hptransfer.search.search_rule import SearchRule
from hptransfer.stats import LossTable, fit_table
from hptransfer.stats.cells import build_cells
from sweeps import LOADERS, Group, load_study, read_rows, select

#: Step of the lattice that grids are compared on, in octaves.
STEP = 0.5
#: A grid counts as full from this many learning rates at each width.
FEWEST_RATES = 9
#: Tables of --data whose learning rates are half an octave apart or closer.
DENSE = ("mup_mlp_sgd.csv", "steplaw_dense.csv")
#: Share of the full grid's compute that a search may take.
BUDGET = 0.5
#: Reading an estimate's 90 % interval as a normal's.
INTERVAL = 2.0 * 1.645 * float(np.log(2.0))


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


def optima(table: LossTable) -> dict[float, tuple[float, float]]:
    """Return log2(lr*) and its standard error by width."""
    return fit_optima(build_cells(table)).optima


def design_error(table: LossTable, minima: Mapping[float, float]) -> float:
    """Return the root mean variance of the minima from where points lie, for unit noise.

    Parabolas with a cubic term in common, at the widths and minima (log2(lr*)) of the full grid:
    what a table could tell if noise were known and equal at all of its points.
    """
    fits = fit_optima(build_cells(table)).basins.fits
    widths = [width for width in minima if width in fits]
    design = np.zeros((sum(len(fits[w].x) for w in widths), 3 * len(widths) + 1))
    row = 0
    for place, width in enumerate(widths):
        u = fits[width].x / np.log(2.0) - minima[width]
        rows = slice(row, row + len(u))
        design[rows, 3 * place : 3 * place + 3] = np.vander(u, 3, increasing=True)
        design[rows, -1] = u**3
        row += len(u)
    covariance = np.linalg.pinv(design.T @ design, hermitian=True)
    return float(np.sqrt(np.mean(np.diag(covariance)[1:-1:3])))


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


def error_beyond(table: LossTable) -> float:
    """Return the standard error of log2(lr*) at twice the widest width; NaN without one."""
    [answer] = fit_table(table).recommend(width=2.0 * float(table.width.max()))
    if answer.lr.low is None or answer.lr.high is None:
        return float("nan")
    return float(np.log(answer.lr.high / answer.lr.low)) / INTERVAL


def mean_square(errors: Sequence[float]) -> float:
    """Return the root mean square of the finite errors."""
    finite = [error for error in errors if np.isfinite(error)]
    return float(np.sqrt(np.mean(np.square(finite)))) if finite else float("nan")


def compare(sweep: Sweep) -> dict[str, str | float]:
    """Replay one sweep and set it beside its full grid."""
    table, whole = sweep.table, select(sweep.table, sweep.grid)
    full = optima(whole)
    ends = float(np.log2(table.lr.min())), float(np.log2(table.lr.max()))
    known_widths = [w for w, (_, error) in full.items() if np.isfinite(error)]
    middles = {w: full[w][0] for w in known_widths}
    target = mean_square([full[w][1] for w in known_widths])
    rates = len(np.unique(whole.lr))
    rule = SearchRule(
        step=sweep.step,
        log2_lr=ends,
        limits=ends,
        error=target,
        max_points=BUDGET * rates,
        stop="optima",
    )
    known, ended = replay(sweep, rule)
    part = select(table, known)
    found = optima(part)
    cost = np.array([sweep.costs[w] for w in table.width])
    counts = [str(each.num_points) for each in ended]
    lost = sum(not np.isfinite(found.get(w, (0.0, np.inf))[1]) for w in known_widths)
    adaptive = mean_square([found[w][1] for w in known_widths if w in found])
    moved = [abs(found[w][0] - full[w][0]) for w in known_widths if w in found]
    beyond_full, beyond = error_beyond(whole), error_beyond(part)
    return {
        "sweep": sweep.name,
        "widths": len(sweep.costs),
        "lrs": rates,
        "asked": "+".join(counts),
        "compute": float(cost[known].sum() / cost[sweep.grid].sum()),
        "SE grid": target,
        "SE adaptive": adaptive,
        "ratio": adaptive / target,
        "at widest": found[known_widths[-1]][1] / full[known_widths[-1]][1],
        "by design": design_error(part, middles) / design_error(whole, middles),
        "lost": lost,
        "moved": float(np.max(moved)) if moved else float("nan"),
        "SE at 2x, grid": beyond_full,
        "SE at 2x, adaptive": beyond,
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
    compute = [float(row["compute"]) for row in rows]
    ratio = [float(row["ratio"]) for row in rows]
    both = sum(c <= 0.5 and r <= 1.0 for c, r in zip(compute, ratio, strict=True))
    near = sum(c <= 0.5 and r <= 1.1 for c, r in zip(compute, ratio, strict=True))
    lines += [
        "",
        f"{len(rows)} sweeps: compute median {np.median(compute):.2f} of the grid's (largest "
        f"{max(compute):.2f}); standard errors median {np.median(ratio):.2f} of the grid's "
        f"(largest {max(ratio):.2f}).",
        f"At most half the compute and no larger error: {both}; error within 10 %: {near}.",
    ]
    text = "\n".join(lines) + "\n"
    sys.stdout.write(text)
    if args.output:
        args.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
