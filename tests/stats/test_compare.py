from dataclasses import replace

import numpy as np
import pytest

from hptransfer.errors import FitError
from hptransfer.stats import LossTable, fit_table
from hptransfer.stats._group_fit import find_group_minima
from stats.synthetic import join_tables, make_table


def named(parameterization, weight_decay=0.0, **options):
    groups = {"parameterization": parameterization, "weight_decay": weight_decay}
    return make_table(groups=groups, **options)


def test_sp_or_else_the_first_group_is_the_reference():
    fits = fit_table(
        join_tables(named("mup", loss_inf=2.05, seed=1), named("sp", loss_inf=2.0, seed=2))
    )
    mup, sp = fits
    assert sp.name == "sp, weight_decay 0.0"
    assert sp.reference == mup.reference == "sp"
    assert mup.metrics["R_inf"].low <= 0.05 <= mup.metrics["R_inf"].high
    assert mup.metrics["R_inf"].status == "identified"
    assert sp.metrics["R_inf"].value == 0.0
    assert list(mup.gaps) == [64.0, 128.0, 256.0, 512.0]
    for gap in mup.gaps.values():
        assert gap.value == pytest.approx(0.05, abs=0.01)
    first, _ = fit_table(join_tables(named("x", seed=1), named("mup", seed=2)))
    assert first.reference == "x"


def test_sp_in_capitals_is_the_reference_of_the_settings_that_have_it():
    fits = fit_table(
        join_tables(
            named("mup", 0.0, seed=1),
            named("SP", 0.0, seed=2),
            named("mup", 0.1, seed=3),
            named("mup-ln", 0.1, seed=4),
        )
    )
    assert [fit.reference for fit in fits] == ["SP", "SP", "mup", "mup"]
    both = fit_table(join_tables(named("SP", seed=1), named("sp", seed=2)))
    assert [fit.reference for fit in both] == ["sp", "sp"]


def test_settings_are_compared_within_themselves():
    fits = fit_table(
        join_tables(
            named("sp", 0.0, loss_inf=2.05, seed=1),
            named("sp", 0.1, loss_inf=1.95, seed=2),
            named("mup", 0.0, seed=3),
        ),
        reference="mup",
    )
    assert fits[0].reference == "mup"
    assert fits[1].reference == ""
    assert fits[1].metrics["R_inf"].reason.startswith("no reference; would help: a second group")
    more = fit_table(
        join_tables(
            named("sp", 0.0), named("x", 0.1, seed=2), named("sp", 0.1, seed=3), named("mup", 0.0)
        ),
        reference="mup",
    )
    assert (
        more[1]
        .metrics["R_inf"]
        .reason.startswith("no reference: mup is missing in this setting; would help: ")
    )


def test_pairing_narrows_gaps():
    # The same draws in both groups: the difference is exact, whatever the seed noise.
    options = {"noise": 0.02, "shared": 0.95, "num_seeds": 3}
    paired = fit_table(
        join_tables(named("sp", loss_inf=2.1, seed=1, **options), named("mup", seed=1, **options)),
        reference="mup",
    )
    loose = fit_table(
        join_tables(named("sp", loss_inf=2.1, seed=1, **options), named("mup", seed=2, **options)),
        reference="mup",
    )

    def half(fits):
        return np.mean([g.high - g.low for g in fits[0].gaps.values()])

    assert half(paired) < 0.6 * half(loose)
    for gap in paired[0].gaps.values():
        assert gap.value == pytest.approx(0.1, abs=1e-6)


def test_gaps_need_no_identified_floor():
    noisy = {"noise": 0.1, "widths": (64.0, 128.0, 256.0)}
    table = join_tables(named("sp", seed=1, **noisy), named("mup", seed=2, **noisy))
    _, mup = fit_table(table)
    assert mup.reference == "sp"
    assert mup.gaps
    assert mup.metrics["R_inf"].status == "not identified"


