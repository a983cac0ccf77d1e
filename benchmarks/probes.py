"""Measure what probes cost at their default interval, and whether they change a bit of training.

    python benchmarks/probes.py STUDY.toml DIR [GROUP] [-o FILE]

Trains one planned group of a study directory twice in this process, plainly and with probes, and
compares every training loss and held-out loss bit for bit, with the directory's own results too
where the group is finished. The first steps, in which programs are compiled and captured, are not
timed. The card has to be idle.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from dated import describe_making
from hptransfer.study._executor import make_training, open_data
from hptransfer.study._plan import StackedGroup, join_groups, read_rounds
from hptransfer.study._trial import list_trials
from hptransfer.study.config import ProbesConfig, StudyConfig, load_study
from hptransfer.study.store import group_path
from hptransfer.train._device import set_determinism
from hptransfer.train._probes import Probes

#: Share of the steps that is not timed.
UNTIMED = 0.2


def train(config: StudyConfig, group: StackedGroup) -> dict[str, Any]:
    """Train a group; return its results, the seconds of its timed steps and those of the probes."""
    trials = {trial.id: trial for trial in list_trials(config)}
    runs = [trials[run[0]] for run in group.runs]
    training = make_training(config, group, runs, open_data(config))
    probes = training.hook
    begun, first, before = 0.0, 0, 0.0
    while not training.done:
        training.advance()
        if not begun and training.step >= UNTIMED * training.watch.curves.shape[1]:
            training.flush()
            begun, first = time.perf_counter(), training.step
            before = probes.seconds if isinstance(probes, Probes) else 0.0
    training.flush()
    return {
        "seconds": time.perf_counter() - begun,
        "steps": training.step - first,
        "probe_seconds": probes.seconds - before if isinstance(probes, Probes) else 0.0,
        "mode": training._program.mode,
        "curves": training.watch.curves.copy(),
        "losses": np.array([result.loss or np.nan for result in training.finish()]),
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path)
    parser.add_argument("directory", type=Path)
    parser.add_argument("group", nargs="?", help="its name (default: the plan's last)")
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    config = load_study(args.study)
    groups = {group.name: group for group in join_groups(read_rounds(args.directory))}
    group = groups[args.group] if args.group else list(groups.values())[-1]
    every = ProbesConfig().every
    set_determinism(threads=group.threads)
    plain_config, probed_config = (
        config.model_copy(update={"probes": ProbesConfig()}),
        config.model_copy(update={"probes": ProbesConfig(every=every)}),
    )
    plain_config.model_fields_set.discard("probes")
    plain = train(plain_config, group)
    print(f"plain: {plain['seconds']:.2f} s", flush=True)
    probed = train(probed_config, group)
    per_step = plain["seconds"] / plain["steps"]
    document = describe_making() | {
        "study": config.name,
        "group": group.name,
        "width": group.width,
        "stacked": group.stacked or len(group.runs),
        "mode": probed["mode"],
        "every": every,
        "seconds_of_a_step": per_step,
        "seconds_of_a_probe": probed["probe_seconds"]
        / len([s for s in range(config.train.steps or 0) if s % every == 0 and s]),
        "timed": {key: [plain[key], probed[key]] for key in ("seconds", "steps", "probe_seconds")},
        "same_training_losses": bool(np.array_equal(plain["curves"], probed["curves"], True)),
        "same_held_out_losses": bool(np.array_equal(plain["losses"], probed["losses"], True)),
    }
    document["share_at_default_interval"] = document["seconds_of_a_probe"] / (every * per_step)
    stored = group_path(args.directory, group.name)
    if stored.exists():
        rows = {row["id"]: row["loss"] for row in pq.read_table(stored).to_pylist()}
        recorded = np.array([rows[run[0]] or np.nan for run in group.runs], dtype=float)
        document["same_as_recorded"] = bool(np.array_equal(recorded, plain["losses"], True))
        document["largest_difference"] = float(np.nanmax(np.abs(recorded - plain["losses"])))
    text = json.dumps(document, indent=1)
    print(text)
    if args.output:
        args.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
