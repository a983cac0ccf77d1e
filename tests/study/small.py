"""A small study: its file with its text, and settings for tests of what lies in a directory."""

import random

from hptransfer.study.config import parse_study

WORDS = ["river", "stone", "the", "of", "a", "mountain", "was", "built", "in", "old", "city",
         "king", "and", "his", "ship", "sailed", "to", "north", "music", "played"]  # fmt: skip

TEXT = """\
name = "small"

[data]
text = "files:text/*.txt"
vocab_size = 300

[model]
num_layers = 1
head_size = 8
context = 16

[sweep]
parameterization = ["sp", "mup"]
width = [16, 32]
log2_lr = [-7, -5, 6]
seed = [0, 1]

[train]
batch = 4
steps = 12
eval_tokens = 256
precision = "fp32"
"""

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


def write_study(folder):
    """Write a study file that trains in a second or two, with its text beside it."""
    generator = random.Random(0)
    (folder / "text").mkdir()
    documents = [" ".join(generator.choices(WORDS, k=40)) + "." for _ in range(60)]
    (folder / "text" / "a.txt").write_text("\n\n".join(documents), encoding="utf-8")
    path = folder / "small.toml"
    path.write_text(TEXT, encoding="utf-8")
    return path
