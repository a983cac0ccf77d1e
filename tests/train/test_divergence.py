"""The three ways to diverge, and what is not divergence."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hptransfer.train._trainer import DivergenceWatch

STEPS, WARMUP = 100, 0.2  # windows of 5 steps, the first of steps 20 to 24


def watch_curve(curve):
    watch = DivergenceWatch(2, steps=STEPS, warmup=WARMUP)
    calm = np.linspace(7.0, 5.0, STEPS)
    for step, loss in enumerate(curve):
        found = watch.update(step, np.array([calm[step], loss]))
        assert found in ([], [1])
    assert 0 not in watch.diverged
    return watch.diverged.get(1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("step", [0, 7, 50, 99])
def test_a_non_finite_loss_diverges_at_its_step_even_in_warmup(bad, step):
    curve = np.full(STEPS, 6.0)
    curve[step] = bad
    assert watch_curve(curve) == step


def test_a_window_half_a_nat_above_the_first_loss_diverges():
    curve = np.full(STEPS, 7.0)
    curve[40:] = 7.6
    # Means of steps 36-40, …: 0.12, 0.24, 0.36, 0.48, 0.6 above; the fifth exceeds 0.5.
    assert watch_curve(curve) == 44


def test_a_spike_in_the_warmup_or_shorter_than_a_window_is_no_divergence():
    curve = np.full(STEPS, 6.5)
    curve[0] = 7.0
    curve[5:18] = 50.0
    curve[60:62] = 8.5  # mean over five steps 7.3
    assert watch_curve(curve) is None


def test_ending_above_the_first_loss_at_all_diverges_at_the_last_step():
    curve = np.full(STEPS, 6.5)
    curve[0] = 7.0
    curve[95:] = 7.01
    assert watch_curve(curve) == 99
    curve[95:] = 7.0
    assert watch_curve(curve) is None


@given(st.lists(st.floats(0, 20), min_size=STEPS, max_size=STEPS))
def test_against_the_rule_written_out(curve):
    expected = None
    for end in range(25, STEPS + 1):
        if np.mean(curve[end - 5 : end]) > curve[0] + 0.5:
            expected = end - 1
            break
    if expected is None and np.mean(curve[-5:]) > curve[0]:
        expected = STEPS - 1
    assert watch_curve(curve) == expected
