"""Measure, once per machine, how a shape trains fastest: precision, stacking, eager or compiled.

Measurements are cached by hardware, versions and shape, so that every later plan on the machine
makes the same choice.

Shape letters: K trials, B batch, T time.
"""

import hashlib
import json
import logging
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hptransfer._atomic import atomic_write
from hptransfer._documents import DigestError, check_document, read_document, seal_document
from hptransfer._messages import describe_error
from hptransfer._version import __version__
from hptransfer.model import GPTShape
from hptransfer.scaling import resolve
from hptransfer.train._batches import Batches
from hptransfer.train._device import (
    count_cores,
    describe_device,
    free_memory,
    is_out_of_memory,
    temporary_determinism,
    worker_environment,
)
from hptransfer.train._ensemble import Ensemble, Run, TrainSettings
from hptransfer.train._program import Mode, Program, describe_problem, is_compiled
from hptransfer.train._tokens import cache_root

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
#: Runs stacked while measuring: enough to see batched products, few enough to be quick.
NUM_STACKED = 4
#: A doubling of K on a GPU pays where a run's step takes this much less time.
WORTHWHILE_GAIN = 0.02
#: Steps of the blocks that a program takes; the first two hold what is done once, and what a
#: capture needs, and are not timed.
BLOCKS, NUM_UNTIMED = (1, 4, 2, 2, 2), 2
#: Steps that an ensemble is timed for, after one that is not.
NUM_TIMED = 4
#: Number of what a measurement means, which one of another is not read for; since 2 the memory of
#: a run is what was reserved, since 3 a step that cannot be captured stays compiled.
CACHE_FORMAT = 3
#: Seconds between looks at processes that compile.
POLL_SECONDS = 0.1

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class StepTerms:
    """What a step's time depends on, besides how many runs are stacked, and how it is taken.

    Attributes
    ----------
    shape : GPTShape
        The shape to train.
    batch : int
        Sequences in a step.
    device : str
        ``cpu`` or ``cuda``.
    threads : int
        Threads of a training process: what is compiled for one number is not for another.
    """

    shape: GPTShape
    batch: int
    device: str
    threads: int

    @property
    def key(self) -> list[Any]:
        """What measurements are cached by."""
        return [self.device, self.threads, vars(self.shape), self.batch]


@dataclass(frozen=True, kw_only=True)
class CompileJob:
    """A step to be compiled ahead: its terms, K and precision, and the memory to expect."""

    terms: StepTerms
    num_stacked: int
    precision: str
    memory: int

    @property
    def key(self) -> list[Any]:
        """What the measurement of the compiled step is cached by."""
        return [*self.terms.key, self.num_stacked, self.precision]


@dataclass(frozen=True, kw_only=True)
class MeasuredStep:
    """How steps of K stacked runs went on this machine.

    Attributes
    ----------
    num_stacked : int
        K.
    precision : str
        Of the matrix products.
    mode : str
        How the step was taken in fact: what cannot be compiled or captured is not.
    seconds : float or None
        Per step and stacked run; None where a step that was to be compiled could not be.
    compile_seconds : float
        Until the first step was taken; less where another process had compiled it before.
    run_bytes : int
        Device memory that one run took, in training and in evaluation: what was reserved.
    problem : str
        Why it cannot be compiled, or captured, here, in one line; empty where it can.
    """

    num_stacked: int
    precision: str
    mode: Mode = "compiled"
    seconds: float | None = None
    compile_seconds: float = 0.0
    run_bytes: int = 0
    problem: str = ""

    @property
    def cost(self) -> float:
        """Seconds to compare by: without end where the step could not be compiled."""
        return math.inf if self.seconds is None else self.seconds


def measure_step_seconds(
    terms: StepTerms, *, precisions: Sequence[str] = tuple(DTYPES)
) -> dict[str, float]:
    """Return seconds per eager training step and stacked run, by precision.

    Parameters
    ----------
    terms : StepTerms
        What to time.
    precisions : sequence of str
        Keys of `DTYPES`. Precisions take turns, so that a disturbance hits all alike.
    """

    def measure() -> dict[str, float]:
        size = (NUM_STACKED, terms.batch, terms.shape.context + 1)
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(terms.shape.vocab_size, size, generator=generator)
        # As a training process has it: other kernels would be timed.
        with temporary_determinism(threads=terms.threads):
            ensembles = [_make_ensemble(terms, NUM_STACKED, each) for each in precisions]
            times = time_steps(ensembles, tokens.to(terms.device))
        return dict(zip(precisions, (each / NUM_STACKED for each in times), strict=True))

    seconds: dict[str, float] = _cached("seconds", [*terms.key, *precisions], measure)
    return seconds


