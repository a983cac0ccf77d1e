"""Measure a training step in every mode: seconds, compiling, capturing, memory, kernels.

    python benchmarks/gpu_step.py 64:32 256:32 1024:8 --modes eager compiled+captured

One shape WIDTH:K after the other, each mode in a process of its own, so that one that fails or
runs out of time (`--timeout`) takes none with it. One line of JSON per measurement, at once.
Alongside: the same shape trained as a study trains it (`Training`: data, schedule, losses sent
back), and with --profile the kernels of one step. Runs on a CPU as well, at small shapes.
"""

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hptransfer.model import GPTShape, _kernels, count_parameters
from hptransfer.scaling import resolve
from hptransfer.study._trial import estimate_memory
from hptransfer.train import _program as program_module
from hptransfer.train._batches import Batches
from hptransfer.train._calibrate import DTYPES, CompileJob, StepTerms, measure_compiled
from hptransfer.train._device import find_device, free_memory, set_determinism, worker_environment
from hptransfer.train._ensemble import Ensemble, Run, TrainSettings
from hptransfer.train._program import MODES, Program, is_compiled
from hptransfer.train._trainer import Training
from memory import make_config
from plain_gpt import PlainGPT, make_step

#: bf16 products of an H100 SXM by the datasheet's clock, dense, as measured on large matrices.
PEAK_FLOPS = 780e12
LRS, SEEDS = 8, 2
#: What a plain script of one model does, to compare with.
PLAIN = ("plain eager", "plain compiled")
#: Parts of the compiled step that can be left out, to see what they give.
PARTS = ("attention", "loss", "norm", "copies")

Steps = Callable[[int, list[float]], torch.Tensor]
"""From the first step and a factor for each to the losses before them."""


def make_batches(args: argparse.Namespace) -> Batches:
    """Return windows of a stream whose tokens are as unevenly frequent as those of text."""
    weights = 1 / (np.arange(args.vocab_size) + 10)
    draw = np.random.default_rng(0).choice
    tokens = draw(args.vocab_size, size=2**20, p=weights / weights.sum())
    return Batches(tokens.astype(np.uint16), context=args.context)


def make_shape(args: argparse.Namespace, width: int) -> GPTShape:
    """Return the GPT's shape."""
    return GPTShape(
        width=width, num_layers=args.layers, head_size=args.head_size, context=args.context,
        vocab_size=args.vocab_size,
    )  # fmt: skip


def make_ensemble(args: argparse.Namespace, width: int, num_runs: int) -> Ensemble:
    """Return a sweep's group: a few rates and two seeds."""
    runs = [
        Run(
            seed=i % SEEDS,
            resolved=resolve(
                "sp", width=width, base_width=width, base_lr=2.0 ** (-12 + i % LRS * 0.5),
                head_size=args.head_size, num_layers=args.layers,
            ),
        )
        for i in range(num_runs)
    ]  # fmt: skip
    return Ensemble(
        make_shape(args, width), runs, device=args.device, compute_dtype=DTYPES[args.precision]
    )


def make_settings(args: argparse.Namespace) -> TrainSettings:
    """Return a study's settings."""
    return TrainSettings(
        batch=args.batch, steps=args.steps, warmup=0.2, decay=0.2, beta1=0.9, beta2=0.95
    )


def flops_per_token(args: argparse.Namespace, width: int) -> int:
    """Return training FLOPs per token: 6 per matrix weight, plus the attention products."""
    matrices = args.layers * 12 * width**2 + width * args.vocab_size
    return 6 * matrices + 12 * args.layers * width * args.context


def wait(args: argparse.Namespace) -> None:
    """Wait for the device."""
    if args.device == "cuda":
        torch.cuda.synchronize()


def digest(ensemble: Ensemble) -> str:
    """Return a hash of every weight's bits."""
    found = hashlib.sha256()
    for parameter in ensemble.parameters.values():
        found.update(parameter.value.detach().cpu().numpy().tobytes())
    return found.hexdigest()[:16]


