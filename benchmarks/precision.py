"""Compare final losses of bf16 and fp32 training over a small sweep, in pairs.

Both precisions train the same trials: the same widths, learning rates, initial draws and data
order. Per trial the difference (bf16 less fp32) then holds what the precision does, and nothing
of what the seed does. At each width and learning rate, where the seeds are independent, the mean
difference gets a 90 % interval (paired t).

bf16 passes when at every width and learning rate that interval lies within one standard
deviation of the fp32 losses over seeds, and no trial completes in one precision and diverges in
the other.
"""

import argparse
import math
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from dated import RESULTS, describe_making, write_document
from hptransfer.study._runner import prepare_run, run_groups
from hptransfer.study.config import parse_study
from hptransfer.study.events import Event
from hptransfer.study.store import read_trials

LEVEL = 0.90
#: Loss by (width, log2_lr, seed), in nats; None where the trial diverged.
Losses = dict[tuple[int, float, int], float | None]


def train(args: argparse.Namespace, precision: str, directory: Path) -> Losses:
    """Train the sweep in one precision, going on where an earlier call was ended."""
    config = parse_study(
        {
            "name": f"precision-{precision}",
            "data": {"text": args.text, "vocab_size": args.vocab_size},
            "model": {"num_layers": args.layers, "head_size": 32, "context": args.context},
            "sweep": {
                "parameterization": ["mup"],
                "width": args.widths,
                "base_width": args.widths[0],
                "log2_lr": args.log2_lr,
                "seed": list(range(args.seeds)),
            },
            "train": {"batch": args.batch, "steps": args.steps, "precision": precision},
        }
    )
    work = prepare_run(config, directory)

    def report(event: Event) -> None:
        if event.kind != "step":
            print(f"{precision}: {event.group} {event.kind}", flush=True)

    run_groups(config, directory, work.groups, on_event=report)
    columns = ["width", "log2_lr", "seed", "loss"]
    rows = read_trials(directory).rows.select(columns).to_pylist()
    return {(row["width"], row["log2_lr"], row["seed"]): row["loss"] for row in rows}


def compare_cell(fp32: Sequence[float], bf16: Sequence[float]) -> dict[str, float]:
    """Return the mean difference of the pairs with its interval, and the spread over seeds."""
    difference = np.subtract(bf16, fp32)
    shift, error = difference.mean(), difference.std(ddof=1) / math.sqrt(len(difference))
    half = stats.t.ppf((1 + LEVEL) / 2, len(difference) - 1) * error
    return {
        "pairs": len(difference),
        "loss": float(np.mean(fp32)),
        "seed_sd": float(np.std(fp32, ddof=1)),
        "shift": float(shift),
        "low": float(shift - half),
        "high": float(shift + half),
        "largest": float(np.abs(difference).max()),
    }


def compare(fp32: Losses, bf16: Losses) -> dict[str, Any]:
    """Return the paired comparison, and whether bf16 passes."""
    assert fp32.keys() == bf16.keys()
    other_state = sum((fp32[trial] is None) != (bf16[trial] is None) for trial in fp32)
    pairs: dict[tuple[int, float], list[tuple[float, float]]] = defaultdict(list)
    for (width, log2_lr, seed), loss in sorted(fp32.items()):
        other = bf16[width, log2_lr, seed]
        if loss is not None and other is not None:
            pairs[width, log2_lr].append((loss, other))
    cells = [
        {"width": width, "log2_lr": log2_lr, **compare_cell(*zip(*found, strict=True))}
        for (width, log2_lr), found in pairs.items()
        if len(found) > 1
    ]
    within = [max(-cell["low"], cell["high"]) < cell["seed_sd"] for cell in cells]
    return {
        "trials": len(fp32),
        "other_state": other_state,
        "cells": cells,
        "passes": not other_state and bool(cells) and all(within),
    }


def main() -> None:
    """Train both sweeps, print the comparison, and write a dated file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--log2-lr", type=float, nargs="+", default=[-10, -8.5, -7, -5.5, -4])
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--vocab-size", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--text", default="wiki")
    parser.add_argument("-d", "--directory", type=Path, help="keep the studies here, and resume")
    parser.add_argument("-o", "--output", type=Path, help="file to write")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = args.directory or Path(scratch)
        fp32, bf16 = (train(args, name, root / name) for name in ("fp32", "bf16"))
    found = compare(fp32, bf16)
    document = {
        **describe_making(),
        "config": {
            key: getattr(args, key)
            for key in ("widths", "log2_lr", "seeds", "steps", "batch", "context", "vocab_size",
                        "layers", "text")
        },
        **found,
    }  # fmt: skip
    for cell in found["cells"]:
        print(
            f"width {cell['width']}, 2^{cell['log2_lr']:g}: loss {cell['loss']:.4f}, over seeds "
            f"{cell['seed_sd']:.4f}; bf16 less fp32 {cell['shift']:+.5f} nats, 90 % interval "
            f"{cell['low']:+.5f} to {cell['high']:+.5f}, largest {cell['largest']:.5f}"
        )
    print(f"another state: {found['other_state']} of {found['trials']} trials")
    print("bf16 passes" if found["passes"] else "bf16 DOES NOT pass")
    output = args.output or RESULTS / f"precision-{document['date']}.json"
    write_document(output, document)
    print(f"written: {output}")


if __name__ == "__main__":
    main()
