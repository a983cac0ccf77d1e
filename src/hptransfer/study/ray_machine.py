"""The machine that a plan for a Ray cluster is made for, described and measured where it trains.

The command may run where nothing trains: on a head or a login node without a GPU.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from hptransfer.study.config import StudyConfig
from hptransfer.study.machine import describe_machine, measure_speeds
from hptransfer.study.plan import Machine, Speed
from hptransfer.study.ray_cluster import Cluster
from hptransfer.study.ray_session import import_ray

T = TypeVar("T")


def describe_cluster(*, workers: int | None = None) -> Machine:
    """Return the cluster that is open as the one machine of a plan.

    Its machines should be of one kind, and those with a GPU are where there is any; one of them
    speaks for all.
    """
    ray = import_ray()
    cluster = Cluster.find(ray)
    if len(cluster.nodes) == 1:
        return describe_machine(workers=workers)
    one = _call(ray, cluster, describe_machine, threads=1)
    return cluster.join(one, workers=workers)


def measure_on_cluster(
    config: StudyConfig, widths: Sequence[int], machine: Machine
) -> dict[int, Speed]:
    """Return what `measure_speeds` says on one of the machines that are to train."""
    ray = import_ray()
    cluster = Cluster.find(ray)
    if len(cluster.nodes) == 1:
        return measure_speeds(config, widths, machine)
    return _call(
        ray, cluster, measure_speeds, config, tuple(widths), machine, threads=machine.threads
    )


def _call(ray: Any, cluster: Cluster, function: Callable[..., T], *args: Any, threads: int) -> T:
    """Return what a function says on one of the machines, on a GPU where there is any."""
    device = "cuda" if cluster.gpus else "cpu"
    needs = cluster.reserve(device=device, threads=threads, workers=None)
    result: T = ray.get(ray.remote(function).options(**needs).remote(*args))
    return result
