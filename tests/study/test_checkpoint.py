"""Checkpoints beside a training on a device: copied at once, written by a thread, seldom."""

import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from hptransfer.study import _checkpoint
from hptransfer.study._checkpoint import CHECKPOINT_SHARE, COPIED_PER_SECOND, Checkpoint
from hptransfer.train._trainer import Snapshot, Training
from train.test_program import assert_same, finish, prepare


def open_checkpoint(path, interval=60.0, **options):
    return Checkpoint(path, interval, context="here", made_by="us", **options)


def test_a_thread_writes_the_step_that_was_copied_while_training_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(Training, "copies_state", property(lambda self: True))
    released, writers = threading.Event(), []
    write_whole = _checkpoint.atomic_write

    @contextmanager
    def write_when_released(path):
        writers.append(threading.current_thread())
        assert released.wait(60)
        with write_whole(path) as tmp:
            yield tmp

    monkeypatch.setattr(_checkpoint, "atomic_write", write_when_released)
    training, path = prepare("eager"), tmp_path / "group.safetensors"
    checkpoint = open_checkpoint(path, interval=0)
    for _ in range(4):
        training.advance()
    assert checkpoint.save_if_due(training) == ""
    for _ in range(3):
        training.advance()
        assert checkpoint.save_if_due(training) == ""  # the last one is not written yet
    assert not path.exists()
    released.set()
    checkpoint._join()
    assert len(writers) == 1
    assert writers[0] is not threading.main_thread()
    resumed = prepare("eager")
    assert open_checkpoint(path).restore(resumed) == ""
    assert resumed.step == 4
    assert_same(finish(resumed), finish(prepare("eager")))
    checkpoint.save_if_due(training, at_once=True)  # which waits
    later = prepare("eager")
    open_checkpoint(path).restore(later)
    assert later.step == 7


@pytest.mark.parametrize("copying", [0.1, 3.0, 40.0])
def test_training_waits_for_checkpoints_for_two_percent_of_its_time_at_most(
    copying, tmp_path, monkeypatch
):
    clock = [0.0]
    monkeypatch.setattr(_checkpoint, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    saved = []

    def snapshot(copy=True):
        clock[0] += copying
        saved.append(clock[0])
        return Snapshot(tensors={"x": torch.zeros(1)}, metadata={})

    training = SimpleNamespace(copies_state=True, step=0, snapshot=snapshot)
    size = int(copying * COPIED_PER_SECOND)
    checkpoint = open_checkpoint(tmp_path / "group.safetensors", num_bytes=size)
    for _ in range(20_000):  # steps of a second
        clock[0] += 1.0
        checkpoint.save_if_due(training)
        checkpoint._join()
    assert saved[0] >= max(60.0, copying / CHECKPOINT_SHARE)
    assert 5 <= len(saved) <= 20_000 / 60
    assert len(saved) * copying <= CHECKPOINT_SHARE * clock[0]
