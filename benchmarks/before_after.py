"""Two versions of this package in turns on one machine's cores: the readout, and whole steps.

    git worktree add ../before COMMIT
    python benchmarks/before_after.py ../before . --rounds 5 -o benchmarks/results/before-after.json

Each version has a single-threaded worker per core, as the local engine has, and all of a version's
work at a time: A B A B …, on an otherwise idle machine. Medians of the seconds, and of the turns'
ratios before / after. K is what plans stack on a CPU (4 at width 64, 2 at 128, 1 from 256 on).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

BATCH, CONTEXT, VOCAB, HEAD, LAYERS = 32, 128, 4096, 64, 3
STACKED = {64: 4, 128: 2}
#: Seconds that a turn of one measurement lasts at least, after one call that is not timed.
TURN_SECONDS = 1.5


def import_training(name: str) -> Any:
    """Import a module of training, whose name has had no underscore until November 2026."""
    try:
        return import_module(f"hptransfer.train._{name}")
    except ModuleNotFoundError:
        return import_module(f"hptransfer.train.{name}")


def make_calls() -> dict[str, Callable[[], Any]]:
    """Return what is measured, by name; imports the version that PYTHONPATH names."""
    import torch

    from hptransfer.model import GPTShape, readout_cross_entropy
    from hptransfer.scaling import resolve

    ensemble_module = import_training("ensemble")
    Ensemble, Run = ensemble_module.Ensemble, ensemble_module.Run
    import_training("device").set_determinism(threads=1)
    generator = torch.Generator().manual_seed(0)
    calls: dict[str, Callable[[], Any]] = {}

    def add(width: int, precision: str) -> None:
        K, dtype = STACKED.get(width, 1), {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        rows = BATCH * CONTEXT
        hidden, weight = (
            torch.randn(size, generator=generator).to(dtype).requires_grad_()
            for size in ((K, rows, width), (K, width, VOCAB))
        )
        targets = torch.randint(VOCAB, (K, rows), generator=generator)
        tokens = torch.randint(VOCAB, (K, BATCH, CONTEXT + 1), generator=generator)
        resolved = resolve(
            "sp", width=width, base_width=width, base_lr=2.0**-10, head_size=HEAD,
            num_layers=LAYERS,
        )  # fmt: skip
        shape = GPTShape(
            width=width, num_layers=LAYERS, head_size=HEAD, context=CONTEXT, vocab_size=VOCAB
        )
        ensemble = Ensemble(shape, [Run(seed=0, resolved=resolved)] * K, compute_dtype=dtype)

        def read_out() -> None:
            readout_cross_entropy(hidden, weight, targets).sum().backward()

        calls[f"readout {width} {precision}"] = read_out
        calls[f"step {width} {precision}"] = lambda: ensemble.step(
            tokens, factor=1.0, beta1=0.9, beta2=0.95
        )

    for width in (64, 128, 256):
        for precision in ("bf16", "fp32"):
            add(width, precision)
    return calls


def serve() -> None:
    """Answer each name on stdin with the seconds that a call of it takes."""
    calls = make_calls()
    print("ready", flush=True)
    for line in sys.stdin:
        call = calls[line.strip()]
        call()
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < TURN_SECONDS:
            call()
            count += 1
        print(json.dumps((time.perf_counter() - start) / count), flush=True)


def start(tree: Path, count: int) -> "list[subprocess.Popen[str]]":
    """Start a version's workers."""
    variables = import_training("device").worker_environment(threads=1)
    environment = {**variables, "PYTHONPATH": str(tree.resolve() / "src")}
    return [
        subprocess.Popen(
            [sys.executable, __file__, "--serve"], text=True, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
        for _ in range(count)
    ]  # fmt: skip


def ask(workers: "list[subprocess.Popen[str]]", name: str) -> float:
    """Have a version's workers work at a time; return their mean seconds a call."""
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write(f"{name}\n")
        worker.stdin.flush()
    return statistics.mean(json.loads(worker.stdout.readline()) for worker in workers)  # type: ignore[union-attr]


def main() -> None:
    """Measure in turns, print a line each, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path, nargs="?")
    parser.add_argument("after", type=Path, nargs="?", default=Path())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="names that begin so")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve()
        return
    if args.before is None:
        parser.error("the folder of the earlier version is missing")
    from dated import describe_making, write_document
    from hptransfer.train._device import count_cores

    sides = {name: start(getattr(args, name), count_cores()) for name in ("before", "after")}
    for workers in sides.values():
        for worker in workers:
            assert worker.stdout is not None
            worker.stdout.readline()
    names = [
        f"{kind} {width} {precision}"
        for kind in ("readout", "step")
        for width in (64, 128, 256)
        for precision in ("bf16", "fp32")
    ]
    rows = []
    for name in (name for name in names if name.startswith(args.only)):
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(args.rounds):
            for side, workers in sides.items():
                seconds[side].append(ask(workers, name))
        ratios = [b / a for b, a in zip(*seconds.values(), strict=True)]
        row = {
            "what": name, "ratio": round(statistics.median(ratios), 3),
            **{side: round(statistics.median(each), 4) for side, each in seconds.items()},
            "ratios": [round(ratio, 3) for ratio in ratios],
        }  # fmt: skip
        rows.append(row)
        print(f"{name}: {row['before']} s before, {row['after']} s after, {row['ratio']} times",
              flush=True)  # fmt: skip
        if args.output:
            load = os.getloadavg()[0]
            document = {**describe_making(), "load": load, "rounds": args.rounds, "rows": rows}
            write_document(args.output, document)


if __name__ == "__main__":
    main()
