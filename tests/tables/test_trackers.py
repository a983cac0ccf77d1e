"""Runs as trackers leave them: files that their libraries write here, and what we read of them."""

import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hptransfer.cli.main import main
from hptransfer.errors import DataError
from hptransfer.tables import read_source, read_table, tensorboard_runs, wandb_runs
from hptransfer.tables.runs import Run
from hptransfer.tables.trackers import read_runs
from hptransfer.tables.wire import as_float, as_int, as_text, read_fields

COLUMNS = {"width": "n_embd", "lr": "learning_rate", "loss": "val/loss"}
WIDTHS, LRS = (32, 64), (0.01, 0.02, 0.04)


def loss(width: int, lr: float) -> float:
    return 2 + width**-0.5 + (math.log2(lr) + 5.5) ** 2 / 10


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


def read_log(folder: Path, number: int) -> tuple[Path, Run]:
    """Return the log of a run and what is read of it."""
    for path in folder.rglob("*.wandb"):
        run = wandb_runs.read_log(path)
        if run.about["name"] == f"run-{number}":
            return path, run
    raise AssertionError(f"no run-{number}")


@needs("wandb")
def test_wandb_runs_that_were_offline(wandb_folder: Path) -> None:
    study = read_source(wandb_folder, columns=COLUMNS)
    expected = {(n, lr): loss(n, lr) for n in WIDTHS for lr in LRS}
    table = study.table
    found = dict(zip(zip(table.width, table.lr, strict=True), table.loss, strict=True))
    assert math.isnan(found.pop((64.0, 0.08)))
    assert found == expected
    assert set(table.seed) == {1}
    assert study.notes[1:] == ("1 failed trial(s) left out",)
    first, long = read_log(wandb_folder, 0)[1], read_log(wandb_folder, 6)[1]
    assert first.about == {"project": "sweep", "name": "run-0"}
    assert first.config == {"n_embd": 32, "learning_rate": 0.01, "seed": 1, "late": True}
    assert first.metrics["best.min"] == 1.0
    assert first.metrics["best"] == first.metrics["val/loss"] == loss(32, 0.01)
    assert first.metrics["mark"] == "end 0"
    assert first.metrics["opt.scale"] == 0.5
    assert (long.config["note"], long.config["a.b"]) == ("x" * 70_000, "[…]")


@needs("wandb")
def test_a_logged_lr_is_no_setting(wandb_folder: Path) -> None:
    with pytest.raises(DataError, match=r"no column 'lr'.*'metric\.lr'"):
        read_table(wandb_folder, columns={"width": "n_embd", "loss": "val/loss"})


