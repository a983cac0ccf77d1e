"""Verdicts on hand-made measurements: what passes, what fails, and in which words."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from hptransfer.adopt import CoordinateCheck
from hptransfer.adopt._coord_check_result import ModuleCheck
from hptransfer.errors import ConfigError

WIDTHS = (64, 128, 256, 512)


def module(change=0.0, *, final=0.0, name="m", kind="Linear", wobble=0.0, seeds=2):
    """A module whose change and output go with these powers of width."""
    width = np.asarray(WIDTHS, dtype=float)[:, None] * np.ones((1, seeds))
    sign = np.array([1, -1, -1, 1])[:, None]
    return ModuleCheck(
        name=name,
        kind=kind,
        widths=WIDTHS,
        activation=np.stack([width**0, width**final]),
        change=(0.01 * width**change * np.exp(wobble * sign))[None],
        tolerance=0.25,
    )


def check(*modules, name="mup", seeds=(0, 1)):
    return CoordinateCheck(
        name=name, widths=WIDTHS, seeds=seeds, tolerance=0.25, modules=tuple(modules)
    )


@pytest.mark.parametrize(
    ("change", "final", "reason"),
    [
        (0.0, 0.0, ""),
        (0.24, 0.0, ""),
        (-0.24, -0.5, ""),
        (0.26, 0.0, "change grows, 1.72 times larger at width 512 than at 64"),
        (-1.0, 0.0, "change shrinks, 8 times smaller at width 512 than at 64"),
        (0.0, 0.5, "output grows, 2.83 times larger at width 512 than at 64"),
    ],
)
def test_a_module_passes_within_the_tolerance(change, final, reason):
    result = module(change, final=final)
    assert result.passed == (not reason)
    assert result.reason == reason
    assert result.change_slope.value == pytest.approx(change)
    assert result.final_slope.value == pytest.approx(final)


def test_a_readout_whose_whole_change_grows_says_by_which_slope():
    """The slope that is shown is of what its own update adds, which may fall meanwhile."""
    result = replace(module(0.3), own_change=module(-0.2).change)
    assert result.reason == (
        "change grows as a whole, as width^+0.30 [+0.30, +0.30], 1.87 times larger at width 512 "
        "than at 64"
    )


def test_what_is_not_finite_or_stands_still_fails():
    broken, still = module(), module()
    broken.activation[1, 2, 0] = math.inf
    still.change[-1, 1, 0] = 0.0
    assert broken.reason == "output not finite at width 256 after step 1"
    assert still.reason == "output never changed at width 128"
    result = check(broken, still)
    assert not result.passed
    json.dumps(result.to_dict(), allow_nan=False)
    assert "never changed" in str(result)


def test_an_interval_across_the_tolerance_is_said():
    near = module(0.2, name="near", wobble=0.3)
    assert not near.decided
    assert module(0.2).decided
    assert "the interval of near crosses the tolerance" in check(near, module()).verdict


def test_the_verdict_names_the_embedding_and_its_number():
    table = module(-1.0, name="token", kind="Embedding")
    result = check(table, module(name="head"), name="sp")
    assert "FAIL: 1 of 2 modules from width 64 to 512" in result.verdict
    assert (
        "the embedding update shrinks with width: token as width^−1.00 [−1.00, −1.00], "
        "8 times smaller at width 512 than at 64" in result.verdict
    )
    assert "embedding update" not in check(module(-1.0)).verdict
    assert check(module(), module(0.1)).verdict.startswith("PASS: all 2 modules")


def test_two_checks_are_compared_with_seeds_paired():
    generator = np.random.default_rng(0)
    noise = np.exp(generator.standard_normal((1, 4, 2)))
    sp, mup = module(-1.0, name="token"), module(0.0, name="token")
    for each in (sp, mup):
        each.change[:] *= noise
    slopes = check(sp, name="sp").against(check(mup, module(name="other")))
    # The noise that both share cancels.
    assert list(slopes) == ["token"]
    assert slopes["token"].value == pytest.approx(-1.0)
    assert slopes["token"].high - slopes["token"].low < 1e-6
    said = check(sp, name="sp").say_against(check(mup))
    assert "the update of sp shrinks as width^−1.00" in said
    assert "relative to mup's, 8 times smaller at width 512 than at 64" in said
    assert "no update goes with width otherwise than mup's" in check(mup).say_against(check(mup))
    with pytest.raises(ConfigError, match="against: expected checks at the same widths and seeds"):
        check(sp).against(check(mup, seeds=(0, 2)))


def test_everything_is_in_the_document_and_in_the_text():
    result = check(module(-1.0, name="token", kind="Embedding"), module(0.1, name="head"))
    document = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert document["schema"] == 1
    assert document["passed"] is False
    assert document["verdict"] == result.verdict
    assert document["modules"][0]["change"]["value"] == pytest.approx(-1.0)
    assert np.shape(document["modules"][1]["rms_change"]) == (1, 4, 2)
    text = str(result)
    for expected in ("coordinate check of mup", "token", "−1.00 [−1.00, −1.00]", "pass", "FAIL"):
        assert expected in text
    assert result["head"].passed
    with pytest.raises(KeyError, match="tail"):
        result["tail"]
