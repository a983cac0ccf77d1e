"""Damage every kind of file that a study writes; nothing wrong may come of it.

    python benchmarks/damage.py --cases 5000 -o benchmarks/results/damage.md

A tiny study is trained once: finished, in the middle of its groups, and with a split plan. Each
case takes one of these directories and its caches, damages one file as the seed draws (a bit
flipped, several bytes replaced, cut off, emptied, another file of the kind in its place, or another
study's), and runs the study again. Whatever is read before and after must be the undisturbed
run's, bit for bit: either the damage does no harm, or what is damaged is made again, or one line on
stderr refuses to go on, with exit code 1 or 2. A traceback or another number ends the benchmark.
"""

import argparse
import contextlib
import io
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hptransfer.cli import main as cli
from hptransfer.errors import HptransferError
from hptransfer.study._local_engine import run_in_process
from hptransfer.study._plan import write_split
from hptransfer.study._runner import prepare_run
from hptransfer.study.config import load_study
from hptransfer.study.events import Event
from hptransfer.study.store import TIMING_COLUMNS, read_trials
from hptransfer.train._tokens import CACHE_VARIABLE

WORDS = ["river", "stone", "the", "of", "a", "mountain", "was", "built", "in", "old", "city",
         "king", "and", "his", "ship", "sailed", "to", "north", "music", "played"]  # fmt: skip
STUDY = """\
name = "{name}"

[data]
text = "files:text/*.txt"
vocab_size = 300

[model]
num_layers = 1
head_size = 8
context = 8

[sweep]
parameterization = ["sp", "mup"]
width = [8, 16]
log2_lr = [-7, 6]
seed = [0, 1]

[train]
batch = 2
steps = 4
eval_tokens = 64
precision = "fp32"
"""
STATES = ("finished", "under way", "split")

Rows = list[dict[str, Any]]


class WrongError(Exception):
    """Damage has led to another number, or to more than one line."""


@dataclass(frozen=True)
class Original:
    """An undisturbed directory with its caches, and what lies in them."""

    folder: Path
    rows: Rows

    def list_files(self) -> list[Path]:
        """Return the files that may be damaged, by path from the folder."""
        found = (path.relative_to(self.folder) for path in sorted(self.folder.rglob("*")))
        return [path for path in found if (self.folder / path).is_file()]


def name_kind(path: Path) -> str:
    """Return the kind of a file of a study or a cache."""
    if path.name == "study.json":
        return "study.json"
    if path.parent.name == "plan":
        return path.name.partition("-")[0]
    if path.parent.name in ("groups", "checkpoints", "speed"):
        return {"groups": "results", "checkpoints": "checkpoint", "speed": "speed"}[
            path.parent.name
        ]
    return path.name


def flip(content: bytes, rng: random.Random) -> bytes:
    """Flip one bit."""
    changed = bytearray(content)
    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def replace_bytes(content: bytes, rng: random.Random) -> bytes:
    """Put random bytes in the place of up to 64 that follow each other."""
    start = rng.randrange(len(content))
    length = min(rng.randrange(1, 65), len(content) - start)
    return content[:start] + rng.randbytes(length) + content[start + length :]


