"""Killed over and over and restarted: the table is that of an undisturbed run, bit for bit.

`benchmarks/kill.py` is the long version.
"""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys

import pytest

from cores import every_core
from study.own_model import TRACKING_STUDY, write_own
from study.training import complete, prepare, read_plan, read_rows

pytestmark = pytest.mark.slow

#: Seconds for a child to do what it is waited for; what takes longer is a defect.
LIMIT = 120.0
LOOK = 0.01


@pytest.fixture
def expected(study_file, tmp_path):
    """The rows of an undisturbed run."""
    return train_undisturbed(study_file, tmp_path)


def train_undisturbed(study_file, tmp_path, steps=100):
    """Return the rows of an undisturbed run; `tmp_path / "killed"` has the same plan."""
    study_file.write_text(study_file.read_text().replace("steps = 12", f"steps = {steps}"))
    prepare(study_file, tmp_path / "killed")
    shutil.copytree(tmp_path / "killed", tmp_path / "undisturbed")
    complete(study_file, tmp_path / "undisturbed")
    return read_rows(tmp_path / "undisturbed")


def test_a_study_of_ones_own_model_killed_again_and_again(study_file, tmp_path):
    """With dropout and a buffer that training moves."""
    own_file = write_own(study_file.parent, TRACKING_STUDY)
    expected = train_undisturbed(own_file, tmp_path, steps=60)
    directory = tmp_path / "killed"
    num_killed = 0
    for times in (1, 4, 9):
        running = start(own_file, directory, workers=1)
        wait_for(running, watch_checkpoints(directory, times))
        running.kill()
        num_killed += running.wait() == -signal.SIGKILL
    assert num_killed >= 2  # the last may come too late
    assert len(list(directory.glob("groups/*.parquet"))) < len(read_plan(directory))
    complete(own_file, directory)
    assert read_rows(directory) == expected
    assert list_leftovers(directory) == set()


def list_leftovers(directory):
    names = {path.name for path in directory.rglob("*") if path.is_file()}
    return {name for name in names if not name.endswith((".json", ".parquet"))}


def start(study_file, directory, *, workers):
    with every_core():
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "hptransfer", "run", str(study_file), "-o", str(directory)),
                *("--workers", str(workers), "--checkpoint", "0"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )


def wait_for(process, seen):
    """Wait until `seen`, or until the process has ended, whichever comes first."""
    for _ in range(int(LIMIT / LOOK)):
        if process.poll() is not None or seen():
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=LOOK)
    raise AssertionError("it takes too long")


def watch_checkpoints(directory, times):
    """Return a function that is true once checkpoints were seen to change so many times."""
    seen = []

    def look():
        paths = directory.glob("checkpoints/*.safetensors")
        with contextlib.suppress(FileNotFoundError):  # the group has just ended
            marks = {(path.name, path.stat().st_mtime_ns) for path in paths}
            if marks and (not seen or marks != seen[-1]):
                seen.append(marks)
        return len(seen) > times

    return look


def test_two_commands_killed_again_and_again_on_one_directory(study_file, tmp_path, expected):
    """Both may do the same work; each kill comes after a drawn number of new checkpoints."""
    generator = random.Random(4)
    directory = tmp_path / "killed"
    prepare(study_file, directory)
    running = [start(study_file, directory, workers=1) for _ in range(2)]
    num_killed = 0
    for _ in range(4):
        victim = generator.randrange(2)
        wait_for(running[victim], watch_checkpoints(directory, generator.randrange(1, 12)))
        running[victim].kill()
        num_killed += running[victim].wait() == -signal.SIGKILL
        running[victim] = start(study_file, directory, workers=1)
    assert num_killed >= 3  # the last may come too late
    assert [process.wait(timeout=LIMIT) for process in running] == [0, 0]
    complete(study_file, directory)  # which tidies up
    assert read_rows(directory) == expected
    assert list_leftovers(directory) == set()


def test_workers_of_a_killed_runner_notice_and_the_next_run_goes_on(study_file, tmp_path, expected):
    directory = tmp_path / "killed"
    prepare(study_file, directory)
    runner = start(study_file, directory, workers=2)
    wait_for(runner, watch_checkpoints(directory, 2))
    runner.kill()
    assert runner.wait() == -signal.SIGKILL
    complete(study_file, directory)  # beside the workers, while they live
    waiter = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=-1)
    try:
        wait_for(waiter, lambda: not is_alive(runner.pid))
        assert not is_alive(runner.pid)
    finally:
        waiter.communicate()
    complete(study_file, directory)
    assert read_rows(directory) == expected
    assert list_leftovers(directory) == set()


def is_alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
