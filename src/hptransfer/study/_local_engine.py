"""The local engine: this machine described and measured, and its processes that train groups.

A training process is started as ``python -m hptransfer.study._local_engine DIR ROOT SECONDS``,
SECONDS being the time between checkpoints. It takes group names on stdin and reports events on
stdout. It ends when its stdin closes, on SIGTERM with a checkpoint, and, should the runner have
been killed, at its next report.
"""

import math
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

from hptransfer.errors import HptransferError
from hptransfer.study._executor import Executor, MakeTraining, make_shape, make_training
from hptransfer.study._own_model import naming_user_code
from hptransfer.study._plan import (
    PRECISIONS,
    Machine,
    Precision,
    Speed,
    StackedGroup,
    choose_group_size,
    memory_budget,
)
from hptransfer.study._trial import estimate_memory, num_steps
from hptransfer.study.config import StudyConfig
from hptransfer.study.events import Event
from hptransfer.study.store import group_path
from hptransfer.train._calibrate import (
    CompileJob,
    MeasuredStep,
    StepTerms,
    compile_ahead,
    measure_compiled,
    measure_growth,
    measure_step_seconds,
)
from hptransfer.train._device import (
    count_cores,
    describe_device,
    find_device,
    find_memory,
    list_gpus,
    worker_environment,
)

OnEvent = Callable[[Event], None]

#: Seconds that compiling a shape takes about beside others, on a GPU's machine.
EXPECTED_COMPILE_SECONDS = 15.0
#: Seconds that a group's steps on a GPU should take in all, uncompiled: drawing weights, capturing
#: and evaluating take about one.
GROUP_SECONDS = 30.0
#: Training that takes this many times as long without a compiler is worth trying with one.
WORTH_COMPILING = 2.0

StartProcess = Callable[..., "subprocess.Popen[bytes]"]
"""Function with the arguments of ``subprocess.Popen``."""


class LocalEngine:
    """Trains groups in processes of this machine, or in this process.

    Another engine is one with other methods: what machine a plan is made for, how fast that
    trains, and how groups get there.
    """

    def describe(self, *, workers: int | None = None) -> Machine:
        """Return this machine as a plan sees it; see `describe_machine`."""
        return describe_machine(workers=workers)

    def measure(
        self, config: StudyConfig, num_runs: Mapping[int, int], machine: Machine
    ) -> dict[int, Speed]:
        """Return how to train each width; see `measure_speeds`."""
        return measure_speeds(config, num_runs, machine)

    def train(
        self,
        config: StudyConfig,
        directory: Path,
        groups: Sequence[StackedGroup],
        on_event: OnEvent,
        *,
        workers: int | None,
        checkpoint_interval: float,
    ) -> None:
        """Train groups, as many at a time as `workers`, and report what happens as events."""
        machine = describe_machine(workers=workers)
        run: Callable[..., None] = run_in_process
        if machine.workers > 1:
            run = partial(run_in_workers, workers=machine.workers, num_gpus=len(machine.devices))
        run(directory, groups, on_event, root=config.root, checkpoint_interval=checkpoint_interval)


LOCAL_ENGINE = LocalEngine()


