"""Kinds of tables that the documentation of trackers, tuners and trainers shows, made here."""

import csv
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hptransfer.cli.main import main
from hptransfer.errors import ConfigError, DataError
from hptransfer.stats import fit_table
from hptransfer.tables import (
    _raw_table,
    list_columns,
    read_frame,
    read_source,
    read_table,
)

WIDTHS, LRS = (64, 128, 256), (0.001, 0.002, 0.004, 0.008)
RUNS = [(n, lr, 3 + n**-0.5 + (k - 1.3) ** 2 / 10) for n in WIDTHS for k, lr in enumerate(LRS)]


def check(loaded: Any) -> None:
    """Assert that a table holds exactly the runs."""
    table = loaded.table
    found = zip(table.width.tolist(), table.lr.tolist(), table.loss.tolist(), strict=True)
    np.testing.assert_allclose(sorted(found), sorted(RUNS), rtol=1e-6)


def write_csv(path: Path, rows: list[Mapping[str, Any]]) -> Path:
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(file.getvalue())
    return path


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


# --- Ten kinds of trackers, tuners and trainers ---------------------------------------------


def test_ray_tunes_result_json(tmp_path: Path) -> None:
    """`ray.tune` writes a JSON object a report, with the trial's config in each."""
    for number, (n, lr, loss) in enumerate(RUNS):
        reports = [
            {"mean_loss": loss + 5 - step, "training_iteration": step + 1, "done": step == 5,
             "config": {"width": n, "lr": lr}, "trial_id": f"t{number}"}
            for step in range(6)
        ]  # fmt: skip
        folder = tmp_path / "experiment" / f"train_{number}_lr={lr}"
        write_text(folder / "result.json", "\n".join(map(json.dumps, reports)))
        write_text(folder / "params.json", json.dumps({"width": n, "lr": lr}))
        write_text(folder / "events.out.tfevents.1", "not read")
    check(read_source(tmp_path))


@pytest.mark.parametrize("text", ['{"x": 1}', "[1]", '{"log_history": [3]}'])
def test_a_trainers_state_without_its_history_is_damaged(tmp_path: Path, text: str) -> None:
    write_text(tmp_path / "w64_lr0.1" / "trainer_state.json", text)
    with pytest.raises(DataError, match=r"w64_lr0\.1: damaged: expected a JSON object, found"):
        read_source(tmp_path)


def test_ray_tunes_progress_csv(tmp_path: Path) -> None:
    for number, (n, lr, loss) in enumerate(RUNS):
        rows = [
            {"val_loss": loss + 2 - step, "training_iteration": step, "config/width": n,
             "config/learning_rate": lr}
            for step in range(3)
        ]  # fmt: skip
        write_csv(tmp_path / f"trial_{number}" / "progress.csv", rows)
    check(read_source(tmp_path))


def test_a_row_that_was_cut_off_takes_nothing_from_its_run(tmp_path: Path) -> None:
    """A job that was killed leaves half a row, whose settings are empty or half a number."""
    for number, (n, lr, loss) in enumerate(RUNS):
        row = {"val_loss": loss, "training_iteration": 1, "config/learning_rate": lr,
               "config/width": n}  # fmt: skip
        path = write_csv(tmp_path / f"trial_{number}" / "progress.csv", [row])
        with path.open("a") as file:
            file.write(["9.5,2", "9.5,2,0.0", ",2\n"][number % 3])
    check(read_source(tmp_path))


@pytest.mark.parametrize("last", ["final", {"max": 1000}])
def test_a_step_that_is_no_number_drops_no_metric(tmp_path: Path, last: object) -> None:
    for number, (n, lr, loss) in enumerate(RUNS):
        folder = tmp_path / f"run_{number}"
        rows = [{"val_loss": 9.0, "step": 10}, {"val_loss": loss, "step": last}]
        # Where no row has a step that is a number, the last one counts.
        rows = rows if number % 2 else [{**row, "step": last} for row in rows]
        write_text(folder / "result.json", "\n".join(map(json.dumps, rows)))
        write_text(folder / "params.json", json.dumps({"width": n, "lr": lr}))
    check(read_source(tmp_path))


def test_a_result_grid_as_a_data_frame(tmp_path: Path) -> None:
    """`ResultGrid.get_dataframe()` names settings ``config/NAME``."""
    rows = [{"val_loss": v, "config/n_embd": n, "config/lr": lr, "timestamp": 17 * k}
            for k, (n, lr, v) in enumerate(RUNS)]  # fmt: skip
    check(read_source(write_csv(tmp_path / "grid.csv", rows)))