def make_steps(args: argparse.Namespace, ensemble: Ensemble, mode: str) -> Steps:
    """Return what takes steps, as a training of the mode does: eager on a CPU, the ensemble."""
    batches, settings = make_batches(args), make_settings(args)
    if args.device == "cpu" and not is_compiled(mode):
        return partial(ensemble.take_steps, batches, settings)
    return Program(ensemble, batches, settings, mode=mode).run


def measure(args: argparse.Namespace, width: int, num_runs: int, mode: str) -> dict[str, Any]:
    """Return everything about one shape in one mode, measured in this process."""
    if mode in PLAIN:
        return measure_plain(args, width, mode)
    set_determinism(threads=args.threads)
    _kernels.ENABLED.difference_update(args.without)
    program_module.KEEP_COPIES = "copies" not in args.without
    cuda = args.device == "cuda"
    if cuda:
        torch.zeros(1, device="cuda")
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    ensemble = make_ensemble(args, width, num_runs)
    wait(args)
    found: dict[str, Any] = {"width": width, "stacked": num_runs, "mode": mode,
                             "precision": args.precision, "without": args.without,
                             "draw_seconds": round(time.perf_counter() - start, 2)}  # fmt: skip
    take = make_steps(args, ensemble, mode)
    start = time.perf_counter()
    take(0, [1e-3])
    wait(args)
    found["first_step_seconds"] = round(time.perf_counter() - start, 2)
    start = time.perf_counter()
    take(1, [1e-3] * 4)
    wait(args)
    found["next_four_seconds"] = round(time.perf_counter() - start, 3)
    found["digest"] = digest(ensemble)  # after the same five steps in every mode
    if args.compile_only:
        return found
    step, times, rate = 5, [], num_runs * args.batch * args.context
    until = time.perf_counter() + args.seconds
    count = 4
    while len(times) < 3 or (time.perf_counter() < until and len(times) < 30):
        start = time.perf_counter()
        take(step, [1e-3] * count)
        wait(args)
        seconds = (time.perf_counter() - start) / count
        times.append(seconds)
        step, count = step + count, max(1, min(32, int(0.2 / seconds)))
    seconds = statistics.median(times[1:])
    found |= {
        "milliseconds": round(1e3 * seconds, 3),
        "tokens_per_second": round(rate / seconds),
        "utilisation": round(rate / seconds * flops_per_token(args, width) / PEAK_FLOPS, 4),
    }
    if cuda:
        size = count_parameters(ensemble.shape) * num_runs
        found["memory"] = {
            "allocated": torch.cuda.max_memory_allocated(),
            "reserved": torch.cuda.max_memory_reserved(),
            "parameters": size,
            "rows": rate,
        }
    if args.profile:
        found["kernels"] = profile(args, take, step)
    del take, ensemble
    if args.steps:
        found |= train(args, width, num_runs, mode)
    if cuda and args.memory:
        found["planned_bytes"] = num_runs * plan_memory(args, width, num_runs)
        found["estimated_bytes"] = num_runs * estimate_memory(
            make_config(args, width), width, device="cuda"
        )
        say_memory(found)
    return found


def say_memory(found: dict[str, Any]) -> None:
    """Print what a training reserved against what the plan expects, and where its peaks are.

    A plan expects what it measures, and before that an estimate.
    """
    seen, planned = found.get("training", found["memory"]), found["planned_bytes"]
    estimated = found["estimated_bytes"]
    print(
        f"memory at width {found['width']}, K = {found['stacked']}: "
        f"reserved {seen['reserved'] / 1e9:.2f} GB, {seen['reserved'] / planned:.2f} of the plan's "
        f"{planned / 1e9:.2f}, {seen['reserved'] / estimated:.2f} of the estimate's "
        f"{estimated / 1e9:.2f}; allocated {seen['allocated'] / 1e9:.2f}",
        flush=True,
    )
    for name, phase in seen.get("phases", {}).items():
        sizes = ", ".join(f"{key} {size / 1e9:.2f}" for key, size in phase.items())
        print(f"  {name}: {sizes}", flush=True)