def time_steps(
    ensembles: Sequence[Ensemble], batch: Any, *, beta1: float = 0.9, beta2: float = 0.95
) -> list[float]:
    """Return seconds per step of each ensemble, which take turns, at a learning rate of 0.

    Parameters
    ----------
    ensembles : sequence of Ensemble
        Each of K runs; their steps are counted, and their moments change.
    batch : Tensor, or mapping of str to Tensor
        One step's arrays, stacked.
    beta1, beta2 : float
        Decay rates that the optimizer takes.
    """
    times: list[list[float]] = [[] for _ in ensembles]
    for _ in range(1 + NUM_TIMED):  # the first holds what is done once
        for ensemble, own in zip(ensembles, times, strict=True):
            start = time.perf_counter()
            ensemble.step(batch, factor=0.0, beta1=beta1, beta2=beta2).cpu()  # which waits for it
            own.append(time.perf_counter() - start)
    return [statistics.median(own[1:]) for own in times]


def measure_growth(
    terms: StepTerms, *, precisions: Sequence[str], limit: int, memory: int
) -> MeasuredStep:
    """Return how many runs to stack uncompiled, in the faster precision: doubled while it pays.

    Parameters
    ----------
    terms : StepTerms
        What to time; device ``cuda``, or ``cpu`` to try it out.
    precisions : sequence of str
        Keys of `DTYPES` to choose from.
    limit : int
        Largest K that the plan has a use for.
    memory : int
        Bytes that a group may take.
    """
    return _cached_step(
        "growth",
        [*terms.key, *precisions, limit, round(memory / 2**30)],
        lambda: _measure_growth(terms, precisions, limit=limit, memory=memory),
    )


def _measure_growth(
    terms: StepTerms, precisions: Sequence[str], *, limit: int, memory: int
) -> MeasuredStep:
    narrow = min(precisions, key=lambda name: DTYPES[name].itemsize)
    best: MeasuredStep | None = None
    num_stacked = min(2 * NUM_STACKED, limit)
    while best is None or num_stacked > best.num_stacked:
        try:
            found = _time_steps(terms, num_stacked, narrow, mode="captured")
        except Exception as error:
            if best is None or not is_out_of_memory(error):
                raise
            break
        if best is not None and found.cost > (1 - WORTHWHILE_GAIN) * best.cost:
            break
        best = found
        num_stacked = min(2 * num_stacked, limit)
        if num_stacked * found.run_bytes > memory:
            break
    for name in set(precisions) - {narrow}:
        other = _time_steps(terms, best.num_stacked, name, mode="captured")
        best = min(best, other, key=lambda step: step.cost)
    return best


def measure_compiled(job: CompileJob) -> MeasuredStep:
    """Compile and capture the step of K runs and return what that gives and takes.

    What is compiled stays in PyTorch's cache, for the process that trains. A problem is no
    exception: compiling needs a working compiler, and not every machine has one.
    """
    return _cached_step("compiled", job.key, lambda: _measure_compiled(job))


