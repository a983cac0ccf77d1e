"""Measure training tokens per second: ours as a study runs it, against plain scripts.

Sides take turns, round after round, on the same machine with nothing else running:

- ours: groups of a sweep planned as a study plans them (precision, stacking, workers), or with
  --stacked and --precision as told;
- fp32 and bf16: one eager model per process (`plain_gpt.py`), fp32 and bf16 autocast, with one
  process on all cores and with one single-threaded process per core (on a GPU one process,
  eager and compiled); the better of these counts;
- allocator: the same once more in one process per core with the allocator settings that our
  workers start with, as a script could have them too; a ratio of its own, which leaves only what
  the program does;
- peer: with --peer DIR, the model of a nanoGPT checkout, likewise.

Each side also gets its data in the best form: token tensors that are already in memory. Before
the clock starts, ours and the plain script must agree on the losses of the same seed in fp32.
The ceiling is that of the machine's matrix products at the sizes of one step.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dated import RESULTS, describe_making, write_document
from hptransfer.model import GPTShape
from hptransfer.study._cost import flops_per_token
from hptransfer.study._executor import make_shape
from hptransfer.study._local_engine import describe_machine
from hptransfer.study._runner import plan_groups
from hptransfer.study._trial import list_trials, resolve_trial
from hptransfer.study.config import StudyConfig, parse_study
from hptransfer.train.batches import Batches
from hptransfer.train.calibrate import DTYPES
from hptransfer.train.device import count_cores, set_determinism, worker_environment
from hptransfer.train.ensemble import Ensemble, Run
from hptransfer.train.trainer import Training, TrainSettings
from plain_gpt import PlainGPT, load_peer, make_step

LR = 2.0**-10
#: Steps of the agreement in fp32, and how far the losses may lie apart, relatively.
GUARD_STEPS, GUARD_TOLERANCE = 5, 1e-4


def make_config(args: argparse.Namespace, width: int) -> StudyConfig:
    """Return a sweep at one width, of 8 learning rates and as many seeds as it takes."""
    return parse_study(
        {
            "name": "throughput",
            "data": {"text": "wiki", "vocab_size": args.vocab_size},
            "model": {
                "num_layers": args.layers,
                "head_size": args.head_size,
                "context": args.context,
            },
            "sweep": {
                "parameterization": ["sp"],
                "width": [width],
                "base_width": width,
                "log2_lr": [-13.5 + 0.5 * i for i in range(8)],
                "seed": list(range(math.ceil(args.trials / 8))),
            },
            "train": {
                "batch": args.batch,
                "steps": 10**6,
                **({"precision": args.precision} if args.precision else {}),
            },
        }
    )


def make_tokens(config: StudyConfig) -> np.ndarray:
    """Return a stream whose tokens are as unevenly frequent as those of text."""
    V = config.data.vocab_size
    weights = 1 / (np.arange(V) + 10)
    generator = np.random.default_rng(0)
    return generator.choice(V, size=2**20, p=weights / weights.sum()).astype(np.uint16)


def prepare_ours(side: dict[str, Any], config: StudyConfig) -> Callable[[], int]:
    """Return a function that takes a step of a planned group and returns the tokens it took."""
    set_determinism(threads=side["threads"])
    trials = {trial.id: trial for trial in list_trials(config)}
    group = [trials[trial] for trial in side["trials"]]
    train = config.train
    training = Training(
        Ensemble(
            make_shape(config, group[0].width),
            [Run(seed=t.seed, resolved=resolve_trial(config, t)) for t in group],
            device=side["device"],
            compute_dtype=DTYPES[side["precision"]],
        ),
        batches=Batches(make_tokens(config), context=config.model.context),
        validation=np.zeros((1, config.model.context + 1), dtype=np.int64),
        settings=TrainSettings(
            batch=train.batch, steps=10**5, warmup=0.2, decay=0.2, beta1=0.9, beta2=0.95
        ),
    )

    def step() -> int:
        training.advance()
        assert not training.watch.diverged
        return len(group) * train.batch * config.model.context

    return step


def prepare_plain(side: dict[str, Any], config: StudyConfig) -> Callable[[], int]:
    """Return a function that takes a step of one plain model and returns the tokens it took."""
    torch.set_num_threads(side["threads"])
    torch.manual_seed(0)
    shape = make_shape(config, config.sweep.width[0])
    model = load_peer(Path(side["peer"]), shape) if side.get("peer") else PlainGPT(shape)
    model.to(side["device"])
    take = make_step(
        torch.compile(model) if side.get("compiled") else model,
        lr=LR, bf16=side["bf16"], device=side["device"],
    )  # fmt: skip
    source = Batches(make_tokens(config), context=config.model.context)
    ready = [
        torch.from_numpy(source.batch(0, i, batch=config.train.batch)).to(side["device"])
        for i in range(16)
    ]
    count = 0

    def step() -> int:
        nonlocal count
        loss = take(ready[count % len(ready)])
        count += 1
        if side["device"] == "cuda":
            loss.item()
        return config.train.batch * config.model.context

    return step


def list_products(shape: GPTShape, rows: int) -> Iterator[tuple[int, int, int]]:
    """Yield (m, k, n) of each matrix product of one step of one trial, attention aside."""
    D, F, V = shape.width, shape.feed_forward, shape.vocab_size
    layer = [(D, 3 * D), (D, D), (D, F), (F, D)]
    for fan_in, fan_out in [*layer * shape.num_layers, (D, V)]:
        yield rows, fan_in, fan_out  # forward
        yield rows, fan_out, fan_in  # into the inputs
        yield fan_in, rows, fan_out  # into the weights


def measure_ceiling(side: dict[str, Any], config: StudyConfig) -> dict[str, Any]:
    """Return GFLOP/s of this process's products by size and precision, and their time in all."""
    torch.set_num_threads(side["threads"])
    shape = make_shape(config, config.sweep.width[0])
    products = list(list_products(shape, config.train.batch * config.model.context))
    found: dict[str, Any] = {}
    for name, dtype in DTYPES.items():
        speeds, seconds = {}, 0.0
        for m, k, n in dict.fromkeys(products):
            a = torch.randn(1, m, k, device=side["device"]).to(dtype)
            b = torch.randn(1, k, n, device=side["device"]).to(dtype)
            times = []
            until = time.perf_counter() + 0.15
            while len(times) < 4 or (time.perf_counter() < until and len(times) < 50):
                start = time.perf_counter()
                torch.bmm(a, b)
                if side["device"] == "cuda":
                    torch.cuda.synchronize()
                times.append(time.perf_counter() - start)
            best = statistics.median(times[1:])
            speeds[f"{m}x{k}x{n}"] = round(2 * m * k * n / best / 1e9, 1)
            seconds += best * products.count((m, k, n))
        flops = sum(2 * m * k * n for m, k, n in products)
        found[name] = {"gflops": speeds, "mean_gflops": flops / seconds / 1e9}
    return found


