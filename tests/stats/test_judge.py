import numpy as np
import pytest
from scipy import stats

from hptransfer.stats.estimate import exponentiate, f_limit, judge, refuse, worst
from hptransfer.stats.reasons import Reason

SAMPLES = np.linspace(-1.0, 1.0, 201)


@pytest.mark.parametrize(
    ("width", "status"), [(0.2, "identified"), (0.4, "weakly identified"), (0.5, "not identified")]
)
def test_status_follows_the_half_width(width, status):
    # The 5th and 95th percentile of the samples lie at ±0.9 of their reach.
    e = judge(0.0, SAMPLES * width / 0.9 * 0.999, "alpha")
    assert e.status == status
    assert e.high == pytest.approx(width * 0.999)
    assert (e.reason == "") == (status == "identified")


def test_failed_resamples_count():
    samples = SAMPLES * 0.01
    samples[:5] = np.nan
    assert judge(0.0, samples, "alpha").status == "identified"
    samples[:50] = np.nan
    e = judge(0.0, samples, "alpha")
    assert e.low is None
    assert "no value in 25 % of the resamples" in e.reason


def test_a_value_that_is_no_number_is_refused():
    assert judge(float("nan"), SAMPLES, "alpha").value is None


def test_the_interval_holds_the_value():
    e = judge(0.5, SAMPLES * 0.1, "kappa")
    assert e.high == 0.5


def test_logs_are_judged_as_logs():
    e = judge(0.0, SAMPLES * 0.1, "log_lr").transform(exponentiate)
    assert (e.value, e.status) == (1.0, "identified")
    assert e.low * e.high == pytest.approx(1.0)
    assert exponentiate(1e4) is None
    assert judge(0.0, SAMPLES * 1e4, "log_lr").transform(exponentiate).high is None


def test_words():
    assert worst("identified", "not identified", "weakly identified") == "not identified"
    assert refuse(Reason("text", text="why")).to_dict() == {
        "value": None,
        "low": None,
        "high": None,
        "status": "not identified",
        "reason": "why",
    }


def test_the_f_limit_is_scipys():
    assert f_limit(0.05, 2, 7) == pytest.approx(stats.f.isf(0.05, 2, 7))
