"""How each module's change goes with width in the GPT of the source, rule by rule.

Trains the plain GPT of the tests a few steps at widths 64 to 1024 under each rule, prints the
coordinate checks and how they compare with µP's, and writes each as JSON, for
``hptransfer report --coordinates FILE``. Everything is seeded.

    python benchmarks/coordinates.py [--rules sp sp+embd mup] [--layers 2] [-o DIR]
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from hptransfer.adopt import CoordinateCheck, coordinate_check, rule_optimizer
from reference.gpt import ReferenceGPT

WIDTHS = (64, 128, 256, 512, 1024)
SEEDS = (0, 1, 2)
VOCAB, CONTEXT, HEAD, BATCH, STEPS = 64, 16, 32, 2, 4
RESIDUAL = {f"blocks.*.{name}.weight": "hidden_residual" for name in ("proj", "down")}


def check(rule: str, *, num_layers: int, lr: float) -> CoordinateCheck:
    """Return the rule's coordinate check on the GPT."""

    def make(width: int) -> ReferenceGPT:
        return ReferenceGPT(
            width=width,
            num_layers=num_layers,
            head_size=HEAD,
            context=CONTEXT,
            vocab_size=VOCAB,
            attention_scale=HEAD**-0.5,
        )

    generator = torch.Generator().manual_seed(0)
    return coordinate_check(
        make,
        WIDTHS,
        optimizer=rule_optimizer(
            make,
            base_width=min(WIDTHS),
            parameterization=rule,
            lr=lr,
            num_layers=num_layers,
            roles=RESIDUAL,
        ),
        batches=torch.randint(VOCAB, (STEPS, BATCH, CONTEXT + 1), generator=generator),
        loss=lambda model, batch: model.loss(batch),
        steps=STEPS,
        seeds=SEEDS,
        name=rule,
    )


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rules", nargs="+", default=["sp", "sp+embd", "mup-embd", "mup"])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--lr", type=float, default=2.0**-8)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    reference = check("mup", num_layers=args.layers, lr=args.lr)
    for rule in args.rules:
        start = time.perf_counter()
        result = check(rule, num_layers=args.layers, lr=args.lr) if rule != "mup" else reference
        print(result)
        if rule != "mup":
            print(result.say_against(reference))
        print(f"{time.perf_counter() - start:.1f} s\n")
        if args.output:
            args.output.mkdir(parents=True, exist_ok=True)
            path = args.output / f"coordinates-{rule}.json"
            path.write_text(json.dumps(result.to_dict(), allow_nan=False), encoding="utf-8")


if __name__ == "__main__":
    main()
