"""``studies/gpu.sh`` from a bare copy of the code, on whatever device is at hand."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from hptransfer.study._runner import prepare_run, run_groups
from hptransfer.study.config import load_study

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(study_file, tmp_path):
    """The package, the script, one small study under a name of two parts, and its text apart."""
    root = tmp_path / "checkout"
    (root / "studies").mkdir(parents=True)
    shutil.copytree(ROOT / "src", root / "src")
    for name in ("gpu.sh", "gpu_together.sh", "gpu_plan.py"):
        shutil.copy(ROOT / "studies" / name, root / "studies")
    (root / "benchmarks").mkdir()
    for name in ("gpu_study.py", "probes.py", "dated.py"):
        shutil.copy(ROOT / "benchmarks" / name, root / "benchmarks")
    text = study_file.read_text().replace("files:text/*.txt", "files:text/*.jsonl")
    for name in ("small", "small-two"):
        file = root / "studies" / f"{name}.toml"
        file.write_text(text.replace('name = "small"', f'name = "{name}"'))
    (tmp_path / "carried").mkdir()
    documents = (study_file.parent / "text" / "a.txt").read_text().split("\n\n")
    lines = "".join(f'{{"text": "{document}"}}\n' for document in documents)
    (tmp_path / "carried" / "wiki.jsonl").write_text(lines)
    return root


def run(checkout, *names, script="gpu.sh", **settings):
    bin_folder = checkout.parent / "bin"
    bin_folder.mkdir(exist_ok=True)
    if not (bin_folder / "python3").exists():
        (bin_folder / "python3").symlink_to(sys.executable)
    environment = {
        "PATH": f"{bin_folder}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "HPTRANSFER_CACHE": os.environ["HPTRANSFER_CACHE"],
        "HOME": str(checkout.parent),
        "OUT": str(checkout.parent / "out"),
        "TEXT": str(checkout.parent / "carried"),
        "OMP_NUM_THREADS": "1",
        **settings,
    }
    return subprocess.run(
        [checkout / "studies" / script, *names],
        env=environment, capture_output=True, text=True, cwd=checkout.parent, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_studies_are_run_and_packed(checkout):
    done = run(checkout, "small")
    assert done.returncode == 0, done.stdout + done.stderr
    out = checkout.parent / "out"
    assert {path.name for path in out.iterdir()} == {
        "gpu.log", "small.tar.gz", "small-two.tar.gz"
    }  # fmt: skip
    with tarfile.open(out / "small-two.tar.gz") as packed:
        packed.extractall(checkout.parent, filter="data")
    groups = list((checkout.parent / "small-two" / "groups").glob("*.parquet"))
    assert sum(pq.read_metadata(path).num_rows for path in groups) == 24
    assert not (checkout.parent / "small-two" / "checkpoints").exists()
    assert "24 of 24 trials are finished" in (out / "gpu.log").read_text()


@pytest.mark.slow
def test_a_limit_ends_a_study_and_a_wrong_name_is_said(checkout):
    done = run(checkout, "small", LIMIT="1")
    assert done.returncode == 1
    assert "its time limit" in done.stdout
    assert "small-two: not begun" in done.stdout
    done = run(checkout, "nothing")
    assert done.returncode == 2
    assert "no studies/nothing.toml" in done.stdout
    assert run(checkout).returncode == 2


@pytest.mark.slow
def test_planned_studies_run_side_by_side_and_go_on(checkout):
    planned, studies = checkout.parent / "planned", checkout / "studies"
    shutil.copytree(checkout.parent / "carried", studies / "text")
    alone = (studies / "small-two.toml").read_text().replace("small-two", "alone")
    (studies / "alone.toml").write_text(alone)
    for name in ("alone", "small-two"):
        config = load_study(studies / f"{name}.toml")
        work = prepare_run(config, planned / name, workers=1)
    run_groups(config, planned / name, work.groups[:1], on_event=lambda event: None, workers=1)
    lanes = ("alone", "small-two")
    done = run(checkout, *lanes, script="gpu_together.sh", PLANNED=str(planned), TEXT="")
    assert done.returncode == 0, done.stdout + done.stderr
    with tarfile.open(checkout.parent / "out" / "studies.tar.gz") as packed:
        packed.extractall(checkout.parent / "all", filter="data")
    logs = [path.read_text() for path in sorted((checkout.parent / "all").glob("*/lane.log"))]
    assert ["24 of 24 trials are finished" in log for log in logs] == [True, True]
    trained = [log.count("'group': ") for log in logs]
    assert trained == [len(work.groups), len(work.groups) - 1]  # one was finished before
