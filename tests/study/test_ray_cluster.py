"""What a cluster's machines have, and what a plan and a task make of it."""

import pytest

from hptransfer.errors import ConfigError
from hptransfer.study._plan import Machine
from hptransfer.study._ray_cluster import Cluster, Node

GIB = 2**30
CPU = Machine(device="cpu", name="a processor", memory=64 * GIB, workers=4, threads=1)
GPU = Machine(device="cuda", name="an accelerator", memory=80 * GIB, workers=1, threads=4)
HEAD = Node(cpus=0)
CLUSTERS = [
    Cluster(nodes=(Node(cpus=4),)),
    Cluster(nodes=(HEAD, Node(cpus=4), Node(cpus=8))),
    Cluster(nodes=(Node(cpus=16, gpus=1),)),
    Cluster(nodes=(HEAD, Node(cpus=32, gpus=8), Node(cpus=32, gpus=8))),
    Cluster(nodes=(Node(cpus=64), Node(cpus=6, gpus=3))),
]


@pytest.mark.parametrize("workers", [None, 1, 2, 3, 4, 8, 40])
@pytest.mark.parametrize("cluster", CLUSTERS)
def test_as_many_tasks_as_workers_fit_and_none_is_promised_more_memory_than_there_is(
    cluster, workers
):
    """Tasks are placed one by one, as Ray would: each on the first machine with room."""
    one = GPU if cluster.gpus else CPU
    machine = cluster.join(one, workers=workers)
    needs = cluster.reserve(device=machine.device, threads=machine.threads, workers=workers)
    free = [{"num_cpus": node.cpus, "num_gpus": node.gpus} for node in cluster.nodes]
    placed = 0
    while node := next((f for f in free if all(f[k] >= need for k, need in needs.items())), None):
        for key, need in needs.items():
            node[key] -= need
        placed += 1
    most = cluster.gpus or sum(node.cpus for node in cluster.nodes)
    if workers is None:
        assert placed == machine.workers == most
    else:
        assert machine.workers == workers
        if cluster.gpus:
            cpus = sum(node.cpus for node in cluster.nodes if node.gpus)
            assert placed >= min(workers, cpus)
    # Groups that meet on one device have its memory together, and no more.
    share = machine.memory / machine.workers
    most = 1 / needs["num_gpus"] if cluster.gpus else max(n.cpus for n in cluster.nodes)
    together = most if cluster.gpus else min(machine.workers, most // needs["num_cpus"])
    assert one.memory * 0.99 <= share * together <= one.memory
    assert 1 <= machine.threads <= max(node.cpus for node in cluster.nodes)
    assert (machine.device, machine.name) == (one.device, one.name)


@pytest.mark.parametrize(
    ("gpus", "workers", "share"), [(1, None, 1), (1, 2, 0.5), (8, 8, 1), (8, 2, 1), (3, 4, 0.5)]
)
def test_gpus_are_shared_only_where_there_are_more_workers(gpus, workers, share):
    cluster = Cluster(nodes=(Node(cpus=4, gpus=gpus),))
    needs = cluster.reserve(device="cuda", threads=64, workers=workers)
    assert needs == {"num_cpus": 1, "num_gpus": share}


def test_a_task_on_processors_reserves_its_threads_or_the_largest_machine():
    cluster = Cluster(nodes=(HEAD, Node(cpus=2), Node(cpus=4)))
    for threads, expected in [(1, 1), (3, 3), (64, 4)]:
        needs = cluster.reserve(device="cpu", threads=threads, workers=None)
        assert needs == {"num_cpus": expected}


def test_a_plan_for_gpus_is_refused_where_there_are_none():
    with pytest.raises(ConfigError, match="GPU"):
        Cluster(nodes=(Node(cpus=4),)).reserve(device="cuda", threads=1, workers=None)
