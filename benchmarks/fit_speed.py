"""Seconds that a fit takes with 1,000 resamples of 8 widths, 12 learning rates and 3 seeds.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/fit_speed.py

The aim is 3 s on one core. The table is made from known parameters, its noise is seeded, and the
median of `--repeats` fits is printed for each form of the optimum, after one short fit that pays
for what is only paid once.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from typing import Any, get_args

import numpy as np
import scipy

from hptransfer import __version__
from hptransfer.stats import Form, LossTable, fit_table

NUM_WIDTHS, NUM_LRS, NUM_SEEDS = 8, 12, 3
LIMIT = 3.0


def make_table(seed: int) -> LossTable:
    """Make a table: L∞ 2, α 0.5, γ 0.1, β 0.7, noise of 0.002 nats."""
    rng = np.random.default_rng(seed)
    width, step, label = np.meshgrid(
        32.0 * 2.0 ** np.arange(NUM_WIDTHS),
        np.arange(NUM_LRS) - 0.5 * (NUM_LRS - 1),
        np.arange(NUM_SEEDS),
        indexing="ij",
    )
    m = width / 32.0
    x = -4.75 + np.log(1.5) * step
    loss = 2.0 + 0.7 * m**-0.5 + 0.025 * m**0.1 * (x + 5.0 - 0.5 * m**-0.7) ** 2
    loss = loss + 0.002 * rng.standard_normal(loss.shape)
    return LossTable(
        width=width.ravel(),
        lr=np.exp(x).ravel(),
        loss=loss.ravel(),
        seed=label.ravel().astype(np.int64),
    )


def measure(resamples: int, repeats: int) -> dict[str, list[float]]:
    """Return the seconds of each fit, by form."""
    table = make_table(0)
    fit_table(table, num_resamples=20)
    out: dict[str, list[float]] = {}
    for form in get_args(Form):
        out[form] = []
        for _ in range(repeats):
            start = time.perf_counter()
            fit_table(table, form=form, num_resamples=resamples)
            out[form].append(time.perf_counter() - start)
    return out


def main() -> int:
    """Print the seconds; 1 if a median is above the limit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    seconds = measure(args.resamples, args.repeats)
    medians = {form: statistics.median(found) for form, found in seconds.items()}
    document: dict[str, Any] = {
        "schema": 1,
        "table": {"widths": NUM_WIDTHS, "lrs": NUM_LRS, "seeds": NUM_SEEDS},
        "resamples": args.resamples,
        "seconds": seconds,
        "median": medians,
        "limit": LIMIT,
        "threads": os.environ.get("OMP_NUM_THREADS", "not set"),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "hptransfer": __version__,
    }
    json.dump(document, sys.stdout, indent=2)
    print()
    return int(max(medians.values()) > LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