def serve(side: dict[str, Any]) -> None:
    """Be one process of a side: take steps for as long as each line of stdin says."""
    config = parse_study(side["config"])
    # What a peer's model prints must not disturb the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    if side["kind"] == "ceiling":
        for _ in sys.stdin:
            print(json.dumps(measure_ceiling(side, config)), file=answers)
        return
    step = (prepare_ours if side["kind"] == "ours" else prepare_plain)(side, config)
    step()
    step()
    print("ready", file=answers)
    for line in sys.stdin:
        start, tokens = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - start) < float(line) or not tokens:
            tokens += step()
        print(json.dumps({"tokens": tokens, "seconds": elapsed}), file=answers)


class Side:
    """One competitor: processes that wait until it is their turn."""

    def __init__(self, name: str, parts: Sequence[dict[str, Any]]) -> None:
        self.name = name
        self.rates: list[float] = []
        self.parts = parts
        self._processes = []
        for part in parts:
            environment = {**os.environ, "OMP_NUM_THREADS": str(part["threads"])}
            if part["kind"] == "ours" or part.get("allocator"):
                environment = worker_environment(threads=part["threads"])
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, __file__, "--side", json.dumps(part)],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
                )
            )  # fmt: skip

    def read(self) -> list[str]:
        """Wait for a line of each process."""
        lines = [process.stdout.readline() for process in self._processes]
        assert all(lines), f"a process of {self.name} has died"
        return lines

    def ask(self, line: str) -> list[Any]:
        """Have all processes work at a time; return their answers."""
        for process in self._processes:
            process.stdin.write(f"{line}\n")
            process.stdin.flush()
        return [json.loads(answer) for answer in self.read()]

    def run(self, seconds: float) -> None:
        """Work for a turn and record tokens per second, of all processes together."""
        self.rates.append(sum(a["tokens"] / a["seconds"] for a in self.ask(str(seconds))))

    def stop(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.stdin.close()
            process.wait()

    @property
    def median(self) -> float:
        """Tokens per second."""
        return statistics.median(self.rates)


def check_losses(config: StudyConfig) -> float:
    """Return how far apart ours and the plain script are in fp32; raise where it is too far."""
    torch.manual_seed(0)
    shape = make_shape(config, config.sweep.width[0])
    trial = next(t for t in list_trials(config) if t.base_lr == LR)
    resolved = resolve_trial(config, trial)
    ours = Ensemble(shape, [Run(seed=0, resolved=resolved)])
    plain = PlainGPT(shape)
    plain.copy_from({name: p.value[0].detach() for name, p in ours.parameters.items()})
    take = make_step(plain, lr=LR, bf16=False, device="cpu")
    source = Batches(make_tokens(config), context=config.model.context)
    worst, first, last = 0.0, 0.0, 0.0
    for step in range(GUARD_STEPS):
        tokens = torch.from_numpy(source.batch(0, step, batch=4))
        expected = float(take(tokens))
        found = float(ours.step(tokens[None], factor=1.0, beta1=0.9, beta2=0.95))
        worst = max(worst, abs(found / expected - 1))
        first, last = first or found, found
    if worst > GUARD_TOLERANCE or first == last:
        raise SystemExit(f"losses differ by {worst:.2g}, relatively: this is not the same model")
    return worst


def list_sides(args: argparse.Namespace, config: StudyConfig) -> dict[str, list[dict[str, Any]]]:
    """Return each side's processes."""
    machine = describe_machine()
    cores, device = count_cores(), machine.device
    document = config.to_dict()
    common = {"config": document, "device": device}
    trials = list_trials(config)
    groups = plan_groups(config, trials, machine)
    chosen = [group.trial_ids for group in groups[: machine.workers]]
    if args.stacked:
        ids = [trial.id for trial in trials]
        size = args.stacked
        chosen = [tuple(ids[i * size : (i + 1) * size]) for i in range(machine.workers)]
    ours = [
        {**common, "kind": "ours", "trials": ids, "precision": groups[0].precision,
         "threads": machine.threads}
        for ids in chosen
    ]  # fmt: skip
    sides = {"ours": ours}
    layouts = {"1 process": (1, cores), f"{cores} processes": (cores, 1)}
    if device == "cuda":
        layouts = {"1 process": (1, cores)}
    for name, options in {
        "fp32": {"bf16": False},
        "bf16": {"bf16": True},
        **({"compiled": {"bf16": True, "compiled": True}} if device == "cuda" else {}),
        **({"peer fp32": {"bf16": False, "peer": args.peer}} if args.peer else {}),
        **({"peer bf16": {"bf16": True, "peer": args.peer}} if args.peer else {}),
    }.items():
        for layout, (count, threads) in layouts.items():
            part = {**common, "kind": "plain", "threads": threads, **options}
            sides[f"{name}, {layout}"] = [part] * count
        if device == "cpu":
            part = {**part, "allocator": True}
            sides[f"{name} + allocator, {layout}"] = [part] * count
    return sides


def measure(args: argparse.Namespace, width: int) -> dict[str, Any]:
    """Return everything about one width."""
    config = make_config(args, width)
    guard = check_losses(config)
    described = list_sides(args, config)
    sides = {name: Side(name, parts) for name, parts in described.items()}
    try:
        for side in sides.values():
            side.read()
        for _ in range(args.rounds):
            for side in sides.values():
                side.run(args.seconds)
    finally:
        for side in sides.values():
            side.stop()
    ours = sides["ours"]
    part = {**described["ours"][0], "kind": "ceiling", "allocator": True}
    probe = Side("ceiling", [part] * len(described["ours"]))
    ceilings = probe.ask("go")
    probe.stop()
    precision = part["precision"]
    ceiling = sum(found[precision]["mean_gflops"] for found in ceilings)
    flops = flops_per_token(config, width)
    result: dict[str, Any] = {
        "width": width,
        "stacked": [len(p["trials"]) for p in described["ours"]],
        "precision": precision,
        "threads": part["threads"],
        "guard_relative_difference": guard,
        "flops_per_token": flops,
        "tokens_per_second": {name: round(side.median) for name, side in sides.items()},
        "rounds": {name: [round(rate) for rate in side.rates] for name, side in sides.items()},
        "ratios": {},
        "ceiling_gflops": {
            name: round(sum(found[name]["mean_gflops"] for found in ceilings), 1) for name in DTYPES
        },
        "products_gflops": ceilings[0],
        "flop_utilisation": round(ours.median * flops / 1e9 / ceiling, 3),
    }
    for name in dict.fromkeys(name.partition(",")[0] for name in sides if name != "ours"):
        rivals = [side for key, side in sides.items() if key.partition(",")[0] == name]
        best = max(rivals, key=lambda side: side.median)
        ratios = [mine / theirs for mine, theirs in zip(ours.rates, best.rates, strict=True)]
        result["ratios"][name] = {"of": best.name, "median": round(statistics.median(ratios), 2)}
    return result


def make_parser(description: str) -> argparse.ArgumentParser:
    """Return a parser of the options that say which sweep, on which machine's terms."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--trials", type=int, default=32, help="size of the sweep")
    parser.add_argument("--stacked", type=int, help="K, instead of the plan's")
    parser.add_argument("--precision", choices=tuple(DTYPES), help="instead of the plan's")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--head-size", type=int, default=64)
    parser.add_argument("-o", "--output", type=Path, help="file to write")
    return parser


def main() -> None:
    """Measure the widths asked for, print a line each, and write a dated file."""
    parser = make_parser(__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--seconds", type=float, default=2.5, help="length of a turn")
    parser.add_argument("--peer", type=str, help="folder of a nanoGPT checkout")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        serve(json.loads(args.side))
        return
    document: dict[str, Any] = {
        **describe_making(),
        "config": {
            key: getattr(args, key)
            for key in ("rounds", "seconds", "trials", "batch", "context", "vocab_size", "layers",
                        "head_size")
        },
        "widths": [],
    }  # fmt: skip
    output = args.output or RESULTS / f"throughput-{datetime.now(UTC):%Y-%m-%d-%H%M}.json"
    for width in args.widths:
        found = measure(args, width)
        document["widths"].append(found)
        rates = found["tokens_per_second"]
        print(
            f"width {width}: ours {rates['ours']:,} tokens/s "
            f"({found['precision']}, {found['stacked']} stacked), "
            + ", ".join(
                f"{ratio['median']:.2f} x {ratio['of']} ({rates[ratio['of']]:,})"
                for ratio in found["ratios"].values()
            )
            + f"; {found['flop_utilisation']:.0%} of the products' ceiling, "
            f"{found['ceiling_gflops']} GFLOP/s",
            flush=True,
        )
        write_document(output, document)
    print(f"written: {output}")


if __name__ == "__main__":
    main()
