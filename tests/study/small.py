"""A small study's settings, for tests of what lies in a study directory."""

from hptransfer.study.config import parse_study

DATA = {"data_hash": "ab" * 32, "unigram_entropy": 5.5}
STUDY = {
    "name": "small",
    "data": {"text": "wiki", "vocab_size": 300},
    "model": {"num_layers": 1, "head_size": 8, "context": 16},
    "sweep": {"parameterization": ["sp"], "width": [16, 32], "lr": [0.125], "seed": [0]},
    "train": {"batch": 4, "steps": 10},
}


def make_config(**sections):
    """The study, with these sections in place of its own."""
    return parse_study({**STUDY, **sections})
