"""Kill searches over and over; the journal must end as that of an undisturbed search does.

Four `hptransfer search` commands share one journal and run a deterministic job. At random moments
one of them is ended by SIGKILL, alone or with the jobs it runs, and started again at once. A search
that is done before its kills are spent is checked and begun again in a fresh folder.

It passes where every table equals the undisturbed one, no trial is told twice, none is missing,
and no job is left running.

    python benchmarks/kill_search.py [--kills N] [--seed N]
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from hptransfer.search import read_search
from hptransfer.search._job import JOB_FILE, Job

NUM_RUNNERS = 4
#: Seconds of a job, and the longest from a command's start to its kill: imports take the first two.
JOB_SECONDS, LONGEST = 0.5, 6.0
#: A search that has not ended after this many seconds hangs.
PATIENCE = 600.0
JOB = """\
import hashlib, json, math, sys, time
width, lr, seed = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
u = math.log(lr) - math.log(2) * (-6 - 0.4 * math.log2(width / 32))
draw = hashlib.sha256(f"{width} {lr} {seed}".encode()).digest()
loss = 4 + 4 * width**-0.5 + 0.06 * u * u + 0.02 * (sum(draw[:12]) / 3060 - 0.5)
time.sleep(float(sys.argv[4]))
print(json.dumps({"loss": loss if u < 2.5 else math.nan}))
"""
FILE = """\
name = "kill"

[sweep]
width = [32, 64, 128]
rule = ["a", "b"]

[job]
command = [
    "{python}", "-S", "-E", "job.py", "{{width}}", "{{lr}}", "{{seed}}", "{seconds}", "{{rule}}",
]
"""


@dataclass
class Tally:
    """What happened, to be printed."""

    kills: Counter[str] = field(default_factory=Counter)
    running: int = 0
    searches: int = 0
    starts: int = 0
    adopted: int = 0


def write_search(folder: Path, seconds: float) -> Path:
    """Write the job and its search file; return the file."""
    (folder / "job.py").write_text(JOB)
    path = folder / "search.toml"
    path.write_text(FILE.format(python=sys.executable, seconds=seconds))
    return path


def start(path: Path, directory: Path, log: Path) -> "subprocess.Popen[bytes]":
    """Start one command, in a process group of its own."""
    command = [sys.executable, "-m", "hptransfer", "search", str(path), "-o", str(directory)]
    with log.open("ab") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)


def read_table(directory: Path) -> list[tuple[str, ...]]:
    """Return the rows of a search's table, every digit of them."""
    table = read_search(directory / "search.jsonl").table()
    columns = (table.width, table.lr, table.seed, table.loss, table.groups["rule"])
    return [tuple(map(str, row)) for row in zip(*columns, strict=True)]


def find_jobs(directory: Path) -> list[Job]:
    """Return the jobs that run now."""
    folders = [path.parent for path in directory.glob(f"trials/*/{JOB_FILE}")]
    found = [Job.find(folder) for folder in folders]
    return [job for job in found if job is not None and job.is_running]


def parent_of(pid: int) -> int:
    """Return a process's parent; 0 where there is none."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def kill_one(
    runners: list["subprocess.Popen[bytes]"], directory: Path, rng: random.Random, tally: Tally
) -> int:
    """Kill one command, alone or with its jobs; return which one."""
    victim = rng.randrange(len(runners))
    process = runners[victim]
    jobs = [job for job in find_jobs(directory) if parent_of(job.record.pid) == process.pid]
    kind = rng.choice(["runner alone", "runner and its jobs"])
    if process.poll() is None:
        process.kill()
        tally.kills[kind] += 1
        tally.running += bool(jobs)
    process.wait()
    if kind == "runner and its jobs":
        for job in jobs:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job.record.pid, signal.SIGKILL)
    return victim


def check(directory: Path, expected: list[tuple[str, ...]]) -> None:
    """Raise SystemExit where a search's end is not that of an undisturbed one."""
    if read_table(directory) != expected:
        raise SystemExit(f"{directory}: the table is not the undisturbed search's")
    lines = [json.loads(line) for line in (directory / "search.jsonl").read_text().splitlines()]
    told = Counter(line["trial"] for line in lines if line["event"] == "tell")
    asked = {
        (width, place)
        for line in lines
        if line["event"] == "ask"
        for width, place in [(line["width"], each) for each in line["log2_lr"]]
    }
    if max(told.values()) > 1:
        raise SystemExit(f"{directory}: told twice: {told.most_common(1)}")
    if len(told) != len(expected) or not asked:
        raise SystemExit(f"{directory}: {len(expected)} trials expected, {len(told)} told")
    if any(line["event"] == "fail" for line in lines):
        raise SystemExit(f"{directory}: a trial counts as failed")
    time.sleep(2 * JOB_SECONDS)
    if find_jobs(directory):
        raise SystemExit(f"{directory}: jobs are left running")


def run_killed(path: Path, directory: Path, kills: int, rng: random.Random, tally: Tally) -> None:
    """Run one search with kills until it is done."""
    log = directory.with_suffix(".log")
    runners = [start(path, directory, log) for _ in range(NUM_RUNNERS)]
    tally.searches, tally.starts = tally.searches + 1, tally.starts + NUM_RUNNERS
    end = time.monotonic() + PATIENCE
    while any(process.poll() is None for process in runners):
        if time.monotonic() > end:
            raise SystemExit(f"{directory}: not done after {PATIENCE:g} seconds; see {log}")
        if tally.kills.total() < kills:
            time.sleep(rng.uniform(0.0, LONGEST / NUM_RUNNERS))
            if all(process.poll() is None for process in runners):
                victim = kill_one(runners, directory, rng, tally)
                runners[victim] = start(path, directory, log)
                tally.starts += 1
        else:
            time.sleep(0.2)
    codes = [process.returncode for process in runners]
    if codes != [0] * NUM_RUNNERS:
        raise SystemExit(f"{directory}: commands ended with {codes}; see {log}")
    tally.adopted += log.read_text().count("goes on where an earlier command left it")


def main() -> None:
    """Run an undisturbed search, then kill others."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, tally = random.Random(args.seed), Tally()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        path = write_search(work, 0.0)
        undisturbed = start(path, work / "undisturbed", work / "undisturbed.log")
        if undisturbed.wait() != 0:
            raise SystemExit((work / "undisturbed.log").read_text())
        expected = read_table(work / "undisturbed")
        write_search(work, JOB_SECONDS)
        while tally.kills.total() < args.kills:
            directory = work / f"killed-{tally.searches}"
            run_killed(path, directory, args.kills, rng, tally)
            check(directory, expected)
            print(f"search {tally.searches}: {tally.kills.total()} kills so far", flush=True)
    kinds = ", ".join(f"{count} of {kind}" for kind, count in sorted(tally.kills.items()))
    print(f"{tally.kills.total()} kills ({kinds}; {tally.running} while jobs ran), "
          f"{tally.starts} starts, {tally.adopted} jobs taken over")  # fmt: skip
    print(f"{tally.searches} searches of {len(expected)} trials: every table equal to the "
          "undisturbed one, no trial lost or told twice")  # fmt: skip


if __name__ == "__main__":
    main()
