"""A Ray cluster as a plan sees it: what its machines have, and what a group takes of it."""

import math
from dataclasses import dataclass, replace
from typing import Any

from hptransfer.errors import ConfigError
from hptransfer.study.plan import Machine


@dataclass(frozen=True, kw_only=True)
class Node:
    """Processors and GPUs of one machine of a cluster."""

    cpus: int
    gpus: int = 0


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The machines of a cluster that are up.

    Attributes
    ----------
    nodes : tuple of Node
        One each.
    """

    nodes: tuple[Node, ...]

    @classmethod
    def find(cls, ray: Any) -> "Cluster":
        """Return the cluster that this process is connected to."""
        resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return cls(
            nodes=tuple(
                Node(cpus=int(each.get("CPU", 0)), gpus=int(each.get("GPU", 0)))
                for each in resources
            )
        )

    @property
    def gpus(self) -> int:
        """GPUs in all."""
        return sum(node.gpus for node in self.nodes)

    def reserve(self, *, device: str, threads: int, workers: int | None) -> dict[str, float]:
        """Return what a task declares to need.

        On a GPU it has that for itself, unless there are to be more workers than GPUs, and one
        processor. On processors it has its threads, or the largest machine where the plan is a
        larger one's.

        Raises
        ------
        ConfigError
            If it needs a GPU and there is none.
        """
        if device == "cpu":
            largest = max(node.cpus for node in self.nodes)
            return {"num_cpus": min(threads, largest or threads)}
        if self.gpus == 0:
            raise ConfigError(
                f"--engine ray: expected a GPU in the cluster, since the plan is for {device}, "
                "found none"
            )
        return {"num_cpus": 1, "num_gpus": 1 / math.ceil((workers or 1) / self.gpus)}

    def join(self, one: Machine, *, workers: int | None) -> Machine:
        """Return the whole cluster as the machine of a plan.

        Parameters
        ----------
        one : Machine
            One of its machines, with a GPU where the cluster has any.
        workers : int, optional
            Groups at a time. Default: one per GPU, or one per processor where there is no GPU.
        """
        on_gpus = one.device != "cpu"
        used = [node for node in self.nodes if (node.gpus if on_gpus else node.cpus)]
        if not used:
            return one
        # Groups at a time in all, and on one device at most.
        count = workers or (self.gpus if on_gpus else sum(node.cpus for node in used))
        if on_gpus:
            share = math.ceil(count / self.gpus)
            threads = min(node.cpus // (node.gpus * share) for node in used)
        else:
            cpus = [node.cpus for node in used]
            threads = max(1, min(sum(cpus) // count, max(cpus)))
            share = min(count, max(cpus) // threads)
        return replace(
            one,
            workers=count,
            threads=max(1, threads),
            memory=one.memory * count // share,  # a group's part of it is what it has there
        )
