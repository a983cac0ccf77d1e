"""What a text's tokens cost without a network: its unigram and bigram entropy.

Both are in nats per token and are the marks a study's losses are held against: a model that
knows only how frequent each token is cannot go below the first, one that also sees the token
before cannot go far below the second.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.integer[Any]]

# Beyond this many training tokens more counts hardly move the estimate (documents are shuffled,
# so the first ones are a fair sample), while sorting them takes memory: 16 bytes a token.
MAX_COUNTED_TOKENS = 2**25

# Discounts are kept off 0 (an unseen bigram would have no probability at all) and off 1.
_DISCOUNT_RANGE = (0.01, 0.99)


def unigram_entropy(tokens: Tokens) -> float:
    """Return the plug-in entropy of the tokens' own distribution.

    −Σ p ln p with p the observed frequencies: the lowest mean loss that any fixed distribution
    reaches on exactly these tokens, and so the mark for a loss measured on them. As an estimate
    of the source's entropy it is low by about (distinct − 1) / (2·count) nats (Miller 1955).

    Parameters
    ----------
    tokens : ndarray of int, shape (N,)
        The validation tokens, N ≥ 1.

    Returns
    -------
    float
        Nats per token.
    """
    counts = np.bincount(tokens).astype(np.float64)
    frequencies = counts[counts > 0] / len(tokens)
    return float(-(frequencies * np.log(frequencies)).sum()) + 0.0  # no -0.0


def bigram_entropy(train: Tokens, val: Tokens, *, vocab_size: int) -> float:
    """Return the held-out cross-entropy of an interpolated Kneser–Ney bigram model.

    The plug-in conditional entropy is of no use here: most bigrams of a short validation text
    occur in it once, so each looks certain given the token before. Instead the model is counted
    on training tokens and scored on validation tokens, which errs upwards, and little:

        p(w | c) = max(n(c,w) − d, 0) / n(c) + d · t(c) / n(c) · q(w)
        q(w) = max(t(·,w) − e, 0) / t + e · s / t / V

    with n counts, t(c) the distinct tokens seen after c, t(·,w) those seen before w, t the
    distinct bigrams, s the tokens seen after any, and discounts d, e = n₁ / (n₁ + 2·n₂) from
    how many bigrams (continuations) occur once and twice. After an unseen c, p = q.
    Formulas: Chen & Goodman 1999, section 2.7; Ney, Essen & Kneser 1994 for the discounts.

    Parameters
    ----------
    train : ndarray of int, shape (N,)
        Training tokens; the first ``MAX_COUNTED_TOKENS`` are counted.
    val : ndarray of int, shape (M,)
        Validation tokens; M − 1 of them are predicted, each from the one before.
    vocab_size : int
        V: every token is below it.

    Returns
    -------
    float
        Nats per token.
    """
    assert min(len(train), len(val)) >= 2, (len(train), len(val))
    bigrams, counts = np.unique(
        _pair(train[:MAX_COUNTED_TOKENS], vocab_size=vocab_size), return_counts=True
    )
    before, after = np.divmod(bigrams, vocab_size)
    backoff_V = _continuations(after, vocab_size=vocab_size)
    context_counts_V = np.bincount(before, weights=counts, minlength=vocab_size)
    context_types_V = np.bincount(before, minlength=vocab_size)
    discount = _discount(counts)

    wanted = _pair(val, vocab_size=vocab_size)
    place = np.minimum(np.searchsorted(bigrams, wanted), len(bigrams) - 1)
    seen = np.where(bigrams[place] == wanted, counts[place] - discount, 0.0)
    context = np.asarray(val[:-1], dtype=np.int64)
    total = np.maximum(context_counts_V[context], 1.0)
    share = np.where(context_counts_V[context] > 0, discount * context_types_V[context] / total, 1)
    return float(-np.log(seen / total + share * backoff_V[val[1:]]).mean())


def _pair(tokens: Tokens, *, vocab_size: int) -> NDArray[np.int64]:
    """Number each bigram (c, w) as c·V + w."""
    wide = np.asarray(tokens, dtype=np.int64)
    return wide[:-1] * vocab_size + wide[1:]


def _continuations(after: NDArray[np.int64], *, vocab_size: int) -> NDArray[np.float64]:
    """Return q(w): the share of distinct bigrams that end in w, with room for unseen tokens."""
    types_V = np.bincount(after, minlength=vocab_size)
    discount = _discount(types_V[types_V > 0])
    room = discount * np.count_nonzero(types_V) / len(after)
    result: NDArray[np.float64] = np.maximum(types_V - discount, 0) / len(after) + room / vocab_size
    return result


def _discount(counts: NDArray[np.int64]) -> float:
    once = int(np.count_nonzero(counts == 1))
    twice = int(np.count_nonzero(counts == 2))
    raw = once / (once + 2 * twice) if once else 0.0
    return float(np.clip(raw, *_DISCOUNT_RANGE))
