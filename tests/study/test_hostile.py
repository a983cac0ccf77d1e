"""Studies of absurd sizes, files that are none, directories that were tampered with: one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hptransfer.cli import main as cli
from hptransfer.study._plan import halve_group, split_path, write_split
from hptransfer.study.store import checkpoint_path
from study.training import complete, prepare, read_rows

SCHEMA_1 = Path(__file__).parent / "data" / "schema-1"


def refuse(capsys, *argv, codes=(2,)):
    """Run a command that must fail; return its one line."""
    assert cli.main([str(arg) for arg in argv]) in codes
    found = capsys.readouterr()
    assert found.out == ""
    [line] = found.err.splitlines()
    assert line.startswith("hptransfer: ")
    return line


@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("width = [16, 32]", "width = [16, 1000000]", "width 1000000: expected a run that fits"),
        ("vocab_size = 300", "vocab_size = 2147483647", "expected a run that fits"),
        ("num_layers = 1", "num_layers = 10000\nbase_head_size = 8", "expected a run that fits"),
        ("batch = 4", "batch = 2147483647", "expected a run that fits"),
        ("steps = 12", "tokens_per_param = 1e300", "train.tokens_per_param: expected at most"),
        ("steps = 12", "tokens_per_param = 1e12", "train.tokens_per_param: expected at most"),
        ("files:text/*.txt", "files:~nobody-of-that-name/x", "nobody-of-that-name"),
        ("files:text/*.txt", "files:reference://x", "reference://x"),
        ("files:text/*.txt", "files:/dev/zero", "/dev/zero"),
    ],
)
def test_absurd_studies_are_refused_before_memory_is_taken(
    study_file, tmp_path, capsys, command, old, new, named
):
    text = study_file.read_text()
    if "num_layers" in new:
        text = text.replace("width = [16, 32]", "width = [16384]")
    study_file.write_text(text.replace(old, new))
    options = ["-o", tmp_path / "out"] if command == "run" else []
    assert named in refuse(capsys, command, study_file, *options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "loop", "long"])
def test_what_is_no_study_file_is_refused_without_waiting(tmp_path, capsys, kind):
    path = tmp_path / "study.toml"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    else:
        path.write_bytes(b"#" * (2**22 + 1))
    assert str(path) in refuse(capsys, "plan", path)


@pytest.mark.parametrize("command", ["run", "status", "fit"])
@pytest.mark.parametrize(
    "content",
    ["", "[]", "null", "[" * 10**5, '{"schema": 2}', '{"schema": 1, "name": "small"}', None],
    ids=repr,
)
def test_settings_that_nobody_wrote_are_refused(study_file, finished, capsys, command, content):
    path = finished / "study.json"
    path.unlink()
    if content is None:
        path.symlink_to(path)
    else:
        path.write_text(content)
    argv = ["run", study_file, "-o", finished] if command == "run" else [command, finished]
    assert "study.json" in refuse(capsys, *argv)


@pytest.mark.parametrize("change", [{"steps": 13}, {"axis": "global"}])
@pytest.mark.parametrize("schema", [1, 2])
def test_settings_that_were_edited_are_refused(finished, capsys, change, schema):
    path = finished / "study.json"
    document = json.loads(path.read_text())
    if "axis" in change:
        document["axis"] = change["axis"]
    else:
        document["config"]["train"] |= change
    path.write_text(json.dumps(document | {"schema": schema}))
    line = refuse(capsys, "status", finished)
    assert "study.json" in line
    assert "edited" in line or "digest" in line


def test_a_group_that_is_its_own_half_is_refused(study_file, tmp_path, capsys):
    directory = tmp_path / "out"
    group = prepare(study_file, directory).groups[0]
    write_split(directory, group)
    path = split_path(directory, group.name)
    document = json.loads(path.read_text()) | {"schema": 1}
    del document["digest"]
    document["groups"][0] = {**document["groups"][0], "name": group.name}
    path.write_text(json.dumps(document))
    assert path.name in refuse(capsys, "run", study_file, "-o", directory, "--workers", "2")
    assert halve_group(group)[0].name != group.name


def test_files_of_others_and_of_old_are_said_by_what_reads(finished, capsys):
    (finished / "groups" / "mine.parquet").mkdir()
    for command in ("status", "fit"):
        assert cli.main([command, str(finished)]) == 0
        assert "mine.parquet" in capsys.readouterr().err
    for command in ("status", "fit"):
        assert cli.main([command, str(SCHEMA_1)]) == 0
        assert "2 results file" in capsys.readouterr().err


def test_a_folder_in_a_checkpoints_place_is_said_and_does_no_harm(
    study_file, tmp_path, trained_study
):
    directory, events = tmp_path / "out", []
    for group in prepare(study_file, directory).groups:
        checkpoint_path(directory, group.name).mkdir(parents=True)
    complete(study_file, directory, on_event=events.append)
    assert not [event for event in events if event.kind == "failed"]
    assert all("starts anew" in event.message for event in events if event.kind == "note")
    assert read_rows(directory) == read_rows(trained_study())


def test_a_terminal_without_our_letters_shows_something_else(finished):
    ended = subprocess.run(
        [sys.executable, "-m", "hptransfer", "status", str(finished)],
        env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert b"24 of 24" in ended.stdout


def write_bomb(path, column="text", rows=2000):
    """A small Parquet file of one long text over and over, 1.3 GB written out."""
    words = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), ["word " * 2**17])
    pq.write_table(pa.table({column: words}), path, compression="zstd", row_group_size=rows)
    assert path.stat().st_size < 2**18


def write_wide_table(path):
    """A loss table of fifty million equal rows in a small file."""
    count = 50_000_000
    equal = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int8()), ["x" * 200])
    numbers = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int8()), [1.5])
    columns = {"width": numbers, "lr": numbers, "loss": numbers, "parameterization": equal}
    pq.write_table(pa.table(columns), path, compression="zstd", row_group_size=count)


ABSURD = {
    "width": ("width = [16, 32]", "width = [16, 1000000]"),
    "vocabulary": ("vocab_size = 300", "vocab_size = 2147483647"),
    "layers": ("num_layers = 1", "num_layers = 10000\nbase_head_size = 8"),
    "batch": ("batch = 4", "batch = 2147483647"),
    "tokens": ("steps = 12", "tokens_per_param = 1e300"),
    "text of a device": ("files:text/*.txt", "files:/dev/zero"),
    "text of a bomb": ("files:text/*.txt", "files:bomb.parquet"),
    "no rule": ('"mup"', '"' + "mup+" * 10**5 + '"'),
}


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "wait4"), reason="a child's memory cannot be told here")
@pytest.mark.parametrize("kind", [*ABSURD, "table of a bomb", "wide table", "zeros", "brackets"])
def test_what_is_hostile_takes_little_memory_and_time(study_file, tmp_path, kind):
    """In a process of its own: exit 2 and one line, under 2 GiB, 10 s of the processor."""
    target = tmp_path / "table.parquet"
    argv = ["fit", target]
    if kind in ABSURD:
        old, new = ABSURD[kind]
        text = study_file.read_text()
        if kind == "layers":
            text = text.replace("width = [16, 32]", "width = [16384]")
        assert old in text
        study_file.write_text(text.replace(old, new))
        write_bomb(tmp_path / "bomb.parquet")
        argv = ["run", study_file, "-o", tmp_path / "out"]
    elif kind == "table of a bomb":
        write_bomb(target, "parameterization")
    elif kind == "wide table":
        write_wide_table(target)
    elif kind == "zeros":
        argv = ["fit", "/dev/zero"]
    else:
        target = tmp_path / "table.json"
        target.write_text("[" * 10**6)
        argv = ["fit", target]
    with (tmp_path / "stderr").open("wb") as stderr:
        child = subprocess.Popen(
            [sys.executable, "-m", "hptransfer", *map(str, argv)],
            stdout=subprocess.DEVNULL, stderr=stderr,
        )  # fmt: skip
        _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    [line] = (tmp_path / "stderr").read_text().splitlines()
    assert line.startswith("hptransfer: ")
    assert len(line) < 1000
    assert child.returncode == 2
    assert used.ru_maxrss * 1024 < 2 * 2**30
    assert used.ru_utime + used.ru_stime < 10


@pytest.mark.parametrize("content", [None, b'{"__metadata__": {"step": Infinity}}', b"[" * 10**5])
def test_status_does_without_a_checkpoint_that_nobody_wrote(study_file, tmp_path, capsys, content):
    directory = tmp_path / "out"
    path = checkpoint_path(directory, prepare(study_file, directory).groups[0].name)
    path.parent.mkdir(exist_ok=True)
    if content is None:
        os.mkfifo(path)
    else:
        path.write_bytes(len(content).to_bytes(8, "little") + content)
    assert cli.main(["status", str(directory), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["under_way"] == []
