"""The published tables: they open, and are of the study files beside them."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from hptransfer.study._trial import list_trials, num_tokens
from hptransfer.study.config import load_study
from hptransfer.tables import read_table

STUDIES = Path(__file__).parents[2] / "studies"
TABLES = sorted((STUDIES / "tables").glob("*.parquet"))
OWN = [path for path in TABLES if "id" in pq.read_schema(path).names]
#: Bytes that all tables may take together.
MOST_BYTES = 20_000_000


def test_there_are_tables_and_they_are_small():
    assert TABLES
    assert sum(path.stat().st_size for path in TABLES) < MOST_BYTES


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_a_table_opens_and_the_data_card_names_it(path):
    table = read_table(path)
    assert len(table) == pq.read_metadata(path).num_rows
    assert table.axis == "hidden-aligned"
    # Rates are told by role: SP's are all alike, and η/m.
    width, base = 4 * table.base_width, table.base_width
    roles = table.rates({"parameterization": "sp"}, width, 0.04)
    assert list(roles.values()) == pytest.approx([0.04 * base / width] * len(roles))
    assert f"`{path.stem}`" in (STUDIES / "tables" / "README.md").read_text(encoding="utf-8")
    assert path.stem in (STUDIES / "LOG.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", OWN, ids=lambda path: path.stem)
def test_trials_are_those_of_the_study_file(path):
    config = load_study(STUDIES / f"{path.stem}.toml")
    planned = {trial.id: trial for trial in list_trials(config)}
    rows = pq.read_table(path).to_pylist()
    assert len({row["id"] for row in rows}) == len(rows)
    about = json.loads(pq.read_schema(path).metadata[b"hptransfer"])
    for row in rows:
        trial = planned[row["id"]]
        for name in ("parameterization", "width", "base_lr", "weight_decay", "seed", "identity"):
            assert row[name] == getattr(trial, name)
        assert row["trained_as"] in planned
        assert row["tokens"] == num_tokens(config, row["width"])
        assert row["data_hash"] == about["study"]["data"]["data_hash"]
        for name in ("device", "torch_version", "package_version", "precision"):
            assert row[name]
        # The curve is that of the run: it starts at the initial loss, and ends where the run did.
        assert row["loss_curve"][0] == pytest.approx(row["init_loss"])
        last = row["steps"] - 1 if row["diverged_step"] is None else row["diverged_step"]
        assert row["curve_steps"][-1] <= last
        if row["state"] == "completed":
            assert row["curve_steps"][-1] == last
            # Training and held-out loss of a trained model lie close together.
            assert abs(row["loss_curve"][-1] - row["loss"]) < 0.5
        else:
            assert row["loss"] is None