def test_hydras_multirun_with_metrics_beside(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    for number, (n, lr, loss) in enumerate(RUNS):
        job = tmp_path / "multirun" / "2026-01-02" / "03-04-05" / str(number)
        text = f"model:\n  d_model: {n}\noptim:\n  lr: {lr}\ndata: wiki\n"
        write_text(job / ".hydra" / "config.yaml", text)
        write_text(job / "metrics.json", json.dumps({"val_loss": loss, "minutes": 3}))
    check(read_source(tmp_path / "multirun"))


def test_mlflows_csv_of_its_interface(tmp_path: Path) -> None:
    """`mlflow experiments csv` names ``params.NAME`` and ``metrics.NAME``."""
    rows = [{"run_id": f"r{k}", "status": "FINISHED", "params.hidden_size": n,
             "params.learning_rate": lr, "metrics.val_loss": v}
            for k, (n, lr, v) in enumerate(RUNS)]  # fmt: skip
    failed = {**rows[0], "status": "FAILED", "metrics.val_loss": "", "run_id": "z"}
    loaded = read_source(write_csv(tmp_path / "runs.csv", [*rows, failed]))
    check(loaded)
    assert [note.kind for note in loaded.notes] == ["columns", "left_out"]


def test_neptunes_csv_of_its_table(tmp_path: Path) -> None:
    """Neptune exports fields by path: ``parameters/lr``, ``metrics/val/loss``."""
    rows = [{"sys/id": f"R-{k}", "sys/state": "Inactive", "parameters/d_model": n,
             "parameters/lr": lr, "metrics/val/loss": v}
            for k, (n, lr, v) in enumerate(RUNS)]  # fmt: skip
    check(read_source(write_csv(tmp_path / "neptune.csv", rows)))


def test_a_keras_csv_logger_a_file_a_run(tmp_path: Path) -> None:
    """`keras.callbacks.CSVLogger` writes a row an epoch; the run is the file's name."""
    for n, lr, loss in RUNS:
        rows = [{"epoch": k, "loss": 9.0, "val_loss": loss + 1 - k} for k in range(2)]
        write_csv(tmp_path / f"dim{n}_lr{lr}.csv", rows)
    loaded = read_source(str(tmp_path / "*.csv"), columns={"loss": "val_loss"})
    check(loaded)
    assert [note.kind for note in loaded.notes] == ["names", "history"]


def test_numpys_savetxt_with_its_header(tmp_path: Path) -> None:
    path = tmp_path / "sweep.txt"
    np.savetxt(path, np.array(RUNS), header="width lr loss")
    check(read_source(path))


def test_a_slurm_arrays_json_lines_under_a_txt(tmp_path: Path) -> None:
    lines = [
        json.dumps({"args": {"n_embd": n, "lr": lr}, "final_val_loss": v}) for n, lr, v in RUNS
    ]
    path = tmp_path / "results.txt"
    path.write_text("\n".join(lines))
    check(read_source(path))


def test_pandas_split_and_lists_by_column(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    columns = {"width": [r[0] for r in RUNS], "lr": [r[1] for r in RUNS],
               "loss": [r[2] for r in RUNS]}  # fmt: skip
    for document in (
        columns,
        {"index": list(range(12)), "columns": [*columns], "data": [list(r) for r in RUNS]},
        {"name": "sweep", "results": [dict(zip(columns, r, strict=True)) for r in RUNS]},
    ):
        path.write_text(json.dumps(document))
        check(read_source(path))


def test_a_wandb_summary_column_of_a_data_frame(tmp_path: Path) -> None:
    """The public API's recipe: ``pd.DataFrame({"summary": …, "config": …, "name": …})``."""
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {
            "summary": [{"val/loss": v, "_step": 9, "gone": float("nan")} for _, _, v in RUNS],
            "config": [{"d_model": n, "lr": lr} for n, lr, _ in RUNS],
            "name": [f"run-{k}" for k in range(len(RUNS))],
        }
    )
    frame.to_csv(tmp_path / "project.csv")
    check(read_source(tmp_path / "project.csv"))


# --- Frames, pipes and several files --------------------------------------------------------


def test_frames_in_memory() -> None:
    columns = {"n_embd": [r[0] for r in RUNS], "lr": [r[1] for r in RUNS],
               "val_loss": [r[2] for r in RUNS]}  # fmt: skip
    check(read_frame(pa.table(columns)))
    pandas, polars = (pytest.importorskip(name) for name in ("pandas", "polars"))
    check(read_frame(pandas.DataFrame(columns, index=[f"r{k}" for k in range(len(RUNS))])))
    check(read_frame(polars.DataFrame(columns)))
    with pytest.raises(DataError, match="frame: expected a pandas, polars or Arrow table"):
        read_frame([1, 2])


def test_texts_of_a_polars_frame_are_cells() -> None:
    polars = pytest.importorskip("polars")
    rows = [{"width": n, "lr": lr, "loss": v, "optimizer": "adam", "state": "finished"}
            for n, lr, v in RUNS]  # fmt: skip
    frame = polars.DataFrame(rows).with_columns(polars.col("state").cast(polars.Categorical))
    assert set(read_frame(frame, by=["optimizer"]).table.groups["optimizer"]) == {"adam"}


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    rows = [{"width": n, "lr": lr, "loss": v} for n, lr, v in RUNS]
    path = write_csv(tmp_path / "t.csv", rows)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for data in (path.read_bytes(), json.dumps(rows).encode()):
        writer = threading.Thread(target=pipe.write_bytes, args=(data,))
        writer.start()
        check(read_source(pipe))
        writer.join()
    writer = threading.Thread(target=pipe.write_bytes, args=(b"",))
    writer.start()
    with pytest.raises(DataError, match="empty file"):
        read_source(pipe)
    writer.join()
    with pytest.raises(DataError, match="found a device or a socket"):
        read_source("/dev/null")


def test_a_folder_among_several_sources_is_called_so(tmp_path: Path) -> None:
    rows = [{"width": n, "lr": lr, "loss": v} for n, lr, v in RUNS]
    path = write_csv(tmp_path / "t.csv", rows)
    with pytest.raises(DataError, match="found a folder, which is read alone"):
        read_source([path, tmp_path])


def test_an_evaluation_without_a_step_is_not_the_last(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("width,lr,step,loss\n64,0.1,100,3.5\n64,0.1,200,3.2\n64,0.1,,9.9\n")
    assert read_table(path, last="step").loss.tolist() == [3.2]


def test_several_files_are_one_table(tmp_path: Path) -> None:
    rows = [{"width": n, "lr": lr, "loss": v} for n, lr, v in RUNS]
    one = write_csv(tmp_path / "adam.csv", rows[:6])
    other = tmp_path / "rest.parquet"
    pq.write_table(pa.Table.from_pylist(rows[6:]), other)
    check(read_source([str(one), other]))
    write_csv(one, [*rows[:5], {"width": 8, "lr": "fast", "loss": 1}])
    with pytest.raises(DataError, match=r"adam.csv: row 6 \(line 7\): column 'lr': expected a pos"):
        read_source([one, other])
    with pytest.raises(DataError, match="no file of this pattern"):
        read_source(str(tmp_path / "*.tsv"))
    # Two sweeps in two files that are not told apart are said.
    write_csv(one, [{**row, "loss": row["loss"] + 1, "seed": 1} for row in rows])
    write_csv(tmp_path / "muon.csv", [{**row, "seed": 2} for row in rows])
    loaded = read_source([one, tmp_path / "muon.csv"])
    assert loaded.risks[0].values["columns"] == "file"
    assert set(read_table([one, tmp_path / "muon.csv"], by=["file"]).groups["file"]) == {
        "adam", "muon",
    }  # fmt: skip


# --- Files that would take memory -----------------------------------------------------------


def test_a_parquet_file_that_would_fill_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.parquet"
    wide = {
        "width": [64] * 1000,
        "lr": [0.1] * 1000,
        "loss": [1.0] * 1000,
        "note": ["x" * 9000] * 1000,
    }
    pq.write_table(pa.table(wide), path)  # a few KiB on disk, 9 MB of text
    assert path.stat().st_size < 20_000
    monkeypatch.setattr(_raw_table, "MAX_TEXT_BYTES", 1 << 20)
    with pytest.raises(DataError, match="found texts of GiB"):
        read_source(path)
    monkeypatch.undo()
    monkeypatch.setattr(_raw_table, "MAX_BYTES", 1 << 14)
    with pytest.raises(DataError, match=r"expected a table of at most .* GiB"):
        read_source(path)
    monkeypatch.setattr(_raw_table, "MAX_ROWS", 500)
    with pytest.raises(DataError, match="expected at most 500 rows, found more"):
        read_source(path)


def test_rows_in_millions_are_refused_while_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_raw_table, "MAX_ROWS", 6)
    for name, text in (
        ("t.csv", "width,lr,loss\n" + "8,1,1\n" * 9),
        ("t.jsonl", '{"width": 8, "lr": NaN, "loss": "a"}\n{"width": "b"}\n' * 9),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match="expected at most 6 rows, found more"):
            read_source(tmp_path / name)


def test_deep_nesting_does_not_crash_the_process(tmp_path: Path) -> None:
    """Arrow's parser recurses: a file of braces must not reach it."""
    path = tmp_path / "t.jsonl"
    deep = '{"a": "}}}", "b":' + '{"a":' * 30_000 + "1" + "}" * 30_001
    path.write_text('{"width": 64, "lr": 0.1, "loss": 1}\n' * 3 + deep)
    script = (
        "import sys; from hptransfer.cli.main import main; sys.exit(main(['fit', sys.argv[1]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "deep nesting" in done.stderr


# --- Options and the command ----------------------------------------------------------------


def test_options_that_are_wrong_say_what_is_expected(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", [{"width": n, "lr": r, "loss": v} for n, r, v in RUNS])
    for options, message in (
        (
            {"unit": "watts"},
            "--unit: expected nats, bits, bits-per-byte, nats-per-byte, perplexity",
        ),
        ({"unit": "bits:3"}, "--unit: expected"),
        ({"diverged": ["often"]}, "--diverged: expected failed, crashed"),
        ({"pool": ["width"]}, "--pool: no column 'width' to group by"),
        ({"last": "step"}, "--last: no column 'step'"),
        (
            {"values": {"width": {"65": "64"}}},
            "--map: no cell of 'width' is '65'; did you mean '64'",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            read_source(path, **options)  # type: ignore[arg-type]
    rows = [{"width": 64, "lr": 0.1, "loss": v} for v in (1, 2)]
    with pytest.raises(ConfigError, match="--keep: expected last or longest:COLUMN"):
        read_source(write_csv(path, rows), keep="best")


def test_mapped_words_may_be_exchanged(tmp_path: Path) -> None:
    rows = [{"width": n, "lr": lr, "loss": v, "kind": "ab"[n == 64]} for n, lr, v in RUNS]
    path = write_csv(tmp_path / "t.csv", rows)
    table = read_table(path, by=["kind"], values={"kind": {"a": "b", "b": "a"}})
    assert table.groups["kind"].tolist() == ["ba"[n == 64] for n, _, _ in RUNS]


def test_an_empty_cell_of_any_column_says_which_rows_to_leave_out(tmp_path: Path) -> None:
    rows = [{"width": n, "lr": lr, "loss": v, "seed": 1, "job": "train"} for n, lr, v in RUNS]
    path = write_csv(tmp_path / "t.csv", [*rows, {**rows[0], "seed": "", "job": "eval"}])
    with pytest.raises(DataError, match=r"'seed': .* empty cell; leave .* with --where job=train"):
        read_table(path)


def test_perplexities_and_bits(tmp_path: Path) -> None:
    rows = [{"width": n, "lr": lr, "ppl": np.exp(v), "bits": v / np.log(2)} for n, lr, v in RUNS]
    path = write_csv(tmp_path / "t.csv", rows)
    check(read_source(path))  # the perplexity, by its name
    check(read_source(path, columns={"loss": "bits"}))
    loaded = read_source(path, columns={"loss": "bits"}, unit="nats")
    assert loaded.table.loss[0] == pytest.approx(RUNS[0][2] / np.log(2))


def test_the_columns_of_a_table_are_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"run": k, "dim": n, "lr": lr, "eval/loss": v} for k, (n, lr, v) in enumerate(RUNS)]
    path = write_csv(tmp_path / "t.csv", rows)
    assert [item["used_as"] for item in list_columns(path)] == ["", "width", "lr", "loss"]
    assert main(["columns", str(path)]) == 0
    out = capsys.readouterr().out
    assert "--columns width=dim,loss=eval/loss" in out
    assert main(["columns", str(path), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["columns"]
    assert listed[1] == {
        "name": "dim", "used_as": "width", "distinct": 3, "empty": 0,
        "examples": ["64", "128", "256"],
    }  # fmt: skip


def test_a_table_that_mixes_settings_is_risky_at_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"width": n, "lr": lr * (7 if k % 2 else 1), "loss": v, "optimizer": "ab"[k % 2]}
            for n, lr, v in RUNS for k in range(2)]  # fmt: skip
    path = write_csv(tmp_path / "t.csv", rows)
    assert main(["recommend", str(path), "--width", "512", "--json"]) == 0
    pooled = json.loads(capsys.readouterr().out)["recommendations"]
    assert [item["verdict"] in ("risky", "unusable") for item in pooled] == [True]
    assert main(["recommend", str(path), "--width", "512", "--json", "--by", "optimizer"]) == 0
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)["recommendations"]) == 2
    assert captured.err == ""


def test_runs_beside_a_trackers_own_are_told_apart(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "metrics.json", json.dumps({"val_loss": 1}))
    write_text(tmp_path / "a" / "runs" / "events.out.tfevents.1", "part of a's run")
    write_text(tmp_path / "b" / "run-1.wandb", "another's")
    with pytest.raises(
        DataError, match=r"found those of several \(a/metrics\.json, b/run-1\.wandb\)"
    ):
        read_source(tmp_path)


def test_the_library_heeds_a_tables_doubts_as_the_command_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One bad row of a group makes its answer risky, and the other group's stays as it is."""
    rows = [
        {"width": n, "lr": 2.0**k, "loss": 3 + n**-0.5 + (k + 9) ** 2 / 30, "optimizer": name}
        for name in "ab" for n in (64, 128, 256, 512) for k in range(-12, -5)
    ]  # fmt: skip
    rows[10]["loss"] -= 0.12
    path = write_csv(tmp_path / "t.csv", rows)
    table = read_table(path, by=["optimizer"])
    one, other = fit_table(table).recommend(width=1024)
    assert [doubt.kind for doubt in one.doubts] == ["outlier"]
    assert (one.verdict, other.verdict, other.doubts) == ("risky", "usable", ())
    assert "doubts of the table: outlier" in str(one)
    assert main(["recommend", str(path), "--width", "1024", "--json", "--by", "optimizer"]) == 0
    told = json.loads(capsys.readouterr().out)["recommendations"]
    assert [item["verdict"] for item in told] == ["risky", "usable"]
    assert "off the curve of its width" in told[0]["because"]


# --- What a table of other people's may hold beside numbers ---------------------------------


def read_rows(path: Path, *losses: object, **options: Any) -> Any:
    """Return the runs, some with other losses, as they are read from a file."""
    rows = [{"width": n, "lr": lr, "loss": loss} for n, lr, loss in RUNS]
    for row, loss in zip(rows, losses, strict=False):
        row["loss"] = loss
    return read_source(write_csv(path, rows), **options)


def test_a_mark_of_divergence_is_no_loss(tmp_path: Path) -> None:
    loaded = read_rows(tmp_path / "t.csv", -1, 3.2)
    (found,) = [note for note in loaded.risks if note.kind == "mark"]
    assert dict(found.values) == {"count": 1, "rows": 12, "marks": "-1=nan", "column": "loss"}
    mapped = read_rows(tmp_path / "t.csv", -1, 3.2, values={"loss": {"-1": "nan"}})
    assert not mapped.risks
    assert np.isnan(mapped.table.loss[0])


def test_marks_of_several_kinds_are_said_together(tmp_path: Path) -> None:
    loaded = read_rows(tmp_path / "t.csv", -1, 3.2, 0, 3.1, -1)
    (found,) = [note for note in loaded.risks if note.kind == "mark"]
    assert (found.values["count"], found.values["marks"]) == (3, "-1=nan,0=nan")


def test_a_loss_that_may_be_negative_has_no_marks(tmp_path: Path) -> None:
    assert not read_rows(tmp_path / "t.csv", -0.25, 0.2, -0.5, 0.1).risks


def test_a_perplexity_of_minus_one_is_a_mark(tmp_path: Path) -> None:
    rows = [{"width": n, "lr": lr, "val_ppl": np.exp(loss)} for n, lr, loss in RUNS]
    rows[0]["val_ppl"] = -1
    loaded = read_source(write_csv(tmp_path / "t.csv", rows))
    (found,) = [note for note in loaded.risks if note.kind == "mark"]
    assert found.values["marks"] == "-1=nan"


@pytest.mark.parametrize("size", ["", ":4.0"])
def test_nats_per_byte_are_no_bits(tmp_path: Path, size: str) -> None:
    rows = [{"width": n, "lr": lr, "nats_per_byte": loss / 4} for n, lr, loss in RUNS]
    unit = {"unit": f"nats-per-byte{size}"} if size else {}
    path = write_csv(tmp_path / "t.csv", rows)
    loaded = read_source(path, columns={"loss": "nats_per_byte"}, **unit)
    factor = 1 if size else 0.25
    np.testing.assert_allclose(sorted(loaded.table.loss), sorted(factor * y for *_, y in RUNS))
    assert [note.kind for note in loaded.risks] == ([] if size else ["byte_unit"])


def test_a_score_that_was_maximised_is_no_loss(tmp_path: Path) -> None:
    loaded = read_rows(tmp_path / "t.csv", *(-loss for *_, loss in RUNS))
    assert [note.kind for note in loaded.risks] == ["score"]


@pytest.mark.parametrize("word", ["diverged", "NaN (diverged)", "error", "—", "2 of 3"])
def test_a_word_for_divergence_says_how_to_map_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], word: str
) -> None:
    with pytest.raises(DataError, match=r"say what it|without unit") as caught:
        read_rows(tmp_path / "t.csv", word)
    if word != "2 of 3":
        assert f"loss:{word}=NUMBER" in str(caught.value)
        assert "nan where it diverged" in str(caught.value)
        table = read_rows(tmp_path / "t.csv", word, values={"loss": {word: "nan"}}).table
        assert np.isnan(table.loss[0])


