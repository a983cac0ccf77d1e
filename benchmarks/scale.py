"""Seconds and memory that a study of 100,000 finished trials takes to plan, resume, load and fit.

    OMP_NUM_THREADS=1 python benchmarks/scale.py [--directory DIR] [-o FILE]
    OMP_NUM_THREADS=1 python benchmarks/scale.py --digests [--directory DIR] [-o FILE]

The study is synthetic, its directory is written by the package's own plan and store: about as
many results files as a CPU's groups would give, every row with a loss curve of full length. Each
command then runs in a process of its own, by turns, `--repeats` times. Its seconds hold the
interpreter's start and every import; its work's seconds hold the command alone, all of it imported
before. The aim is 10 s of work for plan, resume and load together, and 2 GiB in each.

With --digests each command that reads the directory runs by turns as it is and with the check of
every file's digest left out (A B A B ...): the aim is under 2 % of the commands' seconds.
"""

import argparse
import contextlib
import io
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow

from hptransfer import __version__
from hptransfer._trial_state import TrialState
from hptransfer.cli import main as cli
from hptransfer.study._plan import Machine, Plan, Speed, make_groups
from hptransfer.study._trial import Trial, list_trials, merge_by_width
from hptransfer.study.config import StudyConfig, load_study
from hptransfer.study.store import GROUPS_FOLDER, write_group
from hptransfer.study.study_settings import open_study

if TYPE_CHECKING:
    from hptransfer.train._trainer import RunResult

LIMIT_SECONDS = 10.0
LIMIT_BYTES = 2**31
COUNTED = ("plan", "resume", "load")
#: What reads the directory, and the most that checking its digests may take of that.
READING = ("resume", "load", "status")
DIGEST_SHARE = 0.02
KINDS = {
    "seconds": "the commands' time",
    "work_seconds": "their work's",
    "cpu_seconds": "its processor's",
}
#: As long as a stored curve gets.
CURVE_POINTS = 256
#: What a task imports on its way.
IMPORTED = {
    "plan": ("hptransfer.study._runner", "hptransfer.stats.joint_model"),
    "resume": ("hptransfer.study._runner", "hptransfer.cli._progress"),
    "load": ("hptransfer.tables", "hptransfer.tables._table_files"),
}

STUDY = """\
name = "scale"

[data]
text = "files:text/*.txt"
vocab_size = 300

[model]
num_layers = 2
head_size = 16
context = 64

[sweep]
parameterization = ["sp", "sp+embd", "sp+ln", "sp+embd+ln", "sp+attn", "sp+last", "sp+embd+attn",
                    "mup-ln", "mup-last", "mup"]
width = [32, 48, 64, 80, 96, 112, 128, 160]
base_width = 32
log2_lr = {log2_lr}
weight_decay = {weight_decay}
seed = [0, 1, 2, 3, 4]

[train]
batch = 8
steps = 2000
precision = "fp32"
"""


def write_study(folder: Path, *, decays: int) -> Path:
    """Write a study file of so many weight decays, and 10,000 trials for each of them."""
    (folder / "text").mkdir(exist_ok=True)
    words = np.random.default_rng(0).integers(0, 500, size=(400, 60))
    text = "\n\n".join(" ".join(f"w{word}" for word in line) for line in words.tolist())
    (folder / "text" / "a.txt").write_text(text, encoding="utf-8")
    path = folder / "scale.toml"
    path.write_text(
        STUDY.format(
            log2_lr=[-10 + 0.25 * step for step in range(25)],
            weight_decay=[round(0.01 * step, 2) for step in range(decays)],
        ),
        encoding="utf-8",
    )
    return path


def finish(config: StudyConfig, folder: Path) -> None:
    """Fill a study directory as if every group of its plan had been trained."""
    from hptransfer.study._executor import make_rows
    from hptransfer.study._runner import describe_data, open_checked_data

    about = describe_data(config, open_checked_data(config))
    open_study(folder, config, data=about)
    trials = list_trials(config)
    machine = Machine(device="cpu", name="synthetic", memory=2**34, workers=2, threads=1)
    widths = config.sweep.width
    groups = make_groups(
        config,
        merge_by_width(config, trials),
        machine=machine,
        speeds={width: Speed(precision="fp32", seconds=width / 1e4) for width in widths},
    )
    Plan.read(folder).add_round(groups, machine=machine)
    by_id = {trial.id: trial for trial in trials}
    rng = np.random.default_rng(0)
    for group in groups:
        runs = [[by_id[name] for name in run] for run in group.runs]
        rows = make_rows(
            config, group, runs, [make_result(run[0], rng) for run in runs],
            seconds=1.0 + rng.random(), data_hash=about["data_hash"],
        )  # fmt: skip
        # Not this machine's: the files are to be the same wherever the benchmark runs.
        rows = [{**row, "device": "synthetic", "torch_version": "none"} for row in rows]
        write_group(folder, group.name, rows)


