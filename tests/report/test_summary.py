import math
from dataclasses import replace

import pytest

from hptransfer.report import summarise
from hptransfer.report.compare import (
    is_reference,
    measure_drift,
    measure_gap,
    measure_price,
    subtract,
)
from hptransfer.stats import Estimate, Reason


def near(value: float, half: float) -> Estimate:
    return Estimate(value=value, low=value - half, high=value + half)


REFUSED = Estimate(
    value=None, status="not identified", reasons=(Reason("text", text="it lies outside"),)
)
CHEAP, DEAR, UNSURE = near(0.005, 0.004), near(0.3, 0.05), near(0.03, 0.029)


def trio(fit, sp=4.5, embd=4.0, mup=4.0, **more):  # type: ignore[no-untyped-def]
    """SP, SP+Embd and µP with given best losses at the widest width."""
    return [
        fit("sp", losses=(5, 4.8, sp), lrs=(0.01, 0.02, 0.04), price=DEAR, **more),
        fit("sp+embd", losses=(5, 4.5, embd), price=CHEAP, **more),
        fit("mup", losses=(5, 4.5, mup), price=CHEAP, **more),
    ]


def test_differences_combine_in_quadrature() -> None:
    found = subtract(near(5.0, 0.3), near(3.0, 0.4))
    assert (found.value, found.low, found.high) == pytest.approx((2.0, 1.5, 2.5))
    assert subtract(near(5, 1), Estimate(value=None)).value is None
    assert subtract(near(5, 1), Estimate(value=3.0)).status == "not identified"


def test_drift_price_and_gap(fit) -> None:  # type: ignore[no-untyped-def]
    moving = fit(lrs=(0.01, 0.02, 0.04), vague=1.1)
    drift = measure_drift(moving)
    assert drift.value == pytest.approx(4.0)
    assert drift.high == pytest.approx(4.0 * 1.1 ** math.sqrt(2))
    assert measure_price(moving).value == 0.001
    # The joint fit's drift goes first: it is what the metrics rest on.
    assert measure_drift(replace(moving, drift=near(0.0, 0.1))).value == 1.0
    # An optimum at the edge is none: the span shrinks, or vanishes.
    assert measure_drift(fit(lrs=(0.01, 0.02, 0.04), outside=[32.0])).value == pytest.approx(2.0)
    alone = fit(outside=[32.0, 64.0])
    assert measure_drift(alone).value is None
    assert measure_price(alone).value is None

    gaps = {128.0: Estimate(value=0.5, low=0.4, high=0.7)}
    sp, mup = fit("sp", reference="mup", gaps=gaps), fit("mup", reference="mup")
    assert measure_gap(sp, mup, 128.0) == gaps[128.0]
    turned = measure_gap(mup, sp, 128.0)
    assert (turned.value, turned.low, turned.high) == (-0.5, -0.7, -0.4)
    assert measure_gap(fit(losses=(5, 5, 5)), mup, 128.0).value == 1.0
    assert is_reference(mup)
    assert not is_reference(sp)


@pytest.mark.parametrize(
    ("more", "answer"),
    [
        ({"price": CHEAP}, "With mup, yes."),
        ({"price": DEAR}, "With mup, no."),
        ({"price": UNSURE}, "With mup, can't tell."),
        ({"price": REFUSED}, "With mup, yes."),
        ({"price": REFUSED, "vague": 3.0}, "With mup, can't tell."),
        ({"price": REFUSED, "lrs": (0.01, 0.005, 0.002)}, "With mup, no."),
        ({"outside": [32.0, 64.0]}, "With mup, can't tell."),
    ],
)
def test_does_it_transfer(fit, more, answer: str) -> None:  # type: ignore[no-untyped-def]
    assert answer in summarise([fit("mup", **more)], {})