def test_too_few_widths_say_so_in_r_inf():
    table = join_tables(named("sp", widths=(64.0, 128.0)), named("mup"))
    sp, _ = fit_table(table, reference="mup")
    assert "need 3 widths" in sp.metrics["R_inf"].reason
    _, mup = fit_table(table, reference="sp")
    assert "the reference's exponents need 3 widths" in mup.metrics["R_inf"].reason


def test_a_floor_at_its_bound_spoils_r_inf():
    table = join_tables(named("sp", loss_inf=-0.5, excess=3.0), named("mup"))
    _, mup = fit_table(table, reference="sp")
    assert mup.metrics["R_inf"].status == "not identified"
    assert "the reference's L∞ hit its bound" in mup.metrics["R_inf"].reason


def test_a_lone_group_has_no_reference():
    (fit,) = fit_table(named("sp"))
    assert fit.metrics["R_inf"].reason.startswith("no reference; would help: a second group")
    (plain,) = fit_table(make_table())
    assert plain.group == {}
    assert plain.metrics["R_inf"].reason.startswith("no reference; would help: a second group")


def test_different_seeds_are_said():
    other = named("mup", seed=2)
    other.seed[:] += 10
    sp, _ = fit_table(join_tables(named("sp", seed=1), other), reference="mup")
    assert any("not fully paired" in note for note in sp.notes)


def test_widths_that_one_group_lacks_have_no_gap():
    table = join_tables(named("sp"), named("mup", widths=(64.0, 128.0, 256.0), seed=1))
    sp, _ = fit_table(table, reference="mup")
    assert list(sp.gaps) == [64.0, 128.0, 256.0]


@pytest.mark.parametrize(
    ("by", "message"),
    [
        (("parameterisation",), "no column parameterisation.*did you mean 'parameterization'"),
        (("zzz",), "no column zzz to split on: expected one of parameterization, weight_decay"),
        ((), "column parameterization: expected one value per fit, found mup, sp at width 64"),
    ],
)
def test_columns_are_checked(by, message):
    table = join_tables(named("sp"), named("mup"))
    with pytest.raises(FitError, match=message):
        fit_table(table, by=by)


def test_an_unknown_reference_is_named():
    with pytest.raises(FitError, match=r"no reference mupp: found sp, mup; did you mean 'mup'\?"):
        fit_table(join_tables(named("sp"), named("mup")), reference="mupp")
    with pytest.raises(FitError, match="no reference mup: found no group column"):
        fit_table(make_table(), reference="mup")


def test_an_empty_table_is_refused():
    table = make_table()
    empty = type(table)(
        width=table.width[:0], lr=table.lr[:0], loss=table.loss[:0], seed=table.seed[:0]
    )
    with pytest.raises(FitError, match="at least one trial"):
        fit_table(empty)


@pytest.mark.parametrize("given", ["losses.csv", {"width": [64]}])
def test_what_is_no_loss_table_is_refused_with_what_makes_one(given):
    with pytest.raises(
        FitError, match=r"expected a LossTable, found (str|dict): read_table\(FILE\)"
    ):
        fit_table(given)


def test_another_column_can_be_compared():
    fits = fit_table(
        join_tables(named("mup", 0.0), named("mup", 0.1, seed=4)),
        by=("weight_decay", "parameterization"),
    )
    assert all(f.metrics["R_inf"].reason.startswith("no reference; ") for f in fits)
    table = join_tables(named("mup", 0.0), named("mup", 0.1, loss_inf=1.9, seed=4))
    fits = fit_table(table, by=("weight_decay",))
    assert fits[1].reference == "0.0"


