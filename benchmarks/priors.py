"""Re-estimate the priors of the optimum law from the sweeps at hand, and write them as a file.

    python benchmarks/priors.py --data DIR [--study TABLE ...] [--leave FAMILY] [-o FILE]

A family is one source of sweeps; its sweeps share what its author did, so that it counts once. To
few families a kind's broad guess is added as if it were one more: with none left, it is the prior.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hptransfer.stats import build_cells
from hptransfer.stats.minima import Minima, find_minima
from hptransfer.stats.optimum_law import roll_forecasts
from hptransfer.stats.priors import FORMS, LEAST_GROWTH, Prior, classify, write_priors
from sweeps import SWEEP_LOADERS, Group, load_study, read_rows, select

#: What theory alone says of each kind: rates fall between n^0 and n^-1, or hardly move; over tokens
#: T at a fixed batch they fall between T^0 and T^-1/2.
GUESSES = {
    kind: Prior(
        name=kind,
        slope=slope,
        spread=spread,
        errors=dict(zip(FORMS, (0.40, 0.50, 0.35, 0.40, 0.35), strict=True)),
        scatter=0.12 if kind == "tokens" else 0.04,
    )
    for kind, slope, spread in (
        ("raw", -0.5, 0.4),
        ("aligned", 0.0, 0.25),
        ("parameters", -0.4, 0.25),
        ("tokens", -0.25, 0.25),
    )
}

#: Slopes that were published without their sweeps, each as of one more family: of training tokens
#: at a fixed batch, Bjorck et al. 2024 (arXiv 2409.19913).
PUBLISHED = {"tokens": (-0.32,)}


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A sweep over sizes with its family and its kind of prior."""

    family: str
    kind: str
    group: Group

    @property
    def name(self) -> str:
        """Family and group."""
        return f"{self.family} {self.group.name}"

    @property
    def growth(self) -> float:
        """d ln(tokens)/d ln(size) where a prior is of sizes at one budget of tokens."""
        losses = self.group.losses
        own = self.kind in ("parameters", "tokens")
        return 0.0 if own else losses.budget_growth(np.arange(len(losses)))

    def prior(self, priors: Mapping[str, Prior]) -> Prior:
        """Return the prior of its kind, and of its tokens where they grow."""
        return priors[self.kind].with_budget(priors["tokens"], self.growth)

    def minima(self, largest: float = np.inf) -> Minima:
        """Minima of the sizes up to `largest`, from those sizes alone."""
        table = self.group.losses
        cells = build_cells(select(table, table.width <= largest))
        return find_minima(cells.width, cells.x, cells.mean, np.maximum(cells.count, 1.0))


def load_sweeps(data: Path | None, studies: Iterable[Path]) -> Iterator[Sweep]:
    """Load every sweep of a folder of public tables, and of recorded studies."""
    for name, load in SWEEP_LOADERS.items() if data is not None else ():
        assert data is not None
        if not (data / name).exists():
            print(f"{name}: not in {data}, skipped", file=sys.stderr)
            continue
        for group in load(read_rows(data / name)):
            kind = classify(group.size, group.losses.axis, group.parameterization)
            yield Sweep(family=group.table, kind=kind, group=group)
    for path in studies:
        for group in load_study(path):
            named = replace(group, name=f"{path.stem} {group.name}")
            # Our own studies sweep the hidden-aligned axis, which a CSV file does not say.
            yield Sweep(family="ours", kind="aligned", group=named)


def estimate_priors(sweeps: Iterable[Sweep], leave: str = "") -> dict[str, Prior]:
    """Estimate a prior for each kind from all families but `leave`, at one budget of tokens."""
    found: dict[str, dict[str, list[Minima]]] = {}
    for sweep in sweeps:
        minima = sweep.minima()
        fixed = abs(sweep.growth) < LEAST_GROWTH
        if sweep.family != leave and fixed and np.sum(minima.found) >= 3:
            found.setdefault(sweep.kind, {}).setdefault(sweep.family, []).append(minima)
    out = {kind: _estimate(GUESSES[kind], found.get(kind, {})) for kind in GUESSES}
    raw, aligned = out["raw"], out["aligned"]
    between = 0.5 * (raw.slope - aligned.slope)
    out["unknown"] = Prior(
        name="unknown",
        slope=0.5 * (raw.slope + aligned.slope),
        spread=float(np.sqrt(0.5 * (raw.spread**2 + aligned.spread**2) + between**2)),
        errors={form: 0.5 * (raw.errors[form] + aligned.errors[form]) for form in FORMS},
        scatter=0.5 * (raw.scatter + aligned.scatter),
    )
    return out


def _estimate(guess: Prior, families: Mapping[str, list[Minima]]) -> Prior:
    """Average the families' slopes and rolling errors, the guess standing for one family."""
    told = PUBLISHED.get(guess.name, ())
    slopes = [float(np.mean([_slope(m) for m in members])) for members in families.values()]
    slope = float(np.mean([guess.slope, *told, *slopes]))
    squares = [np.mean([(_slope(m) - slope) ** 2 for m in each]) for each in families.values()]
    squares += [guess.spread**2 + (guess.slope - slope) ** 2, *((x - slope) ** 2 for x in told)]
    prior = replace(guess, slope=slope, spread=float(np.sqrt(np.mean(squares))))
    errors = {form: [guess.errors[form] ** 2] for form in FORMS}
    for members in families.values():
        rolled: dict[str, list[float]] = {form: [] for form in FORMS}
        for minima in members:
            for form, error in _roll(minima, prior):
                rolled[form].append(error)
        for form, each in rolled.items():
            errors[form] += [float(np.mean(each))] if each else []
    return replace(prior, errors={form: float(np.sqrt(np.mean(e))) for form, e in errors.items()})


def _slope(minima: Minima) -> float:
    """Return d ln lr*/d ln n by weighted least squares."""
    ok = minima.found
    weights = 1.0 / np.sqrt(minima.variance[ok] + 0.05**2)
    return float(np.polyfit(np.log(minima.size[ok]), minima.x[ok], 1, w=weights)[0])


def _roll(minima: Minima, prior: Prior) -> Iterator[tuple[str, float]]:
    """Yield each form's squared errors in forecasting every size from narrower ones."""
    ok = minima.found
    t, x, variance = np.log(minima.size[ok]), minima.x[ok], minima.variance[ok]
    for _, errors in roll_forecasts(t, x, variance, prior):
        yield from errors.items()


def main() -> None:
    """Print the priors, and write them where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of the sweep files")
    parser.add_argument("--study", type=Path, nargs="*", default=[], help="recorded tables to add")
    parser.add_argument("--leave", default="", metavar="FAMILY", help="a family to leave out")
    parser.add_argument("-o", "--output", type=Path, help="write the priors here, as JSON")
    args = parser.parse_args()
    sweeps = list(load_sweeps(args.data, args.study))
    if args.leave and args.leave not in {sweep.family for sweep in sweeps}:
        known = ", ".join(dict.fromkeys(sweep.family for sweep in sweeps))
        raise SystemExit(f"--leave {args.leave}: expected one of {known}")
    priors = estimate_priors(sweeps, args.leave)
    print("| kind | slope | spread | " + " | ".join(FORMS) + " |")
    print("|---|---|---|" + "---|" * len(FORMS))
    for prior in priors.values():
        numbers = [prior.slope, prior.spread, *(prior.errors[form] for form in FORMS)]
        print(f"| {prior.name} | " + " | ".join(f"{v:.2f}" for v in numbers) + " |")
    if args.output:
        write_priors(priors, args.output)


if __name__ == "__main__":
    main()
