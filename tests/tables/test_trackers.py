"""Runs as trackers leave them: files that their libraries write here, and what we read of them."""

import importlib.util
import json
import math
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hptransfer.cli.main import main
from hptransfer.errors import DataError
from hptransfer.tables import read_source, read_table
from hptransfer.tables._trackers import read_runs

COLUMNS = {"width": "n_embd", "lr": "learning_rate", "loss": "val/loss"}
WIDTHS, LRS = (32, 64), (0.01, 0.02, 0.04)


def loss(width: int, lr: float) -> float:
    return 2 + width**-0.5 + (math.log2(lr) + 5.5) ** 2 / 10


def list_runs(path: Path) -> list[str]:
    found = read_runs(path)
    assert found is not None
    return found.columns["run"].to_pylist()


def needs(library: str) -> Any:
    missing = importlib.util.find_spec(library) is None
    return pytest.mark.skipif(missing, reason=f"{library} is not installed")


def write(script: str, *arguments: object) -> None:
    """Run a script in a process of its own: these libraries start threads and servers."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


WANDB = """
import json, os, sys
os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
import wandb
for number, (config, losses, code) in enumerate(json.loads(sys.argv[2])):
    run = wandb.init(
        project="sweep", name=f"run-{number}", dir=sys.argv[1], config=config,
        settings=wandb.Settings(
            console="off", x_disable_stats=True, disable_git=True, disable_code=True
        ),
    )
    run.define_metric("best", summary="min")
    for step, loss in enumerate(losses):
        run.log({"val/loss": loss, "best": loss, "opt": {"scale": 0.5}, "lr": 1 / (1 + step)})
    run.config.update({"late": True})
    run.summary["mark"] = f"end {number}"
    run.finish(exit_code=code)
"""


@pytest.fixture(scope="module")
def wandb_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six finished runs, one whose loss is NaN, and one that failed."""
    folder = tmp_path_factory.mktemp("wandb")
    runs: list[Any] = [
        ({"n_embd": n, "learning_rate": lr, "seed": 1}, [9.0, 1.0, loss(n, lr)], 0)
        for n in WIDTHS
        for lr in LRS
    ]
    long = {"n_embd": 64, "learning_rate": 0.08, "seed": 1, "note": "x" * 70_000, "a": {"b": [1]}}
    runs.append((long, [5.0] * 200 + [math.nan], 0))
    runs.append(({"n_embd": 64, "learning_rate": 0.16, "seed": 1}, [5.0, math.nan], 1))
    write(WANDB, folder, json.dumps(runs))
    return folder


class DataStore:
    """What wandb's reader of logs does, in the versions that have one: LevelDB's framing."""

    def open_for_scan(self, path: str) -> None:
        self._data, self._place = Path(path).read_bytes(), 7
        assert self._data.startswith(b":W&B")

    def scan_data(self) -> bytes | None:
        record = b""
        while self._place + 7 <= len(self._data):
            if 32768 - self._place % 32768 < 7:
                self._place += 32768 - self._place % 32768
            checksum, size, kind = struct.unpack_from("<IHB", self._data, self._place)
            start, end = self._place + 7, self._place + 7 + size
            if end > len(self._data):
                return None
            assert zlib.crc32(self._data[start - 1 : end]) == checksum, "checksum"
            record, self._place = record + self._data[start:end], end
            if kind in (1, 4):
                return record
        return None


