"""The search: pure, on its lattice, never twice, and more precise than a grid that costs more."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hptransfer.search._next_points import fit_optima
from hptransfer.search._search_rule import FEWEST_POINTS, SearchRule
from hptransfer.search.optimum_search import search_optima
from hptransfer.stats.loss_table import LossTable, build_cells
from stats.synthetic import make_table

OCTAVE = float(np.log(2.0))
WIDTHS = (32.0, 64.0, 128.0)
COSTS = {width: width**1.5 for width in WIDTHS}


def make_rule(**changes):
    defaults = {"step": 0.25, "log2_lr": (-10.0, -2.0), "limits": (-14.0, 4.0), "error": 0.05}
    return SearchRule(**{**defaults, "max_points": 6, "stop": "optima", **changes})


def measure(points, optimum, *, noise=0.004, cliff=np.inf, curvature=0.1, num_seeds=2):
    """Rows of (width, log2 lr) pairs; a trial's noise depends on where it is, not on when."""
    rows = []
    for width, place in points:
        u = (place - optimum(width)) * OCTAVE
        clean = 4.0 + 4.0 * width**-0.5 + 0.5 * curvature * (u**2 + 0.1 * u**3) / (1 + u**2 / 30)
        for seed in range(num_seeds):
            draw = np.random.default_rng([int(width), round(place * 100) + 10_000, seed])
            loss = clean + noise * draw.standard_normal()
            rows.append((width, 2.0**place, np.nan if u > cliff else loss, seed))
    width, lr, loss, seed = (np.array(column) for column in zip(*rows, strict=True))
    return LossTable(width=width, lr=lr, loss=loss, seed=seed.astype(np.int64))


def run_search(optimum, rule, costs=COSTS, **how):
    """Ask and measure until nothing is asked; return the points and how each width ended."""
    points = []
    while True:
        table = measure(points, optimum, **how) if points else None
        found = search_optima(table, costs, rule)
        asked = [(each.width, place) for each in found for place in each.points]
        assert [each.state == "search" for each in found] == [bool(e.points) for e in found]
        if not asked:
            return points, found
        assert not set(asked) & set(points)
        points += asked


@settings(max_examples=8, deadline=None)
@given(
    place=st.floats(-12, 0),
    drift=st.floats(-0.9, 0.3),
    cliff=st.floats(0.6, 4.0),
    noise=st.floats(1e-4, 0.02),
    max_points=st.sampled_from([4, 6, 6.5]),
)
def test_it_ends_on_its_lattice_within_its_caps(place, drift, cliff, noise, max_points):
    rule = make_rule(max_points=max_points)
    points, found = run_search(
        lambda width: place + drift * np.log2(width / 32), rule, noise=noise, cliff=cliff
    )
    assert all(-14 <= lr <= 4 for _, lr in points)
    assert all(lr * 4 == round(lr * 4) for _, lr in points)
    most = max(COSTS.values())
    assert sum(COSTS[width] for width, _ in points) <= rule.max_points * sum(COSTS.values())
    for each in found:
        assert each.num_points == sum(width == each.width for width, _ in points)
        assert each.state in ("done", "stopped")
        if each.state == "done":
            assert each.error <= rule.with_cost_share(COSTS[each.width] / most).error


def test_equal_tables_give_equal_points_in_any_order():
    table = make_table(num_lrs=5, widths=(64.0, 128.0), num_seeds=2, step=4.0)
    order = np.random.default_rng(3).permutation(len(table))
    shuffled = LossTable(
        width=table.width[order], lr=table.lr[order], loss=table.loss[order], seed=table.seed[order]
    )
    rule, costs = make_rule(), {64.0: 1.0, 128.0: 4.0}
    assert search_optima(shuffled, costs, rule) == search_optima(table, costs, rule)


