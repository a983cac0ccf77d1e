"""Rates by role against `resolve`, and a study's table against the rates it was trained with."""

import numpy as np
import pytest

from hptransfer.scaling import LATTICE, resolve
from hptransfer.stats import LossTable, fit_table
from hptransfer.tables import attach_rates
from stats.synthetic import make_table

SETTINGS = {"axis": "hidden-aligned", "config": {"sweep": {"base_width": 32}}}


@pytest.mark.parametrize("axis", ["hidden-aligned", "global"])
@pytest.mark.parametrize("name", LATTICE)
def test_every_rule_gives_the_rates_of_resolve(name: str, axis: str) -> None:
    settings = {"axis": axis, "config": {"sweep": {"base_width": 48}}}
    rates = attach_rates(LossTable.from_columns(width=[8], lr=[0.1], loss=[1]), settings).rates
    found = rates({"parameterization": name}, 480.0, 0.3)
    expected = resolve(name, width=480, base_width=48, base_lr=0.3, axis=axis, head_size=48)
    assert found == {role: numbers.lr for role, numbers in expected.roles.items()}


def test_a_group_that_names_no_rule_has_no_rates() -> None:
    rates = attach_rates(LossTable.from_columns(width=[8], lr=[0.1], loss=[1]), SETTINGS).rates
    assert rates({"parameterization": "my own"}, 64, 0.1) is None
    assert rates({}, 64, 0.1) is None


def test_a_recommendation_says_what_to_type() -> None:
    table = make_table(widths=(64.0, 128.0, 256.0), groups={"parameterization": "sp+embd"})
    (plain,) = fit_table(table, num_resamples=20).recommend(width=512)
    assert (plain.lr_by_role, plain.base_width) == (None, None)
    study = attach_rates(table, SETTINGS)
    (answer,) = fit_table(study, num_resamples=20).recommend(width=512)
    assert answer.lr_by_role["embedding"] == answer.lr.value
    assert answer.lr_by_role["hidden"] == pytest.approx(answer.lr.value / 16)
    assert answer.to_dict()["base_width"] == 32


def test_a_table_as_given_stays_so() -> None:
    table = LossTable.from_columns(width=[8], lr=[0.1], loss=[np.nan])
    for settings in ({}, {"axis": "hidden-aligned"}, {"config": {"sweep": {"base_width": 8}}}):
        assert attach_rates(table, settings) is table
