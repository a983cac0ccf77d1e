import numpy as np
import pyarrow as pa
import pytest

from hptransfer.errors import DataError
from hptransfer.stats import fit_table
from hptransfer.tables import read_table, to_frame
from stats.synthetic import fit_basin, join_tables, lr_sensitivity, make_table, recommend


@pytest.fixture(scope="module")
def table():
    groups = ({"parameterization": "sp"}, {"parameterization": "mup"})
    return join_tables(
        *(make_table(groups=group, seed=seed, num_lrs=5) for seed, group in enumerate(groups))
    )


def test_a_frame_in_a_paths_place_is_told_its_own_reader() -> None:
    with pytest.raises(DataError, match=r"found Table; of a frame in memory, read_frame\(FRAME\)"):
        read_table(pa.table({"width": [64], "lr": [0.1], "loss": [3.0]}))


def test_a_frame_holds_every_estimate_of_a_fit(table):
    fits = fit_table(table, num_resamples=50)
    frame = to_frame(fits)
    assert frame.column_names[0] == "parameterization"
    assert frame.num_rows == sum(len(fit.quantities()) for fit in fits)
    rows = {(r["parameterization"], r["quantity"], r["width"]): r for r in frame.to_pylist()}
    for fit in fits:
        name = fit.group["parameterization"]
        alpha = rows[name, "alpha", None]
        assert alpha["value"] == fit.exponents["alpha"].value
        assert alpha["low"] == fit.exponents["alpha"].low
        assert alpha["high"] == fit.exponents["alpha"].high
        assert alpha["status"] == "identified"
        for basin in fit.basins:
            assert rows[name, "loss", basin.width]["value"] == basin.loss.value
    assert frame.schema.field("value").type == pa.float64()


def test_results_of_every_kind_share_a_frame(table):
    one = fit_table(table, num_resamples=50)[0]
    results = [
        one,
        *recommend(table, width=2048, num_resamples=50),
        *lr_sensitivity(table, init_loss=5.0, num_resamples=50),
        *fit_table(table, num_resamples=50).fast_transfer(),
        fit_basin(make_table(num_lrs=5), width=128.0, num_resamples=50),
    ]
    frame = to_frame(results)
    assert frame.num_rows == sum(len(result.quantities()) for result in results)
    assert {"kappa", "lr_sensitivity", "fast_transfer_margin"} <= set(frame["quantity"].to_pylist())
    for result in results:
        said = str(result)
        assert said
        assert "Estimate(" not in said


def test_no_results_are_an_empty_frame():
    assert to_frame([]).num_rows == 0


def test_the_loss_at_init_and_the_flops_of_a_table_are_read(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("width,lr,loss,init_loss,flops\n64,0.1,2,5.5,1e9\n64,0.2,,unknown,-1\n")
    table = read_table(path)
    np.testing.assert_array_equal(table.init_loss, [5.5, np.nan])
    np.testing.assert_array_equal(table.flops, [1e9, np.nan])
    path.write_text("width,lr,loss,params,tokens\n64,0.1,2,1000,20000\n64,0.2,3,1000,20000\n")
    table = read_table(path)
    assert table.init_loss is None
    np.testing.assert_array_equal(table.flops, [1.2e8, 1.2e8])
