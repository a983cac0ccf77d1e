"""The Ray engine: groups trained as tasks of a Ray cluster, or of a Ray started on this machine.

Each group is one task with its needs declared. A task trains on the study directory itself, which
every machine sees under one path, and stores its results there; only signs of life travel. A task
whose worker or machine is lost starts again, from the group's checkpoint.
"""

import logging
import math
import os
import signal
import socket
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from hptransfer.errors import ConfigError, HptransferError, StoreError
from hptransfer.study.config import StudyConfig, parse_study
from hptransfer.study.events import Event
from hptransfer.study.execute import Executor
from hptransfer.study.plan import Group
from hptransfer.study.store import PLAN_FOLDER, SETTINGS_FILE, group_path, read_settings
from hptransfer.train.device import count_cores, thread_environment
from hptransfer.train.tokens import CACHE_VARIABLE

#: Times that a group is started again when its worker or machine is lost.
MAX_RETRIES = 3
#: Seconds that interrupted groups have for their checkpoints.
CANCEL_SECONDS = 60.0
#: Seconds for a cluster's address to answer.
CONNECT_SECONDS = 5.0
#: Bytes of a local Ray's object store, its smallest: no data passes through it.
_STORE_BYTES = 80 * 2**20

# Read by Ray when it is imported: nothing is sent anywhere, and a task without GPUs keeps its
# environment (as later versions of Ray do).
_RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def import_ray() -> ModuleType:
    """Return Ray.

    Raises
    ------
    ConfigError
        If it is not installed.
    """
    for name, value in _RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError:
        raise ConfigError(
            "--engine ray: Ray is not installed: pip install 'hptransfer[ray]'"
        ) from None
    return ray


@contextmanager
def open_ray(address: str | None = None) -> Iterator[ModuleType]:
    """Connect to the cluster at `address`, or start Ray on this machine, for as long as it is used.

    Where this process is connected already, that connection serves, and stays.

    Raises
    ------
    ConfigError
        If Ray is not installed, or no cluster answers at the address.
    """
    ray = import_ray()
    if address is not None:
        _require_answer(address)
    if ray.is_initialized():
        yield ray
        return
    try:
        _connect(ray, address)
        yield ray
    finally:
        ray.shutdown()


def _connect(ray: ModuleType, address: str | None) -> None:
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        # Ports on the loopback interface only: nobody else is to reach them.
        settings |= {"address": "local", "_node_ip_address": "127.0.0.1"}
        settings |= {"num_cpus": count_cores(), "object_store_memory": _STORE_BYTES}
        settings |= {"include_dashboard": False}
    else:
        settings |= {"address": address}
    try:
        with _keep_handlers():
            ray.init(**settings)
    # It also ends a process that it cannot connect.
    except (ray.exceptions.RayError, OSError, RuntimeError, ValueError, SystemExit) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if address is None:
            raise HptransferError(f"--engine ray: Ray did not start here: {reason}") from None
        raise ConfigError(
            f"--address: expected a Ray cluster at {address!r}, found none ({reason})"
        ) from None


@contextmanager
def _keep_handlers() -> Iterator[None]:
    """Restore what Ctrl-C and SIGTERM do, which Ray sets to its own liking."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _require_answer(address: str) -> None:
    """Ask the port itself: Ray would try for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon or not port.isdecimal():
        if address == "auto":
            return
        raise ConfigError(f"--address: expected HOST:PORT or 'auto', found {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"--address: expected a Ray cluster at {address!r}, nothing answers there ({error})"
        ) from None


