"""Peak memory of a training group against what the plan expects of it.

    python benchmarks/memory.py --widths 64 128 256 --stacked 1 4 8

Each group trains a few steps in a process of its own. On the CPU what its resident memory grows by
over the process before it is held against the plan's estimate (Linux only: it reads /proc); on a
GPU (--device cuda, --mode as a plan records it) the peak of the memory that it reserves there. An
estimate below what is seen lets a plan run out of memory; one far above it stacks too few runs.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from hptransfer.scaling import resolve
from hptransfer.study._executor import make_shape
from hptransfer.study._trial import estimate_memory
from hptransfer.study.config import StudyConfig, parse_study
from hptransfer.train._batches import Batches
from hptransfer.train._calibrate import DTYPES
from hptransfer.train._device import describe_device, set_determinism, worker_environment
from hptransfer.train._ensemble import Ensemble, Run, TrainSettings
from hptransfer.train._program import MODES, Program

STEPS = 3


def make_config(args: argparse.Namespace, width: int) -> StudyConfig:
    """Return a study at one width."""
    return parse_study(
        {
            "name": "memory",
            "data": {"text": "wiki", "vocab_size": args.vocab_size},
            "model": {"num_layers": args.layers, "head_size": 16, "context": args.context},
            "sweep": {"parameterization": ["sp"], "width": [width], "lr": [2.0**-8], "seed": [0]},
            "train": {"batch": args.batch, "steps": STEPS},
        }
    )


def read_status(key: str) -> int:
    """Return a size of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def measure(args: argparse.Namespace, width: int, num_runs: int, precision: str) -> int:
    """Train a group here; return the bytes that resident memory grew by at its peak."""
    set_determinism(threads=1)
    config = make_config(args, width)
    if args.device == "cuda":
        return measure_on_gpu(args, config, width, num_runs, precision)
    # Libraries load what they need at their first use; that is no group's.
    warm = torch.randn(64, 64, requires_grad=True)
    (warm @ warm).sum().backward()
    before = read_status("VmRSS")
    resolved = resolve(
        "sp", width=width, base_width=width, base_lr=2.0**-8, head_size=16, num_layers=args.layers
    )
    ensemble = Ensemble(
        make_shape(config, width),
        [Run(seed=0, resolved=resolved)] * num_runs,
        compute_dtype=DTYPES[precision],
    )
    tokens = torch.randint(0, args.vocab_size, (num_runs, args.batch, args.context + 1))
    for _ in range(STEPS):
        ensemble.step(tokens, factor=1.0, beta1=0.9, beta2=0.95)
    return read_status("VmHWM") - before


def measure_on_gpu(
    args: argparse.Namespace, config: StudyConfig, width: int, num_runs: int, precision: str
) -> int:
    """Train a group on the GPU; return the bytes reserved there at the peak."""
    resolved = resolve(
        "sp", width=width, base_width=width, base_lr=2.0**-8, head_size=16, num_layers=args.layers
    )
    generator = np.random.default_rng(0)
    tokens = generator.integers(0, args.vocab_size, 2**18).astype(np.uint16)
    program = Program(
        Ensemble(
            make_shape(config, width),
            [Run(seed=0, resolved=resolved)] * num_runs,
            device=args.device,
            compute_dtype=DTYPES[precision],
        ),
        Batches(tokens, context=args.context),
        TrainSettings(batch=args.batch, steps=1, warmup=0, decay=0, beta1=0.9, beta2=0.95),
        mode=args.mode,
    )
    program.run(0, [1.0] * 6).cpu()
    assert not program.problem, program.problem
    return torch.cuda.max_memory_reserved()


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--stacked", type=int, nargs="+", default=[1, 4, 8], help="K")
    parser.add_argument("--precisions", nargs="+", choices=list(DTYPES), default=list(DTYPES))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--mode", choices=MODES, default="compiled+captured", help="on a GPU")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # what a child measures
    args = parser.parse_args()
    if args.one:
        print(measure(args, int(args.one[0]), int(args.one[1]), args.one[2]))
        return 0
    rows = []
    for width in args.widths:
        for num_runs in args.stacked:
            for precision in args.precisions:
                one = ["--one", str(width), str(num_runs), precision]
                found = subprocess.run(
                    [sys.executable, __file__, *sys.argv[1:], *one],
                    env=worker_environment(threads=1),
                    stdout=subprocess.PIPE,
                    check=True,
                )
                expected = num_runs * estimate_memory(
                    make_config(args, width), width, device=args.device
                )
                row = {"width": width, "stacked": num_runs, "precision": precision,
                       "bytes": int(found.stdout), "expected": expected}  # fmt: skip
                rows.append({**row, "ratio": round(expected / row["bytes"], 2)})
                print(rows[-1], file=sys.stderr, flush=True)
    settings = {key: getattr(args, key) for key in ("batch", "context", "vocab_size", "layers")}
    json.dump(
        {
            "schema": 1,
            "device": describe_device(args.device),
            "torch": torch.__version__,
            **settings,
            "smallest_ratio": min(row["ratio"] for row in rows),
            "largest_ratio": max(row["ratio"] for row in rows),
            "rows": rows,
        },
        sys.stdout,
        indent=1,
    )
    print()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
