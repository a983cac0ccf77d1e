"""The choice of precision is measured once and then read."""

import os
from dataclasses import replace

import pytest
import torch

from hptransfer.model import GPTShape
from hptransfer.train import _calibrate
from hptransfer.train._device import count_cores, describe_device, find_device, find_memory

TERMS = _calibrate.StepTerms(
    shape=GPTShape(width=16, num_layers=1, head_size=8, context=8, vocab_size=20),
    batch=2,
    device="cpu",
    threads=1,
)


def test_measured_once_then_read_and_damage_is_measured_again(tmp_path, monkeypatch):
    monkeypatch.setenv("HPTRANSFER_CACHE", str(tmp_path))
    threads = torch.get_num_threads()
    first = _calibrate.measure_step_seconds(TERMS)
    assert set(first) == {"fp32", "bf16"}
    assert min(first.values()) > 0
    assert torch.get_num_threads() == threads
    assert _calibrate.measure_step_seconds(TERMS) == first
    [cached] = (tmp_path / "speed").iterdir()
    cached.write_text("{")
    assert set(_calibrate.measure_step_seconds(TERMS)) == set(first)
    only = _calibrate.measure_step_seconds(TERMS, precisions=["fp32"])
    assert set(only) == {"fp32"}
    # What was measured with another meaning is not read.
    monkeypatch.setattr(_calibrate, "CACHE_FORMAT", _calibrate.CACHE_FORMAT - 1)
    before = {*(tmp_path / "speed").iterdir()}
    _calibrate.measure_step_seconds(TERMS)
    assert len({*(tmp_path / "speed").iterdir()} - before) == 1


def test_measuring_leaves_the_process_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setenv("HPTRANSFER_CACHE", str(tmp_path))
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    filling = torch.utils.deterministic
    monkeypatch.setattr(filling, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.manual_seed(5)
    drawn, threads = torch.get_rng_state(), torch.get_num_threads()
    _calibrate.measure_step_seconds(replace(TERMS, threads=threads + 1))
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert filling.fill_uninitialized_memory
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), drawn)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    _calibrate.measure_step_seconds(replace(TERMS, batch=3))
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_the_machine_describes_itself():
    device = find_device()
    assert device in ("cpu", "cuda")
    assert describe_device("cpu")
    assert count_cores() >= 1
    assert find_memory("cpu") > 2**28


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compiling_is_measured_once_and_a_machine_without_a_compiler_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("HPTRANSFER_CACHE", str(tmp_path))
    job = _calibrate.CompileJob(terms=TERMS, num_stacked=2, precision="fp32", memory=0)
    found = _calibrate.measure_compiled(job)
    assert (found.mode, found.problem) == ("compiled", "")
    assert 0 < found.seconds < found.compile_seconds
    assert _calibrate.measure_compiled(job) == found

    def refuse(*args, **options):
        raise RuntimeError("no compiler here\nwhatever else it says")

    monkeypatch.setattr(torch, "compile", lambda function, **_: refuse)
    without = _calibrate.measure_compiled(replace(job, num_stacked=3))
    assert without.seconds is None
    assert without.problem == ("the step cannot be compiled (RuntimeError: no compiler here)")
    assert not torch.are_deterministic_algorithms_enabled()
