"""``[[points]]``: trials beside the grid or in its place, from the study file to the results."""

import pytest

from hptransfer.errors import ConfigError
from hptransfer.study._trial import list_trials
from hptransfer.study.config import parse_study
from hptransfer.study.store import TABLE_COLUMNS, read_trials
from hptransfer.study.study_settings import read_config

GRID = {"parameterization": ["sp", "mup"], "width": [16, 32], "log2_lr": [-7, -5], "seed": [0, 1]}


def make(sweep=GRID, *, points=(), **sections):
    document = {
        "name": "x",
        "data": {"text": "wiki"},
        "model": {"num_layers": 1, "head_size": 8, "context": 16},
        "sweep": dict(sweep),
        "train": {"batch": 1, "steps": 1},
        **sections,
    }
    return parse_study(document | ({"points": list(points)} if points else {}))


def cells(config):
    return {
        (t.parameterization, t.width, t.weight_decay, t.base_lr, t.seed)
        for t in list_trials(config)
    }


def test_points_stand_beside_the_grid_and_take_what_they_leave_out_from_it():
    config = make(points=[{"width": 24, "log2_lr": [-6.5, -6], "seeds": [4]}])
    assert len(list_trials(config)) == 16 + 2 * 2
    extra = cells(config) - cells(make())
    assert extra == {(rule, 24, 0.0, 2.0**k, 4) for rule in ("sp", "mup") for k in (-6.5, -6)}
    named = {"width": [24], "parameterization": "sp+embd", "lr": 0.01, "weight_decay": 0.1}
    extra = cells(make(points=[named])) - cells(make())
    assert extra == {("sp+embd", 24, 0.1, 0.01, seed) for seed in (0, 1)}


def test_points_in_place_of_the_grid():
    config = make(
        {"parameterization": "sp"},
        points=[
            {"width": [16, 32], "log2_lr": -6, "seeds": [0]},
            {"width": 64, "log2_lr": -7, "seeds": [0, 1]},
        ],
    )
    assert not config.sweep.is_adaptive
    assert config.sweep.base_width == 16
    assert len(list_trials(config)) == 4
    assert config.widths == (16, 32, 64)
    assert parse_study(config.to_dict()) == config


def test_a_point_of_the_grid_is_no_second_trial_and_points_leave_the_identity_as_it_is():
    config = make(points=[{"width": 16, "log2_lr": [-7, -6], "seeds": [0, 1]}])
    assert len(list_trials(config)) == 16 + 4
    assert config.identity() == make().identity()
    assert "points" not in make().to_dict()
    assert parse_study(config.to_dict()) == config


@pytest.mark.parametrize(
    ("points", "words"),
    [
        ({"widht": 24, "log2_lr": -6}, "unknown key 'points.widht'; did you mean 'width'"),
        ({"width": 24}, "points.base_lr: expected this or points.log2_lr"),
        ({"log2_lr": -6}, "points.width: expected a value"),
        ({"width": 24, "lr": 0.1, "log2_lr": -6}, "points.lr: expected one of lr and log2_lr"),
        ({"width": 24, "lr": 0.0}, "points.lr: expected a value above 0, found 0.0"),
        ({"width": 24, "log2_lr": []}, "points.log2_lr: expected at least one value"),
        ({"width": 20, "log2_lr": -6}, "points.width: expected a multiple of model.head_size"),
        ({"width": 24, "log2_lr": -6, "seeds": [-1]}, "points.seeds: expected a value of 0"),
        ({"width": 24, "lr": "adaptive"}, "points.lr: expected a number, found 'adaptive'"),
        ({"width": 24, "log2_lr": -6, "parameterization": "spp"}, "points.parameterization"),
        ("here", "points: expected a section [points], found 'here'"),
        ({"width": [[64]], "log2_lr": -6}, "points.width: expected a whole number, found [64]"),
        ({"width": 24, "log2_lr": -6, "seeds": list(range(10**6))}, "at most 1,000,000 trials"),
    ],
)
def test_a_wrong_point_is_one_line(points, words):
    with pytest.raises(ConfigError) as refused:
        make(points=[points])
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_points_whose_widths_are_no_numbers_give_the_sweep_none():
    with pytest.raises(ConfigError, match=r"points\.width: expected a whole number, found \[64\]"):
        make({"parameterization": "sp"}, points=[{"width": [[64]], "log2_lr": -6}])


def test_a_grid_of_more_trials_than_fit_is_refused_before_they_are_made():
    absurd = {**GRID, "log2_lr": [-k / 2000 for k in range(2000)], "seed": list(range(2000))}
    with pytest.raises(ConfigError, match=r"sweep: expected at most 1,000,000 trials.*16000000"):
        make(absurd)


def test_points_and_a_search_exclude_each_other():
    adaptive = {**GRID, "base_lr": "adaptive"}
    del adaptive["log2_lr"]
    with pytest.raises(ConfigError, match=r"points: expected a list of learning rates"):
        make(adaptive, points=[{"width": 24, "log2_lr": -6}])
    with pytest.raises(ConfigError, match=r"points: expected one or more sections"):
        parse_study({**make().to_dict(), "points": []})


def test_run_trains_points_into_the_directory_of_the_grid(study_file, finished):
    from study.training import complete

    before = read_trials(finished, TABLE_COLUMNS).rows
    more = '\n[[points]]\nwidth = 24\nlog2_lr = [-6]\nseeds = [0]\nparameterization = ["mup"]\n'
    study_file.write_text(study_file.read_text() + more)
    complete(study_file, finished)
    after = read_trials(finished, TABLE_COLUMNS).rows
    assert len(after) == len(before) + 1
    rows = after.to_pylist()
    assert next(row for row in rows if row["width"] == 24)["log2_lr"] == -6
    assert {row["id"] for row in before.to_pylist()} <= {row["id"] for row in rows}
    # A file that no longer names them does not forget them.
    study_file.write_text(study_file.read_text().removesuffix(more))
    complete(study_file, finished)
    assert len(list_trials(read_config(finished))) == len(rows)


def test_a_path_that_no_file_can_have_is_refused():
    with pytest.raises(ConfigError, match=r"expected a rule in TOML, found: .*null"):
        make({**GRID, "parameterization": ["a\0.toml"]})
