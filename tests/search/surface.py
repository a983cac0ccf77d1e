"""A training run that is a formula: what the tests of the search train."""

import math

import numpy as np


def train(trial, *, noise=0.003, drift=-0.4, cliff=2.5, narrowest=32):
    """Return a deterministic loss with noise of its own, or None beyond the cliff."""
    u = math.log(trial.lr) - math.log(2.0) * (-6.0 + drift * math.log2(trial.width / narrowest))
    if u > cliff:
        return None
    log2_lr = round(100 * math.log2(trial.lr))
    rng = np.random.default_rng([int(trial.width), log2_lr + 10_000, trial.seed, len(trial.keys)])
    return 4 + 4 * trial.width**-0.5 + 0.06 * u * u + noise * rng.standard_normal()
