"""Batches: which windows of the tokens a trial sees at a step.

Shape letters: B batch, T context (a window holds T + 1 tokens: inputs and, one later, targets),
N windows.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hptransfer.errors import DataError

Tokens = NDArray[np.integer[Any]]


class Batches:
    """Training windows as a pure function of (seed, step).

    The stream is cut into windows of T + 1 tokens that do not overlap. Each epoch of a seed
    shifts the grid by its own random offset and visits every window once, in its own random
    order; epochs follow each other seamlessly, so a batch may hold the end of one and the start
    of the next. The order depends on the seed alone: not on the batch size, and not on what was
    asked for before.

    Parameters
    ----------
    tokens : ndarray of int, shape (num_tokens,)
        The training stream; may be memory-mapped.
    context : int
        T.

    Attributes
    ----------
    tokens, context
        As given.
    num_windows : int
        Windows in one epoch. Up to T tokens at the ends lie outside the shifted grid.

    Raises
    ------
    DataError
        There are fewer tokens than one window.
    """

    def __init__(self, tokens: Tokens, *, context: int) -> None:
        assert context >= 1, context
        size = context + 1
        _require("training", tokens, needed=size, what=f"one window of {size} tokens")
        self.tokens = tokens
        self.context = context
        self._size = size
        # One window fewer than would fit, so that every offset has the same number of them.
        self.num_windows = max(1, (len(tokens) - context) // size)
        self._num_offsets = min(size, len(tokens) - self.num_windows * size + 1)
        # seed -> the epochs last asked for: two, since a batch may straddle epochs.
        self._starts: dict[int, dict[int, NDArray[np.int64]]] = {}

    def batch(self, seed: int, step: int, *, batch: int) -> NDArray[np.int64]:
        """Return the windows of one step.

        Parameters
        ----------
        seed : int
            The trial's seed, ≥ 0.
        step : int
            The step, from 0.
        batch : int
            B: windows per step; the step takes windows number step·B to (step + 1)·B − 1.

        Returns
        -------
        ndarray of int64, shape (B, T + 1)

        Raises
        ------
        DataError
            One epoch holds fewer windows than one batch.
        """
        return _cut(self.tokens, self.starts(seed, step, batch=batch), size=self._size)

    def starts(self, seed: int, step: int, *, batch: int) -> NDArray[np.int64]:
        """Return where the windows of one step start in the tokens, shape (B,); see `batch`."""
        assert min(seed, step, batch - 1) >= 0, (seed, step, batch)
        require_batch(self.tokens, context=self.context, batch=batch)
        first = step * batch
        epoch, place = divmod(first, self.num_windows)
        starts = self._epoch_starts(seed, epoch)[place : place + batch]
        if len(starts) < batch:
            rest = self._epoch_starts(seed, epoch + 1)[: batch - len(starts)]
            starts = np.concatenate([starts, rest])
        return starts

    def _epoch_starts(self, seed: int, epoch: int) -> NDArray[np.int64]:
        """Return where the epoch's windows start, in the order they are visited."""
        epochs = self._starts.setdefault(seed, {})
        if epoch not in epochs:
            if len(epochs) > 1:
                del epochs[min(epochs, key=lambda known: (known in (epoch - 1, epoch + 1), known))]
            # Raw draws and a stable sort, since numpy promises these streams for good and the
            # streams of its distributions and permutations only within a version.
            bits = np.random.PCG64(np.random.SeedSequence((seed, epoch)))
            offset = int(bits.random_raw()) % self._num_offsets
            order = np.argsort(bits.random_raw(self.num_windows), kind="stable")
            epochs[epoch] = offset + self._size * order
        return epochs[epoch]


def require_batch(tokens: Tokens, *, context: int, batch: int) -> None:
    """Check that the training tokens fill one batch, whatever the grid's offset.

    Raises
    ------
    DataError
        They do not; the message says how many there are and how many are needed.
    """
    size = context + 1
    needed = batch * size + (context if batch > 1 else 0)
    _require("training", tokens, needed=needed, what=f"a batch of {batch} windows of {size} tokens")


def validation_windows(tokens: Tokens, context: int, max_tokens: int) -> NDArray[np.int64]:
    """Return validation windows, evenly spread over the text and always the same.

    Parameters
    ----------
    tokens : ndarray of int, shape (num_tokens,)
        The validation stream.
    context : int
        T.
    max_tokens : int
        How many tokens may be predicted: N·T is at most this, with N at least 1.

    Returns
    -------
    ndarray of int64, shape (N, T + 1)
        Windows that do not overlap, in the order of the text.

    Raises
    ------
    DataError
        There are fewer tokens than one window.
    """
    assert context >= 1, context
    size = context + 1
    _require("validation", tokens, needed=size, what=f"one window of {size} tokens")
    available = len(tokens) // size
    num_windows = min(available, max(1, max_tokens // context))
    starts = np.arange(num_windows, dtype=np.int64) * available // num_windows * size
    return _cut(tokens, starts, size=size)


def _cut(tokens: Tokens, starts: NDArray[np.int64], *, size: int) -> NDArray[np.int64]:
    places = starts[:, None] + np.arange(size)
    windows: NDArray[np.int64] = np.asarray(tokens)[places].astype(np.int64)
    return windows


def _require(half: str, tokens: Tokens, *, needed: int, what: str) -> None:
    if len(tokens) < needed:
        raise DataError(
            f"text too short: {len(tokens)} {half} tokens, {what} takes {needed}; "
            "use more text, a shorter context or a smaller batch"
        )
