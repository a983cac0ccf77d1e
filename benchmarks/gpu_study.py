"""Run a study on a GPU and tell where its time and memory go.

    python benchmarks/gpu_study.py STUDY.toml -o DIR --timings FOLDER

Start-up, tokenizing, measuring and compiling are told apart from training; each group's wall time
is held against what its steps alone would take (the plan's expectation, from steps measured on
this machine), and its peak of reserved device memory against the plan's estimate. Written anew
after every group, as FOLDER/timings-NAME.json, so that a run that is ended keeps what it knew.
Otherwise as `hptransfer run` with one worker. On a CPU it runs too, without memory.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from dated import describe_making
from hptransfer.study import _local_engine
from hptransfer.study._local_engine import LocalEngine
from hptransfer.study._plan import Speed, StackedGroup
from hptransfer.study._runner import open_checked_data, prepare_run, run_groups
from hptransfer.study.config import load_study
from hptransfer.study.events import Event
from hptransfer.train._device import find_device, free_memory
from probes import count_probes


def process_age() -> float:
    """Return the seconds since this process was started."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    ticks: int = os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / ticks


class Clock:
    """Seconds by what they were spent on."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function whose calls count under a name."""

        def timed(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                self.add(name, time.perf_counter() - start)

        return timed

    def add(self, name: str, seconds: float) -> None:
        """Count seconds under a name."""
        self.seconds[name] = round(self.seconds.get(name, 0.0) + seconds, 2)


class ForcedEngine(LocalEngine):
    """Plans every width in one mode and size, unmeasured: to try this script where no GPU is."""

    def __init__(self, mode: str, num_stacked: int) -> None:
        self._mode, self._num_stacked = mode, num_stacked

    def measure(self, config: Any, num_runs: Any, machine: Any) -> dict[int, Speed]:
        """Return the same for every width."""
        speed = Speed(
            precision="fp32", seconds=1e-3, mode=self._mode, num_stacked=self._num_stacked
        )
        return dict.fromkeys(num_runs, speed)


def main() -> None:
    """Run the study and write what it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--checkpoint", type=float, default=60.0)
    parser.add_argument("--timings", type=Path, default=Path())
    parser.add_argument("--force", nargs=2, metavar=("MODE", "K"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    clock = Clock()
    on_gpu = find_device() == "cuda"
    if on_gpu:
        torch.zeros(1, device="cuda")
    clock.add("start-up", process_age())
    config = load_study(args.study)
    clock.wrap("tokenizing", open_checked_data)(config)
    for name, label in (
        ("measure_growth", "measuring"),
        ("compile_ahead", "compiling"),
        ("measure_compiled", "compiling"),
    ):
        setattr(_local_engine, name, clock.wrap(label, getattr(_local_engine, name)))
    engine = ForcedEngine(args.force[0], int(args.force[1])) if args.force else LocalEngine()
    work = clock.wrap("planning in all", prepare_run)(config, args.output, workers=1, engine=engine)
    count_probes(lambda seconds: clock.add("probes", seconds))
    waiting = {group.name: group for group in work.groups}
    rows: list[dict[str, Any]] = []
    free_memory()
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    begun = last = time.perf_counter()
    probed = 0.0

    def watch(event: Event) -> None:
        nonlocal last, probed
        if event.kind in ("note", "failed"):
            print(f"{event.group}: {event.kind}: {event.message}", flush=True)
        if event.kind != "done":
            return
        now = time.perf_counter()
        probes = clock.seconds.get("probes", 0.0) - probed
        rows.append(describe(waiting[event.group], now - last - probes))
        last, probed = now, probed + probes
        free_memory()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        write(args, config.name, clock, rows, time.perf_counter() - begun)

    run_groups(
        config, args.output, work.groups, on_event=watch, workers=1,
        checkpoint_interval=args.checkpoint,
    )  # fmt: skip
    document = write(args, config.name, clock, rows, time.perf_counter() - begun)
    print(json.dumps({key: document[key] for key in document if key != "groups"}, indent=1))


def describe(group: StackedGroup, seconds: float) -> dict[str, Any]:
    """Return what a group took against what the plan expected, and print it."""
    row: dict[str, Any] = {
        "group": group.name,
        "width": group.width,
        "runs": len(group.runs),
        "stacked": group.stacked or len(group.runs),
        "mode": group.mode,
        "precision": group.precision,
        "steps_alone_seconds": round(group.seconds, 2),
        "seconds": round(seconds, 2),
        "share": round(group.seconds / seconds, 3),
        "expected_bytes": group.memory,
    }
    if torch.cuda.is_available():
        row["peak_bytes"] = torch.cuda.max_memory_reserved()
        row["allocated_bytes"] = torch.cuda.max_memory_allocated()
        row["memory_ratio"] = round(row["peak_bytes"] / group.memory, 3)
    print(row, flush=True)
    return row


def write(
    args: argparse.Namespace, name: str, clock: Clock, rows: list[dict[str, Any]], seconds: float
) -> dict[str, Any]:
    """Write what is known so far; return it."""
    alone = sum(row["steps_alone_seconds"] for row in rows)
    seconds -= clock.seconds.get("probes", 0.0)
    document = {
        **describe_making(),
        "study": name,
        "seconds": {**clock.seconds, "training": round(seconds, 2)},
        "before_training_seconds": round(
            clock.seconds["start-up"]
            + clock.seconds["tokenizing"]
            + clock.seconds["planning in all"],
            2,
        ),
        "steps_alone_seconds": round(alone, 2),
        "training_share": round(alone / seconds, 3),
        "groups": rows,
    }
    args.timings.mkdir(parents=True, exist_ok=True)
    path = args.timings / f"timings-{name}.json"
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return document


if __name__ == "__main__":
    main()
