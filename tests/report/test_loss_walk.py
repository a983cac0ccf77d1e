"""The way of a trial's loss from its training to the page, file by file, as it is run."""

import itertools
import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

import hptransfer
from hptransfer.cli.main import main
from hptransfer.report.words import say_value
from hptransfer.stats import fit_table
from hptransfer.tables import read_table
from hptransfer.train._ensemble import TrainSettings
from hptransfer.train._trainer import Training
from study.training import complete

SOURCE = Path(hptransfer.__file__).parent
PAGE = Path(__file__).parents[2] / "docs" / "design.md"
WIDTH = 32
#: Files one after the other, each with the one that it hands the loss to, or gets it back from.
WAY = (
    "train/_trainer", "study/_executor", "study/store", "tables/table_reader", "cli/report",
    "report/_page", "stats/_table_fit", "stats/_group_fit", "stats/loss_table", "stats/_group_fit",
    "stats/minima", "stats/_group_fit", "stats/estimate", "stats/_group_fit", "stats/_table_fit",
    "report/_page", "report/words", "report/_page",
)  # fmt: skip
#: Objects of ours that a value may lie in, one in the other.
DEPTH = 4
#: Values of one array that may be losses: draws are more.
MOST_LOSSES = 1000


class Surface:
    """Runs that lose what a basin says, in place of an ensemble that trains."""

    device, takes_arrays, problem = torch.device("cpu"), False, ""

    def __init__(self, trials):
        self.runs, self.num_steps = trials, 0

    def take_steps(self, batches, settings, step, factors):
        self.num_steps += len(factors)
        return torch.full((len(factors), len(self.runs)), 5.5)

    def evaluate(self, validation, *, batch):
        return torch.tensor([lose(trial.width, trial.base_lr) for trial in self.runs])

    def state(self):
        return {}


def lose(width, lr):
    """The loss of a basin that no other number of a study is, with a little noise."""
    off = math.log(lr) + 4.321
    noise = 0.003 * math.sin(97 * width + 13 * off)
    return float(np.float32(3.1234 + 2.7 * width**-0.4 + 0.13 * off**2 + noise))


def make(config, group, trials, data):
    settings = TrainSettings(batch=4, steps=2, warmup=0.2, decay=0.2, beta1=0.9, beta2=0.95)
    return Training(Surface(trials), batches=None, validation=None, settings=settings)


class Walk:
    """Which file hands a number to which, and under which names, while `trace` is set."""

    def __init__(self):
        self.numbers, self.text = set(), None
        self.names = {}
        self.returned = set()

    def trace(self, frame, event, value):
        here, caller = find_file(frame), find_file(frame.f_back)
        if not here or not caller or here == caller:
            return None
        if event == "call":
            self.note((caller, here), frame.f_locals)
        elif event == "return" and self.note((here, caller), {"": value}):
            self.returned.add((here, caller))
        frame.f_trace_lines = False
        return self.trace

    def note(self, files, values):
        depth = 1 if files in self.names else DEPTH
        if found := set(self.find("", values, depth)):
            self.names.setdefault(files, set()).update(found)
        return found

    def find(self, name, value, depth):
        """Yield the names of the numbers in a value, "" for those in a list."""
        if isinstance(value, pa.Array) and pa.types.is_floating(value.type):
            value = value.to_numpy(zero_copy_only=False)
        if isinstance(value, str):
            yield from [name] * (value == self.text)
        elif isinstance(value, float):
            yield from [name] * (value in self.numbers)
        elif isinstance(value, np.ndarray):
            if value.dtype == float and value.size < MOST_LOSSES:
                yield from [name] * bool(self.numbers & {*value.ravel().tolist()})
        elif isinstance(value, Mapping):
            for key, each in value.items():
                yield from self.find(key, each, depth)
        elif isinstance(value, list | tuple):
            for each in value:
                yield from self.find("", each, depth)
        elif depth and type(value).__module__.startswith("hptransfer."):
            yield from self.find(name, getattr(value, "__dict__", {}), depth - 1)


def find_file(frame):
    """Return the file of ours that a frame is of, or was called from; None for none."""
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(f"{SOURCE}/"):
            return name.removeprefix(f"{SOURCE}/").removesuffix(".py")
        frame = frame.f_back
    return None


def follow(walk, run):
    before = sys.gettrace()
    sys.settrace(walk.trace)
    try:
        run()
    finally:
        sys.settrace(before)


def test_a_loss_goes_through_the_files_that_the_page_names(study_file, tmp_path):
    text = study_file.read_text().replace("[-7, -5, 6]", "[-9, -8, -7, -6, -5, -4]")
    text = text.replace('["sp", "mup"]', '["sp"]').replace("[0, 1]", "[0]")
    study_file.write_text(text.replace("[16, 32]", "[16, 32, 64]"))
    walk, study, page = Walk(), tmp_path / "out", tmp_path / "page.html"
    walk.numbers = {min(lose(WIDTH, 2.0**k) for k in range(-9, -3))}
    follow(walk, lambda: complete(study_file, study, make=make))
    [best] = [b.loss for b in fit_table(read_table(study))[0].basins if b.width == WIDTH]
    walk.numbers.add(best.value)
    walk.text = say_value(best)
    follow(walk, lambda: main(["report", str(study), "-o", str(page)]))
    assert f"<td>{walk.text}<br>" in page.read_text(encoding="utf-8")

    # Each file of the way hands the loss to the next.
    assert [each for each in itertools.pairwise(WAY) if each not in walk.names] == []
    names = set().union(*(walk.names[each] for each in itertools.pairwise(WAY)))
    way, aside = (
        find_named(start) for start in ("File by file, a trial's loss", "Beside this way")
    )
    # An estimate's is the value of whatever was estimated.
    assert way == {*WAY} | names - {"", "value"}
    assert way - {*WAY} == {"loss", "losses", "mean"}
    assert len({*WAY}) <= 12
    # What else hands it back to a file of the way is said to be no part of it.
    assert aside == {here for here, there in walk.returned if there in WAY and here not in WAY}


def find_named(start):
    """Return what stands in code's type in the paragraph of the page that begins so."""
    [paragraph] = re.findall(rf"{start}.*?\n\n", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return set(re.findall(r"`([^`]+)`", paragraph))
