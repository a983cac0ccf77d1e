"""The words of an answer against the numbers they stand for, on many synthetic tables."""

import re
from dataclasses import replace

import numpy as np
import pytest

from hptransfer.cli._answers import describe_rates
from hptransfer.report import make_answer
from hptransfer.report.answer import (
    _SMALL_GAP,
    _judge_transfer,
    group_roles,
)
from hptransfer.report.words import describe_reach, measure_price
from hptransfer.stats import LossTable, fit_table
from hptransfer.stats._advice import USABLE_REGRET

# A gap of SP, a gap of µP, seed noise, and more: from clear to lost in noise, and one seed.
CASES = [
    {"groups": {"sp": {"loss_inf": 2.0 + gap}, "sp+embd": {}, "mup": {"loss_inf": 2.0 + rest}},
     "noise": noise, "seed": 7 * k, "num_seeds": seeds}
    for k, (gap, rest, noise, seeds) in enumerate([
        (0.1, 0.0, 0.002, 2), (0.1, 0.06, 0.002, 2), (0.1, -0.06, 0.002, 2), (-0.1, 0.0, 0.002, 2),
        (0.0, 0.0, 0.001, 2), (0.03, 0.0, 0.05, 2), (0.0, 0.02, 0.1, 2), (0.1, 0.0, 0.0, 1),
        (0.06, 0.0, 0.02, 1),
    ])
] + [
    {"groups": {"sp": {"drift": drift}, "sp+embd": {"drift": 0.0}}, "noise": noise, "seed": 50}
    for drift, noise in [(0.0, 0.002), (1.5, 0.002), (1.5, 0.1), (3.0, 0.01)]
] + [
    {"groups": {"sp": {}, "sp+embd": {}}, "noise": 0.01, "diverged": 2.0**-6.5, "seed": 60}
]  # fmt: skip


def numbers_of(text: str) -> list[float]:
    return [float(n.replace("−", "-")) for n in re.findall(r"[−-]?\d+\.\d+", text)]


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_words_agree_with_numbers(studies, case) -> None:  # type: ignore[no-untyped-def]
    source = studies(**case)
    answer = source.answer
    for verdict in answer.embedding:
        gap = verdict.gap
        assert gap == source.fits.gap(verdict.embd, verdict.sp, width=verdict.width)
        text = verdict.text
        if gap.low is None:
            assert verdict.kind == "can't tell"
            assert "no interval" in text
        elif verdict.kind == "yes":
            assert gap.high < 0
            assert "better" in text
        elif verdict.kind == "no":
            assert gap.low > 0 or max(-gap.low, gap.high) <= _SMALL_GAP
            assert ("worse" in text) == (gap.low > 0)
            assert ("next to nothing" in text) == (gap.low <= 0)
        else:
            assert gap.low <= 0 <= gap.high
            assert "within its error" in text
        # The number that is said is the one that was found.
        assert abs(numbers_of(text)[0]) == pytest.approx(abs(gap.value), rel=0.3, abs=6e-3)
        rest = text.partition(";")[2]
        if rest:
            mup = [f.name for f in source.fits].index("mup")
            left = source.fits.gap(mup, verdict.embd, width=verdict.width)
            sure = not left.low <= 0 <= left.high
            assert ("better" in rest or "worse" in rest) == sure
            assert ("better" in rest) == (sure and left.value < 0)
    for fit, (kind, sentence) in zip(source.fits, answer.transfer, strict=True):
        price = measure_price(fit)
        assert kind == _judge_transfer(fit)
        if kind == "yes":
            assert price.high <= USABLE_REGRET
        if kind == "no":
            assert "diverge" in sentence or price.low > USABLE_REGRET
        if "can't be told" in sentence:
            assert kind == "can't tell"
    for row, item in zip(answer.rates, source.recommendations, strict=True):
        assert row.verdict == item.verdict
        high = item.regret["recommended"].high
        assert (row.price == "") == (high is None)
        if high is not None:
            said = float(row.price.removeprefix("<").removesuffix(" nats"))
            assert said == pytest.approx(max(high, 1e-4), rel=0.3)
        if item.lr.low is not None and item.lr.low > 0:
            assert float(row.factor) == pytest.approx((item.lr.high / item.lr.low) ** 0.5, rel=0.01)
        if item.lr_by_role:
            known = group_roles(item.lr_by_role)
            for (_, said), (_, rate) in zip(row.rates, known, strict=True):
                assert float(said) == pytest.approx(rate, rel=0.051)
    missing, known = answer.counts
    assert 0 <= missing <= known
    assert bool(answer.unknown) == bool(missing) == bool(answer.why_unknown)


def test_the_demo_s_question_is_answered_first(tiny) -> None:  # type: ignore[no-untyped-def]
    (verdict,) = tiny.answer.embedding
    assert verdict.kind == "yes"
    assert re.match(
        r"Raising its learning rate alone makes sp 0\.\d+ nats \[.*\] better at width 256; the "
        r"rest of mup adds next to nothing",
        verdict.text,
    )


def test_the_rate_to_type_is_that_of_each_role(tiny) -> None:  # type: ignore[no-untyped-def]
    rows = {row.name: row for row in tiny.answer.rates}
    assert [who for who, _ in rows["sp"].rates] == ["all"]
    assert "÷ 32, the width over 32" in rows["sp"].note
    assert [who for who, _ in rows["sp+embd"].rates] == ["embedding", "all else"]
    assert [who for who, _ in rows["mup"].rates] == ["embedding, norms, biases", "hidden, readout"]
    bare = [replace(r, lr_by_role=None) for r in tiny.recommendations]
    unruled = make_answer(tiny.fits, bare)
    assert unruled.rates[0].note == "on the axis hidden-aligned, not to type"
    given = make_answer(tiny.fits, [replace(r, axis="as given") for r in bare])
    assert given.rates[0].note == "as the table gives rates"