def swap_bytes(content: bytes, rng: random.Random) -> bytes:
    """Exchange two stretches of up to 64 bytes."""
    length = rng.randrange(1, min(65, len(content) // 2 + 1))
    first, second = sorted(rng.sample(range(len(content) - length + 1), 2))
    if second - first < length:
        return flip(content, rng)
    stretch = content[first : first + length], content[second : second + length]
    return (
        content[:first] + stretch[1] + content[first + length : second]
        + stretch[0] + content[second + length :]
    )  # fmt: skip


def cut(content: bytes, rng: random.Random) -> bytes:
    """Keep the beginning, or nothing."""
    return content[: rng.randrange(len(content))]


DAMAGES: Mapping[str, Callable[[bytes, random.Random], bytes]] = {
    "bit flipped": flip,
    "bytes replaced": replace_bytes,
    "bytes swapped": swap_bytes,
    "cut off": cut,
}


def write_study(folder: Path, name: str) -> Path:
    """Write a study file and its text."""
    generator = random.Random(0)
    (folder / "text").mkdir(parents=True, exist_ok=True)
    documents = [" ".join(generator.choices(WORDS, k=20)) + "." for _ in range(40)]
    (folder / "text" / "a.txt").write_text("\n\n".join(documents), encoding="utf-8")
    path = folder / f"{name}.toml"
    path.write_text(STUDY.format(name=name), encoding="utf-8")
    return path


def read_rows(directory: Path) -> Rows:
    """Return what is stored, but for the timings."""
    rows = read_trials(directory).rows.drop_columns(list(TIMING_COLUMNS)).to_pylist()
    return sorted(rows, key=lambda row: str(row["id"]))


def make_original(work: Path, state: str, name: str = "damage") -> Original:
    """Train the study to one of `STATES`; its rows are those of its end."""
    folder = work / f"{name}-{state.replace(' ', '-')}"
    study = write_study(work, name)
    directory = folder / "study"
    os.environ[CACHE_VARIABLE] = str(folder / "cache")
    config = load_study(study)
    groups = prepare_run(config, directory, workers=2).groups
    if state == "split":
        for group in groups:
            if len(group.runs) > 1:
                write_split(directory, group)
        groups = prepare_run(config, directory, workers=2).groups
    if state == "under way":
        _train(config, directory, groups, stop=True)
    whole = work / f"{folder.name}-whole"
    shutil.copytree(folder, whole)
    _train(config, whole / "study", groups)
    if state != "under way":
        _train(config, directory, groups)
    return Original(folder=folder, rows=read_rows(whole / "study"))


class _StopError(BaseException):
    """Ends a training where its first checkpoint is written."""


def _train(config: Any, directory: Path, groups: Sequence[Any], *, stop: bool = False) -> None:
    for group in groups:

        def stop_when_saved(event: Event, name: str = group.name) -> None:
            if event.kind == "done":
                raise WrongError(f"{name} ended before it was saved")

        if not stop:
            run_in_process(
                directory, [group], lambda event: None, root=config.root, checkpoint_interval=60
            )
            continue
        from hptransfer.study._executor import make_training

        def make(*args: Any) -> Any:
            training = make_training(*args)
            advance, count = training.advance, [0]

            def end() -> Any:
                count[0] += 1
                if count[0] > 1:
                    raise _StopError
                return advance()

            training.advance = end
            return training

        with contextlib.suppress(_StopError):
            run_in_process(
                directory, [group], stop_when_saved, root=config.root, checkpoint_interval=0,
                make_training=make,
            )  # fmt: skip


def damage(
    folder: Path, path: Path, original: Original, foreign: Original, rng: random.Random
) -> str:
    """Damage a file; return how."""
    target = folder / path
    content = target.read_bytes()
    kind = name_kind(path)
    how = rng.choice([*DAMAGES, "another in its place", "another study's in its place"])
    if how in DAMAGES:
        target.write_bytes(DAMAGES[how](content, rng))
        return how
    source = original if how == "another in its place" else foreign
    others = [
        source.folder / each
        for each in source.list_files()
        if name_kind(each) == kind and (source is foreign or each != path)
    ]
    if not others:
        target.write_bytes(flip(content, rng))
        return "bit flipped"
    shutil.copyfile(rng.choice(others), target)
    return how


def run_case(work: Path, original: Original, foreign: Original, rng: random.Random) -> str:
    """Damage one file of a copy and run the study; return what became of it.

    Raises
    ------
    WrongError
        If a number is another, or there is more to read than one line.
    """
    folder = work / "case"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(original.folder, folder)
    # Kinds alike, whatever the number of their files.
    files = original.list_files()
    kind = rng.choice(sorted({name_kind(path) for path in files}))
    path = rng.choice([path for path in files if name_kind(path) == kind])
    how = damage(folder, path, original, foreign, rng)
    about = f"{original.folder.name}, {path}, {how}"
    os.environ[CACHE_VARIABLE] = str(folder / "cache")
    known = {row["id"]: row for row in original.rows}
    with contextlib.suppress(HptransferError):  # one line, as the commands print it
        for row in read_rows(folder / "study"):
            if row != known.get(row["id"]):
                raise WrongError(f"{about}: a reader finds {row}")
    out, err = io.StringIO(), io.StringIO()
    study = work / "damage.toml"
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main(["run", str(study), "-o", str(folder / "study"), "--workers", "1"])
        except Exception as error:
            raise WrongError(f"{about}: {type(error).__name__}: {error}") from error
    lines = err.getvalue().splitlines()
    if "Traceback" in err.getvalue():
        raise WrongError(f"{about}: {err.getvalue()}")
    if code == 0:
        found = read_rows(folder / "study")
        if found != original.rows:
            raise WrongError(f"{about}: the rows are others after {lines}")
        said = any("damaged" in line or "left alone" in line for line in lines)
        return f"{kind}: {'said, made again and equal' if said else 'equal'}"
    last = [line for line in lines if line.startswith("hptransfer: ")]
    if code not in (1, 2) or not last:
        raise WrongError(f"{about}: code {code}, {lines}")
    return f"{kind}: one line"


def run_cases(work: Path, *, cases: int, seed: int) -> Counter[str]:
    """Run the cases; return what became of them, by kind of file."""
    before = os.environ.get(CACHE_VARIABLE)
    try:
        originals = [make_original(work, state) for state in STATES]
        foreign = make_original(work, "split", name="foreign")
        rng, counts = random.Random(seed), Counter[str]()
        for number in range(cases):
            counts[run_case(work, originals[number % len(originals)], foreign, rng)] += 1
        return counts
    finally:
        if before is None:
            os.environ.pop(CACHE_VARIABLE, None)
        else:
            os.environ[CACHE_VARIABLE] = before


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, help="write the report to this file")
    args = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as work:
        counts = run_cases(Path(work), cases=args.cases, seed=args.seed)
    lines = [
        f"# Damaged files, {time.strftime('%Y-%m-%d', time.gmtime())}",
        "",
        f"`python benchmarks/damage.py --cases {args.cases} --seed {args.seed}`: "
        f"{args.cases} cases, {time.monotonic() - start:.0f} s, no wrong number, no traceback.",
        "",
        "| file: what became of it | cases |",
        "|---|--:|",
        *(f"| {name} | {count} |" for name, count in sorted(counts.items())),
    ]
    report = "\n".join(lines) + "\n"
    if args.output:
        args.output.write_text(report, encoding="utf-8")
    sys.stdout.write(report)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