def make_result(trial: Trial, rng: np.random.Generator) -> "RunResult":
    """Make a run's result: a parabola in ln(lr) with noise, diverged far to the right of it."""
    # Here, since it imports torch and the commands that are measured run in this file too.
    from hptransfer.train._trainer import RunResult

    width = trial.width
    away = math.log(trial.base_lr) + 5.0 - 0.5 * (width / 32) ** -0.7
    diverged = away > 2.0
    loss = 2.0 + 0.7 * (width / 32) ** -0.5 + 0.025 * away**2 + 0.002 * rng.standard_normal()
    curve = loss + 3.0 * np.exp(-np.linspace(0, 8, CURVE_POINTS))
    curve = (curve + 0.02 * rng.standard_normal(CURVE_POINTS)).astype(np.float32)
    return RunResult(
        state=TrialState.DIVERGED if diverged else TrialState.COMPLETED,
        loss=None if diverged else loss,
        diverged_step=1000 if diverged else None,
        curve=curve,
    )


def load_directory(directory: Path) -> int:
    """Read the loss table, as every command on results does first."""
    from hptransfer.tables import read_table

    return 0 if len(read_table(directory)) else 1


def make_tasks(study: Path, directory: Path) -> dict[str, Callable[[], int]]:
    """Return what is measured, by name: each returns 0."""
    where = str(directory)
    return {
        "plan": lambda: cli.main(["plan", str(study), "--json"]),
        "resume": lambda: cli.main(["run", str(study), "-o", where]),
        "load": lambda: load_directory(directory),
        "status": lambda: cli.main(["status", where, "--json"]),
        "fit": lambda: cli.main(["fit", where, "--json"]),
    }


def measure(name: str, study: Path, directory: Path, *, checked: bool = True) -> dict[str, float]:
    """Run one task in a process of its own; return its seconds and its peak memory in bytes."""
    command = [sys.executable, __file__, "--task", name, str(study), str(directory)]
    command += [] if checked else ["--unchecked"]
    start = time.perf_counter()
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, **json.loads(found.stdout)}


def replace_checks(*, checked: bool) -> list[float]:
    """Time each check of a digest in this process, or leave it out; return the list of seconds."""
    from hptransfer import _documents

    seconds: list[float] = []
    for check in (_documents.check_digest, _documents.check_file, _documents.check_document):

        def stand_in(*content: Any, check: Callable[..., Any] = check, **options: Any) -> Any:
            start = time.process_time()
            found = check(*content, **options) if checked else True
            seconds.append(time.process_time() - start)
            return found

        for name, module in sys.modules.items():
            if name.startswith("hptransfer") and getattr(module, check.__name__, None) is check:
                setattr(module, check.__name__, stand_in)
    return seconds


def run_task(name: str, study: Path, directory: Path, *, checked: bool) -> int:
    """Do one task in this process; print its own seconds and the process's peak memory."""
    for module in IMPORTED.get(name, ()):
        import_module(module)
    checks = replace_checks(checked=checked)
    start, used = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        code = make_tasks(study, directory)[name]()
    seconds, used = time.perf_counter() - start, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = peak if sys.platform == "darwin" else 1024 * peak
    found = {"work_seconds": seconds, "cpu_seconds": used, "check_seconds": sum(checks)}
    json.dump({"bytes": size, **found}, sys.stdout)
    return code


def prepare(folder: Path, *, decays: int) -> tuple[Path, Path]:
    """Return the study file and its finished directory; make them where they are missing."""
    study = write_study(folder, decays=decays)
    directory = folder / "results"
    done = folder / "done"
    if not done.exists():
        finish(load_study(study), directory)
        done.touch()
    return study, directory