def describe_machine(*, workers: int | None = None) -> Machine:
    """Return this machine; one single-threaded worker per core on a CPU, one on each GPU."""
    device = find_device()
    cores = count_cores()
    gpus = list_gpus() if device != "cpu" else ()
    count = workers or (len(gpus) or cores)
    memory = find_memory(device)
    if gpus:  # workers that share a GPU share its memory
        memory = memory * count // math.ceil(count / len(gpus))
    return Machine(
        device=device,
        name=describe_device(device),
        memory=memory,
        workers=count,
        threads=max(1, cores // count),
        devices=gpus,
    )


def measure_speeds(
    config: StudyConfig, num_runs: Mapping[int, int], machine: Machine
) -> dict[int, Speed]:
    """Return how to train each width of `num_runs`, by what is fastest on this machine.

    The precision is the faster one unless the study names it. On a GPU runs are stacked while
    that pays, and the step is compiled where that takes less time in all.
    """
    counts = sorted(num_runs.items())
    if config.own_model is not None:
        return {width: _measure_own(config, width, count, machine) for width, count in counts}
    wanted = config.train.precision
    precisions = PRECISIONS if wanted == "auto" else (wanted,)
    widths = [_MeasuredWidth(config, width, n, machine, precisions) for width, n in counts]
    if machine.device == "cpu":
        return {each.width: each.measure_on_cpu() for each in widths}
    speeds = {each.width: each.stack() for each in widths}
    jobs = {each.width: each.plan_compiling(speeds[each.width]) for each in widths}
    compile_ahead([job for job in jobs.values() if job], memory=memory_budget(machine))
    return {
        each.width: each.compile(speeds[each.width], job) if job else speeds[each.width]
        for each, job in zip(widths, jobs.values(), strict=True)
    }


def _measure_own(config: StudyConfig, width: int, num_runs: int, machine: Machine) -> Speed:
    """Return how a user's own model trains fastest."""
    with naming_user_code(f"width {width}: a step of the model", ours=True):
        found: Speed = config.own_model.measure(width, num_runs=num_runs, machine=machine)
    return found


@dataclass(frozen=True)
class _MeasuredWidth:
    """Runs of one width of the GPT, and the machine on which their speed is measured."""

    config: StudyConfig
    width: int
    num_runs: int
    machine: Machine
    precisions: Sequence[Precision]

    @property
    def terms(self) -> StepTerms:
        """What a step depends on beside the number of runs, precision and mode."""
        return StepTerms(
            shape=make_shape(self.config, self.width),
            batch=self.config.train.batch,
            device=self.machine.device,
            threads=self.machine.threads,
        )

    def measure_on_cpu(self) -> Speed:
        """Return the faster precision, and what a step takes."""
        seconds = measure_step_seconds(self.terms, precisions=self.precisions)
        precision = min(PRECISIONS, key=lambda name: seconds.get(name, math.inf))
        return Speed(precision=precision, seconds=seconds[precision])

    def stack(self) -> Speed:
        """Return how fast runs train on a GPU uncompiled, with as many stacked as pay."""
        growth = measure_growth(
            self.terms,
            precisions=self.precisions,
            limit=self.choose_size(None),
            memory=memory_budget(self.machine),
        )
        seconds = growth.seconds or math.inf
        # What a group costs besides its steps should be little beside them.
        amortized = math.ceil(GROUP_SECONDS / (seconds * num_steps(self.config, self.width)))
        return _describe_speed(growth, max(growth.num_stacked, amortized))

    def choose_size(self, speed: Speed | None) -> int:
        """Return K, the number of runs to stack."""
        return choose_group_size(
            self.config, self.width, num_runs=self.num_runs, machine=self.machine, speed=speed
        )

    def estimate_seconds(self, speed: Speed) -> float:
        """Return what a worker takes for all its steps."""
        size = self.choose_size(speed)
        turns = math.ceil(math.ceil(self.num_runs / size) / self.machine.workers)
        return speed.seconds * size * turns * num_steps(self.config, self.width)

    def plan_compiling(self, speed: Speed) -> CompileJob | None:
        """Return what to compile; None where that takes longer than it could save."""
        if self.estimate_seconds(speed) < WORTH_COMPILING * EXPECTED_COMPILE_SECONDS:
            return None
        size = self.choose_size(speed)
        return CompileJob(
            terms=self.terms,
            num_stacked=size,
            precision=speed.precision,
            memory=size * estimate_memory(self.config, self.width, device=self.machine.device),
        )

    def compile(self, speed: Speed, job: CompileJob) -> Speed:
        """Return how fast runs train compiled, or `speed` where that is no gain."""
        found = measure_compiled(job)
        budget = memory_budget(self.machine)
        if found.run_bytes * job.num_stacked > budget:
            smaller = replace(speed, num_stacked=max(1, budget // found.run_bytes))
            job = replace(job, num_stacked=self.choose_size(smaller))
            found = measure_compiled(job)
        uncompiled = replace(speed, note=found.problem)
        if found.seconds is None:
            return uncompiled
        compiled = _describe_speed(found, job.num_stacked, note=found.problem)
        # It lies in a cache by now: training starts with it at a fraction of the time it took.
        gains = self.estimate_seconds(compiled) < self.estimate_seconds(speed)
        return compiled if gains else uncompiled


def _describe_speed(found: MeasuredStep, num_stacked: int, *, note: str = "") -> Speed:
    """Return a measured step as a plan takes it, with K runs stacked."""
    return Speed(
        precision=cast(Precision, found.precision),
        seconds=found.cost,
        mode=found.mode,
        num_stacked=num_stacked,
        run_bytes=found.run_bytes or None,
        note=note,
    )


def run_in_process(
    directory: Path,
    groups: Sequence[StackedGroup],
    on_event: OnEvent,
    *,
    root: Path,
    checkpoint_interval: float,
    make_training: MakeTraining = make_training,
) -> None:
    """Train `groups` one after the other in this process."""
    executor = Executor(
        directory,
        root=root,
        checkpoint_interval=checkpoint_interval,
        make_training=make_training,
    )
    for group in groups:
        # Another process on the same directory may have finished it meanwhile.
        if not group_path(directory, group.name).exists():
            on_event(executor.execute(group.name, on_event))


def run_in_workers(
    directory: Path,
    groups: Sequence[StackedGroup],
    on_event: OnEvent,
    *,
    root: Path,
    workers: int,
    checkpoint_interval: float,
    num_gpus: int = 0,
    start_process: StartProcess = subprocess.Popen,
) -> None:
    """Train `groups` in order in `workers` processes at a time, spread evenly over the GPUs.

    A process that dies fails the group it was at; another takes its place. Whatever ends this
    function ends the processes.
    """
    if not groups:
        return
    count, waiting, stopping = min(workers, len(groups)), iter(groups), threading.Event()
    events: queue.Queue[Event | None] = queue.Queue()
    processes: dict[int, subprocess.Popen[bytes]] = {}
    command = [sys.executable, "-m", "hptransfer.study._local_engine"]
    command += [str(directory), str(root), str(checkpoint_interval)]

    def start(place: int) -> None:
        gpu = place % num_gpus if num_gpus else None
        environment = worker_environment(threads=groups[0].threads, gpu=gpu)
        # Blocked here, so blocked there: Ctrl-C would else end a process that still imports.
        with mask_interrupt(signal.SIG_BLOCK):
            processes[place] = start_process(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
            )

    def serve(place: int) -> None:
        """Give a process one group after the other, and pass on what it reports."""
        try:
            for group in waiting:
                if group_path(directory, group.name).exists():
                    continue
                if processes[place].returncode is not None and not stopping.is_set():
                    start(place)
                if stopping.is_set():  # looked at last, so that no process is left out
                    break
                _train_in(processes[place], group, events.put)
            processes[place].communicate()  # with no more to do, it ends
        finally:
            events.put(None)

    with ThreadPoolExecutor(count) as pool:
        try:
            for place in range(count):
                start(place)
            served = [pool.submit(serve, place) for place in range(count)]
            while count:
                if (event := events.get()) is not None:
                    on_event(event)
                else:
                    count -= 1
            for each in served:
                each.result()
        finally:
            stopping.set()
            for process in processes.values():
                process.terminate()
            for process in processes.values():  # also where a later one could not be started
                process.wait()


@contextmanager
def mask_interrupt(how: int) -> Iterator[None]:
    """Block SIGINT in this thread and in what it starts, or let it through, for a while.

    Parameters
    ----------
    how : int
        ``signal.SIG_BLOCK`` or ``signal.SIG_UNBLOCK``.
    """
    before = signal.pthread_sigmask(how, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _train_in(
    process: "subprocess.Popen[bytes]", group: StackedGroup, report: Callable[[Event], None]
) -> None:
    """Let a process train a group, and report its events, the last one too if the process dies."""
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(BrokenPipeError):  # it has just died, and says nothing more
        process.stdin.write(f"{group.name}\n".encode())
        process.stdin.flush()
    for line in process.stdout:
        event = Event.from_line(line.decode())
        report(event)
        if event.is_last:
            return
    process.communicate()
    message = _describe_end(process.returncode)
    report(Event(kind="failed", group=group.name, message=message))


def _describe_end(code: int) -> str:
    """Return how a process ended, for a user."""
    if code >= 0:
        return f"its process ended with code {code}"
    name = signal.Signals(-code).name
    hint = " (often too little memory: fewer --workers need less)" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{hint}"


def _train_named(directory: Path, root: Path, checkpoint_interval: float) -> None:
    """Train the groups that are named on stdin, until it closes."""
    # Ctrl-C reaches the whole terminal; the runner decides what it means and ends us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Libraries that print must not disturb the reports.
    reports = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)

    def report(event: Event) -> None:
        try:
            print(event.to_line(), file=reports)
        except BrokenPipeError:
            os._exit(1)  # the runner is gone; nobody would read a traceback

    executor = Executor(directory, root=root, checkpoint_interval=checkpoint_interval)
    for line in sys.stdin:
        report(executor.execute(line.strip(), report))


if __name__ == "__main__":
    try:
        _train_named(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
    except HptransferError as error:
        print(f"hptransfer: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
