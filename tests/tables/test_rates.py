"""Rates by role against `resolve`, and a study's table against the rates it was trained with."""

import numpy as np
import pyarrow as pa
import pytest

from hptransfer.scaling import LATTICE, resolve
from hptransfer.stats import LossTable, fit_table
from hptransfer.tables import attach_rates, read_frame
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


@pytest.mark.parametrize("optimizer", [None, "adamw", "sgd", "lion"])
def test_a_published_table_has_the_rates_of_its_optimizer(optimizer: str | None) -> None:
    rates = read_frame(published([optimizer] * 3)).table.rates
    found = rates({"parameterization": "mup"}, 128.0, 0.3)
    settings = {"width": 128, "base_width": 32, "base_lr": 0.3, "head_size": 1}
    named = {"optimizer": optimizer or "adamw", "axis": "hidden-aligned"}
    expected = resolve("mup", **settings, **named)
    assert found == {role: numbers.lr for role, numbers in expected.roles.items()}


def test_a_published_table_of_two_optimizers_is_as_given() -> None:
    table = read_frame(published(["sgd", "sgd", "lion"])).table
    assert (table.rates, table.axis) == (None, "as given")


def published(optimizers: list[str | None]) -> pa.Table:
    """The columns of a study's results that say what its rates mean."""
    return pa.table({
        "parameterization": ["mup"] * 3, "width": [32, 64, 64], "base_lr": [0.1, 0.1, 0.2],
        "loss": [4.0, 3.9, 3.8], "axis": ["hidden-aligned"] * 3, "base_width": [32] * 3,
        "optimizer": pa.array(optimizers, pa.string()),
    })  # fmt: skip


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
