"""The Ray engine: groups trained as tasks of a Ray cluster, or of a Ray started on this machine.

Each group is one task that declares what it needs. A task trains on the study directory itself,
which every machine sees under one path, and stores its results there; only events travel. A task
whose worker or machine is lost starts again, from the group's checkpoint. The command itself may
run where nothing trains, on a login node say: a cluster is described and measured by tasks.
"""

import math
import os
import signal
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from hptransfer.errors import StoreError
from hptransfer.study._executor import Executor
from hptransfer.study._local_engine import OnEvent, describe_machine, measure_speeds
from hptransfer.study._plan import Machine, Speed, StackedGroup
from hptransfer.study._ray_cluster import Cluster
from hptransfer.study.config import StudyConfig
from hptransfer.study.events import Event
from hptransfer.study.store import PLAN_FOLDER, group_path
from hptransfer.study.study_settings import SETTINGS_FILE, read_settings
from hptransfer.train._device import thread_environment
from hptransfer.train._tokens import CACHE_VARIABLE

T = TypeVar("T")

#: Times that a group is started again when its worker or machine is lost.
MAX_RETRIES = 3
#: Seconds that interrupted groups have for their checkpoints.
CANCEL_SECONDS = 60.0


class RayEngine:
    """Trains groups as tasks of the Ray cluster that is connected.

    Parameters
    ----------
    ray : module
        Ray, connected (`hptransfer.study._ray_cluster.open_ray`).
    max_retries : int
        Times that a group is started again when its worker or machine is lost.
    """

    def __init__(self, ray: Any, *, max_retries: int = MAX_RETRIES) -> None:
        self._ray = ray
        self._max_retries = max_retries

    def describe(self, *, workers: int | None = None) -> Machine:
        """Return the cluster as the one machine of a plan.

        Its machines should be of one kind, and those with a GPU are where there is any; one of
        them speaks for all.
        """
        cluster = Cluster.find(self._ray)
        if len(cluster.nodes) == 1:
            return describe_machine(workers=workers)
        one = self._call(cluster, describe_machine, threads=1)
        return cluster.join(one, workers=workers)

    def measure(
        self, config: StudyConfig, num_runs: Mapping[int, int], machine: Machine
    ) -> dict[int, Speed]:
        """Return what `measure_speeds` finds on one of the machines that are to train."""
        cluster = Cluster.find(self._ray)
        if len(cluster.nodes) == 1:
            return measure_speeds(config, num_runs, machine)
        return self._call(
            cluster, measure_speeds, config, dict(num_runs), machine, threads=machine.threads
        )

    def _call(self, cluster: Cluster, function: Callable[..., T], *args: Any, threads: int) -> T:
        """Return what a function returns on one of the machines, with a GPU where there is any."""
        device = "cuda" if cluster.gpus else "cpu"
        needs = cluster.reserve(device=device, threads=threads, workers=None)
        task = self._ray.remote(function).options(**needs).remote(*args)
        result: T = self._ray.get(task)
        return result

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
        """Train `groups` in order, as many at a time as there is room for, at most `workers`.

        A group whose worker or machine is lost starts again. Whatever ends this method ends the
        tasks, which save what is under way.

        Parameters
        ----------
        config : StudyConfig
            The study.
        directory : Path
            Its directory, on a file system that every machine of the cluster sees under this
            path.
        groups : sequence of StackedGroup
            What to train.
        on_event : callable
            Called with each event.
        workers : int, optional
            Groups at a time at most.
        checkpoint_interval : float
            Seconds between checkpoints.

        Raises
        ------
        ConfigError
            If a group needs a GPU and there is none.
        """
        site = _Site(
            directory=str(directory.resolve()),
            root=str(config.root.resolve()),
            identity=config.identity(),
            checkpoint_interval=checkpoint_interval,
        )
        driver = _Driver(self._ray, site, on_event, workers=workers, max_retries=self._max_retries)
        try:
            driver.train(groups)
        finally:
            driver.stop()