def test_a_perplexitys_logarithm_is_in_nats(tmp_path: Path) -> None:
    rows = [{"width": n, "lr": lr, "log_ppl": loss} for n, lr, loss in RUNS]
    check(read_source(write_csv(tmp_path / "t.csv", rows), columns={"loss": "log_ppl"}))


@pytest.mark.parametrize("name", ["lr (1e-3)", "lr x 1000", "lr×1e-3", "lr_percent"])
def test_a_rate_in_another_unit_is_a_multiple(tmp_path: Path, name: str) -> None:
    rows = [{"width": n, name: lr * 1000, "loss": loss} for n, lr, loss in RUNS]
    loaded = read_source(write_csv(tmp_path / "t.csv", rows), columns={"lr": name})
    assert loaded.table.axis == "multiplier"


@pytest.mark.parametrize("name", ["learning_rate (1e-3)", "lr [x1e−3]", "Peak LR x 10^-3"])
def test_a_rates_unit_is_no_part_of_its_name(tmp_path: Path, name: str) -> None:
    rows = [{"width": n, name: lr * 1000, "loss": loss} for n, lr, loss in RUNS]
    loaded = read_source(write_csv(tmp_path / "t.csv", rows))
    assert loaded.table.axis == "multiplier"
    assert "columns" in [note.kind for note in loaded.notes]


