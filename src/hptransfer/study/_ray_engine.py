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
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from hptransfer.errors import StoreError
from hptransfer.study._executor import Executor
from hptransfer.study._local_engine import (
    LocalEngine,
    OnEvent,
    describe_machine,
    mask_interrupt,
    measure_speeds,
)
from hptransfer.study._plan import Machine, Speed, StackedGroup
from hptransfer.study._ray_cluster import Cluster
from hptransfer.study.config import StudyConfig
from hptransfer.study.events import Event
from hptransfer.study.store import PLAN_FOLDER, group_path
from hptransfer.study.study_settings import SETTINGS_FILE, read_identity
from hptransfer.train._device import thread_environment
from hptransfer.train._tokens import CACHE_VARIABLE

T = TypeVar("T")

#: Times that a group is started again when its worker or machine is lost.
MAX_RETRIES = 3
#: Seconds that interrupted groups have for their checkpoints.
CANCEL_SECONDS = 60.0


class RayEngine(LocalEngine):
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
            return super().describe(workers=workers)
        one = self._call(cluster, describe_machine, threads=1)
        return cluster.join(one, workers=workers)

    def measure(
        self, config: StudyConfig, num_runs: Mapping[int, int], machine: Machine
    ) -> dict[int, Speed]:
        """Return what `measure_speeds` finds on one of the machines that are to train."""
        cluster = Cluster.find(self._ray)
        if len(cluster.nodes) == 1:
            return super().measure(config, num_runs, machine)
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
        here, root = str(directory.resolve()), str(config.root.resolve())
        site = _Site(here, root, config.identity(), checkpoint_interval)
        driver = _Driver(self._ray, site, on_event, workers, self._max_retries)
        try:
            driver.train(groups)
        finally:
            driver.stop()


@dataclass(frozen=True)
class _Site:
    """Settings that all tasks of a run share."""

    directory: str
    root: str
    identity: str
    checkpoint_interval: float


@dataclass
class _Driver:
    """The tasks in training, and the events that they send."""

    ray: Any
    site: _Site
    on_event: OnEvent
    workers: int | None
    max_retries: int

    def __post_init__(self) -> None:
        from ray.util.queue import Queue

        self.cluster = Cluster.find(self.ray)
        self.task = self.ray.remote(_train_group)
        #: The actor that events pass through on their way from the tasks.
        self.queue: Any = Queue(actor_options={"num_cpus": 0, "max_restarts": -1}).actor
        self.running: dict[Any, StackedGroup] = {}
        self.lost: Counter[str] = Counter()
        self.seen: dict[str, str] = {}  # by group, the worker that was last heard of

    def train(self, groups: Sequence[StackedGroup]) -> None:
        waiting = deque(groups)
        news = self.queue.get.remote()
        while waiting or self.running:
            while waiting and len(self.running) < (self.workers or math.inf):
                self._start(waiting.popleft())
            [ready], _ = self.ray.wait([news, *self.running], num_returns=1)
            if ready == news:
                # Where the actor's machine is lost, another takes it over, and a step is missed.
                with suppress(self.ray.exceptions.RayActorError):
                    self._pass_on(Event.from_line(self.ray.get(news)))
                news = self.queue.get.remote()
            else:
                self._finish(ready)

    def _start(self, group: StackedGroup) -> None:
        needs = self.cluster.reserve(
            device=group.device, threads=group.threads, workers=self.workers
        )
        task = self.task.options(
            **needs,
            name=group.name,
            # Lost workers are counted here: Ray does not count those that ran out of memory.
            max_retries=0,
            runtime_env={"env_vars": _environment(group)},
        ).remote(self.site, group.name, self.queue, retry=self.lost[group.name] > 0)
        self.running[task] = group

    def _pass_on(self, event: Event) -> None:
        """Report what a task says, but no step of a group that has ended meanwhile."""
        self.seen[event.group] = event.worker
        if event.kind != "step" or event.group in {group.name for group in self.running.values()}:
            self.on_event(event)

    def _finish(self, task: Any) -> None:
        group = self.running.pop(task)
        try:
            line = self.ray.get(task)
        except self.ray.exceptions.RayTaskError as error:  # ours are events: this is Ray's own
            self.on_event(Event.from_error(group.name, error.cause or error))
        except self.ray.exceptions.RayError as error:
            self.lost[group.name] += 1
            if self.lost[group.name] <= self.max_retries:
                self._start(group)
                return
            last = self.seen.get(group.name, "before its first report")
            message = (
                f"its worker was lost {self.lost[group.name]} times, the last one {last} "
                f"({type(error).__name__})"
            )
            self.on_event(Event(kind="failed", group=group.name, message=message))
        else:
            if line is not None:  # else another process has finished it
                self.on_event(Event.from_line(line))

    def stop(self) -> None:
        """End the tasks under way, with time for their checkpoints."""
        tasks = list(self.running)
        for task in tasks:
            self.ray.cancel(task, recursive=False)
        if tasks:
            self.ray.wait(tasks, num_returns=len(tasks), timeout=CANCEL_SECONDS)
        self.ray.kill(self.queue)


def _environment(group: StackedGroup) -> dict[str, str]:
    """Return what a group's process is started with, as the local engine's workers are."""
    environment = thread_environment(threads=group.threads)
    if CACHE_VARIABLE in os.environ:
        environment[CACHE_VARIABLE] = os.environ[CACHE_VARIABLE]
    return environment


def _train_group(site: _Site, name: str, queue: Any, *, retry: bool) -> str | None:
    """Train one group in this Ray task; return its last event, None if another process finished it.

    A worker may be lost after it has stored its group and before it has said so: a retry then
    trains nothing and says it. Cancelled, it saves the group and raises KeyboardInterrupt.
    """

    def write(event: Event) -> str:
        return replace(event, worker=f"{socket.gethostname()}:{os.getpid()}").to_line()

    try:
        executor = _open_site(site)
        if not retry and group_path(Path(site.directory), name).exists():
            return None
        # By which Ray cancels; it starts its workers with it blocked.
        with mask_interrupt(signal.SIG_UNBLOCK):
            last = executor.execute(name, lambda event: queue.put.remote(write(event)))
    except Exception as error:  # a directory that cannot be read here, say
        last = Event.from_error(name, error)
    return write(last)


def _open_site(site: _Site) -> Executor:
    """Return the executor of a study directory, kept from task to task of one process."""
    directory, found = Path(site.directory), ""
    if not (directory / SETTINGS_FILE).exists():
        found = f"no {SETTINGS_FILE}"
    elif read_identity(directory) != site.identity:
        found = "another study's"
    if found:
        raise StoreError(
            f"{directory}: expected the study directory on every machine, under this path (a "
            f"shared folder), found {found} on {socket.gethostname()}"
        )
    rounds = sorted((directory / PLAN_FOLDER).glob("*.json"))
    return _make_executor(site, tuple((path.name, path.stat().st_mtime_ns) for path in rounds))


@lru_cache(maxsize=1)
def _make_executor(site: _Site, rounds: tuple[tuple[str, int], ...]) -> Executor:
    return Executor(
        Path(site.directory), root=Path(site.root), checkpoint_interval=site.checkpoint_interval
    )
