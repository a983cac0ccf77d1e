"""What was probed: from a study directory, from its published table, from anything else."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hptransfer.errors import DataError
from hptransfer.study.store import read_trials
from hptransfer.tables import read_probes, read_table
from study.training import complete


@pytest.fixture
def probed(study_file, tmp_path):
    study_file.write_text(study_file.read_text() + "\n[probes]\nevery = 3\n")
    complete(study_file, tmp_path / "probed")
    return tmp_path / "probed"


def test_medians_after_the_warm_up(probed, tmp_path):
    rows = read_trials(probed).rows.to_pylist()
    trials = read_probes(probed)
    assert len(trials) == len(rows) == len(read_table(probed))
    for row, trial in zip(rows, trials, strict=True):
        assert (trial.width, trial.lr, trial.seed) == (row["width"], row["base_lr"], row["seed"])
        assert trial.group == {"parameterization": row["parameterization"], "weight_decay": 0.0}
        assert trial.diverged == (row["state"] == "diverged")
        values = np.reshape(row["probe_values"], (len(row["probe_steps"]), -1))
        place = row["probe_names"].index("grad_norm/embedding")
        # The warm-up of 12 steps takes 2.4, so that the probe of step 0 does not count.
        after = [value for step, value in zip(row["probe_steps"], values, strict=True) if step > 2]
        if after:
            expected = np.nanmedian([value[place] for value in after])
            assert trial.medians["grad_norm/embedding"] == pytest.approx(expected)
    table = tmp_path / "published.parquet"
    pq.write_table(read_trials(probed).rows, table)
    assert repr(read_probes(table)) == repr(trials)  # NaN is not NaN


def test_other_sources_have_none(finished, tmp_path):
    assert read_probes(finished) == ()  # a study without probes
    losses = tmp_path / "losses.csv"
    losses.write_text("width,lr,loss\n64,0.1,3\n")
    assert read_probes(losses) == ()
    plain = tmp_path / "plain.parquet"
    pq.write_table(pa.table({"width": [64], "lr": [0.1], "loss": [3.0]}), plain)
    assert read_probes(plain) == ()
    plain.write_text("no table")
    assert read_probes(plain) == ()
    assert read_probes(tmp_path / "missing.parquet") == ()


def test_probes_that_do_not_fit_are_named(probed, tmp_path):
    rows = read_trials(probed).rows
    place = rows.column_names.index("probe_values")
    short = [values[:-1] for values in rows.column(place).to_pylist()]
    column = pa.array(short, type=rows.schema.field(place).type)
    table = tmp_path / "short.parquet"
    pq.write_table(rows.set_column(place, rows.schema.field(place), column), table)
    with pytest.raises(DataError, match=r"short.parquet: trial 1: expected \d+ probe_values"):
        read_probes(table)
