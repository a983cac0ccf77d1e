"""The machine that a plan is made for: what it has, and how fast it trains."""

import math
from collections.abc import Callable, Sequence

from hptransfer.study.config import StudyConfig
from hptransfer.study.execute import make_shape
from hptransfer.study.plan import PRECISIONS, Machine, Speed
from hptransfer.train.calibrate import measure_step_seconds
from hptransfer.train.device import count_cores, describe_device, find_device, find_memory

Measure = Callable[[StudyConfig, Sequence[int], Machine], dict[int, Speed]]
"""What returns the precision and speed to plan each width with."""


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
