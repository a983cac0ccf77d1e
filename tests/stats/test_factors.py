"""Matched pairs: by hand, against scipy's own tests, and over many known truths."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hptransfer.errors import DataError
from hptransfer.stats.switch_effects import (
    Factor,
    MetricsTable,
    compute_factors,
    find_bounds,
    match_pairs,
    number_blocks,
    sign_test,
)

SWITCHES = ("embd", "ln", "attn", "last")


def lattice(num_settings: int, values: Sequence[float] | np.ndarray, effect="difference"):
    """Return a whole lattice at each setting; values in order of setting, then switches."""
    rows = list(itertools.product(range(num_settings), *[(False, True)] * 4))
    setting = np.empty(len(rows), dtype=object)
    setting[:] = [float(row[0]) for row in rows]
    return MetricsTable(
        switches={
            name: np.array([row[1 + place] for row in rows]) for place, name in enumerate(SWITCHES)
        },
        setting={"weight_decay": setting},
        metrics={"x": np.asarray(values, dtype=float)},
        effects={"x": effect},
    )


def factor_of(table: MetricsTable, switch: str) -> Factor:
    return next(factor for factor in compute_factors(table) if factor.switch == switch)


def test_an_additive_lattice_gives_each_switch_its_own_effect() -> None:
    rng = np.random.default_rng(0)
    table = lattice(6, np.zeros(96))
    effects = {"embd": -2.0, "ln": 1.5, "attn": 0.0, "last": 0.25}
    wd = np.repeat(rng.normal(size=6), 16)  # a setting's own level cancels in pairs
    values = wd + sum(size * table.switches[name] for name, size in effects.items())
    found = compute_factors(replace(table, metrics={"x": values}))
    assert [factor.switch for factor in found] == list(SWITCHES)
    for factor in found:
        assert factor.size.value == pytest.approx(effects[factor.switch], abs=1e-12)
        assert (factor.pairs, factor.units, factor.unit) == (48, 6, "weight_decay")
        assert factor.size.status == "identified"
    ratio = compute_factors(replace(table, metrics={"x": np.exp(values)}, effects={"x": "ratio"}))
    assert ratio[0].size.value == pytest.approx(np.exp(-2))
    assert (ratio[0].falling, ratio[0].rising, ratio[0].direction) == (48, 0, "falls")
    assert (ratio[1].falling, ratio[1].rising, ratio[1].direction) == (0, 48, "rises")
    assert ratio[0].p_value == 2 / 2**6  # all of six settings agree


def test_pairs_are_those_of_brute_force() -> None:
    rng = np.random.default_rng(1)
    whole = lattice(5, np.zeros(80))
    keep = rng.permutation(80)[:50]
    table = MetricsTable(
        switches={name: column[keep] for name, column in whole.switches.items()},
        setting={name: column[keep] for name, column in whole.setting.items()},
        metrics={"x": rng.normal(size=50)},
        effects={"x": "difference"},
    )
    for switch in SWITCHES:
        others = [name for name in SWITCHES if name != switch]
        expected = {
            (i, j)
            for i, j in itertools.product(range(50), repeat=2)
            if not table.switches[switch][i]
            and table.switches[switch][j]
            and table.setting["weight_decay"][i] == table.setting["weight_decay"][j]
            and all(table.switches[name][i] == table.switches[name][j] for name in others)
        }
        off, on = match_pairs(table, switch)
        assert set(zip(off.tolist(), on.tolist(), strict=True)) == expected
        factor = factor_of(table, switch)
        changes = [table.metrics["x"][j] - table.metrics["x"][i] for i, j in expected]
        assert factor.size.value == pytest.approx(np.median(changes))
        assert factor.falling == sum(change < 0 for change in changes)


def test_without_settings_it_is_the_order_statistic_interval() -> None:
    """Eight pairs of one setting: scipy's sign test and its interval are the oracle."""
    table = replace(lattice(1, np.random.default_rng(2).normal(size=16)), setting={})
    for switch in SWITCHES:
        off, on = match_pairs(table, switch)
        change = table.metrics["x"][on] - table.metrics["x"][off]
        factor = factor_of(table, switch)
        assert (factor.unit, factor.units) == ("pair", 8)
        assert factor.size.status == "weakly identified"
        assert "1 setting(s)" in factor.size.reason
        oracle = stats.quantile_test(change, q=0, p=0.5)
        assert factor.p_value == pytest.approx(oracle.pvalue)
        low, high = oracle.confidence_interval(0.9)
        assert (factor.size.low, factor.size.high) == (low, high)