def test_drift_and_price_in_words(fit) -> None:  # type: ignore[no-untyped-def]
    def say(**more) -> str:  # type: ignore[no-untyped-def]
        return summarise([fit("mup", **more)], {})

    assert "rises from width 32 to 128, ×4.0" in say(lrs=(0.01, 0.02, 0.04))
    assert "falls from width 32 to 128, ×0.25" in say(lrs=(0.04, 0.02, 0.01))
    assert "no drift of the best learning rate is seen" in say()
    assert "too uncertain to call" in say(vague=4.0)
    assert "costs 0.30 nats (90 % interval 0.25 to 0.35)" in say(price=near(0.3, 0.05))
    assert "can't be told (it lies outside)" in say(price=REFUSED)
    assert "at width 32, 64 the best learning rate lies at its edge" in say(outside=[32.0, 64.0])
    bare = fit()
    basins = tuple(replace(basin, lr=Estimate(value=0.01)) for basin in bare.basins)
    assert "has no interval" in summarise([replace(bare, basins=basins)], {})
    assert "fewer than two widths with an optimum inside the swept range." in summarise(
        [replace(bare, basins=bare.basins[:1])], {}
    )


@pytest.mark.parametrize(
    ("losses", "answer"),
    [
        ({}, "Yes, as far as this can tell"),
        ({"embd": 4.2}, "In part: its learning rate alone closes 60 % of the gap"),
        ({"embd": 4.5}, "Can't tell: the effect of raising the embedding's learning rate"),
        ({"embd": 4.7}, "No: raising the embedding's learning rate alone makes it worse"),
        ({"sp": 4.01, "embd": 4.0}, "Can't tell: the gap between sp and mup is within its error"),
        ({"sp": 3.5}, "There is no gap to explain: at width 128 sp ends 0.50"),
        ({"spread": 1.0}, "Can't tell: the gap between sp and mup is within its error"),
        ({"outside": [32.0, 64.0, 128.0]}, "Can't tell: there is no width"),
    ],
)
def test_is_the_embedding_the_reason(fit, losses, answer: str) -> None:  # type: ignore[no-untyped-def]
    text = summarise(trio(fit, **losses), {})
    assert f"Is the embedding layer the reason? {answer}" in text
    assert "\n" not in text


def test_the_embedding_question_needs_all_three_in_one_setting(fit) -> None:  # type: ignore[no-untyped-def]
    assert "that takes sp, sp+embd and mup in one setting" in summarise(trio(fit)[:2], {})
    sp, embd, mup = trio(fit)
    other = [replace(f, group={**f.group, "weight_decay": 0.1}) for f in (sp, embd, mup)]
    mixed = summarise([sp, embd, other[2]], {})
    assert "that takes sp, sp+embd and mup in one setting" in mixed
    both = summarise([sp, embd, mup, *other], {})
    assert "At weight_decay 0.0: Yes" in both
    assert "At weight_decay 0.1: Yes" in both
    greek = replace(mup, group={**mup.group, "parameterization": "µP"})
    assert "reason? Yes" in summarise([sp, embd, greek], {})


def test_no_interval_no_answer(fit) -> None:  # type: ignore[no-untyped-def]
    fits = [
        replace(f, basins=tuple(replace(b, loss=Estimate(value=4.0)) for b in f.basins))
        for f in trio(fit)
    ]
    assert "Can't tell: the best losses have no intervals." in summarise(fits, {})


def test_learning_rate_and_embedding_together(fit) -> None:  # type: ignore[no-untyped-def]
    assert "transfers with sp+embd where it does not with sp" in summarise(trio(fit), {})
    sp, embd, mup = trio(fit)
    dear = replace(embd, regrets={128.0: DEAR, 32.0: DEAR})
    assert "transfers with neither of sp and sp+embd" in summarise([sp, dear, mup], {})


@pytest.mark.parametrize(
    ("entropy", "said"),
    [
        (4.1, "Too short to judge: the best losses, 4.00 nats at the lowest"),
        (4.7, "At width 32, 64 some best losses stay within 0.3 nats"),
        (9.0, "Does the learning rate transfer"),
    ],
)
def test_too_short_to_judge(fit, entropy: float, said: str) -> None:  # type: ignore[no-untyped-def]
    assert summarise([fit()], {"data": {"unigram_entropy": entropy}}).startswith(said)


def test_many_groups_and_none(fit) -> None:  # type: ignore[no-untyped-def]
    fits = [fit(f"p{k}") for k in range(9)]
    text = summarise(fits, {})
    assert "p4 and 4 more, yes" in text
    assert "The other 3 groups are in the tables." in text
    assert summarise([], {}).startswith("There is nothing to judge")
