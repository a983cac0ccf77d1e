import numpy as np
import pytest

from hptransfer.errors import FitError
from hptransfer.stats import LossTable, build_cells
from hptransfer.stats.loss_table import split_table
from stats.synthetic import join_tables, make_table


def table(rows, **groups):
    width, lr, loss, seed = (np.array(c) for c in zip(*rows, strict=True))
    return LossTable(
        width=width.astype(float),
        lr=lr.astype(float),
        loss=loss.astype(float),
        seed=seed.astype(np.int64),
        groups={k: np.array(v, dtype=object) for k, v in groups.items()},
        source="a.csv",
    )


def test_cells_hold_means_counts_and_diverged_trials():
    cells = build_cells(
        table([(8, 0.1, 3.0, 0), (8, 0.1, 5.0, 1), (8, 0.2, np.nan, 0), (8, 0.2, 1.0, 1)])
    )
    np.testing.assert_allclose(cells.x, np.log([0.1, 0.2]))
    np.testing.assert_array_equal(cells.count, [2, 1])
    np.testing.assert_array_equal(cells.diverged, [0, 1])
    # One of two trials diverged: the survivor's loss of 1.0 is not the cell's.
    np.testing.assert_allclose(cells.mean, [4.0, np.nan])
    np.testing.assert_array_equal(cells.clean, [True, False])


def test_infinite_loss_is_a_diverged_trial():
    cells = build_cells(table([(8, 0.1, np.inf, 0)]))
    assert cells.diverged.tolist() == [1]
    assert np.isnan(cells.mean[0])


def test_repeated_trials_are_replicates():
    cells = build_cells(table([(8, 0.1, 3.0, 0), (8, 0.1, 4.0, 0)]))
    assert len(cells) == 1
    assert cells.seeds == ((0, 0), (0, 1))
    assert cells.mean[0] == 3.5


def test_rounding_of_lr_does_not_split_cells():
    assert len(build_cells(table([(8, 0.1, 3.0, 0), (8, 0.1 * (1 + 1e-14), 4.0, 1)]))) == 1


@pytest.mark.parametrize("window", [1.0, 1.35])
def test_window_is_a_multiple_of_each_widths_best(window):
    rows = [(8, 0.1, 2.0, 0), (8, 0.2, 2.6, 0), (8, 0.4, 2.8, 0), (16, 0.1, 1.0, 0)]
    inside = build_cells(table(rows)).in_window(window)
    expected = [True, window > 1, False, True]
    np.testing.assert_array_equal(inside, expected)


@pytest.mark.parametrize(
    ("row", "column"), [((8, 0.0, 1.0, 0), "lr"), ((-8, 0.1, 1.0, 0), "width")]
)
def test_a_number_that_is_not_positive_is_named(row, column):
    with pytest.raises(FitError, match=f"a.csv: column {column}, row 2: expected a positive"):
        build_cells(table([(8, 0.1, 1.0, 0), row]))


def test_an_empty_table_is_refused():
    whole = make_table()
    with pytest.raises(FitError, match="at least one trial"):
        build_cells(whole, np.zeros(0, dtype=np.int64))


def test_groups_come_in_order_of_appearance():
    both = join_tables(
        make_table(groups={"parameterization": "sp"}),
        make_table(groups={"parameterization": "mup"}),
    )
    first, second = split_table(both, ("parameterization",))
    assert first.values == {"parameterization": "sp"}
    assert second.rows[0] == len(both) // 2


def test_a_column_left_out_may_follow_width_but_not_vary_within_it():
    rows = [(8, 0.1, 3.0, 0), (16, 0.1, 2.0, 0)]
    assert len(split_table(table(rows, tokens=[100, 200]), ())) == 1
    rows = [(8, 0.1, 3.0, 0), (8, 0.2, 2.0, 0)]
    with pytest.raises(FitError, match=r"column tokens.*100, 200 at width 8.*--by tokens"):
        split_table(table(rows, tokens=[100, 200]), ())


def test_groups_are_those_of_a_walk_through_the_rows():
    rng = np.random.default_rng(0)
    rows = [(float(8 * rng.integers(1, 4)), 0.1, 3.0, k) for k in range(200)]
    rules = [str(rule) for rule in rng.choice(["sp", "mup", "1"], 200)]
    decays = [float(decay) for decay in rng.choice([0.0, 1.0, 0.5], 200)]
    both = table(rows, rule=rules, decay=decays)
    expected = {}
    for row, key in enumerate(zip(rules, decays, strict=True)):
        expected.setdefault((("rule", key[0]), ("decay", key[1])), []).append(row)
    groups = split_table(both, ("rule", "decay"))
    found = {tuple(group.values.items()): group.rows.tolist() for group in groups}
    assert list(found) == list(expected)
    assert found == expected
