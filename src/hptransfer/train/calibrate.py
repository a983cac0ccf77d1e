"""Measure, once per machine, which precision trains a shape faster.

The measurement is cached by hardware, versions and shape, so that every later plan on the
machine makes the same choice.
"""

import hashlib
import json
import statistics
import time
from collections.abc import Sequence

import torch

from hptransfer._atomic import atomic_write
from hptransfer._version import __version__
from hptransfer.model import GPTShape
from hptransfer.scaling import resolve
from hptransfer.train.device import describe_device
from hptransfer.train.ensemble import Ensemble, Run
from hptransfer.train.tokens import cache_root

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
#: Timed steps of each precision, after one that is not timed.
REPEATS = 5
#: Runs stacked while measuring: enough to see batched products, few enough to be quick.
NUM_STACKED = 4


def measure_step_seconds(
    shape: GPTShape,
    *,
    batch: int,
    device: str,
    threads: int,
    precisions: Sequence[str] = tuple(DTYPES),
) -> dict[str, float]:
    """Return seconds per training step and stacked run, by precision.

    Parameters
    ----------
    shape : GPTShape
        The shape to train.
    batch : int
        Sequences in a step.
    device : str
        ``cpu`` or ``cuda``.
    threads : int
        Threads of a training process.
    precisions : sequence of str
        Keys of `DTYPES`. Precisions take turns, so that a disturbance hits all alike.
    """
    key = json.dumps(
        [
            describe_device(device), torch.__version__, __version__, threads, vars(shape), batch,
            *precisions,
        ]
    )  # fmt: skip
    path = cache_root() / "speed" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
    try:
        cached: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))["seconds"]
        return cached
    except (OSError, ValueError, KeyError):
        pass  # not measured yet, or damaged
    seconds = _measure(shape, batch=batch, device=device, threads=threads, precisions=precisions)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as tmp:
        tmp.write_text(json.dumps({"key": key, "seconds": seconds}), encoding="utf-8")
    return seconds


def _measure(
    shape: GPTShape, *, batch: int, device: str, threads: int, precisions: Sequence[str]
) -> dict[str, float]:
    resolved = resolve(
        "sp",
        width=shape.width,
        base_width=shape.width,
        base_lr=2.0**-10,
        head_size=shape.head_size,
        num_layers=shape.num_layers,
    )
    runs = [Run(seed=0, resolved=resolved)] * NUM_STACKED
    generator = torch.Generator().manual_seed(0)
    size = (NUM_STACKED, batch, shape.context + 1)
    tokens = torch.randint(0, shape.vocab_size, size, generator=generator).to(device)
    ensembles = {
        name: Ensemble(shape, runs, device=device, compute_dtype=DTYPES[name])
        for name in precisions
    }
    times: dict[str, list[float]] = {name: [] for name in precisions}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for repeat in range(REPEATS + 1):
            for name, ensemble in ensembles.items():
                start = time.perf_counter()
                losses = ensemble.step(tokens, factor=1.0, beta1=0.9, beta2=0.95)
                losses.cpu()  # waits for the device
                if repeat:
                    times[name].append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    return {name: statistics.median(found) / NUM_STACKED for name, found in times.items()}