def compile_ahead(
    jobs: Sequence[CompileJob],
    *,
    memory: int,
    start_process: Callable[..., "subprocess.Popen[bytes]"] = subprocess.Popen,
) -> None:
    """Compile steps side by side, each in a process of its own, as `memory` bytes allow.

    What they compile lies in PyTorch's cache afterwards, where `measure_compiled` and training
    processes find it. One job alone is not worth a process; those measured before are left out,
    and one that fails says so when it is measured.
    """
    waiting = sorted(
        (job for job in jobs if not _cache_path("compiled", job.key)[1].exists()),
        key=lambda job: -job.memory,
    )
    if len(waiting) < 2:
        return
    running: dict[subprocess.Popen[bytes], int] = {}
    try:
        while waiting or running:
            running = {process: size for process, size in running.items() if process.poll() is None}
            free = memory - sum(running.values())
            job = next((job for job in waiting if job.memory <= free), None)
            if job is not None and len(running) < max(1, count_cores() // 2):
                waiting.remove(job)
                process = start_process(
                    [sys.executable, "-m", "hptransfer.train._calibrate", json.dumps(asdict(job))],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=worker_environment(threads=job.terms.threads),
                )
                running[process] = job.memory
            elif not running:  # too large for what is free: left to the measurement
                break
            else:
                time.sleep(POLL_SECONDS)
    finally:
        for process in running:
            process.kill()
            process.wait()


def _compile_one(document: Mapping[str, Any]) -> None:
    terms = StepTerms(**{**document["terms"], "shape": GPTShape(**document["terms"]["shape"])})
    count, precision = document["num_stacked"], document["precision"]
    _time_steps(terms, count, precision, mode="compiled", blocks=(1,))


def _measure_compiled(job: CompileJob) -> MeasuredStep:
    mode: Mode = "compiled+captured" if job.terms.device == "cuda" else "compiled"
    try:
        found = _time_steps(job.terms, job.num_stacked, job.precision, mode=mode)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        free_memory()
        return MeasuredStep(
            num_stacked=job.num_stacked, precision=job.precision, problem=describe_problem(error)
        )
    # A step that cannot be captured may still be worth compiling.
    return found if is_compiled(found.mode) else replace(found, seconds=None)


def _time_steps(
    terms: StepTerms,
    num_stacked: int,
    precision: str,
    *,
    mode: Mode,
    blocks: Sequence[int] = BLOCKS,
) -> MeasuredStep:
    """Return the time and memory of steps of K runs, however they can be taken."""
    shape, batch, on_gpu = terms.shape, terms.batch, terms.device == "cuda"
    # As a training process has it: other kernels would be compiled and timed.
    with temporary_determinism(threads=terms.threads):
        if on_gpu:
            free_memory()
            torch.cuda.reset_peak_memory_stats()
        generator = np.random.default_rng(0)
        tokens = generator.integers(0, shape.vocab_size, 4 * (batch + 1) * (shape.context + 1))
        batches = Batches(tokens.astype(np.uint32), context=shape.context)
        settings = TrainSettings(batch=batch, steps=1, warmup=0, decay=0, beta1=0.9, beta2=0.95)
        ensemble: Ensemble | None = None
        program: Program | None = None
        try:
            ensemble = _make_ensemble(terms, num_stacked, precision)
            program = Program(ensemble, batches, settings, mode=mode)
            times, step = [], 0
            for count in blocks:
                start = time.perf_counter()
                program.run(step, [1.0] * count).cpu()  # which waits for it
                times.append((time.perf_counter() - start) / count)
                step += count
            peak = 0
            if on_gpu and len(blocks) > NUM_UNTIMED:
                program.close()  # before the held-out losses, as at a training's end
                ensemble.evaluate(np.zeros((batch, shape.context + 1), np.int64), batch=batch)
                # All of it: what is there beforehand, libraries' workspaces, a training has too.
                peak = torch.cuda.max_memory_reserved()
            return MeasuredStep(
                num_stacked=num_stacked,
                precision=precision,
                mode=program.mode,
                seconds=statistics.median(times[NUM_UNTIMED:] or times) / num_stacked,
                compile_seconds=times[0],
                run_bytes=math.ceil(peak / num_stacked),
                problem=program.problem,
            )
        finally:
            program = ensemble = None  # and what they have captured
            if on_gpu:
                free_memory()


def _make_ensemble(terms: StepTerms, count: int, precision: str) -> Ensemble:
    shape, device = terms.shape, terms.device
    resolved = resolve(
        "sp",
        width=shape.width,
        base_width=shape.width,
        base_lr=2.0**-10,
        head_size=shape.head_size,
        num_layers=shape.num_layers,
    )
    generator = torch.Generator(device).manual_seed(0)
    return Ensemble(
        shape,
        [Run(seed=0, resolved=resolved)] * count,
        device=device,
        compute_dtype=DTYPES[precision],
        # As good as real ones, and the caller's own generator stays as it is.
        draw=lambda spec, seed: torch.randn(spec.shape, device=device, generator=generator),
    )


def _cached_step(
    kind: str, about: Sequence[Any], measure: Callable[[], MeasuredStep]
) -> MeasuredStep:
    return MeasuredStep(**_cached(kind, about, lambda: asdict(measure())))


def _cached(kind: str, about: Sequence[Any], measure: Callable[[], Any]) -> Any:
    """Return what was measured before on this machine under equal terms, or measure it."""
    key, path = _cache_path(kind, about)
    try:
        document = read_document(path)
        check_document(document, context=key)
        return document[kind]
    except (OSError, DigestError, KeyError):
        pass  # not measured yet, damaged, or of an older version
    found = measure()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as tmp:
            tmp.write_text(json.dumps(seal_document({kind: found}, context=key)), encoding="utf-8")
    except OSError as error:
        _log.warning("measured speeds are not kept for later runs: %s", describe_error(error))
    return found


def _cache_path(kind: str, about: Sequence[Any]) -> tuple[str, Path]:
    """Return what a measurement is cached under, and where."""
    machine = (describe_device(about[0]), torch.__version__, __version__)
    key = json.dumps([kind, CACHE_FORMAT, *machine, *about])
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    return key, cache_root() / "speed" / f"{name}.json"


if __name__ == "__main__":
    _compile_one(json.loads(sys.argv[1]))
