"""What people really bring: each case of ``../shared/cases`` and what comes out of it."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hptransfer.cli._arguments import parse_values
from hptransfer.errors import ConfigError, DataError
from hptransfer.report.words import describe_note
from hptransfer.stats import fit_table
from hptransfer.tables import LoadedTable, list_columns, read_source

CASES = Path(__file__).resolve().parents[2].parent / "shared" / "cases" / "tables"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="the cases lie beside the repository")


def read(name: str, **options: Any) -> LoadedTable:
    return read_source(CASES / name, **options)


def kinds(loaded: LoadedTable) -> list[str]:
    return [note.kind for note in loaded.notes]


def values(loaded: LoadedTable, kind: str) -> dict[str, Any]:
    return dict(next(note.values for note in loaded.notes if note.kind == kind))


def refuse(name: str, **options: Any) -> str:
    with pytest.raises((DataError, ConfigError)) as caught:
        read(name, **options)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message.removeprefix(str(CASES / name))


def same(one: LoadedTable, other: LoadedTable) -> None:
    for name in ("width", "lr", "loss"):
        np.testing.assert_allclose(
            getattr(one.table, name), getattr(other.table, name), rtol=1e-4, equal_nan=True
        )


# --- A wrong or misleading number without a word --------------------------------------------


@pytest.mark.parametrize(
    "name", ["43-joint-misses-the-basins", "43-shifted-minus", "43-shifted-plus"]
)
def test_43_a_public_sweep_reads_without_doubt(name: str) -> None:
    loaded = read(f"{name}.csv")
    assert (len(loaded.table), loaded.notes) == (40, ())


def test_14_two_optimizers_in_one_fit_are_said() -> None:
    loaded = read("14-two-optimizers-pooled.csv")
    assert values(loaded, "varies")["columns"] == "optimizer"
    assert loaded.risks
    assert "--by optimizer" in describe_note(loaded.risks[0])
    apart = read("14-two-optimizers-pooled.csv", by=["optimizer"])
    assert apart.notes == ()
    advice = fit_table(apart.table).recommend(width=1024)
    assert advice[0].group["optimizer"] == "adamw"
    assert advice[0].lr.value == pytest.approx(0.00075, rel=0.2)


def test_15_settings_drawn_at_random_are_said() -> None:
    loaded = read("15-random-search.csv")
    assert values(loaded, "varies")["columns"] == "wd, batch_size, warmup_steps"
    assert loaded.risks


def test_15w_a_decay_drawn_at_random_is_one_line() -> None:
    message = refuse("15-random-search-weight_decay.csv")
    assert "found 80 in 80 rows, which makes 80 fits" in message
    assert "--pool weight_decay" in message
    pooled = read("15-random-search-weight_decay.csv", pool=["weight_decay"])
    assert "weight_decay" in values(pooled, "varies")["columns"]


def test_17_logarithms_are_read_by_their_base() -> None:
    loaded = read("17-log10-lr.csv")
    assert loaded.table.lr.min() == pytest.approx(2**-11, rel=1e-3)
    assert values(loaded, "logarithms")["base"] == "10"
    message = refuse("17-log10-lr.csv", columns={"lr": "log10_lr"})
    assert "--columns log10_lr=log10_lr (0.000488 to 0.0156)" in message
    assert "log2_lr" not in message
    message = refuse("17-log10-lr-round.csv", columns={"lr": "log_lr"})
    assert "log2_lr=log_lr (0.0625 to 0.354) or --columns log10_lr=log_lr (0.0001 to" in message
    assert "did you mean 'log_lr'" in refuse("17-log10-lr-round.csv")


def test_18_where_a_schedule_ended_is_no_swept_rate() -> None:
    loaded = read("18-wandb-final-lr.csv", columns={"width": "n_embd", "loss": "val/loss"})
    assert loaded.table.lr.min() == 2**-11
    assert values(loaded, "final_rate")["ratio"] == pytest.approx(0.1)
    # Whoever names it gets it.
    named = read("18-wandb-final-lr.csv", columns={"lr": "lr"})
    assert named.table.lr.min() == pytest.approx(2**-11 / 10)


@pytest.mark.parametrize("name", ["45-ray-late-nan", "45-ray-ahead-nan"])
def test_45_a_loss_that_stops_being_logged_is_said(name: str) -> None:
    pytest.importorskip("tensorboard")
    loaded = read(name)
    found = values(loaded, "stops")
    assert (found["count"], found["rows"], found["column"]) == (5, 18, "ray/tune/val_loss")
    assert loaded.risks
    counted = read(name, diverged=["stopped"])
    assert np.isnan(counted.table.loss).sum() == 5
    assert counted.risks == ()
    same(counted, read("45-ray-late-nan.csv"))


def test_33_bits_per_byte_are_said_and_nats_of_a_token_agree() -> None:
    bits, nats = read("33-bits-verdict.csv"), read("33-nats-verdict.csv")
    assert [note.kind for note in bits.risks] == ["byte_unit"]
    # These are nats per byte: 4.4 bytes make a token.
    np.testing.assert_allclose(bits.table.loss * 4.4, nats.table.loss, rtol=1e-4)
    told = read("33-bits-verdict.csv", unit="bits-per-byte:4.4")
    same(told, nats)
    assert told.risks == ()
    same(read("33-bits-per-byte.csv", unit="bits-per-byte:4.4"), read("33-same-in-nats.csv"))


def test_31_what_changes_with_width_is_a_condition() -> None:
    loaded = read("31-batch-with-width.csv")
    assert values(loaded, "with_width")["columns"] == "layers, batch_size, steps"
    assert "varies" not in kinds(loaded)


def test_44_reads_and_counts_its_blanks() -> None:
    loaded = read("44-usable-without-a-rate.csv")
    assert values(loaded, "blank") == {
        "count": 23, "state": "blank", "above": 23, "below": 0, "risky": False,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["12-history-steps", "12-history-steps-by-width"])
def test_12_histories_give_the_last_evaluation(name: str) -> None:
    loaded = read(f"{name}.csv")
    assert values(loaded, "history") == {"rows": 180, "count": 18, "column": "step"}
    assert loaded.table.loss[0] == 4.0642
    same(loaded, read(f"{name}.csv", last="step"))


def test_19_blank_losses_are_counted_and_placed() -> None:
    found = values(read("19-blank-called-diverged.csv"), "blank")
    assert (found["count"], found["above"], found["below"], found["risky"]) == (1, 0, 1, True)
    assert len(read("19-blank-called-diverged.csv", diverged=["none"]).table) == 27
    found = values(read("19-blank-right-of-optimum.csv"), "blank")
    assert (found["count"], found["above"], found["risky"]) == (3, 3, False)
    found = values(read("19-no-metric-is-not-diverged.csv"), "blank")
    assert (found["count"], found["below"]) == (4, 4)
    assert "--where job=train" in refuse("19-eval-jobs-without-lr.csv")
    assert read("19-eval-jobs-without-lr.csv", where={"job": "train"}).risks


@pytest.mark.parametrize("form", ["number", "text"])
def test_08_a_multiplier_is_named_so(form: str) -> None:
    assert "did you mean 'lr_mult' or 'heuristic_lr'" in refuse(f"08-lr-multiplier-{form}.csv")
    loaded = read(f"08-lr-multiplier-{form}.csv", columns={"lr": "lr_mult"})
    assert values(loaded, "multiplier") == {"column": "lr_mult"}
    assert loaded.table.axis == "multiplier"
    assert loaded.table.lr.min() == 0.25


def test_20_rates_in_other_precisions_are_one() -> None:
    loaded = read("20-float32-rates.csv")
    assert sorted(set(loaded.table.lr)) == [0.001, 0.002, 0.004, 0.008, 0.016]
    assert values(loaded, "joined") == {"count": 10, "into": 5}


# --- A message that does not get one through ------------------------------------------------


def test_28_failed_trials_are_placed_and_may_count() -> None:
    loaded = read("28-optuna-fail-near-cliff.csv")
    found = values(loaded, "left_out")
    assert (found["count"], found["above"], found["state"]) == (11, 11, "failed")
    assert "--diverged failed" in describe_note(loaded.notes[-1])
    counted = read("28-optuna-fail-near-cliff.csv", diverged=["fail"])
    same(counted, read("28-optuna-fail-as-diverged.csv"))
    assert fit_table(counted.table).recommend(width=1024)[0].verdict != "unusable"


@pytest.mark.parametrize(
    ("name", "rows"),
    [("28-optuna-trials.csv", 23), ("28-optuna-storage.db", 23), ("28-optuna-journal.log", 24)],
)
def test_28_optuna_reads_its_own_storages(name: str, rows: int) -> None:
    if not name.endswith("csv"):
        pytest.importorskip("optuna")
    loaded = read(name)
    assert len(loaded.table) == rows
    assert values(loaded, "columns")["columns"] == "width=params_width,lr=user_attrs_lr,loss=value"
    assert loaded.risks == ()  # params_log2 is the rate in other words


def test_50_a_trainers_folders() -> None:
    loaded = read("50-hf-trainer")
    assert sorted(set(loaded.table.width)) == [16, 32, 64]
    assert 0.03 in loaded.table.lr  # from the folder's name: the logged one is the schedule's
    assert values(loaded, "columns")["columns"] == "width=n_embd,loss=eval/loss"
    assert loaded.risks == ()


def test_51_lightnings_folders() -> None:
    pytest.importorskip("yaml")
    loaded = read("51-lightning-csv")
    assert len(loaded.table) == 15
    assert values(loaded, "columns")["columns"] == "loss=val_loss"


def test_53_logs_say_what_is_needed() -> None:
    message = refuse("53-nanogpt-logs")
    assert "of logs write a row for each run, such as width,lr,loss" in message
    assert "found a log; write a row for each run" in refuse("53-nanogpt-logs/w64_lr0.0078125.log")


def test_55_a_file_a_width() -> None:
    loaded = read("55-one-csv-a-width")
    assert values(loaded, "names")["example"] == "w128"
    assert len(loaded.table) == 24
    same(loaded, read_source(str(CASES / "55-one-csv-a-width" / "w*.csv")))
    same(loaded, read_source(sorted((CASES / "55-one-csv-a-width").iterdir())))


def test_29_a_chart_with_a_column_a_run() -> None:
    loaded = read("29-wandb-chart.csv")
    assert values(loaded, "chart") == {"metric": "val/loss", "count": 28}
    assert sorted(set(loaded.table.width)) == [64, 128, 256, 512]
    assert loaded.table.lr.min() == 0.000488281


def test_35_cells_of_dicts() -> None:
    loaded = read("35-dict-cells.csv")
    columns = "width=config.n_embd,lr=config.lr,loss=summary.val/loss,seed=config.seed"
    assert values(loaded, "columns")["columns"] == columns
    assert len(loaded.table) == 56


def test_10_widths_as_columns() -> None:
    loaded = read("10-wide.csv")
    assert values(loaded, "wide") == {"count": 4, "blank": 1}
    assert (len(loaded.table), int(np.isnan(loaded.table.loss).sum())) == (23, 1)
    same(loaded, read("10-wide-numbers.csv"))
    assert len(read("10-wide.md").table) == 18
    assert read("10-long.md.txt").table.lr[0] == 2**-11


def test_11_sizes_in_words_and_millions() -> None:
    loaded = read("11-size-params.csv", columns={"width": "model"})
    assert 19e6 in loaded.table.width
    assert values(loaded, "params") == {"column": "model"}
    assert "--map size:tiny=NUMBER,…" in refuse("11-size-words.csv", columns={"width": "size"})
    words = parse_values(["size:tiny=64,small=128,base=256,large=512"])
    mapped = read("11-size-words.csv", columns={"width": "size"}, values=words)
    assert sorted(set(mapped.table.width)) == [64, 128, 256, 512]


def test_26_notations() -> None:
    assert read("26-power-text.csv").table.lr[0] == 2**-11
    assert len(read("26-comment-line.csv").table) == 15
    assert read("26-d-notation.csv").table.lr[0] == 0.000488
    assert "without thousands separators" in refuse("26-thousands.csv")
    assert "write the number alone, and its error apart" in refuse("26-percent-units.csv")


def test_16_an_accuracy_is_no_loss() -> None:
    assert values(read("16-accuracy.csv"), "columns") == {"columns": "loss=val_loss"}
    assert "found an accuracy by its name" in refuse("16-accuracy.csv", columns={"loss": "val_acc"})


def test_30_retries_and_runs_cut_short() -> None:
    assert "--keep longest:last_step" in refuse("30-retries-no-state.csv")
    loaded = read("30-retries-no-state.csv", keep="longest:last_step")
    assert values(loaded, "kept")["count"] >= 1
    assert 4.1707 not in loaded.table.loss
    loaded = read("30-stopped-early-finished.csv")
    assert values(loaded, "partial") == {
        "count": 4, "rows": 24, "column": "last_step", "least": 300.0, "most": 1000.0,
        "groups": [{}],
    }  # fmt: skip
    assert loaded.risks
    assert read("30-stopped-early-finished.csv", where={"last_step": "1000"}).risks == ()


def test_49_a_row_far_off_is_named() -> None:
    loaded = read("49-single-bad-cell.csv")
    (found,) = loaded.risks
    assert (found.kind, found.values["place"]) == ("outlier", "row 10 (line 11)")
    assert found.values["off"] == pytest.approx(0.76, abs=0.05)


def test_24_25_36_forms_of_json() -> None:
    one = read("24-pandas-columns.json")
    for name in ("24-runs-under-a-key.json", "25-lines.json"):
        same(one, read(name))
    assert "settings in keys are to be written out" in refuse("36-settings-in-keys.json")


def test_48_two_spellings_of_a_group() -> None:
    loaded = read("48-two-spellings-of-a-group.csv")
    assert values(loaded, "spelling") == {
        "column": "parameterization",
        "one": "muP",
        "other": "mup",
    }
    joined = read("48-two-spellings-of-a-group.csv", values={"parameterization": {"mup": "muP"}})
    assert set(joined.table.groups["parameterization"]) == {"muP"}
    assert joined.notes == ()


def test_47_latin_1_is_named() -> None:
    message = refuse("47-latin1.csv")
    assert "found byte 0xb5 at offset 33 ('u-µP' as Latin-1); save the file as UTF-8" in message


@pytest.mark.parametrize(("name", "rows"), [("40-one-width", 6), ("40-two-widths", 12)])
def test_40_few_widths_read(name: str, rows: int) -> None:
    assert len(read(f"{name}.csv").table) == rows


def test_41_a_plateau_reads_as_it_is() -> None:
    loaded = read("41-divergence-is-a-plateau.csv")
    assert math.isclose(loaded.table.loss.max(), 10.825)


def test_54_a_wide_run_table(tmp_path: Path) -> None:
    """180 columns of a Hugging Face run in W&B: the settings among what is logged."""
    names = [f"config.junk_{k}" for k in range(170)]
    known = "Name,State,lr_scheduler_type,learning_rate,n_embd,eval/loss,train/learning_rate,seed"
    rows = [
        f"r{n}{k},finished,cosine,{lr},{n},{3 + n**-0.5 + (k - 1) ** 2 / 20},{lr / 1e3},42,"
        + ",".join("x" for _ in names)
        for n in (64, 128)
        for k, lr in enumerate((0.001, 0.002, 0.004))
    ]
    path = tmp_path / "runs.csv"
    path.write_text("\n".join([f"{known},{','.join(names)}", *rows]))
    loaded = read_source(path)
    columns = "width=n_embd,lr=learning_rate,loss=eval/loss"
    assert values(loaded, "columns")["columns"] == columns
    listed = {item["name"]: item for item in list_columns(path)}
    assert listed["n_embd"]["used_as"] == "width"
    assert listed["n_embd"]["examples"] == ["64", "128"]
    path.write_text(path.read_text().replace("n_embd", "model_scale"))
    with pytest.raises(
        DataError, match=r"no column 'width'.*hptransfer columns FILE lists all; name"
    ):
        read_source(path)
    with pytest.raises(DataError, match=r"--columns width=NAME,lr=learning_rate,loss=eval/loss$"):
        read_source(path)