@pytest.fixture
def datastore(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(DataStore=DataStore)
    monkeypatch.setitem(sys.modules, "wandb.sdk.internal.datastore", module)


@needs("wandb")
@pytest.mark.usefixtures("datastore")
def test_wandb_runs_that_were_offline(wandb_folder: Path) -> None:
    study = read_source(wandb_folder, columns=COLUMNS)
    expected = {(n, lr): loss(n, lr) for n in WIDTHS for lr in LRS}
    table = study.table
    found = dict(zip(zip(table.width, table.lr, strict=True), table.loss, strict=True))
    assert math.isnan(found.pop((64.0, 0.08)))
    assert found == expected
    assert set(table.seed) == {1}
    assert [n.values["count"] for n in study.notes if n.kind == "left_out"] == [1]
    raw = read_runs(wandb_folder)
    assert raw.damaged == []
    rows = {row["name"]: row for row in pa.table(raw.columns).to_pylist()}
    first, long = rows["run-0"], rows["run-6"]
    assert (first["n_embd"], first["learning_rate"], first["late"]) == (32, 0.01, True)
    assert first["mark"] == "end 0"
    assert first["opt.scale"] == 0.5
    assert (long["note"], long["a.b"]) == ("x" * 70_000, "[…]")


@needs("wandb")
@pytest.mark.usefixtures("datastore")
def test_a_logged_lr_is_no_setting(wandb_folder: Path) -> None:
    # The rate that was set is found; the one that a schedule logged is metric.lr.
    study = read_source(wandb_folder, columns={"loss": "val/loss"})
    assert set(study.table.lr) == {*LRS, 0.08}


@needs("wandb")
def test_logs_without_a_reader_say_what_to_do(
    wandb_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", str(wandb_folder), "--json"]) == 2
    err = capsys.readouterr().err
    assert "pip install 'wandb<0.26'; or wandb sync them, and read wandb:ENTITY/PROJECT" in err


@needs("wandb")
@pytest.mark.usefixtures("datastore")
def test_a_log_that_was_cut_off_is_a_crashed_run(wandb_folder: Path, tmp_path: Path) -> None:
    whole = max(wandb_folder.rglob("*.wandb"), key=lambda p: p.stat().st_size).read_bytes()
    cut = tmp_path / "run-x.wandb"
    cut.write_bytes(whole[:-4000])
    with pytest.raises(DataError, match=r"no finished trial; 1 crashed trial"):
        read_table(cut, columns=COLUMNS)
    study = read_source(cut, columns=COLUMNS, diverged=["crashed"])
    assert np.isnan(study.table.loss).all()
    cut.write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match=rf"{cut.name}: damaged: "):
        read_table(cut)


def test_wandb_runs_on_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fields of `wandb.Api().runs` as its documentation shows them."""
    runs = [
        SimpleNamespace(
            id=f"id{n}{k}", name=f"run-{n}-{k}", state="finished",
            config={"n_embd": n, "optim": {"learning_rate": lr}, "_wandb": {"x": 1}},
            summary={"eval/loss": loss(n, lr), "_step": 100, "_wandb": {"runtime": 3}},
        )
        for n in WIDTHS for k, lr in enumerate(LRS)
    ]  # fmt: skip
    runs.append(
        SimpleNamespace(id="z", name="z", state="crashed", config=runs[0].config, summary={})
    )
    asked = []
    api = SimpleNamespace(runs=lambda path: asked.append(path) or runs)
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(Api=lambda: api))
    own = {"config": {"_wandb": {"x": 1}}, "summary": {"_wandb": {"runtime": 3}}}
    runs.append(SimpleNamespace(id="y", name="y", state="finished", **own))
    study = read_source("wandb:team/sweep")
    assert asked == ["team/sweep"]
    assert study.table.loss.tolist() == [loss(n, lr) for n in WIDTHS for lr in LRS]
    # W&B's own settings set nothing: a run that has no others is left out.
    notes = {note.kind: note.values for note in study.notes}
    assert notes["no_settings"] == {"count": 1}
    assert "eval/loss" in notes["columns"]["columns"]

    def refuse(path: str) -> None:
        raise ValueError("Could not find project sweep\nsecond line")

    api.runs = refuse
    with pytest.raises(DataError, match=r"^wandb:team/sweep: not readable: Could not find project"):
        read_source("wandb:team/sweep")


def test_wandb_files_without_their_log(tmp_path: Path) -> None:
    """What W&B writes beside a log, and wrote before there were logs."""
    pytest.importorskip("yaml")
    for number, name in enumerate(("run-1/files", "run-2")):
        folder = tmp_path / "wandb" / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(
            "wandb_version: 1\n_wandb:\n  desc: null\n  value:\n    python_version: 3.9.1\n"
            f"n_embd:\n  desc: null\n  value: {32 * 2**number}\n"
            "learning_rate:\n  desc: null\n  value: 0.01\n"
        )
    (tmp_path / "wandb/run-1/files/wandb-summary.json").write_text(
        '{"val/loss": 3.5, "_wandb": {"runtime": 3}}'
    )
    (tmp_path / "wandb/run-2/wandb-summary.json").write_text('{"val/loss": "NaN"}')
    table = read_table(tmp_path, columns=COLUMNS)
    assert table.width.tolist() == [32, 64]
    assert list_runs(tmp_path) == ["wandb/run-1", "wandb/run-2"]
    assert list_runs(tmp_path / "wandb/run-1") == ["run-1"]
    assert list_runs(tmp_path / "wandb/run-1/files") == ["files"]
    assert table.loss[0] == 3.5
    assert math.isnan(table.loss[1])
    (tmp_path / "wandb/run-1/files/wandb-summary.json").write_text("[1")
    study = read_source(tmp_path, columns=COLUMNS)
    assert len(study.table) == 1
    assert "run-1/files: damaged: " in study.damaged[0]


def test_a_run_may_be_called_files(tmp_path: Path) -> None:
    for place, width in ((tmp_path / "runs", 32), (tmp_path / "runs/files", 64)):
        place.mkdir()
        (place / "config.json").write_text(f'{{"width": {width}, "lr": 0.1}}')
        (place / "results.json").write_text('{"loss": 3.5}')
    assert sorted(read_table(tmp_path).width.tolist()) == [32, 64]


MLFLOW = """
import json, os, sys
os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient
from sqlalchemy import event
from sqlalchemy.engine import Engine
# The store's forty migrations take ten times as long when each waits for the disk.
event.listen(Engine, "connect", lambda base, _: base.execute("PRAGMA synchronous = OFF"))
client = MlflowClient(tracking_uri=sys.argv[1])
experiment = client.create_experiment('a: "sweep"', artifact_location=sys.argv[2])
parent = client.create_run(experiment).info.run_id
client.set_terminated(parent, "FINISHED")
for config, losses, state in json.loads(sys.argv[3]):
    run = client.create_run(experiment, tags={"mlflow.parentRunId": parent}).info.run_id
    client.log_batch(
        run,
        params=[Param(name, str(value)) for name, value in config.items()],
        metrics=[Metric("val/loss", loss, 7, step) for step, loss in enumerate(losses)]
        + [Metric("val/loss", 99.0, 8, 0)],
    )
    if state == "DELETED":
        client.delete_run(run)
    elif state != "RUNNING":
        client.set_terminated(run, state)
found = [
    (run.info.status, run.data.params, run.data.metrics) for run in client.search_runs([experiment])
]
with open(sys.argv[4], "w") as file:
    json.dump(found, file)
"""


def write_mlflow(folder: Path, address: str) -> list[Any]:
    runs: list[Any] = [
        ({"n_embd": n, "learning_rate": lr, "seed": 1}, [9.0, loss(n, lr)], "FINISHED")
        for n in WIDTHS
        for lr in LRS
    ]
    runs.append(({"n_embd": 64, "learning_rate": 0.08, "seed": 1}, [5.0, math.nan], "FINISHED"))
    for state in ("FAILED", "KILLED", "RUNNING", "DELETED"):
        runs.append(({"n_embd": 64, "learning_rate": 0.08}, [5.0, math.nan], state))
    write(MLFLOW, address, folder / "artifacts", json.dumps(runs), folder / "seen.json")
    seen: list[Any] = json.loads((folder / "seen.json").read_text())
    return seen


@pytest.fixture(scope="module", params=["files", "database"])
def mlflow_store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Any]]:
    """A store's path, and its runs as MLflow itself tells them."""
    folder = tmp_path_factory.mktemp("mlflow")
    if request.param == "files":
        return folder / "mlruns", write_mlflow(folder, (folder / "mlruns").as_uri())
    return folder / "mlflow.db", write_mlflow(folder, f"sqlite:///{folder / 'mlflow.db'}")


@needs("mlflow")
def test_mlflow_runs(mlflow_store: tuple[Path, list[Any]]) -> None:
    path, seen = mlflow_store
    raw = read_runs(path)
    trials = [run for run in seen if run[1]]  # all but the parent
    rows = pa.table(raw.columns).to_pylist()
    names = ("n_embd", "learning_rate", "seed")

    def tell(state: str, cells: Any, metric: Any) -> str:
        return json.dumps([state, [cells.get(name) for name in names], repr(metric)])

    assert sorted(tell(r["state"], r, r["val/loss"]) for r in rows) == sorted(
        tell(state, params, metrics["val/loss"]) for state, params, metrics in trials
    )
    assert {row["experiment"] for row in rows} == {'a: "sweep"'}
    study = read_source(path, columns={**COLUMNS})
    left = {n.values["state"]: n.values["count"] for n in study.notes if n.kind == "left_out"}
    assert left == {"failed": 1, "killed": 1, "pending": 1}
    assert len(study.table) == 7
    assert np.isnan(study.table.loss).sum() == 1


@needs("mlflow")
def test_a_store_is_found_from_above_and_never_written_to(
    mlflow_store: tuple[Path, list[Any]],
) -> None:
    path, _ = mlflow_store
    before = {file: file.read_bytes() for file in path.parent.rglob("*") if file.is_file()}
    assert len(read_table(path.parent, columns=COLUMNS)) == 7
    assert {f: f.read_bytes() for f in path.parent.rglob("*") if f.is_file()} == before


@needs("mlflow")
def test_two_mlflow_stores_of_one_directory(tmp_path: Path) -> None:
    """Each job has a store of its own; each store numbers its first experiment 0."""
    script = """
import os, sys
os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
from pathlib import Path
from mlflow.tracking import MlflowClient
for job, width in (("a", 32), ("b", 64)):
    client = MlflowClient(tracking_uri=Path(sys.argv[1], job, "mlruns").as_uri())
    for lr in (0.01, 0.02):
        run = client.create_run("0").info.run_id
        client.log_param(run, "width", width)
        client.log_param(run, "lr", lr)
        client.log_metric(run, "loss", 2.5)
        client.set_terminated(run)
"""
    write(script, tmp_path)
    assert (tmp_path / "a/mlruns/0").is_dir()
    assert (tmp_path / "b/mlruns/0").is_dir()
    table = read_table(tmp_path)
    assert sorted(zip(table.width, table.lr, strict=True)) == [
        (32, 0.01), (32, 0.02), (64, 0.01), (64, 0.02)
    ]  # fmt: skip
    assert len(read_table(tmp_path / "a/mlruns/0")) == 2
    run = next(path.parent for path in (tmp_path / "a/mlruns/0").glob("*/meta.yaml"))
    with pytest.raises(DataError, match=r"a run of one; name the experiment's folder or mlruns"):
        read_table(run)


def test_a_home_or_a_disk_is_not_searched_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abcd":
        (tmp_path / name).mkdir()
    monkeypatch.setattr("hptransfer.tables._trackers._MOST_FOLDERS", 3)
    with pytest.raises(DataError, match="found more than 3 folders"):
        read_table(tmp_path)


def test_a_file_beside_checkpoints_does_not_hide_them(tmp_path: Path) -> None:
    """A user's own metrics are not the trainer's; its state in the run's folder is."""
    run = tmp_path / "lr0.01"
    for step in (500, 1000):
        folder = run / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        history = [{"step": step, "eval_loss": 3000 / step}]
        state = {"global_step": step, "max_steps": 1000, "log_history": history}
        (folder / "trainer_state.json").write_text(json.dumps(state))
    (run / "results.json").write_text('{"accuracy": 0.5}')

    def read_row(path: Path) -> dict[str, Any]:
        found = read_runs(path)
        assert found is not None
        [row] = pa.table(found.columns).to_pylist()
        return row

    row = read_row(tmp_path)
    assert (row["run"], row["state"], row["eval/loss"]) == ("lr0.01", "finished", 3.0)
    assert row["folder"] == "lr0.01"
    assert read_row(run / "checkpoint-500")["run"] == "checkpoint-500"
    best = {"global_step": 1000, "max_steps": 1000, "log_history": [{"eval_loss": 2.0}]}
    (run / "trainer_state.json").write_text(json.dumps(best))
    assert read_row(tmp_path)["eval/loss"] == 2.0
    for path in run.rglob("trainer_state.json"):
        path.unlink()
    assert read_row(tmp_path)["accuracy"] == 0.5


def test_a_database_that_is_no_store(tmp_path: Path) -> None:
    import sqlite3

    path = tmp_path / "other.db"
    base = sqlite3.connect(path)
    base.execute("CREATE TABLE prices (x)")
    base.commit()
    base.close()
    with pytest.raises(
        DataError, match=r"expected a database of Optuna or MLflow, found tables prices"
    ):
        read_table(path)
    path.write_bytes(path.read_bytes()[:100] + b"\xff" * 4000)
    with pytest.raises(DataError, match=r"other\.db: damaged SQLite database"):
        read_table(path)


@pytest.fixture(scope="module")
def summaries() -> Callable[[Path], Any]:
    if importlib.util.find_spec("tensorboard") is None:
        pytest.skip("tensorboard is not installed")
    from torch.utils.tensorboard import SummaryWriter

    return lambda path: SummaryWriter(str(path))


def test_tensorboard_runs(tmp_path: Path, summaries: Callable[[Path], Any]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    for number, (n, lr) in enumerate((n, lr) for n in WIDTHS for lr in LRS):
        writer = summaries(tmp_path / "logs" / f"run-{number}")
        for step in (0, 1, 3, 2):
            last = step == 3
            writer.add_scalar("val/loss", loss(n, lr) if last else 9.0, step, new_style=number % 2)
            writer.add_scalar("wide", 0.1, step, new_style=True, double_precision=True)
        writer.add_text("note", "hello")
        settings = {"n_embd": n, "learning_rate": lr, "act": "gelu", "tied": n == 32}
        # In a folder of its own, as torch does unless told otherwise, or in the run's.
        writer.add_hparams(settings, {"final": 1.0}, **({"run_name": "."} if number % 2 else {}))
        writer.close()
    for name in ("no-settings", "run-0/validation"):
        writer = summaries(tmp_path / "logs" / name)
        writer.add_scalar("val/loss", 7.0, 1)
        writer.close()
    raw = read_runs(tmp_path / "logs")
    assert raw.damaged == []
    assert (raw.notes[1].kind, raw.notes[1].values["count"]) == ("no_settings", 1)
    rows = pa.table(raw.columns).to_pylist()
    assert [row["run"] for row in rows] == [f"run-{number}" for number in range(6)]
    for row in rows:
        theirs = EventAccumulator(str(tmp_path / "logs" / row["run"])).Reload()
        seen = {
            tag: [(e.step, e.value) for e in theirs.Scalars(tag)] for tag in theirs.scalars.Keys()
        }
        for tag in theirs.tensors.Keys():
            numbers = [(e.step, make_ndarray(e.tensor_proto)) for e in theirs.Tensors(tag)]
            seen |= {tag: numbers} if numbers[0][1].dtype.kind == "f" else {}
        assert seen.keys() >= {"val/loss", "wide"}
        for tag, values in seen.items():
            assert row[tag] == max(values)[1]
    first = rows[0]
    assert first["state"] == "success"
    assert (first["n_embd"], first["learning_rate"], first["act"]) == (32, 0.01, "gelu")
    assert first["validation/val/loss"] == 7.0
    assert first["final"] == 1.0
    table = read_table(tmp_path, columns=COLUMNS)
    expected = [loss(n, lr) for n in WIDTHS for lr in LRS]
    np.testing.assert_allclose(table.loss, expected, rtol=1e-6)


def test_settings_in_a_folder_further_down_are_those_of_the_run(
    tmp_path: Path, summaries: Callable[[Path], Any]
) -> None:
    for number, lr in enumerate(LRS):
        writer = summaries(tmp_path / f"run-{number}")
        writer.add_scalar("val/loss", 2.0 + number, 1)
        writer.add_hparams({"n_embd": 8, "learning_rate": lr}, {}, run_name="hp/x")
        writer.close()
    assert list_runs(tmp_path) == ["run-0", "run-1", "run-2"]
    table = read_table(tmp_path, columns=COLUMNS)
    assert table.loss.tolist() == [2, 3, 4]


def test_settings_of_many_runs_in_one_folder(
    tmp_path: Path, summaries: Callable[[Path], Any]
) -> None:
    writer = summaries(tmp_path)
    for number, lr in enumerate(LRS):
        writer.add_hparams({"width": 8, "lr": lr}, {"loss": 2.0 + number}, run_name=f"r{number}")
    writer.add_scalar("loss", 9.0, 0)
    writer.close()
    study = read_source(tmp_path)
    assert dict(zip(study.table.lr, study.table.loss, strict=True)) == dict(
        zip(LRS, (2.0, 3.0, 4.0), strict=True)
    )
    assert (study.notes[1].kind, study.notes[1].values["count"]) == ("no_settings", 1)


def test_damaged_event_files(tmp_path: Path, summaries: Callable[[Path], Any]) -> None:
    for number, lr in enumerate(LRS):
        writer = summaries(tmp_path / f"r{number}")
        writer.add_hparams({"width": 8, "lr": lr}, {"loss": 2.0}, run_name=".")
        writer.close()
    path = max((tmp_path / "r0").iterdir(), key=lambda file: file.stat().st_size)
    whole = path.read_bytes()
    for place in range(40, len(whole), 23):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        study = read_source(tmp_path)
        # What stands before the damage may be read; nothing else is made of the file.
        assert set(study.table.lr.tolist()) in ({*LRS}, {*LRS[1:]})
        assert set(study.table.loss[~np.isnan(study.table.loss)].tolist()) == {2.0}
    path.write_bytes(whole[:-3])
    assert read_runs(path) is not None


@given(data=st.binary(max_size=80), kind=st.sampled_from([b":W&B\xe1\xbe\x00", b""]))
def test_any_bytes_are_runs_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, kind: bytes
) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    for name in ("run-x.wandb", "events.out.tfevents.1.x", "mlflow.db", "j.log"):
        path = folder / name
        path.write_bytes(kind + data)
        with pytest.raises(DataError) as caught:
            read_table(path)
        assert len(str(caught.value).splitlines()) == 1
        assert str(folder) in str(caught.value)


def test_runs_of_two_trackers_are_told_apart(tmp_path: Path) -> None:
    for name in ("a/run-x.wandb", "b/events.out.tfevents.1"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"found those of several \(a/run-x\.wandb, b/events"):
        read_table(tmp_path)
    assert read_runs(tmp_path / "b") is not None


def test_a_missing_library_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    def refuse(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    for name, start, extra in (
        ("a.db", b"SQLite format 3\0", ""), ("j.log", b'{"op_code":0}', "optuna"),
        ("events.out.tfevents.1", b"", "tensorboard"), ("x.wandb", b"", ""),
    ):  # fmt: skip
        (tmp_path / name).write_bytes(start)
        with pytest.raises(DataError) as caught:
            read_table(tmp_path / name)
        assert len(str(caught.value).splitlines()) == 1
        assert f"pip install 'hptransfer[{extra}]'" in str(caught.value) or not extra


OPTUNA = """
import json, math, sys
import optuna
from optuna.storages.journal import JournalFileBackend
optuna.logging.set_verbosity(optuna.logging.ERROR)
for storage in (f"sqlite:///{sys.argv[1]}/a.db",
                optuna.storages.JournalStorage(JournalFileBackend(f"{sys.argv[1]}/b.log"))):
    study = optuna.create_study(study_name="sweep", storage=storage)
    for width, lr, loss in json.loads(sys.argv[2]):
        study.enqueue_trial({"width": width, "lr": lr})
        trial = study.ask({"width": optuna.distributions.IntDistribution(1, 4096),
                           "lr": optuna.distributions.FloatDistribution(1e-5, 1.0, log=True)})
        trial.set_user_attr("n_layer", 4)
        if loss is None:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            study.tell(trial, loss)
    study.ask()
"""


@needs("optuna")
@pytest.mark.parametrize("name", ["a.db", "b.log"])
def test_optuna_studies(tmp_path: Path, name: str) -> None:
    runs: list[Any] = [(n, lr, loss(n, lr)) for n in WIDTHS for lr in LRS]
    write(OPTUNA, tmp_path, json.dumps([*runs, (64, 0.08, None)]))
    before = (tmp_path / name).read_bytes()
    study = read_source(tmp_path / name)
    assert (tmp_path / name).read_bytes() == before
    table = study.table
    found = zip(table.width, table.lr, table.loss, strict=True)
    np.testing.assert_allclose(list(found), runs, rtol=1e-12)
    left = {n.values["state"]: n.values["count"] for n in study.notes if n.kind == "left_out"}
    assert left == {"failed": 1}
    assert "no_settings" in [note.kind for note in study.notes]  # one that was only asked for
    assert study.risks == ()