def look_at_memory(phases: dict[str, dict[str, int]], name: str) -> None:
    """Add the peaks of a phase, and what each kind of pool holds at its end; begin the next."""
    if not torch.cuda.is_available():
        return
    phases[name] = {
        "peak reserved": torch.cuda.max_memory_reserved(),
        "peak allocated": torch.cuda.max_memory_allocated(),
    }
    for segment in torch.cuda.memory_snapshot():
        pool = "graphs" if any(segment["segment_pool_id"]) else "others"
        for key, size in (("reserved", "total_size"), ("allocated", "allocated_size")):
            of_pool = phases[name].get(f"{pool} {key}", 0) + segment[size]
            phases[name][f"{pool} {key}"] = of_pool
    torch.cuda.reset_peak_memory_stats()


def plan_memory(args: argparse.Namespace, width: int, num_runs: int) -> int:
    """Return the bytes a run that a plan measures."""
    free_memory()
    terms = StepTerms(
        shape=make_shape(args, width), batch=args.batch, device=args.device, threads=args.threads
    )
    job = CompileJob(terms=terms, num_stacked=num_runs, precision=args.precision, memory=0)
    return measure_compiled(job).run_bytes


def measure_plain(args: argparse.Namespace, width: int, mode: str) -> dict[str, Any]:
    """Return the speed of one plain model, with data that is on the device already."""
    torch.manual_seed(0)
    shape = make_shape(args, width)
    model = PlainGPT(shape).to(args.device)
    take = make_step(
        torch.compile(model) if mode == "plain compiled" else model,
        lr=1e-3, bf16=args.precision == "bf16", device=args.device,
    )  # fmt: skip
    batches = make_batches(args)
    data = [
        torch.from_numpy(batches.batch(0, i, batch=args.batch)).to(args.device) for i in range(16)
    ]
    start = time.perf_counter()
    take(data[0])
    wait(args)
    first = time.perf_counter() - start
    times: list[float] = []
    until = time.perf_counter() + args.seconds
    while len(times) < 3 or time.perf_counter() < until:
        start = time.perf_counter()
        for tokens in data:
            take(tokens)
        wait(args)
        times.append((time.perf_counter() - start) / len(data))
    seconds = statistics.median(times[1:])
    rate = args.batch * args.context / seconds
    return {
        "width": width, "mode": mode, "precision": args.precision,
        "first_step_seconds": round(first, 2), "milliseconds": round(1e3 * seconds, 3),
        "tokens_per_second": round(rate),
        "utilisation": round(rate * flops_per_token(args, width) / PEAK_FLOPS, 4),
    }  # fmt: skip


