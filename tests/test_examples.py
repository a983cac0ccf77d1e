"""The examples run, and train."""

import runpy
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(autouse=True)
def _one_thread():
    """Tiny models train faster on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_plain_loop(capsys):
    losses = runpy.run_path(str(EXAMPLES / "plain_loop.py"))["main"]()
    assert losses[-1] < losses[0] - 1.0
    lines = capsys.readouterr().out.splitlines()
    # m = 4: embeddings at η = 2^-7, all else that is decayed at η/4 with four times the decay.
    assert lines[0] == "embedding: lr 0.0078125, wd 0.001, 2 tensors"
    assert "hidden+hidden_residual+readout: lr 0.00195312, wd 0.004, 9 tensors" in lines
