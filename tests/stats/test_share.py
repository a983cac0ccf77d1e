from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import least_squares
from scipy.stats import binom

from hptransfer.stats import LossTable, fit_table
from hptransfer.stats._power_laws import share_exponent
from stats.synthetic import join_tables, make_table

OPTIONS = {"noise": 0.004, "num_seeds": 3}


def named(parameterization, **options):
    return make_table(groups={"parameterization": parameterization}, **{**OPTIONS, **options})


def pair(seed, **options):
    """Two groups of one α; R(∞) is 0.05."""
    return join_tables(
        named("sp", loss_inf=2.05, excess=0.9, drift=1.0, seed=2 * seed, **options),
        named("mup", seed=2 * seed + 1, **options),
    )


def half(estimate):
    return estimate.high - estimate.low


@pytest.mark.parametrize("share", ["alpha", "loss_inf"])
def test_the_shared_laws_are_the_joint_least_squares(share):
    gap = {"loss_inf": 2.05} if share == "alpha" else {"alpha": 0.6}
    table = join_tables(named("sp", seed=1, **gap), named("mup", seed=1))
    fits = fit_table(table, share=share, num_resamples=20, scatter=0.0)
    problems = [fit.laws.problem for fit in fit_table(table, num_resamples=20, scatter=0.0).groups]

    def residuals(p):
        out = []
        for k, problem in enumerate(problems):
            own, rise = p[1 + 2 * k : 3 + 2 * k]
            alpha, floor = (p[0], own) if share == "alpha" else (own, p[0])
            law = floor + rise * np.exp(-alpha * problem.t)
            out.append(problem.white @ (law - problem.y[0]))
        return np.concatenate(out)

    own, first = ((2.0, 0.5), (0.5, 2.0))[share == "loss_inf"]
    start = [first, own, 0.4, own, 0.4]
    found = least_squares(residuals, start, x_scale="jac", xtol=1e-14, ftol=1e-14, gtol=1e-14).x
    other = "loss_inf" if share == "alpha" else "alpha"
    for k, fit in enumerate(fits):
        assert fit.exponents[share].value == pytest.approx(found[0], rel=1e-3)
        assert fit.exponents[other].value == pytest.approx(found[1 + 2 * k], rel=1e-3)


def test_a_group_shared_with_itself_is_the_group_alone():
    # Two equal groups agree on their alpha already: sharing it must move nothing.
    table = join_tables(named("sp", seed=3), named("mup", seed=3))
    alone, shared = (fit_table(table, share=s, num_resamples=20) for s in (None, "alpha"))
    for one, other in zip(alone, shared, strict=True):
        for name, e in one.exponents.items():
            assert other.exponents[name].value == pytest.approx(e.value, rel=1e-5), name
        assert one.shared is None
        assert other.metrics["E"] == one.metrics["E"]


def test_sharing_alpha_shortens_the_interval_of_r_inf_and_it_covers():
    studies, hits, shorter = 14, 0, []
    for study in range(studies):
        table = pair(900 + study)
        alone, _ = fit_table(table, reference="mup", num_resamples=60)
        shared, _ = fit_table(table, reference="mup", num_resamples=60, share="alpha")
        r = shared.metrics["R_inf"]
        hits += r.low <= 0.05 <= r.high
        shorter.append(half(r) / half(alone.metrics["R_inf"]))
        assert shared.exponents["alpha"] != alone.exponents["alpha"]
    assert np.median(shorter) < 0.6
    # Too few hits would happen by chance about once in two thousand; so would too many.
    assert binom.ppf(5e-4, studies, 0.9) <= hits


def test_different_exponents_are_said_to_contradict_the_assumption():
    table = join_tables(named("sp", alpha=0.8, seed=1), named("mup", alpha=0.4, seed=2))
    sp, mup = fit_table(table, reference="mup", share="alpha")
    assert sp.shared.rejected
    assert sp.shared.p_value <= 0.01
    for e in (sp.exponents["alpha"], mup.exponents["loss_inf"], sp.metrics["R_inf"]):
        assert e.status == "not identified"
        assert "the groups' own α differ" in e.reason
    assert any("which contradicts it" in note for note in mup.notes)
    assert sp.exponents["gamma"].status == "identified"


def test_equal_exponents_are_seldom_said_to_differ():
    # Noise that a width's learning rates and all groups share is no difference.
    p_values = []
    for study in range(12):
        table = pair(40 + study, shared=0.6)
        p_values.append(fit_table(table, share="alpha", num_resamples=60)[0].shared.p_value)
    assert np.sum(np.array(p_values) <= 0.1) <= binom.ppf(0.999, 12, 0.1)
    assert np.median(p_values) > 0.2


