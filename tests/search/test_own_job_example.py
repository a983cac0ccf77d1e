"""The examples of docs/own-job.md run: the command, a scheduler, an executor and a notebook."""

import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hptransfer.cli import main as cli
from hptransfer.search import read_search
from hptransfer.tables import read_table
from search.jobs import environment

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "own_job"
DOCS = (ROOT / "docs" / "own-job.md").read_text(encoding="utf-8")


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The example's files in a folder of their own, and its commands on the path."""
    folder = tmp_path / "own_job"
    shutil.copytree(EXAMPLE, folder)
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (programs / "hptransfer").write_text(f'#!/bin/sh\nexec {sys.executable} -m hptransfer "$@"\n')
    (programs / "sbatch").write_text(SBATCH)
    for each in programs.iterdir():
        each.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(folder)
    # Two widths are enough to see it run.
    path = folder / "search.toml"
    path.write_text(path.read_text().replace("[32, 64, 128, 256]", "[32, 128]"))
    return folder


#: Runs an array's tasks, or a job that depends on one, before it returns.
SBATCH = """\
#!/bin/bash
last=1
while [ $# -gt 0 ]; do
    case "$1" in
        --array=1-*) last="${1#--array=1-}" ;;
        --wrap) command="$2"; shift ;;
    esac
    shift
done
for ((task = 1; task <= last; task++)); do
    SLURM_ARRAY_TASK_ID=$task bash -c "$command" >> sbatch.log 2>&1 || exit 1
done
echo 7
"""


@pytest.mark.slow
def test_the_command_finds_that_the_best_rate_falls(example, capsys):
    assert cli.main(["search", "search.toml"]) == 0
    out = capsys.readouterr().out
    narrow, wide = (float(each) for each in re.findall(r"width \d+: lr 2\^(-[\d.]+)", out))
    assert wide < narrow - 0.5
    table = read_table("own-job")
    assert len(table) == len(read_search(example / "own-job" / "search.jsonl").told)
    # The folder opens as a study's does.
    for command in (["recommend", "own-job", "--width", "512"], ["fit", "own-job"]):
        assert cli.main(command) == 0
    assert cli.main(["report", "own-job", "-o", "report.html"]) == 0
    assert "<svg" in Path("report.html").read_text() or "plotly" in Path("report.html").read_text()


@pytest.mark.slow
def test_a_slurm_array_runs_round_after_round(example):
    path = example / "search.toml"
    path.write_text(path.read_text().replace("[0, 1]", "[0]") + "\n[adaptive]\nmax_points = 4\n")
    done = subprocess.run(["bash", "slurm.sh"], env=environment(), capture_output=True, text=True)
    log = (example / "sbatch.log").read_text()
    assert done.returncode == 0, done.stderr + log
    state = read_search(example / "own-job" / "search.jsonl")
    assert {each.width for each in state.told} == {32, 128}
    assert all(not state.outstanding(group) for group in state.groups())


@pytest.mark.slow
def test_an_executor_trains_a_round_at_a_time(example, capsys):
    code = "from with_futures import main; main('search.jsonl')"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "width 512" in done.stdout or "512" in done.stdout
    assert {each.width for each in read_search(example / "search.jsonl").told} == {32, 64, 128}


def test_the_notebook_of_the_docs_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    [code] = [each for each in re.findall(r"```python\n(.*?)```", DOCS, re.S) if "ask()" in each]
    assert len(code.splitlines()) <= 10

    def train(width, lr, seed):
        u = math.log(lr / 2**-6) + 0.3 * math.log(width / 32)
        return 3.0 + width**-0.5 + 0.06 * u * u + 0.002 * math.sin(1e4 * lr + 7 * seed + width)

    exec(code, {"train": train})
    value, low, high = map(float, capsys.readouterr().out.split())
    assert low < value < high
    assert math.log2(value) == pytest.approx(-7.5, abs=0.5)


def test_the_docs_show_the_example():
    for name in ("slurm.sh", "with_futures.py"):
        assert f"examples/own_job/{name}" in DOCS
    assert (EXAMPLE / "search.toml").read_text(encoding="utf-8") in DOCS