def measure_digests(study: Path, directory: Path, *, repeats: int) -> dict[str, Any]:
    """Return what checking digests takes of the commands that read, from turns with and without.

    Of two measures, the seconds inside the checks are the steadier one; the difference between
    turns with and without them holds what they cost elsewhere too, and the machine's noise.
    """
    turns: dict[str, dict[str, list[dict[str, float]]]] = {}
    for name in READING:
        turns[name] = {"checked": [], "unchecked": []}
        for _ in range(repeats):
            for side, found in turns[name].items():
                found.append(measure(name, study, directory, checked=side == "checked"))
    document: dict[str, Any] = {"turns": turns}

    def add(kind: str, side: str = "checked") -> float:
        return sum(statistics.median(each[kind] for each in turns[name][side]) for name in READING)

    for kind, words in KINDS.items():
        inside = add("check_seconds") / add(kind)
        between = 1 - add(kind, "unchecked") / add(kind)
        document[kind] = {"inside": inside, "between": between}
        print(f"digests take {inside:.2%} of {words} ({between:.2%} by turns without them)",
              file=sys.stderr, flush=True)  # fmt: skip
    return document


def report(found: dict[str, list[dict[str, float]]], directory: Path) -> dict[str, Any]:
    """Return the dated file's document."""
    seconds = {name: [each["seconds"] for each in runs] for name, runs in found.items()}
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    works = {
        name: statistics.median(each["work_seconds"] for each in runs)
        for name, runs in found.items()
    }
    peaks = {name: max(each["bytes"] for each in runs) for name, runs in found.items()}
    files = list((directory / GROUPS_FOLDER).glob("*.parquet"))
    return {
        "schema": 1,
        "trials": len(list_trials(load_study(directory.parent / "scale.toml"))),
        "results_files": len(files),
        "results_bytes": sum(path.stat().st_size for path in files),
        "seconds": seconds,
        "median_seconds": medians,
        "peak_bytes": peaks,
        "counted": list(COUNTED),
        "sum_seconds": sum(medians.get(name, 0.0) for name in COUNTED),
        "median_work_seconds": works,
        "sum_work_seconds": sum(works.get(name, 0.0) for name in COUNTED),
        "limit_seconds": LIMIT_SECONDS,
        "limit_bytes": LIMIT_BYTES,
        "threads": os.environ.get("OMP_NUM_THREADS", "not set"),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "pyarrow": pyarrow.__version__,
        "hptransfer": __version__,
    }


def write(document: dict[str, Any], output: Path | None) -> None:
    """Print a document, and write it to a file."""
    text = json.dumps(document, indent=1) + "\n"
    if output:
        output.write_text(text, encoding="utf-8")
    print(text, end="")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print the document; 1 if it is above a limit."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--directory", type=Path, help="where the study is made, or found again")
    parser.add_argument("--decays", type=int, default=10, help="weight decays; 10,000 trials each")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--fit-repeats", type=int, default=1)
    parser.add_argument("--prepare", action="store_true", help="only make the study")
    parser.add_argument("--digests", action="store_true", help="what checking digests takes")
    parser.add_argument("-o", "--output", type=Path, help="write the document here")
    parser.add_argument("--unchecked", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--task", nargs=3, metavar=("NAME", "STUDY", "DIR"), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.task:
        name, study, directory = args.task
        return run_task(name, Path(study), Path(directory), checked=not args.unchecked)
    with contextlib.ExitStack() as stack:
        folder = args.directory or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["HPTRANSFER_CACHE"] = str(folder / "cache")
        study, directory = prepare(folder, decays=args.decays)
        if args.prepare:
            return 0
        if args.digests:
            document = measure_digests(study, directory, repeats=args.repeats)
            write(document, args.output)
            return int(document["seconds"]["inside"] > DIGEST_SHARE)
        names = list(make_tasks(study, directory))
        repeats = {name: args.fit_repeats if name == "fit" else args.repeats for name in names}
        measure("plan", study, directory)  # measures the machine's speeds, once
        found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        for turn in range(max(repeats.values())):
            for name in names:
                if turn < repeats[name]:
                    found[name].append(measure(name, study, directory))
        document = report({name: runs for name, runs in found.items() if runs}, directory)
    write(document, args.output)
    over = document["sum_work_seconds"] > LIMIT_SECONDS
    return int(over or any(size > LIMIT_BYTES for size in document["peak_bytes"].values()))


if __name__ == "__main__":
    raise SystemExit(main())