def train(args: argparse.Namespace, width: int, num_runs: int, mode: str) -> dict[str, Any]:
    """Return what a training of some steps costs on top of its steps."""
    if args.device == "cuda":
        free_memory()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    ensemble = make_ensemble(args, width, num_runs)
    training = Training(
        ensemble,
        batches=make_batches(args),
        validation=np.zeros((64, args.context + 1), dtype=np.int64),
        settings=make_settings(args),
        mode=mode,
    )
    wait(args)
    phases: dict[str, dict[str, int]] = {}
    look_at_memory(phases, "weights drawn")
    prepared = time.perf_counter()
    first = min(40, args.steps // 2)
    while training.step < first:
        training.advance()
    training.flush()
    look_at_memory(phases, "first steps, captured")
    step, middle = training.step, time.perf_counter()
    while not training.done:
        training.advance()
    training.flush()
    end = time.perf_counter()
    look_at_memory(phases, "steps")
    written = time.perf_counter()
    snapshot = training.snapshot()
    copied = time.perf_counter()
    del snapshot
    training.finish()
    evaluated = time.perf_counter()
    look_at_memory(phases, "copied, evaluated")
    tokens = (training.step - step) * num_runs * args.batch * args.context
    peak: dict[str, Any] = {}
    if phases:
        peak = {
            "reserved": max(phase["peak reserved"] for phase in phases.values()),
            "allocated": max(phase["peak allocated"] for phase in phases.values()),
            "phases": phases,
        }
    return {
        "training": {
            "prepare_seconds": round(prepared - start, 2),
            "first_steps_seconds": round(middle - prepared, 2),
            "tokens_per_second": round(tokens / (end - middle)),
            "snapshot_seconds": round(copied - written, 3),
            "evaluate_seconds": round(evaluated - copied, 3),
            "diverged": len(training.watch.diverged),
            **peak,
        }
    }


def profile(args: argparse.Namespace, take: Steps, step: int) -> list[dict[str, Any]]:
    """Return the kernels of two steps by their time, the longest first."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    activities = [ProfilerActivity.CPU]
    if args.device == "cuda":
        activities = [ProfilerActivity.CUDA]
    with record(activities=activities) as seen:
        take(step, [1e-3] * 2)
        wait(args)
    kind = "self_device_time_total" if args.device == "cuda" else "self_cpu_time_total"
    events = sorted(seen.key_averages(), key=lambda event: -getattr(event, kind))
    total = sum(getattr(event, kind) for event in events) or 1
    return [
        {
            "name": event.key[:120],
            "milliseconds": round(getattr(event, kind) / 2e3, 3),
            "share": round(getattr(event, kind) / total, 4),
            "calls": event.count / 2,
        }
        for event in events[:70]
    ]


def main() -> None:
    """Measure what is asked for, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shapes", nargs="+", metavar="WIDTH:K")
    parser.add_argument(
        "--modes", nargs="+", choices=(*MODES, *PLAIN), default=["eager", "compiled+captured"]
    )
    parser.add_argument("--precision", choices=list(DTYPES), default="bf16")
    parser.add_argument("--device", default=find_device())
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--head-size", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=1.0, help="timed, at least 3 blocks")
    parser.add_argument("--steps", type=int, default=200, help="of the training alongside")
    parser.add_argument("--without", nargs="*", choices=PARTS, default=[])
    parser.add_argument("--memory", action="store_true", help="what a plan measures, too")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--compile-only", action="store_true", help="five steps, for the cache")
    parser.add_argument("--timeout", type=float, default=90.0)
    parser.add_argument("-o", "--output", type=Path, help="file that lines are added to")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    for text in args.shapes:
        for mode in args.modes:
            if args.here:
                width, _, num_runs = text.partition(":")
                print(json.dumps(measure(args, int(width), int(num_runs), mode)))
                continue
            start = time.perf_counter()
            command = [sys.executable, __file__, "--here", *sys.argv[1:]]
            command = [word for word in command if word not in args.shapes]
            command[3:3] = [text]
            line = run([*command, "--modes", mode], args)
            found = {**line, "shape": text, "mode": mode,
                     "wall_seconds": round(time.perf_counter() - start, 1)}  # fmt: skip
            if args.output:
                with args.output.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(found) + "\n")
            print(json.dumps({k: v for k, v in found.items() if k != "kernels"}), flush=True)


def run(command: list[str], args: argparse.Namespace) -> dict[str, Any]:
    """Return the answer of a process, or what became of it."""
    try:
        done = subprocess.run(
            command, env=worker_environment(threads=args.threads), text=True,
            capture_output=True, timeout=args.timeout, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {args.timeout:.0f} s"}
    if done.returncode:
        return {"error": done.stderr.strip()[-1500:]}
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


if __name__ == "__main__":
    main()