def test_a_shift_of_the_axis_by_lattice_steps_shifts_what_is_asked():
    here, _ = run_search(lambda width: -6.2, make_rule(), noise=0.0)
    rule = make_rule(log2_lr=(-7.0, 1.0), limits=(-11.0, 7.0))
    there, _ = run_search(lambda width: -3.2, rule, noise=0.0)
    assert [(width, place + 3.0) for width, place in here] == there


@pytest.mark.parametrize(
    ("cliff", "curvature", "seed"), [(np.inf, 0.1, 0), (1.2, 0.1, 1), (2.0, 0.2, 2)]
)
def test_within_its_cap_of_compute_it_errs_less_than_a_full_grid(cliff, curvature, seed):
    """Against the truth, not only against the errors that the fit claims for itself."""
    rng = np.random.default_rng(seed)
    grid, search, share = [], [], []
    for _ in range(6):
        shift = dict(zip(WIDTHS, rng.uniform(-0.5, 0.5, len(WIDTHS)), strict=True))

        def optimum(width, shift=shift):
            return -5.0 - 0.4 * np.log2(width / 32) + shift[width]

        how = {"cliff": cliff, "curvature": curvature, "noise": 0.005}
        places = [(width, -8.0 + 0.5 * k) for width in WIDTHS for k in range(13)]
        full = fit_optima(build_cells(measure(places, optimum, **how))).optima
        target = float(np.sqrt(np.mean([error**2 for _, error in full.values()])))
        rule = make_rule(log2_lr=(-8.0, -2.0), error=target, max_points=6.5)
        points, _ = run_search(optimum, rule, **how)
        found = fit_optima(build_cells(measure(points, optimum, **how))).optima
        grid += [full[width][0] - optimum(width) for width in WIDTHS]
        search += [found[width][0] - optimum(width) for width in WIDTHS]
        share.append(sum(COSTS[w] for w, _ in points) / sum(COSTS[w] for w, _ in places))
    error = np.sqrt(np.mean(np.square(search))) / np.sqrt(np.mean(np.square(grid)))
    print(f"error {error:.2f}, compute {np.mean(share):.2f}")
    assert max(share) <= 0.5
    assert error <= 1.0


@given(
    costs=st.lists(st.floats(1, 1e6), min_size=1, max_size=6),
    max_points=st.floats(FEWEST_POINTS, 50),
    wanted=st.lists(st.floats(0.3, 1), min_size=6, max_size=6),
)
def test_a_budget_is_kept_whatever_each_width_takes_of_its_share(costs, max_points, wanted):
    costs, rule = sorted(costs), make_rule(max_points=max_points)
    spent = 0.0
    for done, cost in enumerate(costs):
        room = rule.points_for_width(costs, spent=spent, done=done)
        assert room >= FEWEST_POINTS
        spent += cost * max(FEWEST_POINTS, int(room * wanted[done]))
        assert spent <= max_points * sum(costs) * (1 + 1e-9)


def test_a_budget_goes_where_it_lowers_the_sum_of_variances():
    """Against every other way to spend it, by whole points."""
    costs, rule = [1.0, 3.0, 8.0], make_rule(max_points=9)
    budget, spent, chosen = 9 * sum(costs), 0.0, []
    for done, cost in enumerate(costs):
        chosen.append(rule.points_for_width(costs, spent=spent, done=done))
        spent += cost * chosen[-1]
    ways = itertools.product(range(FEWEST_POINTS, 19), repeat=3)
    best = min(
        sum(1 / n for n in way)
        for way in ways
        if sum(n * c for n, c in zip(way, costs, strict=True)) <= budget
    )
    assert sum(1 / n for n in chosen) <= 1.02 * best
    assert rule.points_for_width([2.0, 2.0]) == 9


def test_a_minimum_beyond_the_limits_is_given_up_in_words():
    points, found = run_search(lambda width: -20.0, make_rule())
    assert [each.state for each in found] == ["stopped"] * 3
    assert "not bracketed" in found[0].reason
    assert "no narrower width" in found[1].reason
    assert {width for width, _ in points} == {32.0}


