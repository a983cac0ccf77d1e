"""Measure training tokens per second: ours as a study runs it, against plain scripts.

Sides take turns, round after round, on the same machine with nothing else running:

- ours: groups of a sweep planned as a study plans them (precision, stacking, workers, compiled
  or not), or with --stacked and --precision as told;
- fp32 and bf16: one eager model per process (`plain_gpt.py`), fp32 and bf16 autocast, with one
  process on all cores and with one single-threaded process per core; the better of these counts.
  On a GPU one process, bf16 eager and compiled;
- allocator (CPU): the same once more in one process per core with the allocator settings that our
  workers start with, as a script could have them too; a ratio of its own, which leaves only what
  the program does;
- loop (GPU): the compiled model in the loop that nanoGPT's train.py has: each step cuts its batch
  on the host and sends it over, clips gradients, and every tenth asks for the loss;
- peer: with --peer DIR, the model of a nanoGPT checkout, likewise; on a GPU compiled.

But for loop, each side gets its data in the best form: token tensors that are already in memory,
and nobody waits for a GPU before the turn ends. What compiles does so before the clock starts.
Before that, ours and the plain script must agree on the losses of the same seed in fp32. The
ceiling is that of the machine's matrix products at the sizes of one step; MFU is held against one
large product.

Processes stay alive from turn to turn while there is memory; where it runs short, those whose turn
is over are ended, and started anew for the next. A side that fails is named with its reason, and
the others go on.
"""

import argparse
import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dated import RESULTS, describe_making, write_document
from hptransfer.model import GPTShape
from hptransfer.study._executor import make_shape
from hptransfer.study._local_engine import describe_machine
from hptransfer.study._runner import plan_groups
from hptransfer.study._trial import flops_per_token, list_trials, resolve_trial
from hptransfer.study.config import StudyConfig, parse_study
from hptransfer.train._batches import Batches
from hptransfer.train._calibrate import DTYPES
from hptransfer.train._device import (
    OUT_OF_MEMORY,
    count_cores,
    set_determinism,
    worker_environment,
)
from hptransfer.train._ensemble import Ensemble, Run, TrainSettings
from hptransfer.train._program import MODES
from hptransfer.train._trainer import Training
from plain_gpt import PlainGPT, cut_batches, load_peer, make_step

LR = 2.0**-10
#: Steps of the agreement in fp32, and how far the losses may lie apart, relatively.
GUARD_STEPS, GUARD_TOLERANCE = 5, 1e-4
#: Share of the memory that must be free for a side to start beside those that wait.
FREE_SHARE = 0.3
#: Steps before the clock starts: what compiles, and what is captured, has had its turns.
WARM_STEPS = 6
#: Size of the product that MFU is held against.
LARGE_PRODUCT = 8192

Step = Callable[[], int]
Finish = Callable[[], None]


def make_config(args: argparse.Namespace, *widths: int) -> StudyConfig:
    """Return a sweep at one width or more, of 8 learning rates and as many seeds as it takes."""
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
                "width": list(widths),
                "base_width": widths[0],
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


def prepare_ours(side: dict[str, Any], config: StudyConfig) -> tuple[Step, Finish]:
    """Return what takes a block of steps of a planned group, and what waits for the last."""
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
        mode=side["mode"],
    )

    def step() -> int:
        before = training.step
        training.advance()
        return (training.step - before) * len(group) * train.batch * config.model.context

    def finish() -> None:
        training.flush()
        assert not training.watch.diverged
        assert not training.problem, training.problem

    return step, finish


