"""study.json: one study's directory stays that study's, and grows."""

import pytest

from hptransfer.errors import StoreError
from hptransfer.study import study_settings
from hptransfer.study.config import parse_study
from hptransfer.study.store import read_trials
from hptransfer.study.study_settings import open_study, read_settings
from study.small import DATA, STUDY, make_config


@pytest.fixture
def directory(tmp_path):
    open_study(tmp_path / "study", make_config(), data=DATA)
    return tmp_path / "study"


def test_an_open_study_is_opened_again(directory):
    before = read_settings(directory)
    open_study(directory, make_config(), data=DATA)
    assert read_settings(directory) == before
    assert before["name"] == "small"
    assert before["axis"] == "hidden-aligned"
    assert parse_study(before["config"]) == make_config()


def test_a_grown_or_shrunk_grid_is_the_same_study_and_forgets_nothing(directory):
    sweep = {**STUDY["sweep"], "width": [64], "seed": [0, 1]}
    open_study(directory, make_config(sweep={**sweep, "base_width": 16}), data=DATA)
    grown = read_settings(directory)["config"]["sweep"]
    assert grown["width"] == [16, 32, 64]
    assert grown["seed"] == [0, 1]
    open_study(directory, make_config(), data=DATA)
    assert read_settings(directory)["config"]["sweep"] == grown


@pytest.mark.parametrize(
    ("section", "change", "named"),
    [
        ("train", {"steps": 11}, "train.steps = 11"),
        ("train", {"warmup": 0.1}, "train.warmup = 0.1"),
        ("model", {"num_layers": 2}, "model.num_layers = 2"),
        ("data", {"vocab_size": 400}, "data.vocab_size = 400"),
        ("sweep", {"axis": "global"}, "sweep.axis = 'global'"),
        ("sweep", {"base_width": 32}, "sweep.base_width = 32"),
    ],
)
def test_another_study_is_refused_with_what_differs(directory, section, change, named):
    other = make_config(**{section: {**STUDY[section], **change}})
    with pytest.raises(StoreError) as caught:
        open_study(directory, other, data=DATA)
    message = str(caught.value)
    assert named in message
    assert str(directory) in message
    assert "\n" not in message
    assert caught.value.exit_code == 2


def test_equal_numbers_of_another_type_are_another_study(tmp_path):
    """Identities tell 1 from 1.0, as rules of one's own may have either."""

    def make(exponent):
        rule = {"like": "mup", "roles": {"embedding": {"lr": exponent}}}
        sweep = {**STUDY["sweep"], "parameterization": ["mine"]}
        return make_config(sweep=sweep, rules={"mine": rule})

    open_study(tmp_path / "study", make(1), data=DATA)
    with pytest.raises(StoreError, match=r"rules\.mine\.roles\.embedding\.lr = 1\.0, .* = 1;"):
        open_study(tmp_path / "study", make(1.0), data=DATA)


OWN = {"factory": "mine.py:make", "loss": "mine.py:loss"}


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({}, {"options": {}}),
        ({"options": {}}, {}),
        ({}, {"roles": {}}),
        ({"roles": {}}, {}),
    ],
)
def test_settings_of_another_identity_are_refused_and_stay_as_they_were(tmp_path, first, then):
    def make(model):
        data = {"batches": "mine.py:batches"}
        return make_config(model={**OWN, **model}, data=data)

    directory = tmp_path / "study"
    open_study(directory, make(first), data=DATA)
    before = read_settings(directory)
    assert make(first).identity() != make(then).identity()
    with pytest.raises(StoreError, match="choose another directory"):
        open_study(directory, make(then), data=DATA)
    assert read_settings(directory) == before
    open_study(directory, make(first), data=DATA)
    assert read_settings(directory) == before


def test_another_name_and_another_text_are_refused(directory):
    with pytest.raises(StoreError, match=r"'other'.*'small'"):
        open_study(directory, make_config(name="other"), data=DATA)
    with pytest.raises(StoreError, match="text"):
        open_study(directory, make_config(), data={**DATA, "data_hash": "cd" * 32})


def test_a_folder_of_other_files_or_a_file_is_no_study(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StoreError, match="other files"):
        open_study(tmp_path, make_config(), data=DATA)
    with pytest.raises(StoreError, match="a file"):
        open_study(tmp_path / "notes.txt", make_config(), data=DATA)
    with pytest.raises(StoreError, match=r"study\.json"):
        read_trials(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"name": "x"}', "\0"])
def test_damaged_settings_are_named(directory, content):
    (directory / "study.json").write_text(content)
    with pytest.raises(StoreError, match=r"study\.json"):
        read_settings(directory)


def test_what_a_killed_start_leaves_is_no_obstacle(tmp_path):
    (tmp_path / ".study-abc.tmp").write_text("half")
    open_study(tmp_path, make_config(), data=DATA)
    assert read_settings(tmp_path)["name"] == "small"


def test_a_later_schema_is_refused(directory):
    path = directory / "study.json"
    path.write_text(path.read_text().replace('"schema": 2', '"schema": 99'))
    with pytest.raises(StoreError, match="99"):
        read_settings(directory)


def test_of_two_that_start_at_once_the_second_joins_or_is_refused(tmp_path, monkeypatch):
    """The other's settings appear after we looked for some and before we write ours."""
    real = study_settings._check_empty
    first = make_config()

    def look(directory):
        monkeypatch.setattr(study_settings, "_check_empty", real)
        real(directory)
        open_study(directory, first, data=DATA)

    monkeypatch.setattr(study_settings, "_check_empty", look)
    open_study(tmp_path / "one", make_config(), data=DATA)
    assert read_settings(tmp_path / "one")["name"] == "small"
    monkeypatch.setattr(study_settings, "_check_empty", look)
    with pytest.raises(StoreError, match=r"'other'.*'small'"):
        open_study(tmp_path / "two", make_config(name="other"), data=DATA)
    assert read_settings(tmp_path / "two")["name"] == "small"
