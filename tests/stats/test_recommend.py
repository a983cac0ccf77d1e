import numpy as np
import pytest

from hptransfer.errors import FitError
from hptransfer.stats import LossTable
from stats.synthetic import join_tables, make_table, recommend

WIDTHS = tuple(2.0**k for k in range(5, 10))


def test_the_recommendation_holds_the_truth_and_is_usable():
    (answer,) = recommend(make_table(widths=WIDTHS, noise=0.001), width=4096)
    m = 4096 / 32
    true = np.exp(-5 + 0.5 * m**-0.7)
    assert answer.lr.low <= true <= answer.lr.high
    assert answer.lr.value == pytest.approx(true, rel=0.05)
    assert answer.loss.low <= 2 + 0.7 * m**-0.5 <= answer.loss.high
    assert answer.verdict == "usable"
    assert set(answer.regret) == {"recommended", "same_lr", "inverse_width"}
    # Dividing by the width ratio of 8 is off by about ln 8 at a curvature of 0.05·m^0.1.
    price = 0.5 * 0.05 * m**0.1 * (np.log(8) - 0.5 * (16**-0.7 - m**-0.7)) ** 2
    assert answer.regret["inverse_width"].value == pytest.approx(price, rel=0.1)
    assert answer.regret["recommended"].value < answer.regret["same_lr"].value
    assert answer.to_dict()["regret"]["recommended"]["status"] == "identified"


def test_every_group_gets_an_answer():
    table = join_tables(
        make_table(groups={"parameterization": "sp"}),
        make_table(groups={"parameterization": "mup"}, widths=(64.0, 128.0)),
    )
    good, poor = recommend(table, width=1024)
    assert good.group == {"parameterization": "sp"}
    assert poor.verdict == "unusable"
    assert "need 3 widths" in poor.because
    assert poor.lr.value is None
    assert all(e.status == "not identified" for e in poor.regret.values())


def test_reaching_too_far_is_risky():
    (answer,) = recommend(make_table(noise=0.0005), width=512 * 20)
    assert answer.verdict == "risky"
    assert "20 times beyond the widest width" in answer.because


def test_a_price_too_high_is_unusable():
    (answer,) = recommend(make_table(noise=0.3, curvature=0.6, seed=4), width=4096)
    assert answer.verdict == "unusable"
    assert "more than 0.1" in answer.because


def test_a_middling_price_is_risky():
    (answer,) = recommend(make_table(noise=0.1, curvature=0.3, seed=4), width=4096)
    assert answer.verdict == "risky"
    assert "more than 0.02" in answer.because


def test_two_forms_that_disagree_are_said():
    # Three noisy widths hardly tell a drift that stops from one that goes on.
    options = {"noise": 0.1, "curvature": 0.5, "drift": 0.8, "beta": 2.0, "num_lrs": 9}
    table = make_table(widths=(64.0, 128.0, 256.0), num_seeds=2, seed=18, **options)
    (answer,) = recommend(table, width=1024)
    assert answer.verdict == "risky"
    assert "a power law for the optimum fits too and says" in answer.because


def test_a_form_that_the_data_reject_is_not_mentioned():
    table = make_table(noise=0.002, curvature=0.5, drift=1.5, beta=2.0, num_lrs=9)
    (answer,) = recommend(table, width=1024)
    assert answer.verdict == "usable"


def test_a_rate_outside_those_measured_is_said():
    table = make_table(drift=8.0, beta=0.1, num_lrs=8, centre=2.9, noise=0.0005)
    (answer,) = recommend(table, width=8192)
    assert answer.verdict == "risky"
    assert "outside those measured" in answer.because


def test_divergence_at_the_recommended_rate_is_said():
    # One trial of the narrowest width diverged at a rate that suits the target.
    table = make_table(noise=0.001, num_lrs=9, drift=-1.0)
    loss = table.loss.copy()
    loss[np.flatnonzero((table.width == 64) & (np.log(table.lr) > -5.2))[-1]] = np.nan
    (answer,) = recommend(
        LossTable(width=table.width, lr=table.lr, loss=loss, seed=table.seed), width=1024
    )
    assert answer.verdict == "usable"
    loss[(table.width == 64) & (np.log(table.lr) > -5.6)] = np.nan
    (answer,) = recommend(
        LossTable(width=table.width, lr=table.lr, loss=loss, seed=table.seed), width=1024
    )
    assert answer.verdict == "risky"
    assert "diverged at that learning rate" in answer.because


@pytest.mark.parametrize("width", [0, -3, float("nan"), float("inf")])
def test_a_width_that_is_no_width_is_refused(width):
    with pytest.raises(FitError, match="width: expected a positive number"):
        recommend(make_table(), width=width)


def test_an_unknown_reference_is_refused():
    with pytest.raises(FitError, match="no reference x"):
        recommend(make_table(groups={"parameterization": "sp"}), width=1024, reference="x")
