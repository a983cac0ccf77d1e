import json
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hptransfer.errors import ConfigError, DataError, StoreError
from hptransfer.study.store import SCALAR_COLUMNS, TABLE_COLUMNS, ReadTrials
from hptransfer.tables import read_source, read_table

COLUMNS = {
    "id": ["a", "b", "c"],
    "parameterization": ["sp", "mup", "mup"],
    "width": [32, 32, 32],
    "base_lr": [0.125, 0.125, 0.25],
    "log2_lr": [-3.0, -3.0, -2.0],
    "weight_decay": [0.0, 0.0, 0.0],
    "seed": [0, 0, 0],
    "state": ["completed", "diverged", "completed"],
    "loss": [4.0, None, 4.5],
    "loss_curve": [[1.0, 2.0], [1.0], []],
    "batch": [8, 8, 16],
    "init_loss": [6.0, 6.0, 6.0],
    "tokens": [4096, 4096, 4096],
    "flops": [1e9, 1e9, 1e9],
}


def read_trials(directory: Path, columns: Collection[str]) -> ReadTrials:
    """The store's contract, in few lines: what reads, and what does not; what lacks is null."""
    tables, damaged = [], []
    for path in sorted((directory / "groups").glob("*.parquet")):
        try:
            table = pq.ParquetFile(path).read()
        except pa.ArrowInvalid as error:
            damaged.append((path, str(error)))
            continue
        tables.append(table.select([name for name in table.column_names if name in columns]))
    rows = pa.concat_tables(tables) if tables else pa.table({})
    return ReadTrials(directory=directory, rows=rows, damaged=tuple(damaged))


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    store = SimpleNamespace(
        SCALAR_COLUMNS=SCALAR_COLUMNS, TABLE_COLUMNS=TABLE_COLUMNS, read_trials=read_trials
    )
    monkeypatch.setitem(sys.modules, "hptransfer.study.store", store)

    def make(axis: str = "hidden-aligned", *, whole: bool = True, damaged: bool = False) -> Path:
        (tmp_path / "groups").mkdir()
        settings = {
            "schema": 1, "name": "tiny", "identity": "", "axis": axis, "config": {},
            "data": {"data_hash": ""}, "versions": {},
        }  # fmt: skip
        (tmp_path / "study.json").write_text(json.dumps(settings))
        if whole:
            pq.write_table(pa.table(COLUMNS), tmp_path / "groups" / "a.parquet")
        if damaged:
            (tmp_path / "groups" / "b.parquet").write_bytes(b"PAR1")
        return tmp_path

    return make


def test_a_study_reads_with_its_axis_and_settings(study: Callable[..., Path]) -> None:
    found = read_source(study())
    assert found.table.axis == "hidden-aligned"
    assert found.table.lr.tolist() == [0.125, 0.125, 0.25]
    assert found.table.loss[[0, 2]].tolist() == [4.0, 4.5]
    assert found.table.loss[1] != found.table.loss[1]
    assert found.table.groups["parameterization"].tolist() == ["sp", "mup", "mup"]
    assert found.settings["name"] == "tiny"
    assert found.damaged == ()


def test_only_what_is_asked_for_is_read_and_the_rest_is_known_by_name(
    study: Callable[..., Path],
) -> None:
    directory = study()
    split = read_table(directory, by=["batch"])
    assert split.groups["batch"].tolist() == [8, 8, 16]
    assert len(read_table(directory, where={"batch": "16"})) == 1
    assert "batch" not in read_table(directory).groups
    with pytest.raises(ConfigError, match=r"'bacth'; did you mean 'batch'"):
        read_table(directory, where={"bacth": "16"})
    with pytest.raises(ConfigError, match=r"no column 'bacth' to group by; did you mean 'batch'"):
        read_table(directory, by=["bacth"])


def test_an_axis_of_a_later_version_is_as_given(study: Callable[..., Path]) -> None:
    directory = study("sideways")
    assert read_table(directory).axis == "as given"


def test_a_damaged_file_is_named_and_the_rest_reads(study: Callable[..., Path]) -> None:
    directory = study(damaged=True)
    found = read_source(directory)
    assert len(found.table) == 3
    assert len(found.damaged) == 1
    assert found.damaged[0].startswith(f"{directory / 'groups' / 'b.parquet'}: damaged: ")
    with pytest.raises(StoreError, match=r"b\.parquet"):
        read_table(directory)


def test_a_study_without_finished_trials(study: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match=r"no finished trial yet; .*b\.parquet"):
        read_source(study(whole=False, damaged=True))


def test_a_directory_that_is_no_study(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no study\.json"):
        read_table(tmp_path)


def test_the_typed_way_of_the_store_equals_the_way_of_any_table(finished: Path) -> None:
    """Asking for a unit that the losses already have takes a study the other way."""
    for options in ({}, {"by": ["steps"]}, {"where": {"width": "16"}}):
        typed = read_source(finished, **options)
        plain = read_source(finished, unit="nats", **options)
        assert typed.settings == plain.settings
        assert typed.table.groups.keys() == plain.table.groups.keys()
        for name in ("width", "lr", "loss", "seed", "init_loss", "flops"):
            one, other = getattr(typed.table, name), getattr(plain.table, name)
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype
        for name, column in typed.table.groups.items():
            assert column.tolist() == plain.table.groups[name].tolist()
        assert (typed.table.axis, typed.table.source) == (plain.table.axis, plain.table.source)
        assert typed.notes == ()


def test_what_separates_fits_is_checked_as_in_any_table(finished: Path) -> None:
    for column in ("seed", "width", "base_lr"):
        with pytest.raises(ConfigError, match=f"no column '{column}' to group by"):
            read_source(finished, by=[column])
    with pytest.raises(DataError, match="column 'id': expected few values with a sweep each"):
        read_source(finished, by=["id"])
    # What no trial has is one group, and no NaN, which is none of its own.
    groups = read_source(finished, by=["factory", "diverged_step"]).table.groups
    assert {*groups["factory"]} == {""}
    assert "" in {*groups["diverged_step"]}
    assert not any(step != step for step in groups["diverged_step"])
