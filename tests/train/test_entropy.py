import math
import time
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hptransfer.train._tokens import bigram_entropy, unigram_entropy


def draw_chain(transition: NDArray[np.float64], length: int, *, seed: int) -> NDArray[np.uint16]:
    draws = np.random.default_rng(seed).random(length)
    cumulated = transition.cumsum(axis=1)
    tokens = np.zeros(length, dtype=np.uint16)
    for index in range(1, length):
        tokens[index] = np.searchsorted(cumulated[tokens[index - 1]], draws[index])
    return tokens


def naive_bigram_entropy(train: list[int], val: list[int], vocab_size: int) -> float:
    """Interpolated Kneser–Ney with dicts and loops, from the formulas."""
    bigrams = Counter(pairwise(train))
    types_before = Counter(w for _, w in bigrams)

    def discount(counts: Counter) -> float:
        once = sum(count == 1 for count in counts.values())
        twice = sum(count == 2 for count in counts.values())
        raw = once / (once + 2 * twice) if once + twice else 0.0
        return min(max(raw, 0.01), 0.99)

    d, e = discount(bigrams), discount(types_before)

    def lower(w: int) -> float:
        room = e * len(types_before) / len(bigrams) / vocab_size
        return max(types_before[w] - e, 0) / len(bigrams) + room

    def probability(w: int, c: int) -> float:
        row = {b: count for (a, b), count in bigrams.items() if a == c}
        if not row:
            return lower(w)
        n = sum(row.values())
        return max(row.get(w, 0) - d, 0) / n + d * len(row) / n * lower(w)

    scores = [-math.log(probability(w, c)) for c, w in pairwise(val)]
    return sum(scores) / len(scores)


def test_unigram_entropy_of_known_counts() -> None:
    assert unigram_entropy(np.array([3, 3, 3])) == 0.0
    assert unigram_entropy(np.arange(64, dtype=np.uint16)) == pytest.approx(math.log(64))
    quarter = np.array([0, 0, 0, 7])
    expected = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert unigram_entropy(quarter) == pytest.approx(expected)


def test_independent_uniform_tokens_cost_ln_v() -> None:
    tokens = np.random.default_rng(0).integers(0, 32, size=300_000).astype(np.uint16)
    train, val = tokens[:-20_000], tokens[-20_000:]
    assert unigram_entropy(val) == pytest.approx(math.log(32), abs=0.002)
    assert bigram_entropy(train, val, vocab_size=32) == pytest.approx(math.log(32), abs=0.005)


def test_a_markov_chain_costs_its_entropy_rate() -> None:
    rng = np.random.default_rng(1)
    transition = rng.dirichlet(np.full(12, 0.4), size=12)
    values, vectors = np.linalg.eig(transition.T)
    stationary = np.real(vectors[:, np.argmax(np.real(values))])
    stationary /= stationary.sum()
    row_entropy = -(transition * np.log(np.maximum(transition, 1e-300))).sum(axis=1)
    rate = float(stationary @ row_entropy)
    marginal = float(-(stationary * np.log(stationary)).sum())
    tokens = draw_chain(transition, 120_000, seed=2)
    train, val = tokens[:100_000], tokens[100_000:]
    assert rate < marginal - 0.3
    assert bigram_entropy(train, val, vocab_size=12) == pytest.approx(rate, abs=0.02)
    assert unigram_entropy(val) == pytest.approx(marginal, abs=0.02)


def test_a_cycle_costs_almost_nothing() -> None:
    cycle = np.tile(np.arange(10), 1000)
    assert 0 <= bigram_entropy(cycle, cycle[:500], vocab_size=10) < 1e-3


def test_a_short_validation_text_is_not_flattered() -> None:
    # 400 of 512² bigrams: the plug-in conditional entropy would be near 0.
    tokens = np.random.default_rng(3).integers(0, 512, size=60_400)
    found = bigram_entropy(tokens[:60_000], tokens[60_000:], vocab_size=512)
    assert math.log(512) - 0.01 < found < math.log(512) + 0.7


@settings(max_examples=60, deadline=None)
@given(
    train=st.lists(st.integers(0, 6), min_size=2, max_size=60),
    val=st.lists(st.integers(0, 7), min_size=2, max_size=20),
)
def test_the_formulas_in_loops_agree(train: list[int], val: list[int]) -> None:
    found = bigram_entropy(np.array(train), np.array(val, dtype=np.uint16), vocab_size=8)
    assert found == pytest.approx(naive_bigram_entropy(train, val, 8), rel=1e-12)


@settings(max_examples=30, deadline=None)
@given(train=st.lists(st.integers(0, 6), min_size=2, max_size=60), context=st.integers(0, 7))
def test_the_probabilities_after_any_token_sum_to_one(train: list[int], context: int) -> None:
    scores = [
        bigram_entropy(np.array(train), np.array([context, w]), vocab_size=8) for w in range(8)
    ]
    assert np.exp(-np.array(scores)).sum() == pytest.approx(1, rel=1e-12)


def test_a_million_tokens_take_no_time_to_speak_of() -> None:
    rng = np.random.default_rng(4)
    tokens = (4096 * rng.random(1_500_000) ** 3).astype(np.uint16)
    start = time.process_time()
    bigram_entropy(tokens, tokens[:70_000], vocab_size=4096)
    assert time.process_time() - start < 2
