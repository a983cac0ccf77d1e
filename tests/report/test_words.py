import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hptransfer.report.words import (
    half_width,
    list_flags,
    name_groups,
    say,
    say_half_open,
    say_interval,
    say_log2,
    say_number,
    say_rate,
    say_status,
    say_width,
    tell_once,
)
from hptransfer.stats import Estimate, Reason


@pytest.mark.parametrize(
    ("value", "step", "said"),
    [
        (0.123456, 0.0123, "0.123"),
        (0.123456, 0.0523, "0.12"),
        (-1.5, 0.2, "−1.50"),
        (-0.0001, 0.2, "0.00"),
        (1234.5, 240, "1230"),
        (0.0, None, "0.0"),
        (0.002131, None, "0.00213"),
        (1.23e-7, 1e-8, "1.23e−07"),
        (2.5e9, 6e8, "2.5e+09"),
        (math.inf, None, "∞"),
        (-math.inf, None, "−∞"),
        (math.nan, None, "none"),
        (2.0, 0.0, "2.00"),
    ],
)
def test_a_number_has_the_digits_of_its_interval(
    value: float, step: float | None, said: str
) -> None:
    assert say_number(value, step=step) == said


@given(st.floats(-1e9, 1e9), st.floats(1e-8, 1e8))
def test_a_number_is_said_to_within_its_uncertainty(value: float, step: float) -> None:
    said = float(say_number(value, step=step).replace("−", "-"))
    assert abs(said - value) <= 0.51 * step + 1e-12 * abs(value)


def test_what_is_not_identified_is_words_and_no_digits() -> None:
    bad = Estimate(
        value=-2.2045,
        low=-3,
        high=0,
        status="not identified",
        reasons=(Reason("text", text="hit its bound"),),
    )
    assert say(bad) == "not identified: hit its bound"
    assert say(Estimate(value=None)) == "not identified"
    drift = Estimate(
        value=1.0, status="not identified", reasons=(Reason("no_drift", about="kappa"),)
    )
    assert say(drift) == "no drift seen, which is good news"
    price = Reason("keeping_costs", width=512.0, most=0.0031)
    drift = replace(
        drift,
        reasons=(Reason("no_drift", about="kappa", price=price), Reason("no_gap")),
        remedy=Reason("text", text="train wider"),
    )
    assert "costs at most" in say_status(drift)
    assert "train wider" in say_status(drift)
    assert say_status(drift, brief=True) == "no drift seen, which is good news"
    weak = Estimate(
        value=0.5,
        low=0.1,
        high=0.9,
        status="weakly identified",
        reasons=(Reason("text", text="wide"),),
    )
    assert say(weak, "nats") == "0.5 [0.1, 0.9] nats (weakly identified: wide)"
    assert say_status(Estimate(value=0.5)) == ""


def test_intervals_may_be_open() -> None:
    assert say_interval(Estimate(value=1.0, low=0.5)) == "[0.5, ∞]"
    assert say_interval(Estimate(value=1.0, high=1.5)) == "[−∞, 1.5]"
    assert say_interval(Estimate(value=1.0)) == ""
    assert half_width(Estimate(value=1.0, low=0.5)) == 0.5
    assert half_width(Estimate(value=1.0, low=-math.inf, high=math.inf)) is None


def test_logarithms_and_roots() -> None:
    assert say_log2(Estimate(value=0.125, low=0.11, high=0.14)) == "−3.00"
    assert say_log2(Estimate(value=0.0)) == ""
    kept = (Reason("text", text="kept"),)
    root = Estimate(value=4.0, low=1.0, high=9.0, reasons=kept).transform(math.sqrt)
    assert (root.value, root.low, root.high, root.reason) == (2.0, 1.0, 3.0, "kept")
    assert Estimate(value=1e9, low=None).transform(math.exp).value is None


def test_group_names_leave_out_what_all_share() -> None:
    one = {"parameterization": "sp", "weight_decay": 0.0}
    assert name_groups([one, {**one, "parameterization": "mup"}]) == ["sp", "mup"]
    assert name_groups([one, {**one, "weight_decay": 0.1}]) == [
        "sp, weight_decay 0.0",
        "sp, weight_decay 0.1",
    ]
    assert name_groups([{}]) == ["all trials"]
    # A group without a name is not all that there is.
    assert name_groups([{"parameterization": ""}, {"parameterization": "mup"}]) == [
        "(blank)",
        "mup",
    ]
    assert say_width(128.0) == "128"
    assert say_width(0.5) == "0.5"


def test_flags_are_told_once(studies) -> None:  # type: ignore[no-untyped-def]
    fits = studies(groups={"sp": {}}, drift=3.0, x_inf=-7.5, centre=-4.5, beta=0.9).fits
    basin = next(b for b in fits[0].basins if not b.bracketed)
    assert list_flags(basin)[0] == "not bracketed"
    bad = Estimate(
        value=None,
        status="not identified",
        reasons=(Reason("not_bracketed"), Reason("text", text="too few points")),
    )
    assert say(tell_once(basin, bad)) == "not identified: too few points"


def test_a_rate_has_two_digits() -> None:
    for rate in (3.3e-6, 0.00024, 0.0396, 0.4, 1.7, 23.0, 5200.0):
        assert float(say_rate(rate)) == pytest.approx(rate, rel=0.05)
        assert len(say_rate(rate)) <= 8
    assert say_rate(float("nan")) == "none"


def test_a_price_known_from_above_only_is_an_upper_bound() -> None:
    assert say_half_open(Estimate(value=0.24, low=0.0, high=0.24), "nats") == "at most 0.24 nats"
    assert say_half_open(Estimate(value=0.03, low=0.02, high=0.04)) == "0.030 [0.020, 0.040]"
    assert say_half_open(Estimate(value=0.03)) == "0.0300 (no interval)"