def test_rules_that_are_the_same_trials_have_one_optimum_and_a_gap_of_zero():
    """At the base width; each group's other widths would shape its basin there."""
    tables = [
        make_table(groups={"parameterization": name}, skew=skew, gamma=gamma, seed=seed)
        for name, skew, gamma, seed in (("sp", 0.2, 0.3, 1), ("mup", -0.2, -0.3, 2))
    ]
    base = tables[0].width == 64.0
    for column in ("lr", "loss", "seed"):
        getattr(tables[1], column)[base] = getattr(tables[0], column)[base]
    fits = fit_table(join_tables(*tables))
    one, other = (fit.basins[0] for fit in fits)
    assert one.lr == other.lr
    assert one.loss == other.loss
    gap = fits[1].gaps[64.0]
    assert (gap.value, gap.low, gap.high) == (0.0, 0.0, 0.0)
    assert fits[1].gaps[128.0].high > fits[1].gaps[128.0].low
    assert fits.recommend(width=64)[0].lr == fits.recommend(width=64)[1].lr
    for group in fits.groups:
        alone = find_group_minima(group.data)
        for name in ("covariance", "loss_covariance"):
            ours, own = getattr(group.minima, name), getattr(alone, name)
            scale, before = np.sqrt(np.diag(ours)), np.sqrt(np.diag(own))
            assert scale[0] != before[0]
            np.testing.assert_allclose(
                ours / np.outer(scale, scale), own / np.outer(before, before)
            )


def test_equal_trials_are_joined_whatever_seeds_other_widths_have():
    """Seeds that one group has elsewhere are columns of nothing at the base width."""
    tables = [
        make_table(groups={"parameterization": name}, skew=skew, gamma=gamma, seed=seed)
        for name, skew, gamma, seed in (("sp", 0.2, 0.3, 1), ("mup", -0.2, -0.3, 2))
    ]
    base, wide = tables[0].width == 64.0, np.flatnonzero(tables[1].width == 128.0)[:3]
    for column in ("lr", "loss", "seed"):
        getattr(tables[1], column)[base] = getattr(tables[0], column)[base]
    extra = LossTable(
        width=tables[1].width[wide], lr=tables[1].lr[wide], loss=tables[1].loss[wide],
        seed=np.full(3, 99), groups={"parameterization": np.full(3, "mup", dtype=object)},
    )  # fmt: skip
    for scatter in (None, 0.0):
        fits = fit_table(join_tables(*tables, extra), scatter=scatter, num_resamples=20)
        one, other = (fit.basins[0] for fit in fits)
        assert one.lr.value == other.lr.value
        one, other = fits.recommend(width=64, scatter=scatter)
        assert one.lr == other.lr


def test_a_minimum_that_only_the_other_group_finds_is_shared_whole():
    """A cliff beside flat basins, and a basin like any other beside steep ones."""
    x = np.log(2.0) * np.array([-7.0, -6.0, -5.0])
    loss = np.array([3.01, 2.99, 3.39]) + 0.002 * np.random.default_rng(0).standard_normal((3, 3))
    tables = []
    for name, curvature, seed in (("sp", 0.05, 1), ("mup", 0.5, 2)):
        wide = named(name, widths=(128.0, 256.0, 512.0), curvature=curvature, gamma=0.0, seed=seed)
        base = LossTable(
            width=np.full(9, 64.0), lr=np.tile(np.exp(x), 3), loss=loss.ravel(),
            seed=np.repeat(np.arange(3), 3),
            groups={column: values[:9] for column, values in wide.groups.items()},
        )  # fmt: skip
        tables.append(join_tables(base, wide))
    fits = fit_table(join_tables(*tables))
    flat, steep = fits.groups
    assert not find_group_minima(flat.data).found[0]
    assert find_group_minima(steep.data).found[0]
    for covariance in (flat.minima.covariance, flat.minima.loss_covariance):
        assert np.linalg.eigvalsh(covariance).min() > 0.0
        np.testing.assert_array_equal(covariance[0, 1:], 0.0)
    assert flat.minima.covariance[0, 0] == flat.minima.variance[0]
    assert fits[0].basins[0].loss.value == fits[1].basins[0].loss.value
    assert fits[0].exponents["alpha"].low is not None
    # The exact basins lack that minimum, which says nothing of their shape.
    assert not any("shape does not hold" in note for note in fits[0].notes)


