"""Full disks, read-only folders, files that go: one line, and nothing finished is lost."""

import errno
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from hptransfer.cli import main as cli
from hptransfer.study._executor import make_training
from hptransfer.study._runner import RunError, run_groups
from hptransfer.study.config import load_study
from study.training import complete, leave_checkpoints, prepare, read_rows


@pytest.fixture
def expected(trained_study):
    return read_rows(trained_study())


@pytest.fixture
def refuse(monkeypatch):
    """Let the system refuse to make files in a folder, after so many that it made."""
    real = tempfile.mkstemp
    refused = {}

    def mkstemp(*args, **kwargs):
        folder = Path(kwargs["dir"]).name
        if folder in refused:
            code, left = refused[folder]
            if left == 0:
                raise OSError(code, os.strerror(code), str(Path(kwargs["dir"]) / "a random name"))
            refused[folder] = code, left - 1
        return real(*args, **kwargs)

    monkeypatch.setattr("tempfile.mkstemp", mkstemp)

    def set_refused(folder, code, *, after=0):
        refused[folder] = code, after

    set_refused.end = refused.clear
    return set_refused


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize(
    ("folder", "named"), [("out", "study.json"), ("plan", "round-000.json"), ("groups", "groups")]
)
def test_a_directory_that_cannot_be_written_is_said_before_training(
    study_file, tmp_path, refuse, capsys, folder, named, code
):
    directory = tmp_path / "out"
    refuse(folder, code)
    assert cli.main(["run", str(study_file), "-o", str(directory), "--workers", "2"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"hptransfer: {os.strerror(code)}: ")
    assert line.endswith(named)
    assert list(directory.rglob("*.parquet")) == []
    refuse.end()
    assert len(prepare(study_file, directory).groups) > 0


def test_nothing_missing_needs_no_writing(study_file, finished, refuse, capsys):
    for folder in ("finished", "plan", "groups", "checkpoints"):
        refuse(folder, errno.EROFS)
    assert cli.main(["run", str(study_file), "-o", str(finished)]) == 0
    assert "nothing is missing" in capsys.readouterr().err


def test_a_file_for_a_directory_is_refused(study_file, tmp_path, capsys):
    (tmp_path / "out").write_text("mine")
    assert cli.main(["run", str(study_file), "-o", str(tmp_path / "out")]) == 2
    assert "found a file" in capsys.readouterr().err
    assert cli.main(["run", str(study_file), "-o", str(tmp_path / "out" / "deeper")]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "Not a directory" in line
    assert (tmp_path / "out").read_text() == "mine"


def test_checkpoints_that_cannot_be_written_are_told_once_and_stop_nothing(
    study_file, tmp_path, refuse, expected
):
    directory, events = tmp_path / "out", []
    refuse("checkpoints", errno.ENOSPC)
    complete(study_file, directory, on_event=events.append, interval=0)
    notes = [event for event in events if event.kind == "note"]
    done = [event.group for event in events if event.kind == "done"]
    assert [note.group for note in notes] == done
    for note in notes:
        assert "training goes on: No space left on device" in note.message
        assert "\n" not in note.message
    assert read_rows(directory) == expected


def test_results_that_cannot_be_written_stop_the_run_and_are_not_lost(
    study_file, tmp_path, refuse, expected
):
    """The disk is full from the second group's results on, with room for its checkpoint."""
    directory, events = tmp_path / "out", []
    groups = prepare(study_file, directory).groups
    assert len(groups) > 2
    refuse("groups", errno.ENOSPC, after=2)  # the probe and the first group
    with pytest.raises(RunError) as caught:
        complete(study_file, directory, on_event=events.append)
    message = str(caught.value)
    assert message.startswith(f"stopped at group {groups[1].name}: its results cannot be written")
    assert f"No space left on device: {directory / 'groups' / groups[1].name}.parquet" in message
    assert "\n" not in message
    assert [(event.kind, event.group) for event in events if event.is_last] == [
        ("done", groups[0].name),
        ("failed", groups[1].name),
    ]
    assert [path.stem for path in (directory / "groups").iterdir()] == [groups[0].name]
    refuse.end()
    trained = []

    def watch(config, group, trials, tokens):
        training = make_training(config, group, trials, tokens)
        advance = training.advance
        training.advance = lambda: (trained.append(group.name), advance())[1]
        return training

    complete(study_file, directory, make=watch)
    assert set(trained) == {group.name for group in groups[2:]}  # the second is only measured
    assert read_rows(directory) == expected
    assert list((directory / "checkpoints").iterdir()) == []


@pytest.mark.slow
def test_workers_on_a_disk_that_takes_no_file(study_file, tmp_path, expected):
    """The system's own refusal: no file may grow beyond a limit."""
    directory = tmp_path / "out"
    prepare(study_file, directory)
    command = [sys.executable, "-m", "hptransfer", "run", str(study_file), "-o", str(directory)]
    ended = subprocess.run(
        [*command, "--workers", "2"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000)),
        # Coverage, should it measure the tests, could not write its own file either.
        env={name: value for name, value in os.environ.items() if "COVERAGE" not in name},
    )
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("hptransfer: stopped at group width-")
    assert "its results cannot be written: File too large" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert list((directory / "groups").iterdir()) == []
    complete(study_file, directory)
    assert read_rows(directory) == expected


def test_text_that_goes_meanwhile(study_file, tmp_path, capsys):
    directory = tmp_path / "out"
    work = prepare(study_file, directory)
    text = tmp_path / "text" / "a.txt"
    text.rename(tmp_path / "elsewhere")
    with pytest.raises(RunError, match=r"groups failed, width-.*text/\*\.txt.*same command") as e:
        run_groups(
            load_study(study_file), directory, work.groups, workers=1, on_event=lambda event: None
        )
    assert "Error:" not in str(e.value)
    assert cli.main(["run", str(study_file), "-o", str(directory)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "text/*.txt" in line
    (tmp_path / "elsewhere").rename(text)
    assert len(prepare(study_file, directory).groups) == len(work.groups)


def test_a_bit_of_a_checkpoint_costs_its_group_the_time_alone(study_file, tmp_path, expected):
    """In the numbers themselves, which no reader of the format would mind."""
    directory, events = tmp_path / "out", []
    left = leave_checkpoints(study_file, directory)
    for path in left:
        data = bytearray(path.read_bytes())
        data[-5] ^= 4
        path.write_bytes(data)
    complete(study_file, directory, on_event=events.append)
    notes = [event.message for event in events if event.kind == "note"]
    assert len(notes) == len(left)
    assert all("checkpoint is damaged, the group starts anew" in note for note in notes)
    assert read_rows(directory) == expected


def test_a_checkpoint_that_another_process_removes_is_not_damaged(
    study_file, tmp_path, expected, monkeypatch
):
    """It has finished the group between the check of the file and the reading."""
    directory, events = tmp_path / "out", []
    leave_checkpoints(study_file, directory)

    def remove(path, *, context):
        path.unlink()
        return True

    monkeypatch.setattr("hptransfer.study._checkpoint.check_file", remove)
    complete(study_file, directory, on_event=events.append)
    assert not [event.message for event in events if event.kind == "note"]
    assert read_rows(directory) == expected