def prepare_plain(side: dict[str, Any], config: StudyConfig) -> tuple[Step, Finish]:
    """Return what takes a step of one plain model, and what waits for the last."""
    torch.set_num_threads(side["threads"])
    torch.manual_seed(0)
    if side["device"] == "cuda":
        torch.set_float32_matmul_precision("high")  # as nanoGPT allows it
    shape = make_shape(config, config.sweep.width[0])
    model = load_peer(Path(side["peer"]), shape) if side.get("peer") else PlainGPT(shape)
    model.to(side["device"])
    take = make_step(
        torch.compile(model) if side.get("compiled") else model,
        lr=LR, bf16=side["bf16"], device=side["device"], clip=1.0 if side.get("loop") else None,
    )  # fmt: skip
    tokens, batch = make_tokens(config), config.train.batch
    source = Batches(tokens, context=config.model.context)
    ready = [
        torch.from_numpy(source.batch(0, i, batch=batch)).to(side["device"]) for i in range(16)
    ]
    fresh = cut_batches(tokens, batch=batch, context=config.model.context, device=side["device"])
    count = 0

    def step() -> int:
        nonlocal count
        loss = take(next(fresh) if side.get("loop") else ready[count % len(ready)])
        count += 1
        if side.get("loop") and count % 10 == 0:
            loss.item()
        return batch * config.model.context

    def finish() -> None:
        if side["device"] == "cuda":
            torch.cuda.synchronize()

    return step, finish


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
    # A GPU is filled by as many products at a time as runs are stacked; a core by one.
    stacked = len(side["trials"]) if side["device"] == "cuda" else 1
    found: dict[str, Any] = {}
    for name, dtype in DTYPES.items():
        speeds, seconds = {}, 0.0
        for m, k, n in dict.fromkeys(products):
            a = torch.randn(stacked, m, k, device=side["device"]).to(dtype)
            b = torch.randn(stacked, k, n, device=side["device"]).to(dtype)
            times = []
            until = time.perf_counter() + 0.15
            while len(times) < 4 or (time.perf_counter() < until and len(times) < 50):
                start = time.perf_counter()
                torch.bmm(a, b)
                if side["device"] == "cuda":
                    torch.cuda.synchronize()
                times.append(time.perf_counter() - start)
            best = statistics.median(times[1:])
            speeds[f"{m}x{k}x{n}"] = round(stacked * 2 * m * k * n / best / 1e9, 1)
            seconds += best * products.count((m, k, n))
        flops = sum(stacked * 2 * m * k * n for m, k, n in products)
        found[name] = {"gflops": speeds, "mean_gflops": flops / seconds / 1e9}
    return found


def measure_large_product(device: str) -> float:
    """Return GFLOP/s of one large bf16 product, which MFU is held against."""
    size = LARGE_PRODUCT
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))
    times = []
    for _ in range(8):
        start = time.perf_counter()
        a @ b
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(times[2:]) / 1e9


def serve(side: dict[str, Any]) -> None:
    """Be one process of a side: take steps for as long as each line of stdin says."""
    config = parse_study(side["config"])
    # What a peer's model prints must not disturb the answers.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    if side["kind"] == "ceiling":
        print("ready", file=answers)
        for _ in sys.stdin:
            print(json.dumps(measure_ceiling(side, config)), file=answers)
        return
    step, finish = (prepare_ours if side["kind"] == "ours" else prepare_plain)(side, config)
    for _ in range(WARM_STEPS if side["device"] == "cuda" else 2):
        step()
        finish()
    print("ready", file=answers)
    for line in sys.stdin:
        start, tokens = time.perf_counter(), 0
        while time.perf_counter() - start < float(line) or not tokens:
            tokens += step()
        finish()
        print(json.dumps({"tokens": tokens, "seconds": time.perf_counter() - start}), file=answers)


class SideError(Exception):
    """A process of a side has died."""


class Side:
    """One competitor: processes that wait until it is their turn."""

    def __init__(self, name: str, parts: Sequence[dict[str, Any]]) -> None:
        self.name = name
        self.parts = parts
        self.rates: list[float] = []
        self.failure = ""
        self._processes: list[subprocess.Popen[str]] = []
        self._said: list[Any] = []

    @property
    def alive(self) -> bool:
        """Whether its processes are there."""
        return bool(self._processes)

    def start(self) -> None:
        """Start the processes; `wait` until they are ready."""
        for part in self.parts:
            environment = {**os.environ, "OMP_NUM_THREADS": str(part["threads"])}
            if part["kind"] == "ours" or part.get("allocator"):
                environment = worker_environment(threads=part["threads"])
            self._said.append(tempfile.TemporaryFile("w+"))  # noqa: SIM115 - read in `wait`
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, __file__, "--side", json.dumps(part)], text=True,
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said[-1],
                    env=environment,
                )
            )  # fmt: skip

    def wait(self) -> list[str]:
        """Wait for a line of each process."""
        lines = [process.stdout.readline() for process in self._processes]
        for line, said in zip(lines, self._said, strict=True):
            if not line:
                said.seek(0)
                last = [text.strip() for text in said.read().splitlines() if text.strip()]
                raise SideError(last[-1][:300] if last else "its process has died")
        return lines

    def ask(self, line: str) -> list[Any]:
        """Have all processes work at a time; return their answers."""
        for process in self._processes:
            process.stdin.write(f"{line}\n")
            process.stdin.flush()
        return [json.loads(answer) for answer in self.wait()]

    def run(self, seconds: float) -> None:
        """Work for a turn and record tokens per second, of all processes together."""
        self.rates.append(sum(a["tokens"] / a["seconds"] for a in self.ask(str(seconds))))

    def stop(self) -> None:
        """End the processes."""
        for process in self._processes:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes, self._said = [], []

    @property
    def median(self) -> float:
        """Tokens per second."""
        return statistics.median(self.rates)


