"""The local engine: groups trained by processes of this machine, each on its own cores."""

import contextlib
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

from hptransfer.study.config import StudyConfig
from hptransfer.study.events import Event
from hptransfer.study.execute import Executor
from hptransfer.study.plan import Group
from hptransfer.study.store import group_path
from hptransfer.train.device import worker_environment

OnEvent = Callable[[Event], None]


def run_in_process(
    config: StudyConfig,
    directory: Path,
    groups: Sequence[Group],
    on_event: OnEvent,
    *,
    checkpoint_interval: float,
) -> None:
    """Train `groups` one after the other in this process."""
    executor = Executor(config, directory, checkpoint_interval=checkpoint_interval)
    for group in groups:
        # Another process on the same directory may have finished it meanwhile.
        if not group_path(directory, group.name).exists():
            executor.execute(group.name, on_event)


def run_in_workers(
    config: StudyConfig,
    directory: Path,
    groups: Sequence[Group],
    on_event: OnEvent,
    *,
    workers: int,
    checkpoint_interval: float,
) -> None:
    """Train `groups` in order in `workers` processes at a time.

    A worker that dies fails the group it was at; another takes its place. Whatever ends this
    function ends the workers.
    """
    waiting = deque(groups)
    signs: queue.Queue[tuple[_Worker, Event | None]] = queue.Queue()
    alive: list[_Worker] = []
    arguments = [str(directory), str(config.root), str(checkpoint_interval)]

    def start() -> None:
        alive.append(_Worker.start(arguments, signs, threads=groups[0].threads))
        alive[-1].take_next(waiting, directory)

    try:
        for _ in range(min(workers, len(groups))):
            start()
        while any(worker.group for worker in alive):
            worker, event = signs.get()
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
    group: Group | None = None

    @classmethod
    def start(
        cls,
        arguments: Sequence[str],
        signs: "queue.Queue[tuple[_Worker, Event | None]]",
        *,
        threads: int,
    ) -> "_Worker":
        process = subprocess.Popen(
            [sys.executable, "-m", "hptransfer.study.worker", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=worker_environment(threads=threads),
        )

        def read() -> None:
            assert process.stdout is not None
            with os.fdopen(process.stdout.fileno(), encoding="utf-8", closefd=False) as lines:
                for line in lines:
                    signs.put((worker, Event.from_line(line)))
            process.stdout.close()
            signs.put((worker, None))

        worker = cls(process=process, reader=threading.Thread(target=read, daemon=True))
        worker.reader.start()
        return worker

    def take_next(self, waiting: deque[Group], directory: Path) -> None:
        """Give the process the next group that nobody has finished, or its leave."""
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