def run_on_ray(
    config: StudyConfig,
    directory: Path,
    groups: Sequence[Group],
    on_event: Callable[[Event], None],
    *,
    address: str | None = None,
    workers: int | None = None,
    checkpoint_interval: float,
) -> None:
    """Train `groups` as Ray tasks, in order, as many at a time as there is room for.

    A group whose worker or machine is lost starts again, up to `MAX_RETRIES` times. Whatever ends
    this function ends the tasks, which save what is under way.

    Parameters
    ----------
    config : StudyConfig
        The study.
    directory : Path
        Its directory, on a file system that every machine of the cluster sees under this path.
    groups : sequence of Group
        What to train.
    on_event : callable
        Told what happens.
    address : str, optional
        Of a cluster, as ``ray.init`` takes it. Default: this machine.
    workers : int, optional
        Groups at a time at most.
    checkpoint_interval : float
        Seconds between checkpoints.

    Raises
    ------
    ConfigError
        If Ray is not installed, no cluster answers, or a group needs a GPU and there is none.
    """
    with open_ray(address) as ray:
        site = _Site(
            directory=str(directory.resolve()),
            root=str(config.root.resolve()),
            identity=config.identity(),
            checkpoint_interval=checkpoint_interval,
        )
        driver = _Driver(ray, site, on_event, workers=workers)
        try:
            driver.train(groups)
        finally:
            driver.stop()


@dataclass(frozen=True, kw_only=True)
class _Site:
    """What all tasks of a run are told."""

    directory: str
    root: str
    identity: str
    checkpoint_interval: float


class _Driver:
    """The tasks under way, and what is heard of them."""

    def __init__(
        self, ray: Any, site: _Site, on_event: Callable[[Event], None], *, workers: int | None
    ) -> None:
        self._ray = ray
        self._site = site
        self._on_event = on_event
        self._workers = workers
        self._room = _Room.find(ray)
        self._train = ray.remote(_train_group)
        self._progress = ray.remote(_Progress).options(num_cpus=0).remote()
        self._running: dict[Any, Group] = {}
        self._lost: Counter[str] = Counter()
        self._seen: dict[str, str] = {}  # by group, the worker that was last heard of

    def train(self, groups: Sequence[Group]) -> None:
        waiting = deque(groups)
        news = self._progress.take.remote()
        while waiting or self._running:
            while waiting and len(self._running) < (self._workers or math.inf):
                self._start(waiting.popleft())
            [ready], _ = self._ray.wait([news, *self._running], num_returns=1)
            if ready == news:
                self._pass_on(self._ray.get(news))
                news = self._progress.take.remote()
            else:
                self._finish(ready)

    def _start(self, group: Group) -> None:
        task = self._train.options(
            **self._room.reserve(group, workers=self._workers),
            name=group.name,
            # A worker that is lost is counted here: Ray starts one that ran out of memory again
            # without end.
            max_retries=0,
            runtime_env={"env_vars": _environment(group)},
        ).remote(self._site, group.name, self._progress)
        self._running[task] = group

    def _pass_on(self, lines: Sequence[str]) -> None:
        """Report steps, but of no group that has ended meanwhile."""
        names = {group.name for group in self._running.values()}
        for event in map(Event.from_line, lines):
            if event.group in names:
                self._seen[event.group] = event.worker
                self._on_event(event)

    def _finish(self, task: Any) -> None:
        exceptions = self._ray.exceptions
        group = self._running.pop(task)
        try:
            line = self._ray.get(task)
        except exceptions.RayTaskError as error:  # ours are events: this is Ray's own
            self._on_event(Event.from_error(group.name, error.cause or error))
        except exceptions.RayError as error:
            self._lost[group.name] += 1
            if self._lost[group.name] <= MAX_RETRIES:
                self._start(group)
                return
            self._on_event(
                Event(
                    kind="failed",
                    group=group.name,
                    message=f"its worker was lost {self._lost[group.name]} times, the last one "
                    f"{self._seen.get(group.name, 'before its first report')} "
                    f"({type(error).__name__})",
                )
            )
        else:
            if line is not None:  # else another process has finished it
                self._on_event(Event.from_line(line))

    def stop(self) -> None:
        """End the tasks under way, with time for their checkpoints."""
        tasks = list(self._running)
        for task in tasks:
            self._ray.cancel(task, recursive=False)
        if tasks:
            self._ray.wait(tasks, num_returns=len(tasks), timeout=CANCEL_SECONDS)
        self._ray.kill(self._progress)


