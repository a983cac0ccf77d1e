"""Ray missing, an address that is none, options that do not go together: one line each."""

import socket
import sys

import pytest

from hptransfer.cli import main as cli


def test_ray_missing_is_a_hint_before_anything_is_written(
    study_file, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "ray", None)
    output = tmp_path / "out"
    assert cli.main(["run", str(study_file), "-o", str(output), "--engine", "ray"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "pip install 'hptransfer[ray]'" in line
    assert not output.exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--address", "auto"], "--engine ray"),
        (["--address", "head:6379", "--engine", "local"], "--engine ray"),
        (["-o", "s3://bucket/study"], "s3://bucket/study"),
        (["-o", "s3://bucket/study", "--engine", "ray"], "s3://bucket/study"),
    ],
)
def test_options_that_do_not_fit_are_one_line(
    study_file, tmp_path, monkeypatch, options, named, capsys
):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert cli.main(["run", str(study_file), *options]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert named in line
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "address", ["nonsense", "a:b", ":99999", "ray://127.0.0.1:10001", "127.0.0.1:99999", ""]
)
def test_what_is_no_address_is_one_line(study_file, tmp_path, address, capsys):
    pytest.importorskip("ray")
    refuse(study_file, tmp_path, address, capsys)


def test_an_address_where_nothing_answers_is_one_line(study_file, tmp_path, capsys):
    pytest.importorskip("ray")
    with socket.socket() as closed:  # bound, so that nobody else listens there
        closed.bind(("127.0.0.1", 0))
        refuse(study_file, tmp_path, f"127.0.0.1:{closed.getsockname()[1]}", capsys)


def refuse(study_file, tmp_path, address, capsys):
    command = ["run", str(study_file), "-o", str(tmp_path / "out"), "--engine", "ray"]
    assert cli.main([*command, "--address", address]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert repr(address) in line
    assert "--address" in line
    assert not (tmp_path / "out").exists()
