"""The warmup-stable-decay schedule against values by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hptransfer.train._trainer import schedule_factor


def test_values_by_hand():
    found = [schedule_factor(i, steps=10, warmup=0.2, decay=0.3) for i in range(10)]
    expected = [1 / 2, 1, 1, 1, 1, 1, 1, 1, 2 / 3, 1 / 3]
    assert found == pytest.approx(expected)


def test_no_warmup_and_no_decay_is_constant():
    assert {schedule_factor(i, steps=7, warmup=0, decay=0) for i in range(7)} == {1.0}


@given(
    steps=st.integers(1, 500),
    warmup=st.floats(0, 1),
    decay=st.floats(0, 1),
)
def test_every_step_trains_and_none_exceeds_the_peak(steps, warmup, decay):
    factors = [schedule_factor(i, steps=steps, warmup=warmup, decay=decay) for i in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
    peak = factors.index(max(factors))
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