class _Driver:
    """The tasks in training, and the events that they send."""

    def __init__(
        self,
        ray: Any,
        site: "_Site",
        on_event: OnEvent,
        *,
        workers: int | None,
        max_retries: int,
    ) -> None:
        self._ray = ray
        self._site = site
        self._on_event = on_event
        self._workers = workers
        self._max_retries = max_retries
        self._cluster = Cluster.find(ray)
        self._train = ray.remote(_train_group)
        self._progress = ray.remote(_Progress).options(num_cpus=0, max_restarts=-1).remote()
        self._running: dict[Any, StackedGroup] = {}
        self._lost: Counter[str] = Counter()
        self._seen: dict[str, str] = {}  # by group, the worker that was last heard of

    def train(self, groups: Sequence[StackedGroup]) -> None:
        waiting = deque(groups)
        news = self._progress.take.remote()
        while waiting or self._running:
            while waiting and len(self._running) < (self._workers or math.inf):
                self._start(waiting.popleft())
            [ready], _ = self._ray.wait([news, *self._running], num_returns=1)
            if ready == news:
                # Where the actor's machine is lost, another takes it over, and a step is missed.
                with suppress(self._ray.exceptions.RayActorError):
                    self._pass_on(self._ray.get(news))
                news = self._progress.take.remote()
            else:
                self._finish(ready)

    def _start(self, group: StackedGroup) -> None:
        task = self._train.options(
            **self._cluster.reserve(
                device=group.device, threads=group.threads, workers=self._workers
            ),
            name=group.name,
            # Lost workers are counted here: Ray does not count those that ran out of memory.
            max_retries=0,
            runtime_env={"env_vars": _environment(group)},
        ).remote(self._site, group.name, self._progress, retry=self._lost[group.name] > 0)
        self._running[task] = group

    def _pass_on(self, lines: Sequence[str]) -> None:
        """Report what tasks say, but no steps of a group that has ended meanwhile."""
        names = {group.name for group in self._running.values()}
        for event in map(Event.from_line, lines):
            self._seen[event.group] = event.worker
            if event.kind != "step" or event.group in names:
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
            if self._lost[group.name] <= self._max_retries:
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


def _environment(group: StackedGroup) -> dict[str, str]:
    """Return what a group's process is started with, as the local engine's workers are."""
    environment = thread_environment(threads=group.threads)
    if CACHE_VARIABLE in os.environ:
        environment[CACHE_VARIABLE] = os.environ[CACHE_VARIABLE]
    return environment


@dataclass(frozen=True, kw_only=True)
class _Site:
    """Settings that all tasks of a run share."""

    directory: str
    root: str
    identity: str
    checkpoint_interval: float


class _Progress:
    """The actor that events pass through on their way to the driver."""

    def __init__(self) -> None:
        import asyncio

        self._lines: asyncio.Queue[str] = asyncio.Queue()

    async def put(self, line: str) -> None:
        """Store the line of an event."""
        await self._lines.put(line)

    async def take(self) -> list[str]:
        """Return the lines that have arrived, once there is at least one."""
        lines = [await self._lines.get()]
        while not self._lines.empty():
            lines.append(self._lines.get_nowait())
        return lines


def _train_group(site: _Site, name: str, progress: Any, *, retry: bool) -> str | None:
    """Train one group in this Ray task; return its last event, None if another process finished it.

    A worker may be lost after it has stored its group and before it has said so: a retry then
    trains nothing and says it. Cancelled, it saves the group and raises KeyboardInterrupt.
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
        if not retry and group_path(Path(site.directory), name).exists():
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
    return Executor(
        Path(site.directory), root=Path(site.root), checkpoint_interval=site.checkpoint_interval
    )


@contextmanager
def _unblocked_interrupt() -> Iterator[None]:
    """Let SIGINT, by which Ray cancels, through: Ray starts its workers with it blocked."""
    before = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
