"""Kill a study over and over; when it is done, its table must be that of an undisturbed run.

    python benchmarks/kill.py --kills 100 -o benchmarks/results/kill.md

Processes of a small study on the CPU are ended by SIGKILL at random moments that the seed draws:
a runner with its workers, the runner alone (its workers notice), or one worker. Whatever has
ended is started again by the same command. In mode `one` a single command works on the directory,
and every tenth start also finds planted damage: files half written beside, a cut-off checkpoint,
a cut-off results file. In mode `shards` two commands work with --shard 1/2 and 2/2, in mode
`plain` two with no shards, which may do the same work twice. A study that is finished before its
kills are spent is checked and begun again in a fresh directory.

It passes where every table equals the undisturbed one bit for bit in all columns but the timings,
where no file repeats a trial of another, and where nothing half-written or left over remains.
Linux only: it reads /proc.
"""

import argparse
import contextlib
import json
import os
import platform
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from hptransfer._atomic import TMP_SUFFIX
from hptransfer._version import __version__
from hptransfer.study.store import (
    CHECKPOINTS_FOLDER,
    DAMAGED_SUFFIX,
    GROUPS_FOLDER,
    TIMING_COLUMNS,
    read_trials,
)
from hptransfer.train._device import count_cores, describe_device

WORDS = ["river", "stone", "the", "of", "a", "mountain", "was", "built", "in", "old", "city",
         "king", "and", "his", "ship", "sailed", "to", "north", "music", "played"]  # fmt: skip
STUDY = """\
name = "kill"

[data]
text = "files:text/*.txt"
vocab_size = 300

[model]
num_layers = 1
head_size = 8
context = 16

[sweep]
parameterization = ["sp", "sp+embd", "mup"]
width = [16, 32, 48, 64]
log2_lr = [-8, -7, -6, -5, -4, 6]
seed = [0, 1]

[train]
batch = 4
steps = {steps}
eval_tokens = 512
precision = "fp32"
"""
MODES = {"one": ((),), "shards": (("--shard", "1/2"), ("--shard", "2/2")), "plain": ((), ())}
WORKERS, CHECKPOINT_SECONDS = 2, 0.2
#: Kinds of kills with their weights, and the moments: one in four is drawn from a command's whole
#: life, imports and plan included, the others from the seconds after its first checkpoint.
KINDS = {"runner and workers": 2, "runner alone": 1, "one worker": 2}
SHARE_ANY_MOMENT, ANY_MOMENT, AFTER_CHECKPOINT = 0.25, 6.0, 1.0
#: Every n-th start finds planted damage; this many seconds let orphans notice and end.
PLANT_EVERY, PATIENCE = 10, 60.0
LOOK = 0.01


@dataclass
class Tally:
    """What happened, to be printed."""

    kinds: Counter[str] = field(default_factory=Counter)
    training: int = 0
    starts: int = 0
    resumed: int = 0
    anew: int = 0
    planted: Counter[str] = field(default_factory=Counter)
    passes: int = 0
    seconds: float = 0.0

    @property
    def kills(self) -> int:
        """All kills."""
        return self.kinds.total()


