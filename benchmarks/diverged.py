"""What dropping diverged runs saves: a group with and without, taking turns.

    python benchmarks/diverged.py --width 64 --share 0.5

A group of K runs, of which a share diverges soon after the warmup, trains with the diverged runs
dropped as they come and with all of them stacked to the end. Both must give the same bits.
"""

import argparse
import json
import sys
import time

import numpy as np
import torch

from hptransfer.model import GPTShape
from hptransfer.scaling import resolve
from hptransfer.train import _trainer
from hptransfer.train._batches import Batches, validation_windows
from hptransfer.train._device import describe_device, set_determinism
from hptransfer.train._ensemble import Ensemble, Run, TrainSettings
from hptransfer.train._trainer import RunResult, Training

SETTINGS = TrainSettings(batch=8, steps=60, warmup=0.2, decay=0.2, beta1=0.9, beta2=0.95)
VOCAB_SIZE, CONTEXT, HEAD_SIZE, NUM_LAYERS = 1024, 64, 16, 2
GOOD_LR, BAD_LR = 2.0**-8, 2.0**4


def train(width: int, num_runs: int, share: float) -> tuple[float, list[RunResult]]:
    """Train one group; return its seconds and results."""
    tokens = np.random.default_rng(0).integers(0, VOCAB_SIZE, 2**17).astype(np.uint16)
    lrs = [BAD_LR if k < share * num_runs else GOOD_LR for k in range(num_runs)]
    runs = [
        Run(
            seed=k,
            resolved=resolve(
                "sp", width=width, base_width=width, base_lr=lr, head_size=HEAD_SIZE,
                num_layers=NUM_LAYERS,
            ),
        )
        for k, lr in enumerate(lrs)
    ]  # fmt: skip
    shape = GPTShape(
        width=width, num_layers=NUM_LAYERS, head_size=HEAD_SIZE, context=CONTEXT,
        vocab_size=VOCAB_SIZE,
    )  # fmt: skip
    training = Training(
        Ensemble(shape, runs),
        batches=Batches(tokens, context=CONTEXT),
        validation=validation_windows(tokens[:4096], CONTEXT, 2048),
        settings=SETTINGS,
    )
    start = time.perf_counter()
    while not training.done:
        training.advance()
    return time.perf_counter() - start, training.finish()


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--num-runs", type=int, default=16)
    parser.add_argument("--share", type=float, default=0.5, help="of the runs, that diverges")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    set_determinism(threads=1)
    drop_share, seconds = _trainer.DROP_SHARE, {"dropped": [], "stacked": []}
    for _ in range(args.rounds):
        results = {}
        for side, value in (("dropped", drop_share), ("stacked", 2.0)):
            _trainer.DROP_SHARE = value
            took, results[side] = train(args.width, args.num_runs, args.share)
            seconds[side].append(took)
        for one, other in zip(*results.values(), strict=True):
            assert (one.loss, one.diverged_step) == (other.loss, other.diverged_step)
            assert np.array_equal(one.curve, other.curve)
    diverged = [run.diverged_step for run in results["dropped"] if run.loss is None]
    assert len(diverged) == round(args.share * args.num_runs)
    medians = {side: float(np.median(found)) for side, found in seconds.items()}
    json.dump(
        {
            **vars(args),
            "steps": SETTINGS.steps,
            "diverged_steps": sorted(set(diverged)),
            "seconds": medians,
            "saved": 1 - medians["dropped"] / medians["stacked"],
            "device": describe_device("cpu"),
            "torch": torch.__version__,
        },
        sys.stdout,
    )
    print()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
