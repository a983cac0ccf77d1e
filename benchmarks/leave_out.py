"""Leave out the larger sizes of real tables, predict them, and print what that cost.

    python benchmarks/leave_out.py --data DIR [--study TABLE ...] [--priors left-out|shipped|none]
        [--unseen TABLE ...]

A task: the sizes of a sweep up to one of them predict a larger size whose minimum was measured.
Regret is the measured loss at the predicted rate above that minimum, against that of keeping the
widest size's rate (`same`). Priors are re-estimated without the task's own family by default.
The interval of a mean's ratio comes from drawing families with replacement. Tables of `--unseen`
are predicted by priors of other people's sweeps alone, and each is a family.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from axes import print_axes
from hptransfer.stats import build_cells
from hptransfer.stats._axes_fit import PARAMETERS_SLOPE, Places, fit_axes_law
from hptransfer.stats.loss_table import Cells
from hptransfer.stats.minima import Minima
from hptransfer.stats.optimum_law import Floats, Known, Mixture, forecast
from hptransfer.stats.priors import NO_PRIOR, PRIORS, Prior
from priors import Sweep, estimate_priors, load_sweeps

OCTAVE = float(np.log(2.0))
#: Regrets above this, in nats, count as this in the capped mean.
CAP = 0.02
#: Chance of both tails of every interval.
TAIL = 0.05
#: Families of this project.
OWN = ("h100", "ours")
PriorOf = Callable[[Sweep], Prior]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One task: how many sizes predicted which, and what came of it, in nats and octaves."""

    family: str
    name: str
    kind: str
    num_sizes: int
    reach: float
    step: int
    error: float
    half_width: float
    inside: bool
    regret: float
    same: float
    bound: float
    forms: Mapping[str, float]


def price(cells: Cells, truth: Minima, place: int, x: float) -> float:
    """Loss at x above the minimum of size number `place`, in nats.

    On the basin within an octave of its minimum, between measured means beyond, and on the
    higher of basin and last mean where nothing was measured. A rate at which trials diverged, or
    beyond one, costs a nat.
    """
    basin = float(truth.rise(place, x))
    if abs(x - truth.x[place]) <= OCTAVE:
        return basin
    rows = cells.at(float(truth.size[place]))
    at, mean = cells.x[rows], cells.mean[rows]
    broken = at[~np.isfinite(mean) & (at > truth.x[place])]
    if len(broken) and x >= broken.min():
        return 1.0
    clean = np.isfinite(mean)
    measured = float(np.interp(x, at[clean], mean[clean])) - float(truth.loss[place])
    outside = not at[clean][0] <= x <= at[clean][-1]
    return max(measured, basin) if outside else max(measured, 0.0)


def answer(
    sweep: Sweep, known: Minima, target: float, prior: Prior
) -> tuple[Mixture, Mapping[str, float]]:
    """Forecast the minimum at `target`; over tokens at a known batch, by the law of three axes."""
    if sweep.group.held is None:
        found = forecast(Known.of(known), target, prior=prior)
        return found.where, found.forms
    size, batch = np.log(sweep.group.held)
    ok = known.found

    def place(tokens: Floats) -> Places:
        same = np.ones(len(tokens))
        return Places(size=size * same, tokens=np.log(tokens), batch=batch * same)

    law = fit_axes_law(
        place(known.size[ok]), known.x[ok], known.variance[ok], slope=PARAMETERS_SLOPE
    )
    [where] = law.forecast(place(np.array([target])))
    return where, dict.fromkeys(law.fits, 1.0 / len(law.fits))


def run_sweep(sweep: Sweep, prior: Prior) -> Iterator[Outcome]:
    """Predict every larger size with a minimum from every two sizes or more with one."""
    cells = build_cells(sweep.group.losses)
    truth = sweep.minima()
    for last in truth.size[truth.found]:
        known = sweep.minima(float(last))
        ok = known.found
        if ok.sum() < 2 or not ok[-1]:
            continue
        larger = np.flatnonzero(truth.found & (truth.size > last))
        for step, place in enumerate(larger, start=1):
            target = float(truth.size[place])
            where, forms = answer(sweep, known, target, prior)
            x, low, high = where.mean, where.quantile(TAIL), where.quantile(1.0 - TAIL)
            yield Outcome(
                family=sweep.family,
                name=sweep.name,
                kind=sweep.kind,
                num_sizes=int(ok.sum()),
                reach=target / float(last),
                step=step,
                error=(x - float(truth.x[place])) / OCTAVE,
                half_width=0.5 * (high - low) / OCTAVE,
                inside=low <= truth.x[place] <= high,
                regret=price(cells, truth, int(place), x),
                same=price(cells, truth, int(place), float(known.x[-1])),
                bound=where.bound(x, float(known.curvature[-1])),
                forms=forms,
            )


def priors_left_out(sweeps: Sequence[Sweep]) -> PriorOf:
    """Return each sweep's prior from all families but its own."""
    families = {sweep.family for sweep in sweeps}
    each = {family: estimate_priors(sweeps, family) for family in families}
    return lambda sweep: sweep.prior(each[sweep.family])