@pytest.mark.parametrize("other", ["val_loss", "eval/loss", "ppl"])
def test_a_held_out_loss_beside_the_one_that_is_read_is_said(tmp_path: Path, other: str) -> None:
    rows = [{"width": n, "lr": lr, "loss": loss, other: loss + 1} for n, lr, loss in RUNS]
    path = write_csv(tmp_path / "t.csv", rows)
    loaded = read_source(path)
    check(loaded)
    assert {"other": other, "used": "loss"} in [dict(note.values) for note in loaded.notes]
    named = read_source(path, columns={"loss": other})
    assert "other_loss" not in [note.kind for note in named.notes]


@pytest.mark.parametrize(
    ("width", "rate"),
    [
        ("config.gpt.n_embd", "config.train.lr"),
        ("hp/width", "hp/log2_lr"),
        ("params.yaml:model.dim", "trainer.max_lr"),
    ],
)
def test_settings_in_sections_of_ones_own_are_named_at_once(
    tmp_path: Path, width: str, rate: str
) -> None:
    rows = [{width: n, rate: lr, "train/lr": 0.1 * lr, "val_loss": loss} for n, lr, loss in RUNS]
    with pytest.raises(DataError, match="no column 'width'") as caught:
        read_source(write_csv(tmp_path / "t.csv", rows))
    ours = "log2_lr" if "log2" in rate else "lr"
    assert f"--columns width={width},{ours}={rate},loss=val_loss" in str(caught.value)


