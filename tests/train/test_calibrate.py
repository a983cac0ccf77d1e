"""The choice of precision is measured once and then read."""

import torch

from hptransfer.model import GPTShape
from hptransfer.train import calibrate
from hptransfer.train.device import count_cores, describe_device, find_device, find_memory

SHAPE = GPTShape(width=16, num_layers=1, head_size=8, context=8, vocab_size=20)


def test_measured_once_then_read_and_damage_is_measured_again(tmp_path, monkeypatch):
    monkeypatch.setenv("HPTRANSFER_CACHE", str(tmp_path))
    threads = torch.get_num_threads()
    options = {"batch": 2, "device": "cpu", "threads": 1}
    first = calibrate.measure_step_seconds(SHAPE, **options)
    assert set(first) == {"fp32", "bf16"}
    assert min(first.values()) > 0
    assert torch.get_num_threads() == threads
    assert calibrate.measure_step_seconds(SHAPE, **options) == first
    [cached] = (tmp_path / "speed").iterdir()
    cached.write_text("{")
    assert set(calibrate.measure_step_seconds(SHAPE, **options)) == set(first)
    only = calibrate.measure_step_seconds(SHAPE, **options, precisions=["fp32"])
    assert set(only) == {"fp32"}


def test_the_machine_describes_itself():
    device = find_device()
    assert device in ("cpu", "cuda")
    assert describe_device("cpu")
    assert count_cores() >= 1
    assert find_memory("cpu") > 2**28
