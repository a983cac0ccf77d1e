"""Does any table, however damaged, end in a traceback, and does a large one fit in memory?

Sends 10,000 damaged and hostile tables through all of ``hptransfer fit FILE --json`` and counts
results and one-line errors; then fits two tables of 10^6 rows, one of few seeds and one with a seed
for each row, in processes of their own, and prints time and peak memory. Everything is seeded:
table N is the same each time, and ``--first N --count 1`` runs it alone. On one thread: the arrays
of such tables are too small to be shared out.

    OMP_NUM_THREADS=1 python benchmarks/hostile_tables.py [--count 10000] [--first 0] [--rows N]
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from tables.hostile import judge, make_hostile

#: Bytes that a table of 10^6 rows may take at most.
MEMORY = int(0.6 * 2**30)

# Fits a table and prints seconds and peak resident bytes of its own process.
_MEASURE = """
import contextlib, io, resource, sys, time
from hptransfer.cli.main import main
start = time.perf_counter()
with contextlib.redirect_stdout(io.StringIO()):
    code = main(["fit", sys.argv[1], "--json"])
scale = 1 if sys.platform == "darwin" else 1024
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
print(code, time.perf_counter() - start, peak)
"""


def run_hostile(first: int, count: int) -> Counter[str]:
    """Judge tables `first` to `first + count`, and print those that end badly."""
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        for number in range(first, first + count):
            table = make_hostile(number)
            verdict = judge(table, Path(name))
            kind = verdict if verdict in ("result", "error") else verdict.partition(":")[0]
            found[kind] += 1
            if verdict not in ("result", "error"):
                print(f"table {number} ({table.name} {' '.join(table.options)}): {verdict}")
                print(f"  {table.data[:400]!r}", flush=True)
    return found


def write_large(path: Path, rows: int, *, own_seeds: bool = False) -> None:
    """Write a table of 16 parameterizations, 2 weight decays, 8 widths, 16 lrs and many seeds.

    With `own_seeds` each row has a seed of its own, as where a run's number was taken for one.
    """
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        file.write("run,parameterization,weight_decay,width,lr,seed,state,loss,note\n")
        for row in range(rows):
            rest, step = divmod(row, 16)
            rest, size = divmod(rest, 8)
            rest, decay = divmod(rest, 2)
            seed, rule = divmod(rest, 16)
            seed = row if own_seeds else seed
            width, x = 64 * 2**size, -14 + 0.7 * step
            loss = 3 + 5 * width**-0.4 + 0.05 * (x + 9) ** 2 + 0.01 * rng.standard_normal()
            file.write(
                f"run-{row},p{rule},{decay / 10},{width},{2.0**x!r},{seed},finished,"
                f"{float(loss)!r},a note on run {row}\n"
            )


def run_large(rows: int, *, own_seeds: bool) -> bool:
    """Fit a large table in a process of its own; tell whether it kept to `MEMORY`."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "large.csv"
        write_large(path, rows, own_seeds=own_seeds)
        size = path.stat().st_size
        done = subprocess.run(
            [sys.executable, "-c", _MEASURE, str(path)], capture_output=True, text=True, check=False
        )
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        return False
    code, seconds, peak = done.stdout.split()
    kind = ", a seed each" if own_seeds else ""
    print(
        f"{rows:,} rows{kind} ({size / 2**20:.0f} MiB): exit code {code}, {float(seconds):.1f} s, "
        f"peak {int(peak) / 2**30:.2f} GiB of {MEMORY / 2**30:.1f}"
    )
    return code == "0" and int(peak) <= MEMORY


def run() -> int:
    """Parse the options and run both parts."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--rows", type=int, default=1_000_000, help="0 leaves the large table out")
    args = parser.parse_args()
    start, spent = time.perf_counter(), time.process_time()
    found = run_hostile(args.first, args.count)
    seconds, spent = time.perf_counter() - start, time.process_time() - spent
    print(
        f"{args.count:,} hostile tables in {seconds:.0f} s, {spent:.0f} of one core: "
        f"{dict(found.most_common())}"
    )
    fine = set(found) <= {"result", "error"}
    if args.rows:
        for own_seeds in (False, True):
            fine = run_large(args.rows, own_seeds=own_seeds) and fine
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(run())