def test_two_models_widths_are_not_chosen_between(tmp_path: Path) -> None:
    rows = [{"t.teacher.dim": 9, "t.student.dim": n, "lr": r, "loss": y} for n, r, y in RUNS]
    with pytest.raises(DataError, match=r"--columns width=NAME$"):
        read_source(write_csv(tmp_path / "t.csv", rows))


@pytest.mark.parametrize("form", ["{:g}", "lr={:g}", "2^{}"])
def test_rates_as_columns(tmp_path: Path, form: str) -> None:
    exponents = [-11, -10, -9]
    names = [form.format(x if "^" in form else 2.0**x) for x in exponents]
    rows = [{"width": n, **{name: 3 + n**-0.5 + k for k, name in enumerate(names)}} for n in WIDTHS]
    rows[0][names[-1]] = ""
    loaded = read_source(write_csv(tmp_path / "t.csv", rows))
    assert [note.kind for note in loaded.notes] == ["wide_rates"]
    assert dict(loaded.notes[0].values) == {"count": 3, "blank": 1}
    found = zip(loaded.table.width.tolist(), np.log2(loaded.table.lr).tolist(), strict=True)
    wanted = sorted((float(n), float(x)) for n in WIDTHS for x in exponents)
    np.testing.assert_allclose(sorted(found), [p for p in wanted if p != (64.0, -9.0)], rtol=1e-5)


def test_multiples_as_columns_are_said_to_be_multiples(tmp_path: Path) -> None:
    rows = [{"width": n, "0.25x": 3.1, "0.5x": 3.0, "1x": 3.2} for n in WIDTHS]
    loaded = read_source(write_csv(tmp_path / "t.csv", rows))
    assert loaded.table.axis == "multiplier"
    assert {note.kind for note in loaded.notes} == {"wide_rates", "multiplier"}
    assert sorted({*loaded.table.lr.tolist()}) == [0.25, 0.5, 1.0]


def test_two_quantiles_as_columns_are_no_rates(tmp_path: Path) -> None:
    rows = [{"width": n, "p5": 3.5, "0.5": 3.4, "0.95": 3.6} for n in WIDTHS]
    with pytest.raises(DataError, match="no column 'lr'"):
        read_source(write_csv(tmp_path / "t.csv", rows))


def test_a_batch_that_is_named_is_read_whole(tmp_path: Path) -> None:
    rows = [{"width": n, "lr": lr, "loss": y, "bs": 64 if n > 64 else ""} for n, lr, y in RUNS]
    with pytest.raises(DataError, match="'bs': expected a positive number, found an empty cell"):
        read_source(write_csv(tmp_path / "t.csv", rows), columns={"batch": "bs"})


def test_steps_as_columns_are_no_rates(tmp_path: Path) -> None:
    rows = [{"width": n, "100": 3.5, "200": 3.4} for n in WIDTHS]
    with pytest.raises(DataError, match="no column 'lr'"):
        read_source(write_csv(tmp_path / "t.csv", rows))