def free_share(device: str) -> float:
    """Return the share of the memory that is free."""
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        return free / total
    known = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        key, _, value = line.partition(":")
        known[key] = int(value.split()[0])
    return known["MemAvailable"] / known["MemTotal"]


class Arena:
    """All sides, of which those are alive that there is memory for.

    Parameters
    ----------
    sides : sequence of Side
        In the order of their turns.
    device : str
        Whose memory counts.
    together : bool
        Whether sides may wait beside each other at all.
    """

    def __init__(self, sides: Sequence[Side], *, device: str, together: bool) -> None:
        self._sides, self._device, self._together = sides, device, together
        self._recent: list[Side] = []  # alive, the one that waits longest first

    def _make_room(self) -> None:
        while self._recent and (not self._together or free_share(self._device) < FREE_SHARE):
            self._recent.pop(0).stop()

    def start_all(self) -> None:
        """Start all sides at a time."""
        for side in self._sides:
            side.start()

    def wait_all(self) -> None:
        """Wait for each side that has been started."""
        for side in self._sides:
            try:
                if side.alive:
                    side.wait()
                    self._recent.append(side)
            except SideError as error:
                side.stop()
                if not any(text in str(error) for text in OUT_OF_MEMORY):  # its turn comes yet
                    side.failure = str(error)

    def take_turn(self, side: Side, seconds: float) -> None:
        """Have a side work for a turn; a failure is kept as its reason."""
        if side.failure:
            return
        try:
            if side in self._recent:
                self._recent.remove(side)
            else:
                self._make_room()
                side.start()
                side.wait()
            side.run(seconds)
        except (SideError, OSError) as error:
            side.failure = str(error) or type(error).__name__
            side.stop()
            return
        self._recent.append(side)

    def stop(self) -> None:
        """End all processes."""
        for side in self._sides:
            side.stop()


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
    mode, precision, chosen = args.mode, args.precision, []
    if size := args.stacked_at.get(config.sweep.width[0]):
        ids = [trial.id for trial in trials]
        chosen = [tuple(ids[i * size : (i + 1) * size]) for i in range(machine.workers)]
    if not (mode and precision and chosen):
        groups = plan_groups(config, trials, machine)
        mode, precision = mode or groups[0].mode, precision or groups[0].precision
        chosen = chosen or [group.trial_ids for group in groups[: machine.workers]]
    ours = [
        {**common, "kind": "ours", "trials": ids, "precision": precision, "mode": mode,
         "threads": machine.threads}
        for ids in chosen
    ]  # fmt: skip
    sides = {"ours": ours}
    layouts = {"1 process": (1, cores), f"{cores} processes": (cores, 1)}
    rivals: dict[str, dict[str, Any]] = {"fp32": {"bf16": False}, "bf16": {"bf16": True}}
    peers = {f"peer {name}": {**options, "peer": args.peer} for name, options in rivals.items()}
    if device == "cuda":
        layouts = {"1 process": (1, cores)}
        compiled = {"bf16": True, "compiled": True}
        rivals = {"bf16": {"bf16": True}, "compiled": compiled, "loop": {**compiled, "loop": True}}
        peers = {"peer compiled": {**compiled, "peer": args.peer}}
    for name, options in (rivals | (peers if args.peer else {})).items():
        for layout, (count, threads) in layouts.items():
            part = {**common, "kind": "plain", "threads": threads, **options}
            sides[f"{name}, {layout}"] = [part] * count
        if device == "cpu":
            part = {**part, "allocator": True}
            sides[f"{name} + allocator, {layout}"] = [part] * count
    return sides


class Contest:
    """The sides of one width."""

    def __init__(self, args: argparse.Namespace, width: int) -> None:
        self.width = width
        self.config = make_config(args, width)
        self.guard = check_losses(self.config)
        self.described = list_sides(args, self.config)
        self.device = self.described["ours"][0]["device"]
        self.sides = {name: Side(name, parts) for name, parts in self.described.items()}
        self.arena = Arena(list(self.sides.values()), device=self.device, together=not args.alone)


