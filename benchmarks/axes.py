"""Predict held-out cells of Step Law's dense table from the others, over size, tokens and batch.

    python benchmarks/axes.py --data DIR

Splits leave out the largest model, the longest budgets, or both; small designs are what someone
could afford: three sizes at three budgets each, at one or two batches. Regret is that of the
basin measured at the held-out cell, against keeping the rate of the nearest cell in log space.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hptransfer.stats._axes_fit import (
    CURVATURE_SLOPE_SPREAD,
    CURVATURE_SLOPES,
    PARAMETERS_SLOPE,
    AxesLaw,
    Places,
    fit_axes_law,
)
from hptransfer.stats.minima import Minima, find_minima
from sweeps import read_rows

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
OCTAVE = float(np.log(2.0))


@dataclass(frozen=True, kw_only=True)
class Cells:
    """The table by cell: (parameters, tokens, batch in sequences and in tokens), and its points."""

    params: Floats
    tokens: Floats
    batch: Floats
    in_tokens: Floats
    owner: NDArray[np.int64]
    x: Floats
    loss: Floats

    def minima(self, chosen: Bools) -> tuple[NDArray[np.int64], Minima]:
        """Numbers of the chosen cells, and their minima."""
        rows = chosen[self.owner]
        numbers = np.flatnonzero(chosen)
        places = np.stack([self.params, self.tokens, self.in_tokens], axis=1)[numbers]
        return numbers, find_minima(
            self.owner[rows].astype(np.float64),
            self.x[rows],
            self.loss[rows],
            axes=np.log(places),
            slopes=CURVATURE_SLOPES,
            slope_spread=CURVATURE_SLOPE_SPREAD,
        )

    def places(self, numbers: NDArray[np.int64]) -> Places:
        """Where some cells lie."""
        return Places(
            size=np.log(self.params[numbers]),
            tokens=np.log(self.tokens[numbers]),
            batch=np.log(self.in_tokens[numbers]),
        )


def load_cells(path: Path) -> Cells:
    """Read the table; rates are the nominal ones."""
    rows = read_rows(path)

    def column(name: str) -> Floats:
        return np.array([float(row[name]) for row in rows])

    key = np.stack([column(name) for name in ("params_N", "tokens_D", "batch", "seq_len")], axis=1)
    cells, owner = np.unique(key, axis=0, return_inverse=True)
    return Cells(
        params=cells[:, 0],
        tokens=cells[:, 1],
        batch=cells[:, 2],
        in_tokens=cells[:, 2] * cells[:, 3],
        owner=np.asarray(owner).reshape(-1),
        x=column("log2_lr_nominal") * OCTAVE,
        loss=column("loss"),
    )


def splits_of(cells: Cells) -> dict[str, tuple[Bools, Bools]]:
    """Cells to fit and cells to predict, by name."""
    n, t = cells.params, cells.tokens
    return {
        "largest model": (n < n.max(), n == n.max()),
        "80e9 tokens or more": (t < 80e9, t >= 80e9),
        "beyond 25e9 tokens": (t <= 25e9, t > 25e9),
        "both larger": ((n < 5e8) & (t <= 25e9), (n > 5e8) & (t > 25e9)),
    }


def designs_of(cells: Cells, best: Floats) -> dict[str, tuple[Bools, Bools]]:
    """Small designs and the cells that they predict; `best` (C,) is the best batch of each."""
    sizes = np.unique(cells.params)[:3]
    small = np.zeros(len(cells.params), dtype=bool)
    for n in sizes:
        budgets = np.unique(cells.tokens[cells.params == n])[:3]
        small |= (cells.params == n) & np.isin(cells.tokens, budgets)
    grown = np.zeros(len(small), dtype=bool)
    for n, batch in zip(sizes, (128, 256, 512), strict=True):
        grown |= (cells.params == n) & (cells.batch == batch)
    near = np.abs(np.log(cells.batch / best)) <= np.log(4.0) + 1e-9
    test = (cells.params >= 5.3e8) & (cells.tokens >= 1e10) & near
    designs = {f"batch {b}": small & (cells.batch == b) for b in (128, 256, 512)}
    designs = {"batches 128 and 512": small & np.isin(cells.batch, (128, 512))} | designs
    designs["batch grown with size"] = small & grown
    return {f"3 x 3, {name}": (fit, test) for name, fit in designs.items()}


def predict(cells: Cells, fit: Bools, test: Bools, truth: Minima) -> tuple[Floats, AxesLaw]:
    """Return (error in octaves, inside, regret, that of the nearest rate, half-width) by cell."""
    numbers, minima = cells.minima(fit)
    ok = minima.found
    law = fit_axes_law(
        cells.places(numbers[ok]), minima.x[ok], minima.variance[ok], slope=PARAMETERS_SLOPE
    )
    asked = np.flatnonzero(test & truth.found)
    logs = np.log(np.stack([cells.params, cells.tokens, cells.in_tokens], axis=1))
    out = []
    for k, where in zip(asked, law.forecast(cells.places(asked)), strict=True):
        x, low, high = where.mean, where.quantile(0.05), where.quantile(0.95)
        near = int(np.argmin(np.abs(logs[numbers[ok]] - logs[k]).sum(axis=1)))
        out.append(
            (
                (x - truth.x[k]) / OCTAVE,
                float(low <= truth.x[k] <= high),
                float(truth.rise(int(k), x)),
                float(truth.rise(int(k), minima.x[ok][near])),
                0.5 * (high - low) / OCTAVE,
            )
        )
    return np.array(out), law


def print_axes(path: Path) -> None:
    """Print a row for every split and design, and the splits pooled."""
    cells = load_cells(path)
    _, truth = cells.minima(np.ones(len(cells.params), dtype=bool))
    best = np.empty(len(cells.params))
    for n, t in set(zip(cells.params, cells.tokens, strict=True)):
        rows = np.flatnonzero((cells.params == n) & (cells.tokens == t))
        best[rows] = cells.batch[rows[np.nanargmin(truth.loss[rows])]]
    print(
        "| Step Law, dense | cells | predicted | rms, octaves | holds lr* | regret | half-width |"
    )
    print("|---|---|---|---|---|---|---|")

    def row(name: str, count: str, found: Floats) -> None:
        error, inside, regret, kept, half = found.T
        print(
            f"| {name} | {count} | {len(found)} | {np.sqrt(np.mean(error**2)):.2f} | "
            f"{inside.mean():.2f} | {regret.mean() / kept.mean():.2f} | {np.median(half):.2f} |"
        )

    notes, pooled = [], []
    for name, (fit, test) in splits_of(cells).items():
        found, _ = predict(cells, fit, test, truth)
        pooled.append(found)
        row(name, str(fit.sum()), found)
    row("pooled", "", np.concatenate(pooled))
    for name, (fit, test) in designs_of(cells, best).items():
        found, law = predict(cells, fit, test, truth)
        row(name, str(fit.sum()), found)
        notes += [f"{name}: {k}: correlation {v:.2f}" for k, v in law.correlations.items()]
    print("\n".join(["", *notes]))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the sweep files")
    print_axes(parser.parse_args().data / "steplaw_dense.csv")


if __name__ == "__main__":
    main()
