"""``verify``: the same bits here, the same losses elsewhere, and tables that do not hold."""

import json
import math
from dataclasses import asdict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hptransfer.cli.main import main
from hptransfer.errors import ConfigError, DataError
from hptransfer.study import _local_engine, _verify, load_study, verify_table
from hptransfer.study._plan import Speed
from hptransfer.study.store import read_trials
from study.training import complete, prepare, read_plan, read_rows


@pytest.fixture
def table(finished, tmp_path):
    """The small study's published table."""
    path = tmp_path / "small.parquet"
    pq.write_table(read_trials(finished).rows, path)
    return path


def change(path, name, make):
    """Write a column anew, value by value."""
    rows = pq.read_table(path)
    place = rows.column_names.index(name)
    field = rows.schema.field(name)
    values = [None if x is None else make(x) for x in rows.column(name).to_pylist()]
    pq.write_table(rows.set_column(place, field, pa.array(values, type=field.type)), path)


def test_trials_come_out_the_same_to_the_bit(study_file, table, finished):
    config = load_study(study_file)
    seen = []
    checks = verify_table(config, table, count=5, on_check=seen.append)
    assert tuple(seen) == checks
    assert len(checks) == 5
    assert all(check.agrees and check.tolerance == 0 for check in checks)
    assert all(check.recorded == check.found for check in checks)
    assert verify_table(config, finished, count=5) == checks
    other = verify_table(config, table, count=5, seed=1)
    assert [check.id for check in other] != [check.id for check in checks]


def test_a_last_digit_is_enough_to_differ(study_file, table):
    change(table, "loss", lambda loss: math.nextafter(loss, 10))
    checks = verify_table(load_study(study_file), table, count=4)
    assert all(check.agrees == (check.found is None) for check in checks)


def test_a_loss_curve_has_to_agree_too(study_file, table):
    change(table, "loss_curve", lambda curve: [curve[0] + 1e-4, *curve[1:]])
    checks = verify_table(load_study(study_file), table, count=4)
    assert not any(check.agrees for check in checks)


def test_elsewhere_losses_may_differ_by_seed_noise(study_file, table):
    config = load_study(study_file)
    change(table, "device", lambda name: "another processor")
    checks = verify_table(config, table, count=24)
    assert all(check.agrees and check.tolerance > 0 for check in checks)
    rows = pq.read_table(table).to_pylist()
    # By hand: two seeds a cell, pooled where the cell's mean is near its rule's best.
    for check in checks:
        cells = {}
        for row in rows:
            if row["width"] == check.width and row["loss"] is not None:
                cells.setdefault((row["parameterization"], row["log2_lr"]), []).append(row["loss"])
        near = [
            (a - b) ** 2 / 2
            for (rule, _), (a, b) in cells.items()
            if (a + b) / 2
            <= 0.2 + min(np.mean(losses) for (other, _), losses in cells.items() if other == rule)
        ]
        own = cells.get((check.parameterization, check.log2_lr), [0, 0])
        expected = 3 * math.sqrt(max(np.mean(near), (own[0] - own[1]) ** 2 / 2))
        assert check.tolerance == pytest.approx(expected)
    change(table, "loss", lambda loss: loss + 1.0)
    checks = verify_table(config, table, count=24)
    assert [check.agrees for check in checks] == [check.recorded is None for check in checks]


def test_trials_that_others_began_need_not_have_equal_bits(study_file, table):
    rows = pq.read_table(table)
    place = rows.column_names.index("resumed_from")
    others = pa.array(["hptransfer 0"] * len(rows))
    pq.write_table(rows.set_column(place, "resumed_from", others), table)
    checks = verify_table(load_study(study_file), table, count=4)
    assert all(check.agrees and check.tolerance > 0 for check in checks)


def publish(directory, path):
    """Publish as `studies/publish.py` does, with the plan."""
    groups = [asdict(group) for group in read_plan(directory)]
    about = {"hptransfer": json.dumps({"groups": groups})}
    pq.write_table(read_trials(directory).rows.replace_schema_metadata(about), path)
    return path


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_stacked_run_has_the_bits_of_one_alone_on_a_cpu(study_file, tmp_path, precision):
    """Stacked to twelve, at both precisions; each of another rate, rule and seed."""
    text = study_file.read_text().replace('precision = "fp32"', f'precision = "{precision}"')
    study_file.write_text(text.replace("head_size = 8", "head_size = 16"))
    complete(study_file, tmp_path / "out")
    assert max(len(group.runs) for group in read_plan(tmp_path / "out")) >= 6
    table = publish(tmp_path / "out", tmp_path / "table.parquet")
    checks = verify_table(load_study(study_file), table, count=24)
    assert all(check.agrees and check.tolerance == 0 for check in checks)
    assert {row["precision"] for row in read_rows(tmp_path / "out")} == {precision}