@pytest.mark.parametrize(
    ("rise", "fall"), [(3, 9), (5, 0), (1, 1), (95, 100), (250, 260), (900, 800)]
)
def test_pairs_alone_make_the_ordinary_sign_test(rise: int, fall: int) -> None:
    balance = np.array([1] * rise + [-1] * fall + [0] * 4)
    expected = stats.binomtest(rise, rise + fall).pvalue
    assert sign_test(balance) == pytest.approx(expected, rel=2e-3)


@given(balance=st.lists(st.integers(-6, 6), min_size=1, max_size=8))
def test_flips_are_those_of_enumeration(balance: list[int]) -> None:
    sums = [
        abs(sum(sign * size for sign, size in zip(signs, balance, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(balance))
    ]
    expected = np.mean([total >= abs(sum(balance)) for total in sums])
    assert sign_test(np.array(balance)) == pytest.approx(expected)


def test_few_blocks_of_many_pairs_stay_exact() -> None:
    """The normal law would say 0.03 of five blocks that agree, whatever their size."""
    assert sign_test(np.array([70_001, 69_999, 70_000, 1, 70_000])) == pytest.approx(2 / 2**4)
    assert sign_test(np.array([50_000] * 5)) == 2 / 2**5
    assert sign_test(np.zeros(300, dtype=np.int64)) == sign_test(np.zeros(3, dtype=np.int64)) == 1


def test_blocks_are_the_coarsest_column() -> None:
    def column(values: Sequence[object]) -> np.ndarray:
        array = np.empty(len(values), dtype=object)
        array[:] = values
        return array

    table = replace(
        lattice(6, np.zeros(96)),
        setting={"wd": column([k % 8 for k in range(96)]), "seed": column(list(range(96)))},
    )
    unit, blocks = number_blocks(table)
    assert (unit, len(set(blocks.tolist()))) == ("wd", 8)
    few = replace(table, setting={"a": column([0, 1] * 48), "b": column([0, 0, 1, 2] * 24)})
    unit, blocks = number_blocks(few)
    assert (unit, len(set(blocks.tolist()))) == ("setting", 4)


def test_numbers_near_the_largest() -> None:
    values = np.where(np.arange(96) % 2, 1e308, -1e308)
    assert factor_of(lattice(6, values), "last").size.value == np.inf
    ratio = factor_of(lattice(6, np.where(np.arange(96) % 2, 1e300, 1e-300), "ratio"), "last")
    assert (ratio.size.low, ratio.rising) == (np.inf, 48)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([0.25, 4.0, 1024.0]),
    shift=st.integers(-3, 3),
)
def test_equivariance(seed: int, scale: float, shift: int) -> None:
    """A scale scales the effect, a shift of all rows does nothing to it; a ratio sees no scale."""
    values = np.random.default_rng(seed).integers(1, 1000, size=96).astype(float)
    one = compute_factors(lattice(6, values))
    other = compute_factors(lattice(6, values * scale + shift))
    swapped = lattice(6, values)
    swapped = replace(swapped, switches={n: ~column for n, column in swapped.switches.items()})
    ratios = [compute_factors(lattice(6, k * values, "ratio")) for k in (1, scale)]
    for a, b, c in zip(one, other, compute_factors(swapped), strict=True):
        ends = a.size.low, a.size.value, a.size.high
        assert (b.size.low, b.size.value, b.size.high) == tuple(scale * end for end in ends)
        assert (c.size.high, c.size.value, c.size.low) == tuple(-end for end in ends)
        assert a.p_value == b.p_value == c.p_value
        assert a.size.low <= a.size.value <= a.size.high
    assert ratios[0] == ratios[1]


def test_coverage_with_dependent_pairs() -> None:
    """Settings move all their pairs together; taking pairs as independent would miss often."""
    rng = np.random.default_rng(3)
    runs, hits, naive = 100, 0, 0
    for _ in range(runs):
        table = lattice(8, rng.normal(scale=0.5, size=128))
        effect = np.repeat(rng.normal(loc=1.0, size=8), 16)
        values = table.metrics["x"] + effect * table.switches["embd"]
        size = factor_of(replace(table, metrics={"x": values}), "embd").size
        hits += size.low <= 1.0 <= size.high
        off, on = match_pairs(table, "embd")
        low, high = stats.quantile_test(values[on] - values[off], q=0, p=0.5).confidence_interval(
            0.9
        )
        naive += low <= 1.0 <= high
    assert 0.86 <= hits / runs <= 0.98
    assert naive / runs < 0.75


def test_the_interval_agrees_with_its_test() -> None:
    rng = np.random.default_rng(4)
    for _ in range(30):
        values = rng.normal(size=96) + rng.normal() * np.tile([0, 1], 48)
        for factor in compute_factors(lattice(6, values)):
            if factor.direction != "unclear":
                assert factor.p_value < 0.1


def test_a_large_table_is_answered_from_a_part_of_its_ranks() -> None:
    rng = np.random.default_rng(5)
    table = lattice(300, rng.normal(size=4800))
    for factor in compute_factors(table):
        assert factor.pairs == 2400
        assert factor.size.low < 0.0 + 0.2
        assert -0.15 < factor.size.low < factor.size.value < factor.size.high < 0.15


def test_bounds_are_seen_and_left_out() -> None:
    rng = np.random.default_rng(6)
    values = rng.normal(size=96).round(3)
    values[:7] = -5.0
    assert find_bounds(values) == {-5.0: 7}
    values[90:] = 5.0
    assert find_bounds(values) == {-5.0: 7, 5.0: 6}
    found = compute_factors(lattice(6, values))
    assert [factor.pairs + factor.at_bound for factor in found] == [48] * 4
    assert found[0].at_bound == 7 + 6  # 7 off and 6 on, of different pairs
    # A ratio has no bounds looked for: small errors of few digits repeat by themselves.
    ratios = compute_factors(lattice(6, values + 6, "ratio"))
    assert all(factor.at_bound == 0 for factor in ratios)


@pytest.mark.parametrize(
    "values",
    [
        [0.0] * 9 + [0.5, 1.0, 2.0, 3.0],  # a reference compared with itself
        [1.0] * 9,  # nothing else to compare with
        [1.0] * 9 + [2.0, 3.0],
        [1.0, 1.0, 2.0, 3.0, 4.0, 5.0],  # twice is chance
        [1.0] * 5 + [2.0] * 3 + [3.0] * 4 + [4.0] * 3 + [5.0],  # few digits: all repeat
        [],
    ],
)
def test_what_repeats_without_being_a_bound(values: list[float]) -> None:
    assert find_bounds(np.array([*values, np.nan])) == {}


def test_absent_values_are_counted() -> None:
    values = np.random.default_rng(7).normal(size=96)
    values[[0, 1]] = np.nan  # rows that differ in "last": one pair of it, two of the others
    found = {factor.switch: factor for factor in compute_factors(lattice(6, values))}
    assert [found[name].absent for name in SWITCHES] == [2, 2, 2, 1]
    assert found["last"].pairs == 47
    none = compute_factors(lattice(6, np.full(96, np.nan)))[0]
    assert (none.pairs, none.size.value, none.p_value) == (0, None, 1.0)
    assert none.size.status == "not identified"


def test_too_few_pairs_have_no_interval() -> None:
    whole = lattice(1, np.arange(16.0))
    table = replace(
        whole,
        switches={name: column[:8] for name, column in whole.switches.items()},
        setting={},
        metrics={"x": np.arange(8.0)},
    )
    by_switch = {factor.switch: factor for factor in compute_factors(table)}
    assert by_switch["embd"].pairs == 0  # it is off everywhere
    last = by_switch["last"]
    assert (last.pairs, last.size.value, last.size.low, last.direction) == (4, 1, None, "unclear")
    assert last.to_dict()["reason"] == "4 pair(s), 5 or more are needed"


def test_wrong_tables() -> None:
    table = lattice(2, np.ones(32))
    with pytest.raises(DataError, match=r"column 'x': expected positive numbers .* found -1"):
        compute_factors(lattice(2, [-1, *[1] * 31], "ratio"))
    twice = replace(table, setting={})
    with pytest.raises(DataError, match="rows 1 and 17 have the same switches and setting"):
        compute_factors(twice)
    index = np.empty(32, dtype=object)
    index[:] = range(32)
    with pytest.raises(DataError, match="at equal weight_decay, id, found no such pair among 32"):
        compute_factors(replace(table, setting={**table.setting, "id": index}))
