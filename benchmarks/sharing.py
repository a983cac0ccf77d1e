"""What sharing α between two groups does to R(∞): its interval, and the test of the assumption.

    python benchmarks/sharing.py --studies 200

Pairs of groups with α 0.5 and R(∞) 0.05 nats at the widths 64 to 512, seven learning rates and
three seeds, whose noise is shared by a width's learning rates and groups to 0, 30 or 60 %.
Printed are the share of studies whose 90 % interval of R(∞) holds the truth, the intervals' median
length in nats, each alone and with α shared, and how often the test at 1 % called the groups' α
different: with one α it should 1 in 100 times; with 0.5 and 0.6 the more often the better.
"""

import argparse
import json
import sys

import numpy as np

from hptransfer.stats import Estimate, LossTable, fit_table

WIDTHS = 64.0 * 2.0 ** np.arange(4)
NUM_LRS, NUM_SEEDS = 7, 3
GAP, ALPHA, OTHER_ALPHA = 0.05, 0.5, 0.6
SETTINGS = tuple((noise, shared) for noise in (0.002, 0.01) for shared in (0.0, 0.3, 0.6))


def make_pair(
    rng: np.random.Generator, *, noise: float, shared: float, alpha: float = ALPHA
) -> LossTable:
    """Make two groups; `alpha` is the first's, and half the shared noise is common to both."""
    width, step, label = np.meshgrid(
        WIDTHS, np.arange(NUM_LRS) - 3.0, np.arange(NUM_SEEDS), indexing="ij"
    )
    x = -4.75 + np.log(2.0) * step
    m = width / WIDTHS[0]
    common = rng.standard_normal((len(WIDTHS), 1, NUM_SEEDS))
    losses = []
    for gap, drift, exponent in ((GAP, 1.0, alpha), (0.0, 0.5, ALPHA)):
        group = rng.standard_normal((len(WIDTHS), 1, NUM_SEEDS))
        own = rng.standard_normal(width.shape)
        error = np.sqrt(shared / 2.0) * (common + group) + np.sqrt(1.0 - shared) * own
        rise = 0.025 * m**0.1 * (x + 5.0 - drift * m**-0.7) ** 2
        losses.append((2.0 + gap + 0.7 * m**-exponent + rise + noise * error).ravel())
    size = width.size
    return LossTable(
        width=np.tile(width.ravel(), 2),
        lr=np.exp(np.tile(x.ravel(), 2)),
        loss=np.concatenate(losses),
        seed=np.tile(label.ravel().astype(np.int64), 2),
        groups={"parameterization": np.array(["a"] * size + ["b"] * size, dtype=object)},
    )


def bounds(estimate: Estimate) -> tuple[float, float]:
    """Return the interval, NaN where there is none."""
    if estimate.low is None or estimate.high is None:
        return np.nan, np.nan
    return estimate.low, estimate.high


def measure(studies: int, seed: int) -> list[dict[str, float]]:
    """Return one row for each setting."""
    rows = []
    for number, (noise, shared) in enumerate(SETTINGS):
        found: dict[str, list[tuple[float, float]]] = {"alone": [], "shared": []}
        rejected = {ALPHA: 0, OTHER_ALPHA: 0}
        for study in range(studies):
            for alpha in rejected:
                rng = np.random.default_rng([seed, number, study, int(100 * alpha)])
                table = make_pair(rng, noise=noise, shared=shared, alpha=alpha)
                pooled = fit_table(table, reference="b", share="alpha")[0]
                assert pooled.shared is not None
                rejected[alpha] += pooled.shared.rejected
                if alpha == ALPHA:
                    alone = fit_table(table, reference="b")[0]
                    found["alone"].append(bounds(alone.metrics["R_inf"]))
                    found["shared"].append(bounds(pooled.metrics["R_inf"]))
        row = {"noise": noise, "shared": shared, "studies": float(studies)}
        for name, intervals in found.items():
            low, high = np.array(intervals).T
            row[f"{name}_inside90"] = float(np.mean((low <= GAP) & (high >= GAP)))
            row[f"{name}_length"] = float(np.nanmedian(high - low))
        row["called_different_when_equal"] = rejected[ALPHA] / studies
        row["called_different_when_different"] = rejected[OTHER_ALPHA] / studies
        rows.append(row)
    return rows


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--studies", type=int, default=200, help="per setting")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    args = parser.parse_args()
    rows = measure(args.studies, args.seed)
    if args.json:
        json.dump({"schema": 1, "rows": rows}, sys.stdout)
        print()
        return 0
    print(
        "noise  shared | R(∞) alone: 90 %  length | α shared: 90 %  length | "
        "called different: equal  0.5 and 0.6"
    )
    for row in rows:
        print(
            f"{row['noise']:5.3f} {100 * row['shared']:5.0f} % |"
            f"{100 * row['alone_inside90']:15.1f} % {row['alone_length']:8.4f} |"
            f"{100 * row['shared_inside90']:13.1f} % {row['shared_length']:8.4f} |"
            f"{100 * row['called_different_when_equal']:20.1f} %"
            f"{100 * row['called_different_when_different']:10.1f} %"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