# Compiling warns of what PyTorch itself still uses.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_compiled_group_is_verified_as_it_was_compiled(study_file, tmp_path, monkeypatch):
    """Padded groups of compiled steps, as a GPU has them, on the CPU's compiler."""
    speed = Speed(precision="bf16", seconds=1.0, mode="compiled", num_stacked=4)
    monkeypatch.setattr(
        _local_engine, "measure_speeds", lambda config, runs, machine: dict.fromkeys(runs, speed)
    )
    text = study_file.read_text().replace("width = [16, 32]", "width = [16]")
    text = text.replace("[-7, -5, 6]", "[-7, -6, -5, -4, 6]").replace("seed = [0, 1]", "seed = [0]")
    study_file.write_text(text.replace('precision = "fp32"', 'precision = "bf16"'))
    complete(study_file, tmp_path / "out")
    groups = read_plan(tmp_path / "out")
    assert {group.mode for group in groups} == {"compiled"}
    assert any(group.num_padding for group in groups)
    modes = []
    start = _verify.start_group

    def spy(config, group, trials, tokens):
        modes.append((group.mode, len(group.runs), group.stacked))
        return start(config, group, trials, tokens)

    monkeypatch.setattr(_verify, "start_group", spy)
    table = publish(tmp_path / "out", tmp_path / "table.parquet")
    checks = verify_table(load_study(study_file), table, count=10)
    assert all(check.agrees and check.tolerance == 0 for check in checks)
    # Each group once, as it was.
    assert sorted(modes) == sorted(("compiled", len(g.runs), g.stacked) for g in groups)


@pytest.mark.parametrize("about", [
    "no JSON", '{"groups": 7}', '[]', '{"groups": [{"name": "width-16-00000000"}]}',
    '{"groups": [{"name": "width-16-00000000", "width": 16, "runs": [["a"]], "precision": "fp32",'
    ' "device": "cpu", "threads": 1, "seconds": 1.0}]}',
])  # fmt: skip
def test_a_plan_that_is_none_is_one_line(study_file, table, about):
    rows = pq.read_table(table).replace_schema_metadata({"hptransfer": about})
    pq.write_table(rows, table)
    with pytest.raises(DataError, match="metadata 'hptransfer'") as caught:
        verify_table(load_study(study_file), table)
    assert "\n" not in str(caught.value)


def test_one_seed_says_nothing_of_noise(study_file, table):
    config = load_study(study_file)
    change(table, "torch_version", lambda version: "1.0")
    rows = pq.read_table(table)
    pq.write_table(rows.filter(pa.compute.equal(rows.column("seed"), 0)), table)
    with pytest.raises(ConfigError, match="--noise"):
        verify_table(config, table)
    assert all(check.agrees for check in verify_table(config, table, noise=0.1))


def test_tables_that_are_not_this_studys_are_refused_in_one_line(study_file, table, tmp_path):
    config = load_study(study_file)
    plain = tmp_path / "plain.parquet"
    pq.write_table(pq.read_table(table).drop_columns(["data_hash"]), plain)
    (tmp_path / "none.parquet").write_text("no table")
    for path, words in [
        (plain, "no column 'data_hash'"),
        (tmp_path / "none.parquet", "in Parquet"),
    ]:
        with pytest.raises(DataError, match=words) as caught:
            verify_table(config, path)
        assert "\n" not in str(caught.value)
    study_file.write_text(study_file.read_text().replace("steps = 12", "steps = 13"))
    with pytest.raises(DataError, match="name its study file"):
        verify_table(load_study(study_file), table)
    study_file.write_text(study_file.read_text().replace("steps = 13", "steps = 12"))
    change(table, "base_lr", lambda lr: 2 * lr)
    with pytest.raises(DataError, match="by its content"):
        verify_table(config, table)
    (study_file.parent / "text" / "a.txt").write_text("one page\n\nand one more\n")
    with pytest.raises(DataError, match="expected the text of its trials"):
        verify_table(config, table)


def test_a_directory_without_results_is_refused_in_one_line(study_file, tmp_path):
    prepare(study_file, tmp_path / "out")
    with pytest.raises(DataError, match="found no trials") as caught:
        verify_table(load_study(study_file), tmp_path / "out")
    assert "\n" not in str(caught.value)


def test_the_command_says_each_trial_and_exits_with_1_where_one_differs(study_file, table, capsys):
    argv = ["verify", str(study_file), str(table), "--count", "2", "--max-width", "16"]
    assert main(argv) == 0
    lines = capsys.readouterr().out.replace("\n  ", " ").splitlines()  # which fits 80 columns
    assert len(lines) == 3
    assert lines[-1] == "2 of 2 trials agree"
    change(table, "init_loss", lambda loss: loss)
    change(table, "loss_curve", lambda curve: [0.0] * len(curve))
    assert main([*argv, "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert [trial["agrees"] for trial in document["trials"]] == [False, False]
    assert {trial["width"] for trial in document["trials"]} == {16}
    assert main([*argv[:-1], "8"]) == 2
    assert main([*argv, "--count", "0"]) == 2
