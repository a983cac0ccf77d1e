"""The way of a learning rate from the study file to the optimizer, file by file, as it is run."""

import re
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

import hptransfer
from hptransfer.study import _local_engine, load_study, run_study

SOURCE = Path(hptransfer.__file__).parent
PAGE = Path(__file__).parents[2] / "docs" / "design.md"
#: Rates that no other number of a study is: by log2, on the axis, and halved at twice the width.
LOG2_LRS = [-6.37, -5.59]
RATES = [2.0 ** (log2_lr - octave) for log2_lr in LOG2_LRS for octave in (0, 1)] + LOG2_LRS
KNOWN = {*RATES, *(float(np.float32(rate)) for rate in RATES)}
#: Names that any number has, where it is checked, rounded or written.
ANY_NUMBER = {"value", "number", "x", "each"}


def is_rate(value):
    if isinstance(value, torch.Tensor):
        value = value[0].item() if value.dim() == 1 and len(value) else None
    return isinstance(value, float) and value in KNOWN


def find_rates(name, value, *, of_ours=True):
    """Yield the names of the rates in a value, "" for those in a list.

    A rate stands there as itself, in collections, or as a field of one of our objects.
    """
    if is_rate(value):
        yield name
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from find_rates(key, each, of_ours=of_ours)
    elif isinstance(value, list | tuple | set | frozenset):
        for each in value:
            yield from find_rates("", each, of_ours=of_ours)
    elif (
        of_ours and type(value).__module__.startswith("hptransfer.") and hasattr(value, "__dict__")
    ):
        yield from find_rates(name, vars(value), of_ours=False)


class Walk:
    """Where functions of ours hold a rate, and under which names, while `trace` is set."""

    def __init__(self):
        self.files, self.names = set(), set()

    def trace(self, frame, event, _):
        path = Path(frame.f_code.co_filename)
        if not path.is_relative_to(SOURCE):
            return None
        if found := set(find_rates("", dict(frame.f_locals))):
            self.files.add(path.relative_to(SOURCE).with_suffix("").as_posix())
            self.names |= found
        frame.f_trace_lines = False  # arguments at the call, and all locals at the end, are enough
        return self.trace


class _StopError(BaseException):
    pass


def test_a_rate_goes_through_the_files_that_the_page_names(study_file, tmp_path, monkeypatch):
    monkeypatch.setattr(_local_engine, "find_device", lambda: "cpu")
    text = study_file.read_text().replace("[-7, -5, 6]", str(LOG2_LRS))
    study_file.write_text(text)

    def stop(event):
        if event.kind == "evaluate":  # the last step is taken
            raise _StopError

    walk, before = Walk(), sys.gettrace()
    sys.settrace(walk.trace)
    try:
        with pytest.raises(_StopError):
            run_study(
                load_study(study_file),
                tmp_path / "out",
                workers=1,
                checkpoint_interval=0,
                on_event=stop,
            )
    finally:
        sys.settrace(before)
    [paragraph] = re.findall(r"File by file, a learning rate .*?\n\n", PAGE.read_text(), re.DOTALL)
    named = set(re.findall(r"`([a-z0-9_/]+)`", paragraph))
    files = {name for name in named if (SOURCE / f"{name}.py").exists()}
    assert walk.files | {"cli/run"} == files
    assert len(files) <= 12
    assert walk.names - ANY_NUMBER - {""} == named - files == {"log2_lr", "base_lr", "lr"}
