"""Batches of a study's own: sequences, and the same sequences sorted."""

import numpy as np
from numpy.typing import NDArray


def batches(seed: int, step: int, split: str) -> dict[str, NDArray[np.int64]]:
    """Return one batch; equal arguments give equal arrays, in any process."""
    generator = np.random.default_rng([seed, step, split == "val"])
    source = generator.integers(0, 20, (16, 8))
    return {"source": source, "target": np.sort(source, axis=1)}
