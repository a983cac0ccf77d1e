import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hptransfer.errors import DataError
from hptransfer.train._batches import Batches, require_batch, validation_windows

sizes = st.tuples(st.integers(1, 9), st.integers(0, 200)).map(
    lambda pair: (pair[0], 2 * pair[0] + 1 + pair[1])  # (context, num_tokens), two windows' room
)


def visit_epoch(batches: Batches, seed: int, epoch: int) -> NDArray[np.int64]:
    """All windows of an epoch, one at a time."""
    first = epoch * batches.num_windows
    steps = range(first, first + batches.num_windows)
    return np.concatenate([batches.batch(seed, step, batch=1) for step in steps])


@settings(max_examples=80, deadline=None)
@given(size=sizes, seed=st.integers(0, 2**32), epoch=st.integers(0, 3))
def test_an_epoch_visits_each_window_of_a_shifted_grid_once(
    size: tuple[int, int], seed: int, epoch: int
) -> None:
    context, num_tokens = size
    batches = Batches(np.arange(num_tokens), context=context)
    windows = visit_epoch(batches, seed, epoch)
    assert windows.shape == (batches.num_windows, context + 1)
    assert (np.diff(windows, axis=1) == 1).all()
    starts = np.sort(windows[:, 0])
    assert (np.diff(starts) == context + 1).all()
    # No window has room on both sides of the grid beyond the shift's own.
    assert num_tokens - windows.size <= 2 * context + 1


@settings(max_examples=50, deadline=None)
@given(
    size=sizes,
    seeds=st.lists(st.integers(0, 5), min_size=1, max_size=12),
    steps=st.lists(st.integers(0, 40), min_size=12, max_size=12),
    batch=st.integers(1, 6),
)
def test_a_batch_is_a_pure_function_of_seed_and_step(
    size: tuple[int, int], seeds: list[int], steps: list[int], batch: int
) -> None:
    context, num_tokens = size
    tokens = np.arange(num_tokens + 6 * (context + 1), dtype=np.uint16)
    used = Batches(tokens, context=context)
    for seed, step in zip(seeds, steps, strict=False):
        fresh = Batches(tokens, context=context).batch(seed, step, batch=batch)
        assert np.array_equal(used.batch(seed, step, batch=batch), fresh)


@settings(max_examples=50, deadline=None)
@given(batch=st.integers(1, 15), seed=st.integers(0, 100))
def test_the_order_does_not_depend_on_the_batch_and_epochs_are_seamless(
    batch: int, seed: int
) -> None:
    batches = Batches(np.arange(5 * 17 + 3), context=4)
    steps = -(-3 * batches.num_windows // batch)
    taken = np.concatenate([batches.batch(seed, step, batch=batch) for step in range(steps)])
    epochs = np.concatenate([visit_epoch(batches, seed, epoch) for epoch in range(4)])
    assert np.array_equal(taken, epochs[: len(taken)])


def test_seeds_and_epochs_differ_in_order_and_offset() -> None:
    batches = Batches(np.arange(10_000), context=31)
    epochs = [visit_epoch(batches, seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    orders = {tuple(windows[:, 0] // 32) for windows in epochs}
    assert len(orders) == 4
    offsets = {int(visit_epoch(batches, seed, 0)[0, 0]) % 32 for seed in range(40)}
    assert len(offsets) > 15


def test_the_streams_stay_as_they_are() -> None:
    # Studies resume with newer versions: these numbers must never change.
    batches = Batches(np.arange(40), context=3)
    assert visit_epoch(batches, 0, 0)[:, 0].tolist() == [11, 7, 3, 31, 23, 27, 15, 19, 35]
    assert visit_epoch(batches, 0, 1)[:, 0].tolist() == [25, 13, 17, 1, 33, 29, 21, 5, 9]


def test_batches_read_a_memory_map(tmp_path) -> None:
    np.save(tmp_path / "tokens.npy", np.arange(500, dtype=np.uint16))
    mapped = np.load(tmp_path / "tokens.npy", mmap_mode="r")
    windows = Batches(mapped, context=8).batch(3, 2, batch=4)
    assert windows.dtype == np.int64
    assert type(windows) is np.ndarray
    assert np.array_equal(windows, Batches(np.arange(500), context=8).batch(3, 2, batch=4))


def test_one_window_is_the_least_that_serves() -> None:
    for num_tokens in (5, 6, 8):
        batches = Batches(np.arange(num_tokens), context=4)
        assert batches.num_windows == 1
        starts = {int(batches.batch(0, step, batch=1)[0, 0]) for step in range(60)}
        assert starts == set(range(num_tokens - 4))
    with pytest.raises(DataError, match=r"4 training tokens, one window of 5 tokens takes 5"):
        Batches(np.arange(4), context=4)


@pytest.mark.parametrize("batch", [2, 7])
def test_too_few_tokens_for_a_batch_are_counted(batch: int) -> None:
    needed = batch * 5 + 4
    assert Batches(np.arange(needed), context=4).batch(0, 0, batch=batch).shape == (batch, 5)
    batches = Batches(np.arange(needed - 1), context=4)
    message = rf"{needed - 1} training tokens, a batch of {batch} windows .* takes {needed}"
    with pytest.raises(DataError, match=message):
        batches.batch(0, 0, batch=batch)
    with pytest.raises(DataError, match=message):
        require_batch(np.arange(needed - 1), context=4, batch=batch)


@settings(max_examples=80, deadline=None)
@given(context=st.integers(1, 9), num_tokens=st.integers(10, 300), max_tokens=st.integers(0, 400))
def test_validation_windows_are_disjoint_and_evenly_spread(
    context: int, num_tokens: int, max_tokens: int
) -> None:
    windows = validation_windows(np.arange(num_tokens), context, max_tokens)
    assert windows.dtype == np.int64
    assert windows.shape[1] == context + 1
    assert (np.diff(windows, axis=1) == 1).all()
    assert len(windows) * context <= max(max_tokens, context)
    available = num_tokens // (context + 1)
    assert len(windows) == max(1, min(available, max_tokens // context))
    gaps = np.diff(windows[:, 0]) // (context + 1)
    if len(gaps):
        assert gaps.min() >= 1
        assert gaps.max() - gaps.min() <= 1
    assert np.array_equal(windows, validation_windows(np.arange(num_tokens), context, max_tokens))


def test_too_few_validation_tokens_are_counted() -> None:
    with pytest.raises(DataError, match=r"8 validation tokens, one window of 9 tokens takes 9"):
        validation_windows(np.arange(8), 8, 100)
