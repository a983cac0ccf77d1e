"""The study files that are published: each is one that `hptransfer run` takes."""

from pathlib import Path

import pytest

from hptransfer.study._trial import list_trials, num_tokens, resolve_trial
from hptransfer.study.config import load_study

STUDIES = Path(__file__).parents[2] / "studies"
FILES = sorted(STUDIES.glob("*.toml"))
#: Training tokens that studies/make_text.py gives, by vocabulary.
TEXT_TOKENS = {1024: 5_347_137, 4096: 3_759_113}


def test_there_are_study_files():
    assert {"embedding-gpu", "lattice-gpu"} <= {path.stem for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_study_file_says_what_it_is(path):
    config = load_study(path)
    assert config.name == path.stem
    for trial in list_trials(config):
        resolve_trial(config, trial)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_trial_reads_its_text_more_than_twice(path):
    config = load_study(path)
    if config.data.text != "files:text/*.jsonl":
        return
    tokens = max(num_tokens(config, width) for width in config.sweep.width)
    assert tokens <= 2 * TEXT_TOKENS[config.data.vocab_size]
