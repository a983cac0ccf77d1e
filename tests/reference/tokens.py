"""A stream of tokens that there is something to learn from."""

import numpy as np


def noisy_cycle():
    """Count from 0 to 19 over and over, with every tenth token drawn instead."""
    generator = np.random.default_rng(0)
    tokens = np.arange(4000) % 20
    noisy = generator.random(4000) < 0.1
    tokens[noisy] = generator.integers(0, 20, noisy.sum())
    return tokens.astype(np.uint16)