@dataclass(frozen=True, kw_only=True)
class _Room:
    """What the machines of a cluster have: processors of the largest one, GPUs of all."""

    cpus: int
    gpus: int

    @classmethod
    def find(cls, ray: Any) -> "_Room":
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return cls(
            cpus=max(int(node.get("CPU", 0)) for node in nodes),
            gpus=sum(int(node.get("GPU", 0)) for node in nodes),
        )

    def reserve(self, group: Group, *, workers: int | None) -> dict[str, float]:
        """Return what a task of `group` declares to need.

        A group on a GPU has it for itself, unless there are to be more workers than GPUs, and
        one processor. One on processors has its threads, or the largest machine where the plan
        is a larger one's.
        """
        if group.device == "cpu":
            return {"num_cpus": min(group.threads, self.cpus or group.threads)}
        if self.gpus == 0:
            raise ConfigError(
                f"--engine ray: expected a GPU in the cluster, since the plan is for {group.device}"
                ", found none"
            )
        return {"num_cpus": 1, "num_gpus": 1 / math.ceil((workers or 1) / self.gpus)}


def _environment(group: Group) -> dict[str, str]:
    """Return what a group's process is started with, as the local engine's workers are."""
    environment = thread_environment(threads=group.threads)
    if CACHE_VARIABLE in os.environ:
        environment[CACHE_VARIABLE] = os.environ[CACHE_VARIABLE]
    return environment


class _Progress:
    """The actor that events pass through on their way to the driver."""

    def __init__(self) -> None:
        import asyncio

        self._lines: asyncio.Queue[str] = asyncio.Queue()

    async def put(self, line: str) -> None:
        await self._lines.put(line)

    async def take(self) -> list[str]:
        """Return what has arrived, once something has."""
        lines = [await self._lines.get()]
        while not self._lines.empty():
            lines.append(self._lines.get_nowait())
        return lines


def _train_group(site: _Site, name: str, progress: Any) -> str | None:
    """Train one group where Ray has put us; return its last event, None if it was finished.

    Cancelled, it saves the group and raises KeyboardInterrupt.
    """
    worker = f"{socket.gethostname()}:{os.getpid()}"
    ended: list[Event] = []

    def report(event: Event) -> None:
        event = replace(event, worker=worker)
        if not event.is_last:
            progress.put.remote(event.to_line())
        else:
            ended.append(event)

    try:
        executor = _open_site(site)
        if group_path(Path(site.directory), name).exists():
            return None
        with _unblocked_interrupt():
            executor.execute(name, report)
    except Exception as error:  # a directory that cannot be read here, say
        report(Event.from_error(name, error))
    return ended[-1].to_line()


def _open_site(site: _Site) -> Executor:
    """Return the executor of a study directory, kept from task to task of one process."""
    directory = Path(site.directory)
    if not (directory / SETTINGS_FILE).exists():
        raise StoreError(
            f"{directory}: expected the study directory on every machine, under this path (a "
            f"shared folder), found no {SETTINGS_FILE} on {socket.gethostname()}"
        )
    if read_settings(directory)["identity"] != site.identity:
        raise StoreError(
            f"{directory}: expected the study directory on every machine, under this path (a "
            f"shared folder), found another study's on {socket.gethostname()}"
        )
    rounds = sorted((directory / PLAN_FOLDER).glob("*.json"))
    return _make_executor(site, tuple((path.name, path.stat().st_mtime_ns) for path in rounds))


@lru_cache(maxsize=1)
def _make_executor(site: _Site, rounds: tuple[tuple[str, int], ...]) -> Executor:
    directory = Path(site.directory)
    config = parse_study(
        read_settings(directory)["config"], source=site.directory, root=Path(site.root)
    )
    return Executor(config, directory, checkpoint_interval=site.checkpoint_interval)


@contextmanager
def _unblocked_interrupt() -> Iterator[None]:
    """Let SIGINT, by which Ray cancels, through: Ray starts its workers with it blocked."""
    before = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