def test_a_separator_that_a_spreadsheet_is_told_is_no_header(tmp_path: Path) -> None:
    lines = ["sep=;", "width;lr;loss", *(f"{n};{lr};{loss}" for n, lr, loss in RUNS)]
    write_text(tmp_path / "t.csv", "\ufeff" + "\r\n".join(lines))
    check(read_source(tmp_path / "t.csv"))


def test_a_table_below_the_words_of_a_page(tmp_path: Path) -> None:
    rows = [f"| {n} | `{lr}` | **{loss}** |" for n, lr, loss in RUNS]
    table = "\n".join(["| width | lr | loss |", "|:--|--:|--|", *rows])
    write_text(tmp_path / "t.md", f"# Sweep\n\nWe tried, in turn:\n\n{table}\n\nThat is all.\n")
    check(read_source(tmp_path / "t.md"))


def test_a_second_table_of_a_page_is_not_read_as_rows_of_the_first(tmp_path: Path) -> None:
    table = "| width | lr | loss |\n|--|--|--|\n| 64 | 0.1 | 3.5 |\n"
    write_text(tmp_path / "t.md", f"{table}\nMore:\n\n{table}")
    with pytest.raises(DataError, match="line 8: expected one table in a file, found another"):
        read_source(tmp_path / "t.md")


def test_settings_in_a_map_column_are_columns(tmp_path: Path) -> None:
    settings = [[("width", float(n)), ("lr", lr)] for n, lr, _ in RUNS]
    kind = pa.map_(pa.string(), pa.float64())
    table = pa.table({"cfg": pa.array(settings, kind), "loss": [loss for *_, loss in RUNS]})
    pq.write_table(table, tmp_path / "t.parquet")
    names = {"width": "cfg.width", "lr": "cfg.lr"}
    check(read_source(tmp_path / "t.parquet", columns=names))
    check(read_frame(table, columns=names))


def write_logs(root: Path, name: str = "log.csv", **config: object) -> None:
    """Write a folder for each run as nanoGPT-mup does: its settings, and a log with its rates."""
    for n, lr, loss in RUNS:
        folder = root / f"width{n}_depth2_seed1_lr{lr:.20f}".rstrip("0")
        rows = [
            {"step": step, "val/loss": loss + 1 - share, "lr": lr * (1 - share / 2)}
            for step, share in ((0, 0.0), (50, 0.5), (100, 1.0))
        ]
        text = "".join(f"{json.dumps(row)}\n" for row in rows)
        if name.endswith("csv"):
            lines = [
                ",".join(map(str, row.values()))
                for row in (dict(zip(rows[0], rows[0], strict=True)), *rows)
            ]
            text = "\n".join([*lines, ""])
        write_text(folder / name, text)
        if config:
            settings = {"n_embd": n, "learning_rate": lr, "seed": 1, **config}
            write_text(folder / "config.json", json.dumps(settings))


@pytest.mark.parametrize("name", ["log.csv", "metrics.jsonl"])
def test_folders_of_settings_and_logs(tmp_path: Path, name: str) -> None:
    write_logs(tmp_path / "out", name, n_layer=2)
    check(read_source(tmp_path / "out"))


def test_logs_of_many_folders_by_their_names(tmp_path: Path) -> None:
    write_logs(tmp_path / "out")
    loaded = read_source(str(tmp_path / "out" / "*" / "log.csv"))
    check(loaded)
    (told,) = [note for note in loaded.notes if note.kind == "names"]
    assert told.values["what"] == "lr and seed and width"


def test_a_log_without_settings_is_a_table(tmp_path: Path) -> None:
    write_csv(tmp_path / "log.csv", [{"width": n, "lr": lr, "loss": y} for n, lr, y in RUNS])
    check(read_source(tmp_path))


def read_histories(path: Path, **more: float) -> Any:
    """Return the runs as evaluations whose logged rate falls, read from a file."""
    rows = [
        {"width": n, "run": k, "step": step, "lr": lr / (1 + step), "loss": loss + 1 - step}
        | {name: factor * lr for name, factor in more.items()}
        for k, (n, lr, loss) in enumerate(RUNS)
        for step in (0, 1)
    ]
    return read_source(write_csv(path, rows))


def test_a_scheduled_rate_is_never_the_swept_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'lr': expected one learning rate for each run"):
        read_histories(tmp_path / "t.csv")
    loaded = read_histories(tmp_path / "t.csv", max_lr=1.0)
    check(loaded)
    (told,) = [note for note in loaded.notes if note.kind == "logged_rate"]
    assert dict(told.values) == {"other": "lr", "used": "max_lr"}


def test_words_with_their_number_are_mapped_by_the_line_that_is_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"model": f"d={n}", "lr": lr, "loss": loss} for n, lr, loss in RUNS]
    path = write_csv(tmp_path / "t.csv", rows)
    command = ["fit", str(path), "--columns", "width=model"]
    assert main(command) == 2
    assert "--map model:d=64=64,…" in capsys.readouterr().err
    assert main([*command, "--map", "model:d=64=64,d=128=128,d=256=256"]) == 0
    with pytest.raises(DataError, match=r"--map width:gpt-125m=125m,…$"):
        read_frame(pa.table({"width": ["gpt-125m"] * 2, "lr": [0.1, 0.2], "loss": [3.0, 3.1]}))


def test_both_columns_that_are_missing_are_named(tmp_path: Path) -> None:
    rows = [{"channels": n, "lr": lr, "val/ce2": loss} for n, lr, loss in RUNS]
    with pytest.raises(DataError, match=r"--columns width=NAME,loss=NAME$"):
        read_source(write_csv(tmp_path / "t.csv", rows))


