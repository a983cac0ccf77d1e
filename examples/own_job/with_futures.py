"""A search by any executor: submitit's, Dask's, Ray's or, here, a process pool of this machine.

    python with_futures.py [JOURNAL]

With submitit, `executor = submitit.AutoExecutor("logs")` and its `map_array` in place of `map`
train each trial as a job of a Slurm array. A rerun goes on where the journal ends.
"""

import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from hptransfer import LrSearch
from hptransfer.search import Trial

SCRIPT = Path(__file__).with_name("train.py")


def train(trial: Trial) -> float:
    """Train one trial, wherever this runs, and return its loss."""
    options = {"--width": trial.width, "--lr": trial.lr, "--seed": trial.seed}
    command = [sys.executable, SCRIPT, *(str(each) for pair in options.items() for each in pair)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(output.splitlines()[-1].partition('"loss": ')[2].rstrip("}"))


def main(journal: str | None = None) -> LrSearch:
    """Search, round by round: a round's trials run at the same time."""
    search = LrSearch(widths=[32, 64, 128], seeds=(0, 1), journal=journal)
    with ProcessPoolExecutor(2) as executor:
        while trials := search.ask():
            for trial, loss in zip(trials, executor.map(train, trials), strict=True):
                search.tell(trial, loss)
    print(search.recommend(width=512))
    return search


if __name__ == "__main__":
    main(*sys.argv[1:])