def test_groups_scatter_apart():
    tables = [named(name, noise=0.0005, seed=k) for k, name in enumerate(("sp", "mup"))]
    fits = fit_table(join_tables(*tables), scatter=0.3)
    one, other = (fit.laws.place.level[1:] for fit in fits.groups)
    assert one.std() == pytest.approx(0.3 / 2.0, rel=0.2)  # of four widths
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.2


def test_what_is_not_known_of_basins_is_drawn_apart():
    tables = [named(name, noise=1e-5, seed=k) for k, name in enumerate(("sp", "mup"))]
    one, other = (fit.draws.skew for fit in fit_table(join_tables(*tables)).groups)
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.2


def shape_notes(table, scatter=None):
    (fit,) = fit_table(table, scatter=scatter)
    return [note for note in fit.notes if "basins' shape" in note]


def make_bathtub(num_seeds=3, **options):
    """Basins whose sides rise as the fourth power, which no cubic does."""
    table = make_table(noise=0.002, num_seeds=num_seeds, **options)
    u = np.log(table.lr) - np.median(np.log(table.lr))
    return replace(table, loss=table.loss + 0.02 * u**4)


def test_a_held_scatter_of_0_says_where_the_shape_does_not_hold():
    assert shape_notes(make_table(noise=0.002), scatter=0.0) == []
    (note,) = shape_notes(make_bathtub(), scatter=0.0)
    assert "does not hold" in note
    assert "minima and exponents come from the points near the minima" in note
    near, held = (fit_table(make_bathtub(), scatter=s).groups[0] for s in (None, 0.0))
    np.testing.assert_array_equal(held.minima.x, near.minima.x)


def test_a_held_scatter_of_0_gives_way_to_no_chance():
    # A miss that chance makes once in a thousand studies is said, and held all the same.
    table = make_table(noise=0.002, num_seeds=3)
    u = np.log(table.lr) - np.median(np.log(table.lr))
    bent = replace(table, loss=table.loss + 0.001 * u**4)
    (note,) = shape_notes(bent)
    assert "does not hold" in note
    (asked,) = fit_table(bent, scatter=0.0).recommend(width=1024)
    assert asked.verdict != "usable"
    (note,) = shape_notes(bent, scatter=0.0)
    assert "does not hold across the learning rates: minima and exponents rest on it" in note


def test_a_shape_that_near_points_cannot_test_is_not_relied_on():
    options = {"widths": (64.0, 128.0, 256.0), "step": 4.0, "num_lrs": 5, "num_seeds": 1}
    (note,) = shape_notes(make_bathtub(**options))
    assert "cannot be tested" in note
    assert "exponents come from the points near the minima" in note
    # A held scatter of 0 holds what nothing contradicts.
    (note,) = shape_notes(make_bathtub(**options), scatter=0.0)
    assert "minima and exponents rest on it" in note


def test_a_held_scatter_of_0_draws_and_prices_the_cubic_that_it_fitted():
    options = {"noise": 0.0, "skew": 0.12, "drift": 1.5, "x_inf": -5.0}
    (fit,) = fit_table(make_table(**options), scatter=0.0)
    for basin in fit.basins:
        u = np.linspace(-1.5, 1.5, 9)
        optimum, loss, curvature = (each.value for each in (basin.lr, basin.loss, basin.curvature))
        cubic = loss + 0.5 * curvature * (u**2 + 0.12 * u**3)
        np.testing.assert_allclose(basin.curve(np.log(optimum) + u), cubic, atol=1e-6)
    first, last = fit.basins[0], fit.basins[-1]
    u = np.log(first.lr.value / last.lr.value)
    price = 0.5 * last.curvature.value * (u**2 + 0.12 * u**3)
    assert fit.regrets[last.width].value == pytest.approx(price, rel=1e-4)
