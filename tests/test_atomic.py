"""Files whole or not at all: what a writer may see, and what a killed one leaves."""

import os
import signal
import subprocess
import sys

import pytest

from hptransfer import _atomic
from hptransfer._atomic import atomic_write, sweep_temporary

DIE_WRITING = """
import os, signal, sys
from pathlib import Path
from hptransfer._atomic import atomic_write
with atomic_write(Path(sys.argv[1])) as tmp:
    tmp.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def list_names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_killed_writer_leaves_the_old_file_and_a_leftover_that_is_swept(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    ended = subprocess.run([sys.executable, "-c", DIE_WRITING, str(path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    [leftover] = [name for name in list_names(tmp_path) if name != "a.json"]
    with atomic_write(tmp_path / "b.json") as tmp:
        tmp.write_text("new")
        # What another is writing at this moment is no leftover.
        assert [found.name for found in sweep_temporary(tmp_path)] == [leftover]
    assert list_names(tmp_path) == ["a.json", "b.json"]
    assert (tmp_path / "b.json").read_text() == "new"


def test_a_file_swept_before_its_writer_locked_it_is_made_anew(tmp_path, monkeypatch):
    real, swept = _atomic.lock_file, []

    def lock(handle, *, wait):
        if wait and not swept:
            swept.extend(sweep_temporary(tmp_path))
        return real(handle, wait=wait)

    monkeypatch.setattr(_atomic, "lock_file", lock)
    with atomic_write(tmp_path / "a.json") as tmp:
        tmp.write_text("new")
    assert len(swept) == 1
    assert list_names(tmp_path) == ["a.json"]


def test_a_file_that_is_there_stays_where_it_may_not_be_replaced(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("first")
    with pytest.raises(FileExistsError), atomic_write(path, replace=False) as tmp:
        tmp.write_text("second")
    assert path.read_text() == "first"
    assert list_names(tmp_path) == ["a.json"]


def test_without_locks_nothing_is_swept_and_everything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(_atomic, "fcntl", None)
    (tmp_path / ".a-1.tmp").write_text("half")
    with atomic_write(tmp_path / "a.json") as tmp:
        tmp.write_text("new")
    assert sweep_temporary(tmp_path) == ()
    assert list_names(tmp_path) == [".a-1.tmp", "a.json"]


@pytest.mark.parametrize("call", ["open", "write", "fsync", "rename"])
def test_a_full_disk_names_the_file_and_leaves_nothing(tmp_path, monkeypatch, call):
    path = tmp_path / "a.json"
    path.write_text("old")

    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device", str(tmp_path / "something else"))

    target = {"open": "tempfile.mkstemp", "fsync": "os.fsync", "rename": "pathlib.Path.replace"}
    if call in target:
        monkeypatch.setattr(target[call], fail)
    with pytest.raises(OSError, match="No space left") as caught, atomic_write(path) as tmp:
        tmp.write_text("new") if call != "write" else fail()
    assert caught.value.filename == str(path)
    assert os.strerror(28) == caught.value.strerror
    assert path.read_text() == "old"
    assert list_names(tmp_path) == ["a.json"]
