"""Trials: content-hash ids, and which of them are one training run."""

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hptransfer._documents import canonical_json
from hptransfer._trial_state import TrialState
from hptransfer.scaling import LATTICE
from hptransfer.study._trial import (
    Trial,
    list_trials,
    merge_equal,
    resolve_trial,
)
from hptransfer.study.config import parse_study


def make_config(model=None, **sweep):
    return parse_study(
        {
            "name": "x",
            "data": {"text": "wiki"},
            "model": {"num_layers": 2, "context": 8, **(model or {"head_size": 8})},
            "sweep": {"parameterization": list(LATTICE), "width": [16, 64], "lr": 0.25, **sweep},
            "train": {"batch": 1, "steps": 1},
        }
    )


def test_the_grid_is_listed_once_in_a_fixed_order():
    config = make_config(seed=[0, 1], lr=[0.5, 0.25], weight_decay=[0.0, 0.1])
    trials = list_trials(config)
    assert len(trials) == 16 * 2 * 2 * 2 * 2
    assert len({trial.id for trial in trials}) == len(trials)
    assert list_trials(config) == trials
    assert all(len(trial.id) == 16 for trial in trials)


@pytest.mark.parametrize(
    "field", ["parameterization", "width", "base_lr", "weight_decay", "seed", "identity"]
)
def test_an_id_depends_on_every_field(field):
    trial = list_trials(make_config())[0]
    changed = {"parameterization": "mup", "identity": "0"}.get(field, 3)
    assert replace(trial, **{field: changed}).id != trial.id
    assert replace(trial).id == trial.id


def test_ids_are_the_same_in_every_process():
    """A pinned value: a change of it would make every stored trial unknown."""
    trial = replace(
        list_trials(make_config())[0], identity="ab" * 32, parameterization="sp", width=16
    )
    assert trial.id == "010befebb70c1a34"


@given(
    number=st.floats(0, 1e300) | st.integers(0, 2**60),
    seed=st.integers(0, 2**31),
    name=st.text(max_size=9),
)
def test_an_id_is_the_hash_of_the_canonical_json(number, seed, name):
    fields = {
        "parameterization": name, "width": seed + 1, "base_lr": number, "weight_decay": number / 3,
        "seed": seed, "identity": name[::-1],
    }  # fmt: skip
    digest = hashlib.sha256(canonical_json(fields).encode()).hexdigest()
    assert Trial(**fields).id == digest[:16]


def test_runs_are_those_of_trials_resolved_one_by_one():
    config = make_config(seed=[0, 1, 2], lr=[0.5, 0.25], weight_decay=[0.0, 0.1])
    trials = list_trials(config)
    runs = {}
    for trial in trials:
        key = (trial.seed, *resolve_trial(config, trial).key())
        runs.setdefault(key, []).append(trial)
    assert merge_equal(config, trials) == [tuple(run) for run in runs.values()]


def test_equal_numbers_are_one_run():
    """All 16 rules at m = 1; at m = 4 with a fixed head size `attn` changes nothing."""
    config = make_config(seed=[0, 1])
    runs = merge_equal(config, list_trials(config))
    sizes = {(run[0].width, run[0].seed): [] for run in runs}
    for run in runs:
        sizes[run[0].width, run[0].seed].append(len(run))
        assert len({(trial.width, trial.seed, trial.base_lr) for trial in run}) == 1
    for seed in (0, 1):
        assert sizes[16, seed] == [16]
        assert sizes[64, seed] == [2] * 8


def test_growing_heads_tell_attention_scales_apart():
    config = make_config(model={"num_heads": 2}, seed=0)
    assert sorted(len(run) for run in merge_equal(config, list_trials(config))) == [1] * 16 + [16]


def test_numbers_follow_the_study():
    config = make_config(model={"head_size": 8, "base_head_size": 1}, seed=0)
    trial = next(t for t in list_trials(config) if t.parameterization == "mup" and t.width == 64)
    resolved = resolve_trial(config, trial)
    assert resolved.attention_scale == 1 / 8
    assert resolved.roles["hidden"].lr == 0.25 / 4
    assert resolved.roles["embedding"].lr == 0.25


def test_a_trials_numbers_are_resolved_once():
    config = make_config(seed=[0, 1])
    first, second = list_trials(config)[:2]
    assert first.seed != second.seed
    assert resolve_trial(config, first) is resolve_trial(config, second)
    other = make_config(model={"num_heads": 2})
    assert resolve_trial(other, first).attention_scale is not None
    assert [state.value for state in TrialState] == ["pending", "completed", "diverged", "failed"]
