"""Compare final losses of bf16 and fp32 training over a small sweep, in pairs.

Both precisions train the same trials: the same widths, learning rates, initial draws and data
order. Per trial the difference (bf16 less fp32) then holds what the precision does, and nothing
of what the seed does. Two questions are asked of the completed pairs:

- is there a shift: the mean difference with its 90 % interval, whole and by width, where the
  seeds are the independent units (a seed's differences at all learning rates are averaged first);
- does it matter: the shift, and one pair's difference, against the losses' spread over seeds.

bf16 passes when the interval of the shift lies within one standard deviation over seeds, at every
width, and no trial completes in one precision and diverges in the other.
"""

import argparse
import json
import math
import platform
import tempfile
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

from hptransfer._version import __version__
from hptransfer.study.config import parse_study
from hptransfer.study.events import Event
from hptransfer.study.machine import describe_machine
from hptransfer.study.runner import prepare_run, run_groups
from hptransfer.study.store import read_trials

LEVEL = 0.90
RESULTS = Path(__file__).parent / "results"
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


def estimate_shift(pairs: dict[tuple[int, float, int], tuple[float, float]]) -> dict[str, Any]:
    """Return the mean difference, its interval over seeds, and the losses' spread over seeds."""
    losses = defaultdict(list)
    differences = defaultdict(list)
    for (width, log2_lr, seed), (fp32, bf16) in pairs.items():
        losses[width, log2_lr].append(fp32)
        differences[seed].append(bf16 - fp32)
    of_seed = np.array([np.mean(found) for found in differences.values()])
    each = np.concatenate([np.asarray(found) for found in differences.values()])
    error = of_seed.std(ddof=1) / math.sqrt(len(of_seed))
    half = stats.t.ppf((1 + LEVEL) / 2, len(of_seed) - 1) * error
    variances = [np.var(found, ddof=1) for found in losses.values() if len(found) > 1]
    return {
        "pairs": len(pairs),
        "shift": of_seed.mean(),
        "low": of_seed.mean() - half,
        "high": of_seed.mean() + half,
        "seed_sd": math.sqrt(np.mean(variances)),
        "pair_sd": each.std(ddof=1),
        "largest_difference": np.abs(each).max(),
    }


def compare(fp32: Losses, bf16: Losses) -> dict[str, Any]:
    """Return the paired comparison, and whether bf16 passes."""
    assert fp32.keys() == bf16.keys()
    both = {trial: (fp32[trial], bf16[trial]) for trial in fp32}
    pairs = {trial: pair for trial, pair in both.items() if None not in pair}
    other_state = sum((a is None) != (b is None) for a, b in both.values())
    widths = {
        width: estimate_shift({trial: pair for trial, pair in pairs.items() if trial[0] == width})
        for width in sorted({trial[0] for trial in pairs})
    }
    return {
        "trials": len(both),
        "other_state": other_state,
        "all": estimate_shift(pairs),
        "by_width": widths,
        "lowest_loss": min(loss for pair in pairs.values() for loss in pair),
        "passes": not other_state
        and all(max(-found["low"], found["high"]) < found["seed_sd"] for found in widths.values()),
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
    machine, now = describe_machine(), datetime.now(UTC)
    found = compare(fp32, bf16)
    document = {
        "date": now.date().isoformat(),
        "machine": {"name": machine.name, "device": machine.device},
        "versions": {
            "hptransfer": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "config": {
            key: getattr(args, key)
            for key in ("widths", "log2_lr", "seeds", "steps", "batch", "context", "vocab_size",
                        "layers", "text")
        },
        **found,
    }  # fmt: skip
    for name, each in {"all": found["all"], **found["by_width"]}.items():
        print(
            f"{name}: bf16 less fp32 {each['shift']:+.5f} nats, 90 % interval "
            f"{each['low']:+.5f} to {each['high']:+.5f}; over seeds the losses spread by "
            f"{each['seed_sd']:.5f}, a pair by {each['pair_sd']:.5f} ({each['pairs']} pairs)"
        )
    print(f"another state: {found['other_state']} of {found['trials']} trials")
    print("bf16 passes" if found["passes"] else "bf16 DOES NOT pass")
    output = args.output or RESULTS / f"precision-{now:%Y-%m-%d}.json"
    output.parent.mkdir(exist_ok=True)
    output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(f"written: {output}")


if __name__ == "__main__":
    main()