def test_means_over_seeds_are_losses_and_their_spread_is_none(tmp_path: Path) -> None:
    rows = [{"width": n, "lr": lr, "loss_std": 0.1, "loss_mean": y} for n, lr, y in RUNS]
    path = write_csv(tmp_path / "t.csv", rows)
    check(read_source(path))
    with pytest.raises(DataError, match="found a spread by its name"):
        read_source(path, columns={"loss": "loss_std"})


def test_the_best_of_each_width_is_no_mark_among_excess_losses(tmp_path: Path) -> None:
    best = {n: min(loss for m, _, loss in RUNS if m == n) for n in WIDTHS}
    rows = [{"width": n, "lr": lr, "excess_loss": loss - best[n]} for n, lr, loss in RUNS]
    loaded = read_source(write_csv(tmp_path / "t.csv", rows), columns={"loss": "excess_loss"})
    assert not loaded.risks


def test_a_table_of_a_page_in_latex(tmp_path: Path) -> None:
    rates = [f"$2^{{-{k}}}$" for k in (7, 8, 9)]
    lines = [f"| $d_{{model}}$ | {' | '.join(rates)} |", "|--|--|--|--|"]
    lines += [f"| {n} | 3.4 | 3.2 | 3.3 |" for n in WIDTHS]
    write_text(tmp_path / "t.md", "\n".join(lines))
    table = read_source(tmp_path / "t.md").table
    assert sorted({*table.lr.tolist()}) == [2**-9, 2**-8, 2**-7]
    assert sorted({*table.width.tolist()}) == [64, 128, 256]


def test_a_file_of_json_for_each_run(tmp_path: Path) -> None:
    for k, (n, lr, loss) in enumerate(RUNS):
        run = {"model": {"hidden_dim": n}, "lr": lr, "results": {"val": {"loss": loss}}, "id": k}
        write_text(tmp_path / "out" / f"run-{k}.json", json.dumps(run))
    check(read_source(tmp_path / "out"))
    check(read_source(str(tmp_path / "out" / "*.json")))


@pytest.mark.parametrize("steps", [(12, 9, 15, 11), None])
def test_a_name_of_several_trials_makes_no_log(
    tmp_path: Path, steps: tuple[int, ...] | None
) -> None:
    """The best epoch of each trial under the name of its width; or no steps at all."""
    rows = [
        {"name": f"adam-w{n}", "width": n, "lr": lr, "loss": loss, "max_lr": 1.0}
        | ({"epoch": steps[k % 4]} if steps else {})
        for k, (n, lr, loss) in enumerate(RUNS)
    ]
    check(read_source(write_csv(tmp_path / "t.csv", rows)))


@pytest.mark.parametrize("column", ["name", "file"])
def test_histories_under_the_name_of_a_width_are_a_sweep(tmp_path: Path, column: str) -> None:
    """Each width has a grid of its own; the top rate diverged early and is absent at one."""
    runs = [(n, lr * 64 / n, loss) for n, lr, loss in RUNS][:-1]
    rows = [
        {column: f"gpt-{n}", "width": n, "lr": lr, "step": step, "loss": loss + 1 - step / 900}
        for n, lr, loss in runs
        for step in range(0, 901, 100)
    ]
    table = read_source(write_csv(tmp_path / "t.csv", rows)).table
    found = zip(table.width.tolist(), table.lr.tolist(), table.loss.tolist(), strict=True)
    np.testing.assert_allclose(sorted(found), sorted((n, lr, y + 0.0) for n, lr, y in runs))