class Command:
    """One ``hptransfer run`` in a process group of its own, with what is seen of it."""

    def __init__(self, work: Path, directory: Path, options: Sequence[str]) -> None:
        self.directory, self._argv = directory, [
            sys.executable, "-m", "hptransfer", "run", str(work / "study.toml"),
            "-o", str(directory), "--workers", str(WORKERS),
            "--checkpoint", str(CHECKPOINT_SECONDS), *options,
        ]  # fmt: skip
        self._environment = {**os.environ, "HPTRANSFER_CACHE": str(work / "cache")}
        self._log = (work / "log.txt").open("ab")
        self.orphans: list[int] = []

    def start(self) -> None:
        """Start it."""
        self.process = subprocess.Popen(
            self._argv,
            env=self._environment,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        self.started = time.monotonic()
        self.orphans.append(self.process.pid)

    def workers(self) -> list[int]:
        """Return its worker processes."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        with contextlib.suppress(OSError):
            return [int(pid) for pid in path.read_text().split()]
        return []

    def kill(self, kind: str, generator: random.Random) -> str | None:
        """Kill what `kind` says; return the kind, or None where it was too late."""
        workers = self.workers()
        if kind == "one worker" and not workers:
            kind = "runner and workers"
        if self.process.poll() is not None:
            return None
        if kind == "one worker":
            with contextlib.suppress(ProcessLookupError):
                os.kill(generator.choice(workers), signal.SIGKILL)
                return kind
            return None
        if kind == "runner alone":
            self.process.kill()
        else:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        return kind

    def wait_for_orphans(self) -> None:
        """Wait until no process of any start is left; they must notice by themselves."""
        limit = time.monotonic() + PATIENCE
        for group in self.orphans:
            while True:
                try:
                    os.killpg(group, 0)
                except ProcessLookupError:
                    break
                assert time.monotonic() < limit, f"a process of group {group} does not end"
                time.sleep(LOOK)
        self.orphans.clear()


def read_steps(directory: Path) -> dict[str, int]:
    """Return the step of every checkpoint, by group."""
    steps = {}
    for path in (directory / CHECKPOINTS_FOLDER).glob("*.safetensors"):
        with contextlib.suppress(OSError, ValueError, KeyError, struct.error), path.open("rb") as f:
            (size,) = struct.unpack("<Q", f.read(8))
            steps[path.stem] = int(json.loads(f.read(size))["__metadata__"]["step"])
    return steps


def plant(directory: Path, generator: random.Random, tally: Tally) -> int:
    """Leave what a killed process may leave, and worse; return how many results it cost."""
    damaged = 0
    results = sorted((directory / GROUPS_FOLDER).glob("*.parquet"))
    saved = sorted((directory / CHECKPOINTS_FOLDER).glob("*.safetensors"))
    for kind, paths in (("results", results), ("checkpoint", saved)):
        for path in paths[:1]:
            half = path.read_bytes()[: generator.randrange(1, path.stat().st_size)]
            path.with_name(f".{path.stem}-planted{TMP_SUFFIX}").write_bytes(half)
            tally.planted[f"half-written {kind} beside"] += 1
    if saved:
        path = generator.choice(saved)
        path.write_bytes(path.read_bytes()[: generator.randrange(path.stat().st_size)])
        tally.planted["cut-off checkpoint"] += 1
    if results and generator.random() < 0.5:
        path = generator.choice(results)
        path.write_bytes(path.read_bytes()[: generator.randrange(path.stat().st_size)])
        tally.planted["cut-off results"] += 1
        damaged += 1
    return damaged


def disturb(
    work: Path, directory: Path, mode: str, *, kills: int, generator: random.Random, tally: Tally
) -> int:
    """Work on one directory until it is finished, killing meanwhile; return planted damage."""
    commands = [Command(work, directory, options) for options in MODES[mode]]
    damaged = 0
    before: dict[str, int] = {}
    first = dict.fromkeys(range(len(commands)), -1.0)  # when training was first seen
    due = dict.fromkeys(range(len(commands)), 0.0)
    anytime = dict.fromkeys(range(len(commands)), False)

    def draw(i: int, *, fresh: bool) -> None:
        anytime[i] = fresh and generator.random() < SHARE_ANY_MOMENT
        due[i] = generator.uniform(0, ANY_MOMENT if anytime[i] else AFTER_CHECKPOINT)

    def start(i: int) -> None:
        nonlocal damaged
        tally.starts += 1
        if mode == "one" and tally.starts % PLANT_EVERY == 0:
            commands[i].wait_for_orphans()
            damaged += plant(directory, generator, tally)
        before.update(read_steps(directory))
        pending.update(before)
        commands[i].start()
        first[i] = -1.0
        draw(i, fresh=True)

    pending: dict[str, int] = {}  # checkpoints found at a start, not seen to move since
    for i in range(len(commands)):
        start(i)
    running = set(range(len(commands)))
    while running:
        time.sleep(LOOK)
        steps = read_steps(directory)
        for name in [name for name in pending if steps.get(name, pending[name]) != pending[name]]:
            resumed = steps[name] > pending.pop(name)
            tally.resumed += resumed
            tally.anew += not resumed
        moved = steps != before
        for i in sorted(running):
            command, now = commands[i], time.monotonic()
            code = command.process.poll()
            if code is not None:
                # 0: done; 1: a worker was killed or its group failed; -9: killed by us.
                assert code in (0, 1, -signal.SIGKILL), f"code {code}, see {work / 'log.txt'}"
                if code == 0:
                    running.discard(i)
                else:
                    start(i)
                continue
            if first[i] < 0 and moved and command.workers():
                first[i] = now
            since = command.started if anytime[i] else first[i]
            if tally.kills >= kills or since < 0 or now < since + due[i]:
                continue
            kind = generator.choices(list(KINDS), list(KINDS.values()))[0]
            killed = command.kill(kind, generator)
            if killed is not None:
                tally.kinds[killed] += 1
                tally.training += first[i] >= 0
                before = steps
                first[i] = -1.0 if killed == "one worker" else first[i]
                draw(i, fresh=False)
    for command in commands:
        command.wait_for_orphans()
    return damaged


def read_table(directory: Path) -> pa.Table:
    """Return all that must be equal, ordered by trial, straight from the files."""
    stored = read_trials(directory)
    assert stored.damaged == (), stored.damaged
    files = sorted((directory / GROUPS_FOLDER).glob("*.parquet"))
    ids = [trial for path in files for trial in pq.read_table(path).column("id").to_pylist()]
    assert len(ids) == len(set(ids)), "a trial is stored twice"
    return stored.rows.drop_columns(list(TIMING_COLUMNS)).sort_by("id")


def check(directory: Path, expected: pa.Table, *, damaged: int) -> None:
    """Hold a finished directory against the undisturbed run's table."""
    found = read_table(directory)
    assert found.num_rows == expected.num_rows
    for name in expected.column_names:
        # As text, so that a NaN equals itself and -0.0 differs from 0.0.
        one, other = (repr(table.column(name).to_pylist()) for table in (found, expected))
        assert one == other, f"column {name} differs"
    names = [path.name for path in directory.rglob("*") if path.is_file()]
    assert not [name for name in names if name.endswith(TMP_SUFFIX)], names
    assert not [name for name in names if name.endswith(".safetensors")], names
    aside = [name for name in names if name.endswith(DAMAGED_SUFFIX)]
    assert len(aside) <= damaged, aside


def make_work(folder: Path, steps: int) -> None:
    """Write the study and its text."""
    generator = random.Random(0)
    (folder / "text").mkdir(parents=True)
    documents = [" ".join(generator.choices(WORDS, k=40)) + "." for _ in range(60)]
    (folder / "text" / "a.txt").write_text("\n\n".join(documents), encoding="utf-8")
    (folder / "study.toml").write_text(STUDY.format(steps=steps), encoding="utf-8")


def run_mode(work: Path, mode: str, expected: pa.Table, *, kills: int, seed: int) -> Tally:
    """Spend the kills in one mode."""
    tally, generator = Tally(), random.Random(f"{seed} {mode}")
    start = time.monotonic()
    while tally.kills < kills:
        directory = work / f"{mode}-{tally.passes}"
        damaged = disturb(work, directory, mode, kills=kills, generator=generator, tally=tally)
        # The last process may itself have been killed between its results and its tidying up.
        ended = Command(work, directory, ())
        ended.start()
        assert ended.process.wait() == 0
        check(directory, expected, damaged=damaged)
        tally.passes += 1
    tally.seconds = time.monotonic() - start
    return tally


def run_shards(work: Path) -> pa.Table:
    """Return the table of an undisturbed run in shards, one after the other."""
    directory = work / "undisturbed-shards"
    for options in MODES["shards"]:
        command = Command(work, directory, options)
        command.start()
        assert command.process.wait() == 0, f"the undisturbed run failed, see {work / 'log.txt'}"
    return read_table(directory)


def describe(mode: str, tally: Tally, expected: pa.Table) -> str:
    """Return one mode's part of the report."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in tally.kinds.most_common())
    planted = ", ".join(f"{count} {kind}" for kind, count in sorted(tally.planted.items()))
    return f"""
## {mode}: {len(MODES[mode])} command{"s" * (len(MODES[mode]) > 1)} on one directory

- {tally.kills} SIGKILLs ({kinds}), {tally.training} of them while groups were in training; \
{tally.starts} starts, {tally.seconds:.0f} s.
- Groups seen to go on from a checkpoint: {tally.resumed}; begun anew over one: {tally.anew}.
- Planted: {planted or "nothing"}.
- Studies brought to their end: {tally.passes}. Every table of {expected.num_rows} trials equals \
the undisturbed run's bit for bit in {expected.num_columns} columns (all but \
{", ".join(TIMING_COLUMNS)}); no trial twice, nothing left over.
"""


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100, help="in each mode")
    parser.add_argument("--steps", type=int, default=600, help="of each trial")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, help="append the report to this file")
    parser.add_argument("--work", type=Path, help="a new folder to work in, which then stays")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        work = args.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        make_work(work, args.steps)
        whole = Command(work, work / "undisturbed", ())
        whole.start()
        assert whole.process.wait() == 0, f"the undisturbed run failed, see {work / 'log.txt'}"
        seconds = time.monotonic() - whole.started
        expected = read_table(work / "undisturbed")
        groups = len(list((work / "undisturbed" / GROUPS_FOLDER).glob("*.parquet")))
        parts = [
            f"""# Killed and restarted, {time.strftime("%Y-%m-%d", time.gmtime())}

```
python benchmarks/kill.py --kills {args.kills} --steps {args.steps} --seed {args.seed} \
--modes {" ".join(args.modes)}
```

{describe_device("cpu")}, {count_cores()} cores, {platform.system()}; \
hptransfer {__version__}, torch {torch.__version__}, Python {platform.python_version()}.

{expected.num_rows} trials in {groups} groups (widths 16 to 64, three parameterizations, six \
learning rates of which one diverges, two seeds, {args.steps} steps), {WORKERS} workers, a \
checkpoint every {CHECKPOINT_SECONDS:g} s. The undisturbed run took {seconds:.0f} s.
"""
        ]
        print(parts[0], flush=True)
        for mode in args.modes:
            # A plan for shards has groups for each of them, which is another stacking.
            wanted = expected if mode != "shards" else run_shards(work)
            tally = run_mode(work, mode, wanted, kills=args.kills, seed=args.seed)
            parts.append(describe(mode, tally, expected))
            print(parts[-1], flush=True)
        if args.output:
            with args.output.open("a", encoding="utf-8") as file:
                file.write("".join(parts))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
