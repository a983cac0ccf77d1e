"""Events survive the pipe between a worker and the runner."""

import math

from hypothesis import given
from hypothesis import strategies as st

from hptransfer.study.events import Event


@given(
    st.builds(
        Event,
        kind=st.sampled_from(["step", "done", "failed"]),
        group=st.text(),
        step=st.integers(0, 10**9),
        losses=st.lists(st.floats(allow_nan=False, allow_infinity=False)).map(tuple),
        message=st.text(),
    )
)
def test_round_trip_in_one_line(event):
    line = event.to_line()
    assert "\n" not in line
    assert Event.from_line(line) == event


def test_a_diverged_runs_loss_is_left_out():
    event = Event(kind="step", group="g", losses=(1.0, math.nan, math.inf))
    assert Event.from_line(event.to_line()).losses == (1.0,)