def test_where_everything_diverges_it_goes_down_until_it_finds_losses():
    points, found = run_search(lambda width: -12.0, make_rule(log2_lr=(-6.0, -2.0)), cliff=2.0)
    assert min(place for _, place in points) < -10
    assert found[0].optimum == pytest.approx(-12.0, abs=0.3)


def test_divergence_is_the_right_hand_edge():
    points, found = run_search(lambda width: -5.0, make_rule(), cliff=0.3)
    narrow = sorted(place for width, place in points if width == 32.0)
    above = [place for place in narrow if place > -4.5]
    assert len(above) <= 4  # the first bracket's, and the halvings of the gap before the edge
    assert all(each.optimum < -4.5 for each in found if np.isfinite(each.optimum))


def test_a_wider_width_starts_where_the_law_of_the_narrower_ones_points():
    def first_of(widest, slope):
        narrow = [width for width in WIDTHS if width < widest]
        places = [(width, -6.0 + k) for width in narrow for k in range(-2, 3)]
        table = measure(places, lambda width: -6 + slope * np.log2(width / 32), noise=1e-4)
        rule = make_rule(error=1.0)
        return search_optima(table, {width: COSTS[width] for width in WIDTHS}, rule)[-1].points

    # One narrower width: its optimum, moved by what is known of such sweeps.
    assert -7.0 < np.mean(first_of(64.0, 0.0)) < -5.75
    assert np.mean(first_of(128.0, -0.5)) == pytest.approx(-7.0, abs=0.3)
    assert np.mean(first_of(128.0, -0.5)) < np.mean(first_of(128.0, 0.0)) - 0.5


def test_the_first_bracket_is_entered_from_inside():
    [first] = search_optima(None, COSTS, make_rule(log2_lr=(-10.0, -2.0)))
    assert first.points == (-8.0, -6.0, -4.0)
    _, found = run_search(lambda width: -9.7, make_rule(log2_lr=(-10.0, -2.0)))
    assert found[0].optimum == pytest.approx(-9.7, abs=0.2)
    [first] = search_optima(None, COSTS, make_rule(log2_lr=(-6.0, -4.0), step=0.5))
    assert first.points == (-5.5, -5.0, -4.5)


def for_regret(**changes):
    return make_rule(**{"stop": "regret", "step": 0.25, **changes})


@pytest.mark.parametrize("drift", [-0.6, 0.0])
def test_for_the_regret_it_stays_within_both_budgets_and_says_what_it_reached(drift):
    rule = for_regret()
    points, found = run_search(lambda width: -6.1 + drift * np.log2(width / 32), rule)
    assert len(points) <= rule.max_points * len(WIDTHS)
    assert sum(COSTS[width] for width, _ in points) <= rule.max_points * sum(COSTS.values())
    assert {width for width, _ in points} == set(WIDTHS)
    for each in found:
        assert each.state == "done"
        assert "regret at width 512 at most" in each.reason


def test_a_looser_regret_takes_fewer_points():
    def optimum(width):
        return -6.1 - 0.4 * np.log2(width / 32)

    few, _ = run_search(optimum, for_regret(regret=0.05), noise=0.02)
    many, _ = run_search(optimum, for_regret(regret=1e-4), noise=0.02)
    assert len(few) < len(many)


def test_for_the_regret_points_go_where_they_cost_little():
    """Against a search whose trials cost the same at every width."""
    counts = []
    for costs in (COSTS, {width: width**4.0 for width in WIDTHS}):
        points, _ = run_search(lambda width: -6.1, for_regret(regret=1e-5), costs, noise=0.03)
        counts.append([sum(width == w for width, _ in points) for w in WIDTHS])
    (even, steep) = (count[-1] / sum(count) for count in counts)
    assert steep <= even


def test_where_no_width_has_a_minimum_it_ends_without_one():
    _, found = run_search(lambda width: -20.0, for_regret())
    assert [each.state for each in found] == ["stopped"] * 3
