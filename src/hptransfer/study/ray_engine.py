"""The Ray engine: groups trained as tasks of a Ray cluster, or of a Ray started on this machine.

Each group is one task with its needs declared. A task trains on the study directory itself, which
every machine sees under one path, and stores its results there; only signs of life travel. A task
whose worker or machine is lost starts again, from the group's checkpoint.
"""

import math
import os
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hptransfer.study.config import StudyConfig
from hptransfer.study.events import Event
from hptransfer.study.plan import Group
from hptransfer.study.ray_cluster import Cluster
from hptransfer.study.ray_session import open_ray
from hptransfer.study.ray_task import Progress, Site, train_group
from hptransfer.train.device import thread_environment
from hptransfer.train.tokens import CACHE_VARIABLE

#: Times that a group is started again when its worker or machine is lost.
MAX_RETRIES = 3
#: Seconds that interrupted groups have for their checkpoints.
CANCEL_SECONDS = 60.0


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
        site = Site(
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


class _Driver:
    """The tasks under way, and what is heard of them."""

    def __init__(
        self, ray: Any, site: Site, on_event: Callable[[Event], None], *, workers: int | None
    ) -> None:
        self._ray = ray
        self._site = site
        self._on_event = on_event
        self._workers = workers
        self._cluster = Cluster.find(ray)
        self._train = ray.remote(train_group)
        self._progress = ray.remote(Progress).options(num_cpus=0, max_restarts=-1).remote()
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
                # Where the actor's machine is lost, another takes it over, and a step is missed.
                with suppress(self._ray.exceptions.RayActorError):
                    self._pass_on(self._ray.get(news))
                news = self._progress.take.remote()
            else:
                self._finish(ready)

    def _start(self, group: Group) -> None:
        task = self._train.options(
            **self._cluster.reserve(
                device=group.device, threads=group.threads, workers=self._workers
            ),
            name=group.name,
            # Lost workers are counted here: Ray does not count those that ran out of memory.
            max_retries=0,
            runtime_env={"env_vars": _environment(group)},
        ).remote(self._site, group.name, self._progress)
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


def _environment(group: Group) -> dict[str, str]:
    """Return what a group's process is started with, as the local engine's workers are."""
    environment = thread_environment(threads=group.threads)
    if CACHE_VARIABLE in os.environ:
        environment[CACHE_VARIABLE] = os.environ[CACHE_VARIABLE]
    return environment