def test_a_rate_on_an_axis_is_not_said_to_be_typed(tiny) -> None:  # type: ignore[no-untyped-def]
    """One group's rule is not known: its number is no learning rate of any tensor."""
    first, *rest = tiny.recommendations
    known = describe_rates(tiny.fits.table, [first, *rest])
    said = describe_rates(tiny.fits.table, [replace(first, lr_by_role=None), *rest])
    warning = "is on the axis hidden-aligned, and is not to be typed as it is"
    assert warning in " ".join(said.split())
    assert "not to be typed" not in known


def test_keeping_the_typed_rate_is_priced_apart(tiny) -> None:  # type: ignore[no-untyped-def]
    sp, embd, _ = (sentence for _, sentence in tiny.answer.transfer)
    assert "divided by the width ratio" in sp
    assert "typed unchanged it costs" in sp
    assert "typed unchanged" not in embd


def test_an_incomplete_study_is_said(tiny) -> None:  # type: ignore[no-untyped-def]
    sweep = {"parameterization": ["sp", "sp+embd", "mup"], "width": [64, 128, 256, 512],
             "base_lr": list(range(7)), "weight_decay": [0.0], "seed": [0, 1]}  # fmt: skip
    answer = make_answer(tiny.fits, settings={"config": {"sweep": sweep}})
    said = "126 of 168 planned trials, width 512: none · 0 diverged · widths 64–256"
    assert answer.facts.startswith(said)
    # Of rows that were chosen those count that the plan has; what it does not tell is unknown.
    for chosen, start in (
        ({"width": "512"}, "126 trials"), ({"seed": "1", "width": "64.0"}, "126 trials"),
        ({"parameterization": "sp"}, "126 trials"), ({"precision": "fp32"}, "126 trials"),
        ({"weight_decay": "0"}, "126 of 168 planned trials"),
    ):  # fmt: skip
        settings = {"config": {"sweep": sweep}, "rows_chosen": chosen}
        assert make_answer(tiny.fits, settings=settings).facts.startswith(start)
    assert tiny.answer.facts.startswith("126 trials")


def test_too_short_a_training_is_said(tiny) -> None:  # type: ignore[no-untyped-def]
    best = min(b.loss.value for fit in tiny.fits for b in fit.basins)
    short = make_answer(tiny.fits, settings={"data": {"unigram_entropy": best}})
    assert short.warning.startswith("Too short to judge")
    part = make_answer(tiny.fits, settings={"data": {"unigram_entropy": best + 0.31}})
    assert part.warning == "" or part.warning.startswith("At width")
    assert tiny.answer.warning == ""


def test_a_table_of_one_width_says_so(studies) -> None:  # type: ignore[no-untyped-def]
    answer = studies(groups={"sp": {}}, widths=(64.0,)).answer
    assert answer.embedding == ()
    assert answer.transfer[0][0] == "can't tell"
    assert answer.why_unknown == "one width cannot show an exponent."
    assert answer.rates[0].verdict != "usable"


def test_roles_are_grouped_by_their_rate() -> None:
    assert group_roles({"hidden": 1.0, "readout": 1.0}) == (("all", 1.0),)
    depth = {"embedding": 1.0, "hidden": 0.5, "hidden_residual": 0.25, "readout": 0.5}
    assert dict(group_roles(depth)) == {
        "embedding": 1.0, "hidden, readout": 0.5, "residual projections": 0.25,
    }  # fmt: skip


def test_rates_that_are_not_finite_have_words(tiny) -> None:  # type: ignore[no-untyped-def]
    lr = replace(tiny.recommendations[0].lr, value=None, low=None, high=None)
    item = replace(tiny.recommendations[0], lr=lr, lr_by_role=None)
    (row,) = make_answer(tiny.fits, [item]).rates
    assert (row.rates, row.factor) == ((), "")
    assert np.isfinite(tiny.recommendations[0].width)


def test_a_target_below_the_widths_is_an_extrapolation(tiny) -> None:  # type: ignore[no-untyped-def]
    table = tiny.fits.table
    assert "lies within" in describe_reach(table, 64.0)
    assert describe_reach(table, 48.0).startswith("48 lies below 64, the narrowest width")
    assert "2 times the widest" in describe_reach(table, 512.0)


def test_the_bound_of_a_price_has_the_digits_of_its_verdict(tiny) -> None:  # type: ignore[no-untyped-def]
    for high, said in ((0.0647, "0.065 nats"), (0.0124, "0.012 nats"), (2e-5, "<0.0001 nats")):
        (item,) = tiny.recommendations[:1]
        priced = {**item.regret, "recommended": replace(item.regret["recommended"], high=high)}
        (row,) = make_answer(tiny.fits, [replace(item, regret=priced)]).rates
        assert row.price == said


def test_a_lone_group_lacks_no_comparison(studies) -> None:  # type: ignore[no-untyped-def]
    answer = studies(groups={"mup": {}}).answer
    assert "R(∞)" not in answer.unknown


def test_where_every_trial_diverged_no_rate_is_the_best() -> None:
    loss = [np.nan] * 3 + [3.2, 3.1, 3.0]
    table = LossTable.from_columns(width=[64] * 3 + [128] * 3, lr=[0.1, 0.2, 0.4] * 2, loss=loss)
    ((verdict, sentence),) = make_answer(fit_table(table)).transfer
    assert verdict == "can't tell"
    assert "every trial diverged at width 64, and the best rate lies at the edge at" in sentence
