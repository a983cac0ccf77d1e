"""A bit flipped, bytes replaced, a file cut off or in another's place: no wrong number comes of it.

`benchmarks/damage.py` is the long version.
"""

import importlib.util
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "damage.py"


@pytest.mark.slow
def test_damaged_files_are_made_again_or_refused_in_one_line(tmp_path, cache):
    spec = importlib.util.spec_from_file_location("damage", BENCHMARK)
    damage = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(damage)
    counts = damage.run_cases(tmp_path, cases=90, seed=1)  # raises where it is not so
    assert counts.total() == 90
    kinds = {name.partition(":")[0] for name in counts}
    assert kinds >= {"study.json", "round", "results", "checkpoint", "train.npy"}