def test_sharing_the_floor_makes_r_inf_zero_by_assumption():
    table = join_tables(named("sp", alpha=0.6, seed=5), named("mup", seed=6))
    alone, shared = (fit_table(table, reference="mup", share=s) for s in (None, "loss_inf"))
    sp = shared[0]
    assert not sp.shared.rejected
    assert sp.metrics["R_inf"].reason == "0 by assumption: L∞ is shared"
    assert sp.metrics["R_inf"].status == "not identified"
    floors = [fit.exponents["loss_inf"].value for fit in shared]
    assert floors[0] == pytest.approx(floors[1])
    assert sp.exponents["loss_inf"].low <= 2.0 <= sp.exponents["loss_inf"].high
    assert sp.exponents["alpha"].low <= 0.6 <= sp.exponents["alpha"].high
    assert half(sp.exponents["alpha"]) < half(alone[0].exponents["alpha"])
    floors = join_tables(named("sp", loss_inf=2.2, seed=5), named("mup", seed=6))
    sp, _ = fit_table(floors, reference="mup", share="loss_inf")
    assert "the groups' own L∞ differ" in sp.exponents["loss_inf"].reason


def test_units_scale_through_a_shared_fit():
    table = pair(7)
    moved = LossTable(
        width=table.width * 8.0,
        lr=table.lr * 3.0,
        loss=table.loss * 5.0,
        seed=table.seed,
        groups=table.groups,
    )
    for share in ("alpha", "loss_inf"):
        one, other = (
            fit_table(t, reference="mup", share=share, num_resamples=50) for t in (table, moved)
        )
        for a, b in zip(one, other, strict=True):
            assert b.exponents["alpha"].value == pytest.approx(a.exponents["alpha"].value, rel=1e-4)
            assert b.exponents["loss_inf"].value == pytest.approx(
                5.0 * a.exponents["loss_inf"].value, rel=1e-4
            )
            assert b.shared.p_value == pytest.approx(a.shared.p_value, abs=0.05)


def test_a_floor_below_zero_is_held_at_zero_for_all():
    table = join_tables(
        named("sp", loss_inf=-0.4, excess=3.0, seed=1), named("mup", loss_inf=-0.5, excess=3.0)
    )
    fits = fit_table(table, share="loss_inf", num_resamples=50)
    assert [f.exponents["loss_inf"].value for f in fits] == [0.0, 0.0]
    fits = fit_table(table, share="alpha", num_resamples=50)
    assert fits[0].exponents["alpha"].value == fits[1].exponents["alpha"].value
    for fit in fits:
        assert fit.exponents["loss_inf"].value >= 0.0
    assert any("L∞ hit its bound of 0" in fit.exponents["loss_inf"].reason for fit in fits)


def test_groups_that_cannot_share_say_so():
    table = join_tables(named("sp", widths=(64.0, 128.0)), named("mup"), named("x", seed=4))
    sp, mup, x = fit_table(table, reference="mup", share="alpha")
    assert sp.shared is None
    assert sp.notes[-1] == "α is not shared: there are no laws of width"
    assert mup.shared.groups == x.shared.groups == ("mup", "x")
    (lone,) = fit_table(named("mup"), share="alpha")
    assert lone.notes[-1] == "α is shared with no other group: none has laws of width"
    assert lone.shared is None


def test_without_noise_different_values_contradict_the_assumption():
    table = join_tables(named("sp", noise=0.0, alpha=0.6), named("mup", noise=0.0))
    sp, _ = fit_table(table, share="alpha", num_resamples=200)
    assert sp.shared.rejected


def test_json_holds_the_assumption():
    fit, _ = (f.to_dict() for f in fit_table(pair(3), share="alpha", num_resamples=50))
    assert fit["shared"]["parameter"] == "alpha"
    assert fit["shared"]["groups"] == ["sp", "mup"]
    assert len(fit["shared"]["own"]) == 2
    assert fit["shared"]["rejected"] is False
    alone, _ = (f.to_dict() for f in fit_table(pair(3), num_resamples=50))
    assert alone["shared"] is None


def test_a_shared_exponent_at_its_bound_is_not_identified():
    steep = {"alpha": 5.0, "excess": 3.0, "noise": 0.001}
    table = join_tables(named("sp", seed=1, **steep), named("mup", seed=2, **steep))
    for fit in fit_table(table, share="alpha", num_resamples=50):
        assert fit.exponents["alpha"].value == pytest.approx(3.0)
        assert fit.exponents["alpha"].status == "not identified"
        assert "alpha hit a bound of its range" in fit.exponents["alpha"].reason
        assert fit.exponents["loss_inf"].status == "not identified"


def test_a_draw_with_a_low_loss_caps_no_other_draw():
    fits = fit_table(pair(3), num_resamples=20, scatter=0.0).groups
    laws = [fit.laws for fit in fits]
    low = laws[0].problem.y.copy()
    low[-1] -= 1.0
    moved = [replace(laws[0], problem=laws[0].problem._replace(y=low)), laws[1]]
    for one, other in zip(
        share_exponent(laws, "loss_inf"), share_exponent(moved, "loss_inf"), strict=True
    ):
        np.testing.assert_allclose(one.best.limit[:-1], other.best.limit[:-1], rtol=1e-6)