@pytest.mark.parametrize("order", ["newest first", "shuffled", "sampled", "blank", "epochs"])
def test_a_schedule_is_seen_in_any_log(tmp_path: Path, order: str) -> None:
    random = np.random.default_rng(5)
    rows = []
    for k, (n, lr, loss) in enumerate(RUNS):
        steps = (
            sorted(random.choice(1000, 10, replace=False))
            if order == "sampled"
            else range(0, 1000, 100)
        )
        for step in steps:
            rate = lr * min(1, 0.2 + step / 200) * (1 + np.cos(np.pi * step / 1000)) / 2
            row = {
                "run": f"r{k}",
                "width": n,
                "step": int(step),
                "lr": rate,
                "loss": loss + 1 - step / 900,
            }
            rows.append({"epoch": step // 500, **row} if order == "epochs" else row)
    if order == "newest first":
        rows.reverse()
    elif order == "shuffled":
        random.shuffle(rows)
    elif order == "blank":
        rows[7]["step"] = ""
    path = write_csv(tmp_path / "t.csv", rows)
    with pytest.raises(DataError, match="'lr': expected one learning rate for each run"):
        read_source(path)
    for row in rows:
        row["max_lr"] = RUNS[int(row["run"][1:])][1]
    last = {"last": "step"} if order == "epochs" else {}
    rows = [row for row in rows if row["step"] != ""]
    table = read_source(write_csv(tmp_path / "both.csv", rows), **last).table
    assert sorted({*table.lr.tolist()}) == sorted(LRS)


def test_runs_by_name_of_which_one_failed_are_runs(tmp_path: Path) -> None:
    runs = {f"r{k}": {"width": n, "lr": lr, "loss": y} for k, (n, lr, y) in enumerate(RUNS)}
    write_text(tmp_path / "t.json", json.dumps({**runs, "rX": {"error": "oom"}}))
    check(read_source(tmp_path / "t.json", where={"error": ""}))


def test_scalars_beside_lists_by_column(tmp_path: Path) -> None:
    lists = dict(zip(("width", "lr", "loss"), map(list, zip(*RUNS, strict=True)), strict=True))
    about = {"version": 1, "seed": 0, "steps": 1000, "ok": True}
    write_text(tmp_path / "lists.json", json.dumps({**about, **lists}))
    check(read_source(tmp_path / "lists.json"))
    split = {"columns": [*lists], "data": RUNS}
    write_text(tmp_path / "split.json", json.dumps({**about, **split}))
    check(read_source(tmp_path / "split.json"))


def test_rounded_rates_in_names_replace_no_column(tmp_path: Path) -> None:
    runs = [
        (n, 2.0**-k / 2**0.5, 3 + k / 10 + j) for n in WIDTHS for j, k in enumerate((6, 6.5, 7))
    ]
    rows = [{"name": f"w{n}_lr{lr:.0e}", "width": n, "lr": lr, "loss": y} for n, lr, y in runs]
    table = read_source(write_csv(tmp_path / "t.csv", rows)).table
    np.testing.assert_allclose(sorted(table.lr), sorted(lr for _, lr, _ in runs))


def test_an_empty_rate_beside_a_scheduled_one_is_not_taken(tmp_path: Path) -> None:
    rows = [
        {"run": k, "step": step, "width": n, "lr": lr / step, "learning_rate": "", "loss": loss}
        for k, (n, lr, loss) in enumerate(RUNS)
        for step in (1, 2, 3)
    ]
    with pytest.raises(DataError, match="'lr': expected one learning rate for each run"):
        read_source(write_csv(tmp_path / "t.csv", rows))


def test_a_log_with_a_restart_is_a_log(tmp_path: Path) -> None:
    rows = [
        {"width": n, "run": f"r{k}", "step": step, "lr": lr * (1 - step / 200), "loss": loss}
        for k, (n, lr, loss) in enumerate(RUNS)
        for step in ((0, 50, 50, 100) if k == 3 else (0, 50, 100))
    ]
    with pytest.raises(DataError, match="'lr': expected one learning rate for each run"):
        read_source(write_csv(tmp_path / "t.csv", rows))


def test_a_unit_in_a_name_is_a_rates_alone(tmp_path: Path) -> None:
    rows = [{"width": n, "lr": lr, "loss x 1000": 1000 * loss} for n, lr, loss in RUNS]
    with pytest.raises(DataError, match="no column 'loss'"):
        read_source(write_csv(tmp_path / "t.csv", rows))


@pytest.mark.parametrize(
    ("word", "number"),
    [
        ("~1e-3", "1e-3"),
        ("lr=2e-3", "2e-3"),
        ("lr1e-3", "1e-3"),
        ("wd1e-3", "NUMBER"),
        ("w512", "512"),
        ("width512", "512"),
        ("gpt2", "NUMBER"),
        ("gpt-125m", "125m"),
    ],
)
def test_the_number_in_a_word(word: str, number: str) -> None:
    columns = {"width": [64, 64], "lr": [word] * 2, "loss": [3.0, 3.1]}
    with pytest.raises(DataError) as caught:
        read_frame(pa.table(columns))
    assert f"lr:{word}={number}" in str(caught.value)


def test_json_of_settings_beside_results(tmp_path: Path) -> None:
    for k, (n, lr, loss) in enumerate(RUNS):
        sections = {"config": {"n_embd": n, "lr": lr}, "results": {"val_loss": loss}}
        flat = {"width": n, "lr": lr, "loss": loss, "losses": [5.0, loss]}
        write_text(tmp_path / "sections" / f"{k}.json", json.dumps(sections))
        write_text(tmp_path / "flat" / f"{k}.json", json.dumps(flat))
    check(read_source(tmp_path / "sections"))
    check(read_source(tmp_path / "flat"))


def test_maps_whose_keys_are_numbers() -> None:
    columns = dict(zip(("width", "lr", "loss"), map(list, zip(*RUNS, strict=True)), strict=True))
    extra = pa.array([[(1, 2.0)]] * len(RUNS), pa.map_(pa.int64(), pa.float64()))
    check(read_frame(pa.table({"extra": extra, **columns})))


def test_an_infinite_loss_is_a_divergence_and_no_mark(tmp_path: Path) -> None:
    assert not read_rows(tmp_path / "t.csv", "-inf", 3.2).risks
    with pytest.raises(ConfigError, match="--unit: expected nats"):
        read_rows(tmp_path / "t.csv", unit="abits")


def test_a_papers_minus_sign(tmp_path: Path) -> None:
    lines = ["width,log2_lr,loss", *(f"{n},\u2212{k},3.{k}" for n in WIDTHS for k in (7, 8, 9))]
    write_text(tmp_path / "t.csv", "\n".join(lines))
    assert sorted({*read_table(tmp_path / "t.csv").lr.tolist()}) == [2**-9, 2**-8, 2**-7]


def test_cells_that_were_merged_are_not_explained_by_a_rate(tmp_path: Path) -> None:
    """``--where lr=…`` would have left the narrowest rate alone in the table."""
    first = min(LRS)
    rows = [{"width": n if lr == first else "", "lr": lr, "loss": y} for n, lr, y in RUNS]
    with pytest.raises(DataError, match=r"found an empty cell$"):
        read_source(write_csv(tmp_path / "t.csv", rows))


@pytest.mark.parametrize("form", ["gpt_d{n}_lr{lr:g}", "sweep/run_w{n}-lr{lr:.1e}"])
def test_a_runs_own_word_stands_before_its_width(tmp_path: Path, form: str) -> None:
    rows = [{"name": form.format(n=n, lr=lr), "val_loss": loss} for n, lr, loss in RUNS]
    check(read_source(write_csv(tmp_path / "t.csv", rows)))


def test_a_decay_before_the_width_is_no_width(tmp_path: Path) -> None:
    rows = [{"name": f"weight_d0.1_w{n}_lr{lr}", "val_loss": loss} for n, lr, loss in RUNS]
    check(read_source(write_csv(tmp_path / "t.csv", rows)))


def test_losses_of_both_signs_are_no_marks(tmp_path: Path) -> None:
    loaded = read_rows(tmp_path / "t.csv", *(loss - 3.2 for *_, loss in RUNS))
    assert not loaded.risks