def run_unseen(sweeps: Sequence[Sweep], tables: Sequence[Path]) -> list[Outcome]:
    """Predict this project's own tables by priors of the sweeps of others."""
    priors = estimate_priors(sweep for sweep in sweeps if sweep.family not in OWN)
    unseen = (replace(s, family=s.group.name.split()[0]) for s in load_sweeps(None, tables))
    return [o for sweep in unseen for o in run_sweep(sweep, sweep.prior(priors))]


#: Name of a slice of the tasks, and which outcomes belong to it.
SLICES: dict[str, Callable[[Outcome], bool]] = {
    "three sizes or more": lambda o: o.kind != "tokens" and o.num_sizes >= 3,
    "next size, from four sizes": lambda o: o.kind != "tokens" and o.num_sizes >= 4 and o.step == 1,
    "three or more, reach >= 3.9": lambda o: (
        o.kind != "tokens" and o.num_sizes >= 3 and o.reach >= 3.9
    ),
    "two sizes": lambda o: o.kind != "tokens" and o.num_sizes == 2,
    "tokens": lambda o: o.kind == "tokens",
    "tokens, three or more": lambda o: o.kind == "tokens" and o.num_sizes >= 3,
}


def summarise(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Return the numbers of the table for some outcomes."""
    regret = np.array([o.regret for o in outcomes])
    same = np.array([o.same for o in outcomes])
    families = np.array([o.family for o in outcomes])
    names = np.unique(families)
    rng = np.random.default_rng(0)
    sums = np.array([[v[families == f].sum() for f in names] for v in (regret, same)])
    drawn = sums[:, rng.integers(0, len(names), (2000, len(names)))].sum(axis=2)
    ratios = drawn[0] / drawn[1]
    return {
        "tasks": len(outcomes),
        "families": len(names),
        "median": float(np.median(regret) / np.median(same)),
        "mean": float(regret.mean() / same.mean()),
        "low": float(np.quantile(ratios, TAIL)),
        "high": float(np.quantile(ratios, 1.0 - TAIL)),
        "capped": float(np.minimum(regret, CAP).mean() / np.minimum(same, CAP).mean()),
        "inside": float(np.mean([o.inside for o in outcomes])),
        "half": float(np.median([o.half_width for o in outcomes])),
        "bound": float(np.mean([o.regret <= o.bound for o in outcomes])),
        "rms": float(np.sqrt(np.mean([o.error**2 for o in outcomes]))),
    }


def print_slices(outcomes: Sequence[Outcome]) -> None:
    """Print one row for each slice, and for each family in it where there are several."""
    print(
        "| tasks | n | median | mean [90 %] | capped | holds lr* | half-width | bound holds | rms |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name, chosen in SLICES.items():
        members = [o for o in outcomes if chosen(o)]
        if not members:
            continue
        families = list(dict.fromkeys(o.family for o in members))
        print_row(name, members)
        for family in families if len(families) > 1 else ():
            print_row(f"- {family}", [o for o in members if o.family == family])


def print_row(name: str, outcomes: Sequence[Outcome]) -> None:
    """Print one row of `print_slices`."""
    s = summarise(outcomes)
    ends = f" [{s['low']:.2f}, {s['high']:.2f}]" if s["families"] > 1 else ""
    print(
        f"| {name} | {s['tasks']:.0f} | {s['median']:.2f} | {s['mean']:.2f}{ends} | "
        f"{s['capped']:.2f} | {s['inside']:.2f} | {s['half']:.2f} | {s['bound']:.2f} | "
        f"{s['rms']:.2f} |"
    )


def print_tasks(outcomes: Iterable[Outcome]) -> None:
    """Print every task."""
    for o in outcomes:
        forms = " ".join(f"{name} {weight:.2f}" for name, weight in o.forms.items())
        print(
            f"{o.name}: {o.num_sizes} sizes, {o.reach:.3g}x: off by {o.error:+.2f} octaves "
            f"(± {o.half_width:.2f}), {o.regret:.4f} nats (at most {o.bound:.4f}), same "
            f"{o.same:.4f}; {forms}"
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of the sweep files")
    parser.add_argument("--study", type=Path, nargs="*", default=[], help="recorded tables to add")
    parser.add_argument("--unseen", type=Path, nargs="*", default=[], help="own tables to predict")
    parser.add_argument("--priors", choices=("left-out", "shipped", "none"), default="left-out")
    parser.add_argument("--tasks", action="store_true", help="print every task too")
    args = parser.parse_args()
    sweeps = list(load_sweeps(args.data, args.study))
    prior_of: PriorOf = {
        "left-out": lambda: priors_left_out(sweeps),
        "shipped": lambda: lambda sweep: sweep.prior(PRIORS),
        "none": lambda: lambda sweep: NO_PRIOR,
    }[args.priors]()
    outcomes = [o for sweep in sweeps for o in run_sweep(sweep, prior_of(sweep))]
    if args.tasks:
        print_tasks(outcomes)
        print()
    print_slices(outcomes)
    if args.unseen:
        print("\nNot seen:\n")
        print_slices(run_unseen(sweeps, args.unseen))
    table = None if args.data is None else args.data / "steplaw_dense.csv"
    if table is not None and table.exists():
        print()
        print_axes(table)


if __name__ == "__main__":
    main()
