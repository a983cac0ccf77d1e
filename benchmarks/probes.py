"""Measure what probes cost at their default interval, and whether they change a bit of training.

    python benchmarks/probes.py STUDY.toml DIR [GROUP] [--rounds N] [-o FILE]
    python benchmarks/probes.py STUDY.toml --stack WIDTH:K ... [--rounds N] [-o FILE]

Trains a group in this process, plainly and with probes in turn, and compares every training loss
and held-out loss bit for bit: a planned group of a study directory, with the directory's own
results too where it is finished, or K trials of a width, stacked, on one thread. The first steps,
in which programs are compiled and captured, are not timed; the steps that are timed hold a probe
for each interval. The machine has to be idle.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from dated import describe_making
from hptransfer.study._executor import make_training, open_data
from hptransfer.study._plan import Plan, StackedGroup, name_group
from hptransfer.study._trial import list_trials, merge_equal
from hptransfer.study.config import ProbesConfig, StudyConfig, load_study
from hptransfer.study.store import group_path
from hptransfer.train._device import find_device, set_determinism
from hptransfer.train._ensemble import Ensemble
from hptransfer.train._probes import Probes

#: Share of the steps that is not timed.
UNTIMED = 0.2
#: Seconds of each probe.
SECONDS: list[float] = []


def count_probes(add: Callable[[float], object]) -> None:
    """Call `add` with what each probe takes, without what is still under way before it."""
    measure = Probes.__call__

    def counted(self: Probes, step: int, ensemble: Ensemble) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        begun = time.perf_counter()
        measure(self, step, ensemble)
        add(time.perf_counter() - begun)

    Probes.__call__ = counted  # type: ignore[method-assign]


def train(config: StudyConfig, group: StackedGroup) -> dict[str, Any]:
    """Train a group; return its results, the seconds of its timed steps and those of the probes."""
    trials = {trial.id: trial for trial in list_trials(config)}
    runs = [trials[run[0]] for run in group.runs]
    training = make_training(config, group, runs, open_data(config))
    begun, processor, first, before = 0.0, 0.0, 0, 0.0
    while not training.done:
        training.advance()
        if not begun and training.step >= UNTIMED * training.watch.curves.shape[1]:
            training.flush()
            begun, processor = time.perf_counter(), time.process_time()
            first = training.step
            before = sum(SECONDS)
    training.flush()
    return {
        "seconds": time.perf_counter() - begun,
        "processor_seconds": time.process_time() - processor,
        "first": first,
        "steps": training.step - first,
        "probe_seconds": sum(SECONDS) - before,
        "mode": getattr(training._program, "mode", "eager"),
        "curves": training.watch.curves.copy(),
        "losses": np.array([result.loss or np.nan for result in training.finish()]),
    }


def stack_group(config: StudyConfig, width: int, count: int) -> StackedGroup:
    """Return the first runs of a width as a group of uncompiled steps on one thread."""
    trials = merge_equal(config, (t for t in list_trials(config) if t.width == width))[:count]
    runs = tuple(tuple(trial.id for trial in run) for run in trials)
    precision = "bf16" if config.train.precision == "auto" else config.train.precision
    return StackedGroup(
        name=name_group(width, runs), width=width, runs=runs, precision=precision,
        device=find_device(), threads=1, seconds=0.0,
    )  # fmt: skip


def compare(config: StudyConfig, group: StackedGroup, rounds: int) -> dict[str, Any]:
    """Train a group plainly and with probes, in turn; return times and whether bits agree."""
    every = ProbesConfig().every
    set_determinism(threads=group.threads)
    plain_config, probed_config = (
        config.model_copy(update={"probes": ProbesConfig()}),
        config.model_copy(update={"probes": ProbesConfig(every=every)}),
    )
    plain_config.model_fields_set.discard("probes")
    plain, probed = [], []
    for _ in range(rounds):
        for each, found in ((plain_config, plain), (probed_config, probed)):
            found.append(train(each, group))
            name = "plain" if found is plain else "with probes"
            times = ", ".join(f"{found[-1][key]:.2f}" for key in ("seconds", "processor_seconds"))
            print(f"{group.name}, {name}: {times} s of wall and processor", flush=True)
    first = plain[0]
    others = [*plain, *probed]
    per_step = statistics.median(each["seconds"] for each in plain) / first["steps"]
    count = len(range(first["first"], first["first"] + first["steps"])) / every
    probe = statistics.median(each["probe_seconds"] for each in probed) / max(1, round(count))
    document = {
        "study": config.name,
        "group": group.name,
        "width": group.width,
        "stacked": group.stacked or len(group.runs),
        "precision": group.precision,
        "mode": probed[0]["mode"],
        "every": every,
        "seconds_of_a_step": per_step,
        "seconds_of_a_probe": probe,
        "share_at_default_interval": probe / (every * per_step),
        "timed": {
            key: [[each[key] for each in found] for found in (plain, probed)]
            for key in ("seconds", "processor_seconds", "steps", "probe_seconds")
        },
        **{
            f"{key}_more": statistics.median(each[key] for each in probed)
            / statistics.median(each[key] for each in plain)
            - 1
            for key in ("seconds", "processor_seconds")
        },
        "same_training_losses": all(
            np.array_equal(first["curves"], each["curves"], True) for each in others
        ),
        "same_held_out_losses": all(
            np.array_equal(first["losses"], each["losses"], True) for each in others
        ),
    }
    return document | {"losses": first["losses"]}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", type=Path)
    parser.add_argument("directory", type=Path, nargs="?")
    parser.add_argument("group", nargs="?", help="its name (default: the plan's last)")
    parser.add_argument("--stack", nargs="+", metavar="WIDTH:K", help="in place of a directory")
    parser.add_argument("--rounds", type=int, default=1, help="of both (default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    count_probes(SECONDS.append)
    config = load_study(args.study)
    if args.stack:
        # So that one interval is timed, and the probe in it.
        steps = round(ProbesConfig().every / (1 - UNTIMED))
        config = config.model_copy(
            update={"train": config.train.model_copy(update={"steps": steps})}
        )
        groups = [
            stack_group(config, *(int(part) for part in each.split(":"))) for each in args.stack
        ]
    elif args.directory:
        planned = Plan.read(args.directory).groups
        groups = [each for each in planned if each.name == args.group or not args.group][-1:]
        if not groups:
            parser.error(f"expected a group of the plan of {args.directory}, found {args.group!r}")
    else:
        parser.error("expected a study directory or --stack")
    documents = []
    for group in groups:
        document = compare(config, group, args.rounds)
        losses = document.pop("losses")
        stored = args.directory and group_path(args.directory, group.name)
        if stored and stored.exists():
            rows = {row["id"]: row["loss"] for row in pq.read_table(stored).to_pylist()}
            recorded = np.array([rows[run[0]] or np.nan for run in group.runs], dtype=float)
            document["same_as_recorded"] = bool(np.array_equal(recorded, losses, True))
            document["largest_difference"] = float(np.nanmax(np.abs(recorded - losses)))
        documents.append(document)
    text = json.dumps(describe_making() | {"groups": documents}, indent=1)
    print(text)
    if args.output:
        args.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
