"""The local engine: this machine described and measured, and its processes that train groups.

A training process is started as ``python -m hptransfer.study._local_engine DIR ROOT SECONDS``,
SECONDS being the time between checkpoints. It takes group names on stdin and reports events on
stdout. It ends when its stdin closes, on SIGTERM with a checkpoint, and, should the runner have
been killed, at its next report.
"""

import contextlib
import math
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hptransfer.errors import HptransferError
from hptransfer.study._executor import Executor, MakeTraining, make_shape, make_training
from hptransfer.study._plan import PRECISIONS, Machine, Speed, StackedGroup
from hptransfer.study.config import StudyConfig
from hptransfer.study.events import Event
from hptransfer.study.store import group_path
from hptransfer.train.calibrate import measure_step_seconds
from hptransfer.train.device import (
    count_cores,
    describe_device,
    find_device,
    find_memory,
    worker_environment,
)

OnEvent = Callable[[Event], None]

MeasureSpeeds = Callable[[StudyConfig, Sequence[int], Machine], dict[int, Speed]]
"""Function that returns, for each width, the precision to plan with and the measured speed."""

StartProcess = Callable[..., "subprocess.Popen[bytes]"]
"""Function with the arguments of ``subprocess.Popen``."""


class LocalEngine:
    """Trains groups in processes of this machine, or in this process."""

    def describe(self, *, workers: int | None = None) -> Machine:
        """Return this machine as a plan sees it; see `describe_machine`."""
        return describe_machine(workers=workers)

    def measure(
        self, config: StudyConfig, widths: Sequence[int], machine: Machine
    ) -> dict[int, Speed]:
        """Return the precision and speed of each width; see `measure_speeds`."""
        return measure_speeds(config, widths, machine)

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
        """Train `groups`, as many at a time as `workers`, by default one per core."""
        count = describe_machine(workers=workers).workers
        if count == 1:
            run_in_process(
                config, directory, groups, on_event, checkpoint_interval=checkpoint_interval
            )
        else:
            run_in_workers(
                config,
                directory,
                groups,
                on_event,
                workers=count,
                checkpoint_interval=checkpoint_interval,
            )


def describe_machine(*, workers: int | None = None) -> Machine:
    """Return this machine; one single-threaded worker per core on a CPU, one on a GPU."""
    device = find_device()
    cores = count_cores()
    count = workers or (cores if device == "cpu" else 1)
    return Machine(
        device=device,
        name=describe_device(device),
        memory=find_memory(device),
        workers=count,
        threads=max(1, cores // count),
    )


def measure_speeds(
    config: StudyConfig, widths: Sequence[int], machine: Machine
) -> dict[int, Speed]:
    """Return the precision to train each width in, the faster one unless the study names it."""
    speeds = {}
    wanted = config.train.precision
    for width in sorted(set(widths)):
        seconds = measure_step_seconds(
            make_shape(config, width),
            batch=config.train.batch,
            device=machine.device,
            threads=machine.threads,
            precisions=PRECISIONS if wanted == "auto" else (wanted,),
        )
        precision = min(PRECISIONS, key=lambda name: seconds.get(name, math.inf))
        speeds[width] = Speed(precision=precision, seconds=seconds[precision])
    return speeds


def run_in_process(
    config: StudyConfig,
    directory: Path,
    groups: Sequence[StackedGroup],
    on_event: OnEvent,
    *,
    checkpoint_interval: float,
    make_training: MakeTraining = make_training,
) -> None:
    """Train `groups` one after the other in this process."""
    executor = Executor(
        config,
        directory,
        checkpoint_interval=checkpoint_interval,
        make_training=make_training,
    )
    for group in groups:
        # Another process on the same directory may have finished it meanwhile.
        if not group_path(directory, group.name).exists():
            executor.execute(group.name, on_event)


def run_in_workers(
    config: StudyConfig,
    directory: Path,
    groups: Sequence[StackedGroup],
    on_event: OnEvent,
    *,
    workers: int,
    checkpoint_interval: float,
    start_process: StartProcess = subprocess.Popen,
) -> None:
    """Train `groups` in order in `workers` processes at a time.

    A worker that dies fails the group it was at; another takes its place. Whatever ends this
    function ends the workers.
    """
    waiting = deque(groups)
    events: queue.Queue[tuple[_Worker, Event | None]] = queue.Queue()
    alive: list[_Worker] = []
    arguments = [str(directory), str(config.root), str(checkpoint_interval)]

    def start() -> None:
        alive.append(
            _Worker.start(arguments, events, threads=groups[0].threads, start_process=start_process)
        )
        alive[-1].take_next(waiting, directory)

    try:
        for _ in range(min(workers, len(groups))):
            start()
        while any(worker.group for worker in alive):
            worker, event = events.get()
            if event is None:
                alive.remove(worker)
                worker.stop()
                if worker.group is not None:
                    on_event(
                        Event(
                            kind="failed",
                            group=worker.group.name,
                            message=_describe_end(worker.process.returncode),
                        )
                    )
                if waiting:
                    start()
                continue
            on_event(event)
            if event.is_last:
                worker.take_next(waiting, directory)
    finally:
        for worker in alive:
            worker.stop()


def _describe_end(code: int) -> str:
    """Return how a process ended, for a user."""
    if code >= 0:
        return f"its process ended with code {code}"
    name = signal.Signals(-code).name
    hint = " (often too little memory: fewer --workers need less)" if name == "SIGKILL" else ""
    return f"its process was ended by {name}{hint}"


@dataclass(eq=False)
class _Worker:
    """A process, and the group it is at."""

    process: subprocess.Popen[bytes]
    reader: threading.Thread
    group: StackedGroup | None = None

    @classmethod
    def start(
        cls,
        arguments: Sequence[str],
        events: "queue.Queue[tuple[_Worker, Event | None]]",
        *,
        threads: int,
        start_process: StartProcess,
    ) -> "_Worker":
        # Blocked here, so blocked there: Ctrl-C would else end a process that still imports.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process = start_process(
                [sys.executable, "-m", "hptransfer.study._local_engine", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                env=worker_environment(threads=threads),
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

        def read() -> None:
            assert process.stdout is not None
            with os.fdopen(process.stdout.fileno(), encoding="utf-8", closefd=False) as lines:
                for line in lines:
                    events.put((worker, Event.from_line(line)))
            process.stdout.close()
            events.put((worker, None))

        worker = cls(process=process, reader=threading.Thread(target=read, daemon=True))
        worker.reader.start()
        return worker

    def take_next(self, waiting: deque[StackedGroup], directory: Path) -> None:
        """Assign the next unfinished group to the process, or close its stdin so that it exits."""
        assert self.process.stdin is not None
        self.group = None
        while waiting and self.group is None:
            group = waiting.popleft()
            if not group_path(directory, group.name).exists():
                self.group = group
        if self.group is None:
            self.process.stdin.close()
            return
        # A process that has just died: its reader says so, and the group counts as failed.
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{self.group.name}\n".encode())

    def stop(self) -> None:
        """End the process, at once if it is at a group, and wait for it."""
        if self.group is not None:
            self.process.terminate()
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait()
        self.reader.join()


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

    executor = Executor.open(directory, root=root, checkpoint_interval=checkpoint_interval)
    for line in sys.stdin:
        executor.execute(line.strip(), report)


if __name__ == "__main__":
    try:
        _train_named(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]))
    except HptransferError as error:
        print(f"hptransfer: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
