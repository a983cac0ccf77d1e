"""The results store: whole or not at all, damage named, another study refused."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hptransfer.study import store
from hptransfer.study._trial import list_trials
from hptransfer.study.config import parse_study
from hptransfer.study.store import (
    ARROW_SCHEMA,
    GROUP_COLUMNS,
    PERMANENT_COLUMNS,
    SCALAR_COLUMNS,
    TABLE_COLUMNS,
    group_path,
    read_trials,
    recover_finished,
    write_group,
)
from hptransfer.study.study_settings import open_study, read_settings
from study.small import DATA, make_config

VALUES = {
    pa.string(): "x", pa.int64(): 3, pa.float64(): 0.5, pa.list_(pa.float32()): [5.0, 4.5],
    pa.list_(pa.int32()): [0, 1], pa.list_(pa.string()): ["x"],
}  # fmt: skip


def make_row(**values):
    filled = {field.name: VALUES[field.type] for field in ARROW_SCHEMA}
    del filled["schema_version"]
    return {**filled, "identity": make_config().identity(), **values}


def write_as_of_old(directory, name, rows, *, lacks=()):
    """Write what an older version would have written, without a digest."""
    write_group(directory, name, [{**row, "schema_version": 1} for row in rows])
    path = group_path(directory, name)
    pq.write_table(pq.read_table(path).replace_schema_metadata().drop_columns(list(lacks)), path)


def recover(directory, *planned):
    found = recover_finished(directory, planned or ("good", "bad", "g", "h"))
    return set(found.ids), [path.name for path, _ in found.damaged]


def list_names(folder):
    return [path.name for path in folder.iterdir()]


@pytest.fixture
def directory(tmp_path):
    open_study(tmp_path / "study", make_config(), data=DATA)
    return tmp_path / "study"


@settings(max_examples=25, deadline=None)
@given(
    loss=st.none() | st.floats(0, 20),
    lr=st.floats(1e-9, 1e3),
    name=st.text(max_size=20).filter(lambda text: text.isprintable()),
    curve=st.lists(st.floats(0, 20, width=32)),
)
def test_rows_come_back_as_they_were(tmp_path_factory, loss, lr, name, curve):
    directory = tmp_path_factory.mktemp("store")
    open_study(directory, make_config(), data=DATA)
    row = make_row(
        id="a", loss=loss, base_lr=lr, parameterization=name,
        loss_curve=curve, curve_steps=list(range(len(curve))),
    )  # fmt: skip
    write_group(directory, "g", [row])
    [found] = read_trials(directory).rows.to_pylist()
    assert found == {**row, "schema_version": 3}


def test_a_value_of_no_column_is_not_dropped(directory):
    with pytest.raises(KeyError, match="no column of results: los, widht"):
        write_group(directory, "g", [make_row(), make_row(widht=8, los=1.0)])
    assert not group_path(directory, "g").exists()


def test_columns_that_stay():
    stay = ("parameterization", "width", "base_lr", "log2_lr", "weight_decay", "seed", "state")
    assert set(stay) | {"loss", "id", "loss_curve", "data_hash"} <= set(ARROW_SCHEMA.names)


@pytest.mark.parametrize("damage", ["truncated", "garbage", "empty", "other columns", "flipped"])
def test_a_damaged_file_is_named_and_the_rest_reads(directory, damage):
    write_group(directory, "good", [make_row(id="a")])
    write_group(directory, "bad", [make_row(id="b")])
    path = group_path(directory, "bad")
    whole = path.read_bytes()
    if damage == "other columns":
        pq.write_table(pa.table({"x": [1]}), path)
    else:
        path.write_bytes(
            {
                "truncated": whole[:-9],
                "garbage": b"PAR1 and so on",
                "empty": b"",
                "flipped": whole[:-40] + bytes(255 - b for b in whole[-40:-8]) + whole[-8:],
            }[damage]
        )
    found = read_trials(directory)
    assert found.rows.column("id").to_pylist() == ["a"]
    [(named, reason)] = found.foreign if damage == "other columns" else found.damaged
    assert named == path
    assert reason
    assert "\n" not in reason
    # Where no group of the plan has that name it is none of ours, and stays.
    left = recover_finished(directory, {"good"})
    assert ([path for path, _ in left.foreign], left.damaged) == ([path], ())
    assert recover(directory) == ({"a"}, ["bad.parquet.damaged"])
    assert recover(directory) == ({"a"}, [])
    assert read_trials(directory).damaged == ()


def test_a_flipped_bit_is_damage_not_other_numbers(directory):
    """Every 101st bit of the file, its footer and its digest included."""
    write_group(directory, "g", [make_row(id="a", loss=4.25), make_row(id="b", loss=4.5)])
    path = group_path(directory, "g")
    whole, in_lists = path.read_bytes(), slice(*store._find_lists(path))
    for bit in range(0, len(whole) * 8, 101):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        assert len(read_trials(directory).damaged) == 1
        # Without the lists it is damage too, unless it is the lists'.
        is_theirs = changed[in_lists] != whole[in_lists]
        assert bool(read_trials(directory, TABLE_COLUMNS).damaged) != is_theirs


@pytest.mark.parametrize("name", [*PERMANENT_COLUMNS, "schema_version"])
def test_a_file_of_old_without_a_column_that_stays_is_damaged(directory, name):
    write_as_of_old(directory, "good", [make_row(id="a")])
    write_as_of_old(directory, "bad", [make_row(id="b")], lacks=[name])
    found = read_trials(directory)
    assert found.rows.column("id").to_pylist() == ["a"]
    assert found.num_unchecked == 1
    assert [path.name for path, _ in found.damaged] == ["bad.parquet"]


def test_a_file_that_has_lost_its_digest_is_damaged(directory):
    write_group(directory, "g", [make_row(id="a")])
    path = group_path(directory, "g")
    path.write_bytes(path.read_bytes().replace(b"hptransfer-sha256", b"hptransfer-sha257"))
    [(_, reason)] = read_trials(directory).damaged
    assert "digest" in reason


def test_files_in_one_anothers_place_are_damaged(directory):
    write_group(directory, "good", [make_row(id="a")])
    write_group(directory, "bad", [make_row(id="b")])
    shutil.copy(group_path(directory, "good"), group_path(directory, "bad"))
    assert recover(directory) == ({"a"}, ["bad.parquet.damaged"])


def test_rows_of_another_study_and_what_is_no_file_are_left_alone(directory):
    write_group(directory, "good", [make_row(id="a")])
    write_as_of_old(directory, "foreign", [make_row(id="b", identity="0" * 64)])
    (directory / "groups" / "folder.parquet").mkdir()
    os.mkfifo(directory / "groups" / "pipe.parquet")
    found = read_trials(directory)
    assert found.rows.column("id").to_pylist() == ["a"]
    reasons = {path.stem: reason for path, reason in found.foreign}
    assert "another study" in reasons["foreign"]
    left = recover_finished(directory, {"good"})
    assert {path.stem for path, _ in left.foreign} == {"folder", "pipe", "foreign"}
    assert left.damaged == ()


def test_an_old_file_that_unpacks_to_more_than_any_group_is_refused(directory, monkeypatch):
    write_as_of_old(directory, "bad", [make_row(id="a", loss_curve=[1.0] * 10**5)])
    monkeypatch.setattr(store, "MAX_RESULTS_BYTES", 10**5)
    [(_, reason)] = read_trials(directory).damaged
    assert "at most 100,000 bytes" in reason


def test_a_write_that_fails_leaves_nothing(directory, monkeypatch):
    def fail(where, *options, **others):
        Path(where).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.pq, "ParquetWriter", fail)
    with pytest.raises(OSError, match="No space"):
        write_group(directory, "g", [make_row()])
    assert list_names(directory / "groups") == []


def test_a_rewrite_that_fails_leaves_the_old_file(directory, monkeypatch):
    write_group(directory, "g", [make_row(id="a")])
    monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError(5, "no")))
    with pytest.raises(OSError, match=r"Input/output error: .*g\.parquet"):
        write_group(directory, "g", [make_row(id="b")])
    assert recover(directory) == ({"a"}, [])
    assert list_names(directory / "groups") == ["g.parquet"]


def test_a_trial_in_two_files_counts_once(directory):
    row = make_row(id="a")
    write_group(directory, "g", [row, make_row(id="b")])
    write_group(directory, "h", [{**row, "group": "h"}, make_row(id="c")])
    rows = read_trials(directory).rows.to_pylist()
    assert [r["id"] for r in rows] == ["a", "b", "c"]
    assert rows[0]["group"] != "h"


def test_files_are_readable_by_a_team(directory):
    mask = os.umask(0o022)
    try:
        write_group(directory, "g", [make_row()])
    finally:
        os.umask(mask)
    assert group_path(directory, "g").stat().st_mode & 0o777 == 0o644


def test_a_column_of_a_later_version_is_null_in_older_files(directory):
    write_as_of_old(directory, "g", [make_row(id="a")], lacks=["threads"])
    [row] = read_trials(directory).rows.to_pylist()
    assert row["threads"] is None
    assert row["id"] == "a"


@pytest.mark.parametrize(("schema", "unchecked"), [(1, 2), (2, 0)])
def test_older_schemas_still_read(schema, unchecked):
    """Files that earlier versions wrote, committed for good."""
    directory = Path(__file__).parent / "data" / f"schema-{schema}"
    expected = json.loads((directory / "expected.json").read_text())
    stored = read_trials(directory)
    assert stored.damaged == ()
    columns = ["id", "parameterization", "width", "log2_lr", "seed", "state", "loss"]
    rows = stored.rows.select(columns).to_pylist()
    assert sorted(rows, key=lambda row: row["id"]) == expected
    assert read_settings(directory)["name"] == "small"
    # And a resume knows its trials as those of the study.
    config = parse_study(read_settings(directory)["config"])
    assert config.identity() == read_settings(directory)["identity"]
    ids = {trial.id for trial in list_trials(config)}
    assert recover(directory) == (ids, [])
    assert stored.num_unchecked == unchecked


def test_columns_that_are_asked_for_read_as_in_the_whole(directory):
    write_group(directory, "g", [make_row(id="a", loss=4.25), make_row(id="b", loss=None)])
    write_as_of_old(directory, "h", [make_row(id="c", loss=4.5)], lacks=["flops"])
    whole = read_trials(directory).rows
    for columns in (TABLE_COLUMNS, ("loss",), ("flops", "seed"), ()):
        names = [name for name in whole.column_names if name in {"id", *columns}]
        assert read_trials(directory, columns).rows == whole.select(names)


@pytest.mark.parametrize("name", [*TABLE_COLUMNS, "loss_curve", "curve_steps", "probe_values"])
def test_a_resume_sees_damage_to_every_column(directory, name):
    """What is read is checked whatever else is read, and a resume checks all of a file."""
    write_group(directory, "g", [make_row(id="a")])
    path = group_path(directory, "g")
    with pq.ParquetFile(path) as file:
        column = file.metadata.row_group(0).column(file.schema_arrow.names.index(name))
    changed = bytearray(path.read_bytes())
    end = column.dictionary_page_offset or column.data_page_offset
    changed[end + column.total_compressed_size - 1] ^= 1
    path.write_bytes(changed)
    assert [path.name for path, _ in read_trials(directory).damaged] == ["g.parquet"]
    assert len(read_trials(directory, [name]).damaged) == 1
    # Who reads no lists need not hash them.
    assert len(read_trials(directory, TABLE_COLUMNS).damaged) == (name in TABLE_COLUMNS)
    assert recover(directory) == (set(), ["g.parquet.damaged"])


def test_leftovers_go_and_what_is_needed_stays(directory):
    for folder in ("groups", "plan", "checkpoints"):
        (directory / folder).mkdir(exist_ok=True)
        (directory / folder / ".x-1.tmp").write_bytes(b"half")
    write_group(directory, "done", [make_row(id="a")])
    for name in ("done", "under-way"):
        store.checkpoint_path(directory, name).write_bytes(b"saved")
    store.sweep_leftovers(directory, {"done"})
    assert list_names(directory / "groups") == ["done.parquet"]
    assert list_names(directory / "plan") == []
    assert list_names(directory / "checkpoints") == ["under-way.safetensors"]


def test_trials_become_the_table_that_fits_start_from(directory):
    cells = {"a": (2.0**-7, 0, 4.25), "b": (2.0**-7, 1, None), "c": (2.0**-6, 0, 4.5)}
    rows = [make_row(id=n, base_lr=r, seed=s, loss=v) for n, (r, s, v) in cells.items()]
    write_group(directory, "g", rows)
    table = read_trials(directory, SCALAR_COLUMNS).to_loss_table(by=["parameterization", "steps"])
    assert table.lr.tolist() == [2.0**-7, 2.0**-7, 2.0**-6]
    assert table.seed.tolist() == [0, 1, 0]
    assert np.isnan(table.loss).tolist() == [False, True, False]
    assert table.groups["steps"].tolist() == [3, 3, 3]
    assert table.budget is not None
    assert table.budget.tolist() == [row["tokens"] for row in rows]
    assert (table.axis, table.source) == ("hidden-aligned", str(directory))
    some = read_trials(directory).to_loss_table(table.loss > 4.25)
    assert (some.lr.tolist(), list(some.groups)) == ([2.0**-6], list(GROUP_COLUMNS))