@needs("wandb")
def test_the_command_reads_a_trackers_directory(
    wandb_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    option = ",".join(f"{ours}={theirs}" for ours, theirs in COLUMNS.items())
    assert main(["fit", str(wandb_folder), "--json", "--columns", option]) == 0
    captured = capsys.readouterr()
    assert [b["width"] for b in json.loads(captured.out)["fits"][0]["basins"]] == list(WIDTHS)
    assert captured.err.splitlines()[0].startswith(f"hptransfer: note: {wandb_folder}: Weights &")


@needs("wandb")
def test_a_log_that_was_cut_off_is_a_crashed_run(wandb_folder: Path, tmp_path: Path) -> None:
    log, right = read_log(wandb_folder, 6)
    whole = log.read_bytes()
    cut = tmp_path / "run-x.wandb"
    for size in (8, 100, 32_768, 40_000, len(whole) // 2, len(whole) - 1):
        cut.write_bytes(whole[:size])
        assert wandb_runs.read_log(cut).state == "crashed"
    cut.write_bytes(whole[:-4000])
    assert wandb_runs.read_log(cut).metrics["val/loss"] == 5.0
    with pytest.raises(DataError, match=r"no finished trial; 1 failed trial"):
        read_table(cut, columns=COLUMNS)
    cut.write_bytes(whole + bytes(5000))  # space that was never written
    assert wandb_runs.read_log(cut) == right


@needs("wandb")
def test_a_log_with_other_bits_is_damaged(wandb_folder: Path, tmp_path: Path) -> None:
    log, right = read_log(wandb_folder, 7)
    whole = log.read_bytes()
    rng = np.random.default_rng(0)
    bad = tmp_path / log.name
    found = {"damaged": 0, "crashed": 0}
    for place in rng.integers(7, len(whole), 200).tolist():
        bad.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
        try:
            state = wandb_runs.read_log(bad).state  # a length beyond the end is a log cut off
        except ValueError:
            state = "damaged"
        found[state] += 1
    assert found["damaged"] > 190
    assert right.state == "failed"
    bad.write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match=rf"{bad.name}: damaged: expected a log of Weights"):
        read_table(bad)


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
    (tmp_path / "wandb/run-2/wandb-history.jsonl").write_text(
        '{"val/loss": 4, "_step": 0}\n{"other": 1}\n{"val/loss": "NaN", "_step": 2}\n'
    )
    table = read_table(tmp_path, columns=COLUMNS)
    assert table.width.tolist() == [32, 64]
    assert table.loss[0] == 3.5
    assert math.isnan(table.loss[1])
    (tmp_path / "wandb/run-1/files/wandb-summary.json").write_text("[1")
    study = read_source(tmp_path, columns=COLUMNS)
    assert len(study.table) == 1
    assert "run-1/files: damaged: " in study.damaged[0]


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
    runs = read_runs(path)
    assert runs is not None
    trials = [run for run in seen if run[1]]  # all but the parent
    key = json.dumps

    def text(state: str, params: Any, metrics: Any) -> str:
        return key([state, dict(sorted(params.items())), {k: repr(v) for k, v in metrics.items()}])

    assert sorted(text(r.state, r.config, r.metrics) for r in runs.runs) == sorted(
        text(*run) for run in trials
    )
    assert {run.about["experiment"] for run in runs.runs} == {'a: "sweep"'}
    assert list(runs.notes[1:]) == [
        "1 deleted run(s) left out",
        "1 run(s) that hold other runs left out",
    ]
    study = read_source(path, columns={**COLUMNS})
    assert study.notes[3:] == ("2 failed trial(s) left out", "1 pending trial(s) left out")
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


def test_a_damaged_mlflow_run_is_named_and_the_rest_reads(tmp_path: Path) -> None:
    store = tmp_path / "mlruns" / "7"
    for run, line in (("a", "1 3.5 0\n1 3 2\n2 3.25 2\n"), ("b", "1 3.5\n"), ("c", "x\n")):
        for kind in ("params", "metrics/val"):
            (store / run / kind).mkdir(parents=True)
        (store / run / "meta.yaml").write_text(f"experiment_id: '7'\nrun_id: {run}\nstatus: 3\n")
        (store / run / "params" / "n_embd").write_text("32")
        (store / run / "params" / "learning_rate").write_text(f"0.0{ord(run)}")
        (store / run / "metrics" / "val" / "loss").write_text(line)
    (store / "meta.yaml").write_text('name: "x"\nexperiment_id: 7\n')
    study = read_source(tmp_path, columns=COLUMNS)
    assert study.table.loss.tolist() == [3.25, 3.5]
    assert len(study.damaged) == 1
    assert "7/c: damaged: metrics/val/loss: line 1: expected a time" in study.damaged[0]


def test_a_database_that_is_no_store(tmp_path: Path) -> None:
    import sqlite3

    path = tmp_path / "other.db"
    base = sqlite3.connect(path)
    base.execute("CREATE TABLE prices (x)")
    base.commit()
    base.close()
    with pytest.raises(DataError, match=r"expected an MLflow store .*found tables prices"):
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
    runs = read_runs(tmp_path / "logs")
    assert runs is not None
    assert [run.name for run in runs.runs] == [f"run-{number}" for number in range(6)]
    assert runs.notes[1:] == ["1 run(s) without hparams left out"]
    for run in runs.runs:
        theirs = EventAccumulator(str(tmp_path / "logs" / run.name)).Reload()
        seen = {
            tag: [(e.step, e.value) for e in theirs.Scalars(tag)] for tag in theirs.scalars.Keys()
        }
        for tag in theirs.tensors.Keys():
            numbers = [(e.step, make_ndarray(e.tensor_proto)) for e in theirs.Tensors(tag)]
            seen |= {tag: numbers} if numbers[0][1].dtype.kind == "f" else {}
        assert seen.keys() >= {"val/loss", "wide"}
        for tag, values in seen.items():
            assert run.metrics[tag] == max(values)[1]
    first = runs.runs[0]
    assert first.state == "SUCCESS"
    assert first.config == {"n_embd": 32, "learning_rate": 0.01, "act": "gelu", "tied": 1}
    assert first.metrics["validation/val/loss"] == 7.0
    assert first.metrics["final"] == 1.0
    table = read_table(tmp_path, columns=COLUMNS)
    expected = [loss(n, lr) for n in WIDTHS for lr in LRS]
    np.testing.assert_allclose(table.loss, expected, rtol=1e-6)


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
    assert study.notes[1:] == ("1 run(s) without hparams left out",)


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
        assert study.table.lr.tolist() == list(LRS[1:])
        if study.damaged:  # else a length beyond the end: what follows was never written
            assert study.damaged[0].startswith(f"{path}: damaged: ")
    path.write_bytes(whole[:-3])
    assert read_runs(path) is not None


@given(
    numbers=st.lists(st.integers(0, 2**64 - 1), max_size=4),
    text=st.text(max_size=200),
    value=st.floats(allow_nan=False),
)
def test_messages_read_as_they_were_written(numbers: list[int], text: str, value: float) -> None:
    struct_pb2 = pytest.importorskip("google.protobuf.struct_pb2")
    wrappers_pb2 = pytest.importorskip("google.protobuf.wrappers_pb2")
    for number in numbers:
        data = wrappers_pb2.UInt64Value(value=number).SerializeToString()
        signed = number - 2**64 if number >= 2**63 else number
        assert [as_int(found) for _, found in read_fields(data)] == [signed] * bool(number)
    data = struct_pb2.Value(string_value=text).SerializeToString()
    assert [(field, as_text(found)) for field, found in read_fields(data)] == [(3, text)]
    data = struct_pb2.Value(number_value=value).SerializeToString()
    assert [(field, as_float(found)) for field, found in read_fields(data)] == [(2, value)]


@given(data=st.binary(max_size=80), kind=st.sampled_from([b":W&B\xe1\xbe\x00", b""]))
def test_any_bytes_are_runs_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, kind: bytes
) -> None:
    folder = tmp_path_factory.mktemp("bytes")
    for name in ("run-x.wandb", "events.out.tfevents.1.x", "mlflow.db"):
        path = folder / name
        path.write_bytes(kind + data)
        with pytest.raises(DataError) as caught:
            read_table(path)
        assert len(str(caught.value).splitlines()) == 1
        assert str(caught.value).startswith(str(path))


def test_checksums_are_castagnolis() -> None:
    assert tensorboard_runs._crc(b"123456789") == 0xE3069283


def test_runs_of_two_trackers_are_told_apart(tmp_path: Path) -> None:
    for name in ("a/run-x.wandb", "b/events.out.tfevents.1"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"found those of several \(a/run-x\.wandb, b/events"):
        read_table(tmp_path)
    assert read_runs(tmp_path / "b") is not None


def test_no_tracker_and_no_torch_is_imported(tmp_path: Path) -> None:
    for name in ("a/run-x.wandb", "b/events.out.tfevents.1", "c/mlflow.db"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    script = (
        "import sys; from pathlib import Path; from hptransfer.tables.trackers import read_runs\n"
        "for name in 'abc':\n"
        "    try: read_runs(Path(sys.argv[1]) / name)\n"
        "    except Exception as error: print(error)\n"
        "heavy = {'torch', 'wandb', 'mlflow', 'tensorboard', 'yaml', 'pyarrow'}\n"
        "assert heavy.isdisjoint(sys.modules), heavy & set(sys.modules)"
    )
    write(script, tmp_path)