def measure(args: argparse.Namespace, contest: Contest) -> dict[str, Any]:
    """Return everything about one width."""
    config, width, guard = contest.config, contest.width, contest.guard
    described, sides, arena = contest.described, contest.sides, contest.arena
    part = {**described["ours"][0], "kind": "ceiling", "allocator": True}
    device, precision = part["device"], part["precision"]
    try:
        arena.wait_all()
        for _ in range(args.rounds):
            for side in sides.values():
                arena.take_turn(side, args.seconds)
    finally:
        arena.stop()
    failed = {name: side.failure for name, side in sides.items() if side.failure}
    ours = sides["ours"]
    if ours.failure:
        return {"width": width, "failed": failed}
    for name in failed:
        del sides[name]
    if device == "cuda":
        ceilings = [measure_ceiling(part, config)]
    else:
        probe = Side("ceiling", [part] * len(described["ours"]))
        probe.start()
        probe.wait()
        ceilings = probe.ask("go")
        probe.stop()
    ceiling = sum(found[precision]["mean_gflops"] for found in ceilings)
    flops = flops_per_token(config, width)
    result: dict[str, Any] = {
        "width": width,
        "stacked": [len(p["trials"]) for p in described["ours"]],
        "precision": precision,
        "mode": part["mode"],
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
        "failed": failed,
    }
    if device == "cuda":
        large = measure_large_product(device)
        result["large_product_gflops"] = round(large)
        result["mfu"] = round(ours.median * flops / 1e9 / large, 3)
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
    parser.add_argument(
        "--stacked", type=int, nargs="+", help="K, instead of the plan's; one, or one per width"
    )
    parser.add_argument("--mode", choices=MODES, help="instead of the plan's")
    parser.add_argument("--precision", choices=tuple(DTYPES), help="instead of the plan's")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--head-size", type=int, default=64)
    parser.add_argument("-o", "--output", type=Path, help="file to write")
    return parser


def parse_sweep(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line; `stacked_at` maps widths to the K asked for."""
    args = parser.parse_args()
    sizes = args.stacked or []
    if len(sizes) not in (0, 1, len(args.widths)):
        parser.error("--stacked: expected one number, or one for each of --widths")
    args.stacked_at = dict(
        zip(args.widths, sizes * (len(args.widths) // (len(sizes) or 1)), strict=False)
    )
    return args


def describe(found: dict[str, Any]) -> str:
    """Return the line that is printed of a width."""
    rates = found["tokens_per_second"]
    ratios = ", ".join(
        f"{ratio['median']:.2f} x {ratio['of']} ({rates[ratio['of']]:,})"
        for ratio in found["ratios"].values()
    )
    mfu = f", MFU {found['mfu']:.3f}" if "mfu" in found else ""
    return (
        f"width {found['width']}: ours {rates['ours']:,} tokens/s ({found['precision']}, "
        f"{found['mode']}, {found['stacked']} stacked), {ratios}; "
        f"{found['flop_utilisation']:.0%} of the products' ceiling{mfu}, "
        f"{found['ceiling_gflops']} GFLOP/s"
    )


def main() -> None:
    """Measure the widths asked for, print a line each, and write a dated file."""
    parser = make_parser(__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--seconds", type=float, default=2.5, help="length of a turn")
    parser.add_argument("--peer", type=str, help="folder of a nanoGPT checkout")
    parser.add_argument("--alone", action="store_true", help="one side's processes at a time")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    args = parse_sweep(parser)
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
    planned = not (args.stacked_at and args.mode and args.precision)
    if planned and describe_machine().device == "cuda":  # compiles all widths side by side
        config = make_config(args, *args.widths)
        plan_groups(config, list_trials(config), describe_machine())
    contests = [Contest(args, width) for width in args.widths]
    try:
        if contests[0].device == "cuda" and not args.alone:
            for contest in contests:  # which compile, side by side, and have memory of their own
                contest.arena.start_all()
        for contest in contests:
            found = measure(args, contest)
            document["widths"].append(found)
            write_document(output, document)
            for name, reason in found["failed"].items():
                print(f"width {contest.width}: {name} failed: {reason}", flush=True)
            if "ratios" in found:
                print(describe(found), flush=True)
    finally:
        for contest in contests:
            contest.arena.stop()
    print(f"written: {output}")


if __name__ == "__main__":
    main()
