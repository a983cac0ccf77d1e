"""LrSearch against noisy synthetic surfaces whose optima are known: regret, intervals, trials.

Four widths, noise of 0.003 nats, a cliff beyond which all diverges, an optimum that moves between
-0.8 and +0.2 octaves per doubling of the width. Printed for each rule of stopping: how often the
regret at four times the widest is at most 0.002 nats, how often the interval holds the truth, the
share of a 13-rate grid's trials and compute, and the errors of the optima at each width. `grid` is
that grid, of half-octave steps about the middle width's optimum.

    python benchmarks/ask_tell.py [--surfaces N] [--ways regret optima grid] [--max-points N]
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hptransfer import LrSearch
from hptransfer.search import Trial

WIDTHS = (64, 128, 256, 512)
TARGET = 4 * WIDTHS[-1]
NUM_RATES = 13
NOISE = 0.003
#: A seed's effect on all learning rates of a width, in nats: it moves no optimum.
SHARED = 0.01
OCTAVE = math.log(2.0)
#: The regret that counts as good, in nats, and the error of an optimum, in octaves.
GOOD_REGRET, GOOD_ERROR = 0.002, 0.1


@dataclass(frozen=True, kw_only=True)
class Surface:
    """A loss over width and learning rate; x is log2(lr), u is ln(lr) from the optimum."""

    number: int
    optimum: float
    drift: float
    curvature: float
    growth: float
    skew: float
    cliff: float

    @classmethod
    def draw(cls, number: int) -> "Surface":
        """Draw one, the same for the same number."""
        rng = np.random.default_rng(number)
        return cls(
            number=number,
            optimum=rng.uniform(-9.0, -3.0),
            drift=rng.uniform(-0.8, 0.2),
            curvature=rng.uniform(0.08, 0.25),
            growth=rng.uniform(-0.1, 0.2),
            skew=rng.uniform(0.0, 0.15),
            cliff=rng.uniform(0.8, 3.0),
        )

    def find(self, width: float) -> float:
        """Return log2(lr*)."""
        return self.optimum + self.drift * math.log2(width / WIDTHS[0])

    def rise(self, width: float, x: float) -> float:
        """Return the loss over the best, in nats."""
        u = (x - self.find(width)) * OCTAVE
        curvature = self.curvature * (width / WIDTHS[0]) ** self.growth
        return 0.5 * curvature * u**2 * (1 + self.skew * u) / (1 + u**2 / 30)

    def train(self, trial: Trial) -> float | None:
        """Return a trial's loss; its noise depends on what it is, not on when."""
        x = math.log2(trial.lr)
        if (x - self.find(trial.width)) * OCTAVE > self.cliff:
            return None
        key = [self.number, int(trial.width), trial.seed]
        own = np.random.default_rng([*key, round(1000 * x) + 100_000]).standard_normal()
        seed = np.random.default_rng(key).standard_normal()
        best = 2.5 + 6.0 * trial.width**-0.4
        return best + self.rise(trial.width, x) + NOISE * own + SHARED * seed


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a search gave: regret in nats, whether the interval holds, trials, compute, errors."""

    regret: float
    holds: bool
    trials: int
    compute: float
    rounds: int
    errors: tuple[float, ...]


def list_grid(surface: Surface) -> list[Trial]:
    """Return a grid's trials: its middle is off the middle optimum by a quarter octave at most."""
    middle = 0.5 * (surface.find(WIDTHS[0]) + surface.find(WIDTHS[-1]))
    first = round(4 * middle) / 4 - 0.25 * (NUM_RATES - 1)
    return [
        Trial(width=width, lr=2.0 ** (first + 0.5 * place), seed=seed)
        for width in WIDTHS
        for place in range(NUM_RATES)
        for seed in (0, 1)
    ]


def measure(surface: Surface, way: str, max_points: int | None) -> Outcome:
    """Search one surface, or train its grid, and ask for the learning rate at the target."""
    budget = {} if max_points is None else {"max_points": max_points}
    lr = LrSearch(WIDTHS, seeds=(0, 1), stop="optima" if way == "grid" else way, **budget)
    rounds = 0
    while trials := list_grid(surface) if way == "grid" and not rounds else lr.ask():
        rounds += 1
        for trial in trials:
            lr.tell(trial, surface.train(trial))
        if way == "grid":
            break
    answer = lr.recommend(width=TARGET).lr
    truth = surface.find(TARGET)
    found = {each.width: each.optimum for each in lr.optima}
    table = lr.table
    grid = NUM_RATES * 2 * sum(float(width) ** 2 for width in WIDTHS)
    told = answer.value is not None and answer.low is not None and answer.high is not None
    return Outcome(
        regret=surface.rise(TARGET, math.log2(answer.value)) if answer.value else math.inf,
        holds=told and answer.low <= 2.0**truth <= answer.high,
        trials=len(table),
        compute=float(np.sum(table.width**2)) / grid,
        rounds=rounds,
        errors=tuple(found.get(width, math.nan) - surface.find(width) for width in WIDTHS),
    )


def report(way: str, outcomes: Sequence[Outcome]) -> None:
    """Print one way's figures."""
    grid = NUM_RATES * 2 * len(WIDTHS)
    num = len(outcomes)
    regrets = np.array([each.regret for each in outcomes])
    errors = np.array([each.errors for each in outcomes])
    trials = np.array([each.trials for each in outcomes])
    print(f"{way}: {num} surfaces")
    print(
        f"  regret at 4x ≤ {GOOD_REGRET}: {np.sum(regrets <= GOOD_REGRET)} of {num}; "
        f"mean {regrets.mean():.5f}, median {np.median(regrets):.5f}, most {regrets.max():.4f}"
    )
    print(f"  truth inside the interval: {sum(each.holds for each in outcomes)} of {num}")
    print(f"  trials: {trials.mean() / grid:.2f} of the grid's, at most {trials.max() / grid:.2f}; "
          f"compute {np.mean([e.compute for e in outcomes]):.2f}")  # fmt: skip
    print(f"  rounds: {np.mean([each.rounds for each in outcomes]):.1f}")
    for place, width in enumerate(WIDTHS):
        own = np.abs(errors[:, place])
        print(f"  width {width}: log2 lr* within {GOOD_ERROR}: {np.sum(own <= GOOD_ERROR)} of "
              f"{num}; rms {np.sqrt(np.nanmean(own**2)):.3f}")  # fmt: skip


def main() -> None:
    """Search surfaces by each rule, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--surfaces", type=int, default=100)
    parser.add_argument("--ways", nargs="+", default=["regret", "optima", "grid"])
    parser.add_argument("--max-points", type=int, help="the search's budget, in place of its own")
    args = parser.parse_args()
    for way in args.ways:
        surfaces = [Surface.draw(number) for number in range(args.surfaces)]
        report(way, [measure(surface, way, args.max_points) for surface in surfaces])


if __name__ == "__main__":
    main()
