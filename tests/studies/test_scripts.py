"""What `studies/publish.py` and `benchmarks/probes.py` refuse."""

import importlib.util
import sys
from pathlib import Path

import pytest

from hptransfer.study.store import read_trials

ROOT = Path(__file__).parents[2]


def load(path, monkeypatch):
    monkeypatch.syspath_prepend(str(path.parent))
    spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_damaged_or_foreign_results_file_is_not_published(finished, monkeypatch):
    publish = load(ROOT / "studies" / "publish.py", monkeypatch)
    assert publish.read_study(finished).equals(read_trials(finished).rows)
    first, second = sorted((finished / "groups").glob("*.parquet"))[:2]
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())  # another group's
    with pytest.raises(SystemExit, match="digest"):
        publish.read_study(finished)
    first.write_bytes(content)
    (finished / "groups" / "mine.parquet").mkdir()
    with pytest.raises(SystemExit, match=r"mine\.parquet: expected results of this study"):
        publish.read_study(finished)


def test_a_mistyped_group_is_not_measured_as_another(study_file, finished, monkeypatch, capsys):
    probes = load(ROOT / "benchmarks" / "probes.py", monkeypatch)
    monkeypatch.setattr(probes, "compare", lambda *args: pytest.fail("another group is measured"))
    monkeypatch.setattr(sys, "argv", ["probes.py", str(study_file), str(finished), "width-16-nil"])
    with pytest.raises(SystemExit, match="2"):
        probes.main()
    assert "found 'width-16-nil'" in " ".join(capsys.readouterr().err.split())
