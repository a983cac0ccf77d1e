"""Adaptive studies: rounds follow from finished rounds alone, whoever trains them."""

import json
from dataclasses import replace

import pytest

from hptransfer.cli import main as cli
from hptransfer.errors import StoreError
from hptransfer.study._plan import Plan
from hptransfer.study._runner import Shard, prepare_run, run_groups
from hptransfer.study._trial import list_trials, num_flops
from hptransfer.study.adaptive import SearchBound, search_study
from hptransfer.study.config import load_study, parse_study
from hptransfer.study.store import read_trials


@pytest.fixture
def adaptive_file(study_file, monkeypatch):
    # One thread: these trials are far too small to share among several.
    monkeypatch.setattr("hptransfer.study._local_engine.count_cores", lambda: 1)
    text = study_file.read_text().replace("log2_lr = [-7, -5, 6]", 'lr = "adaptive"')
    text += "\n[adaptive]\nlog2_lr = [-8, -2]\nstep = 1\nmax_points = 5\n"
    study_file.write_text(text)
    return study_file


def train_rounds(config, directory, *, most=100, shard=None):
    """Train round by round until nothing is left for this shard; return how many rounds."""
    for count in range(most):
        work = prepare_run(config, directory, workers=1, shard=shard)
        if not work.groups:
            return count
        run_groups(config, directory, work.groups, workers=1, on_event=lambda event: None)
    return most


def read_numbers(directory):
    rows = read_trials(directory).rows.to_pylist()
    return {row["id"]: (row["width"], row["base_lr"], row["seed"], row["loss"]) for row in rows}


def test_a_run_is_the_same_whole_interrupted_or_in_shards(adaptive_file, tmp_path):
    config = load_study(adaptive_file)
    whole, parts, shards = (tmp_path / name for name in ("whole", "parts", "shards"))
    assert train_rounds(config, whole) > 2
    plan = Plan.read(whole)

    # A stop after every round: what is stored by then decides the next.
    while train_rounds(load_study(adaptive_file), parts, most=1):
        pass
    assert Plan.read(parts).rounds == plan.rounds
    assert read_numbers(parts) == read_numbers(whole)

    # Two shards by turns: one with nothing left in a round waits for the other.
    while any([train_rounds(config, shards, shard=Shard(index=k, count=2)) for k in (1, 2)]):
        pass
    # Its groups are smaller, so that both have some; where it looks next is the same.
    assert Plan.read(shards).points == plan.points
    found, expected = read_numbers(shards), read_numbers(whole)
    assert found.keys() == expected.keys()
    for trial, (*cell, loss) in expected.items():
        assert list(found[trial][:3]) == cell
        assert found[trial][3] == (loss if loss is None else pytest.approx(loss, abs=1e-5))


def test_rounds_hold_each_trial_once_and_say_why(adaptive_file, tmp_path):
    config = load_study(adaptive_file)
    train_rounds(config, tmp_path / "d")
    plan = Plan.read(tmp_path / "d")
    points = [point for each in plan.rounds for point in each.points]
    assert len(points) == len(set(points))
    ids = [trial for group in plan.groups for trial in group.trial_ids]
    assert len(ids) == len(set(ids))
    assert set(ids) == set(read_numbers(tmp_path / "d"))
    assert {trial.id for trial in list_trials(config, plan.points)} == set(ids)
    assert all(each.reasons for each in plan.rounds)
    # At the base width all rules are one, and so are their searches.
    narrow = [p for p in points if p.width == 16]
    by_name = [{p.base_lr for p in narrow if p.parameterization == name} for name in ("sp", "mup")]
    assert by_name[0] == by_name[1]
    assert len(ids) <= (bound := SearchBound.find(config)).most_trials
    flops = sum(num_flops(config, point.width) for point in points) * len(config.sweep.seed)
    assert flops <= bound.most_flops


def test_the_next_round_does_not_depend_on_the_order_of_rows(adaptive_file, tmp_path):
    config = load_study(adaptive_file)
    train_rounds(config, tmp_path / "d", most=2)
    stored = read_trials(tmp_path / "d")
    assert len(stored.ids) > 4
    backwards = replace(stored, rows=stored.rows.take(list(range(len(stored.rows)))[::-1]))
    assert search_study(config, backwards) == search_study(config, stored)


def test_more_seeds_train_at_the_points_that_are_there(adaptive_file, tmp_path):
    directory = tmp_path / "d"
    train_rounds(load_study(adaptive_file), directory)
    before = Plan.read(directory).points
    adaptive_file.write_text(adaptive_file.read_text().replace("seed = [0, 1]", "seed = [0, 1, 2]"))
    work = prepare_run(load_study(adaptive_file), directory, workers=1)
    assert Plan.read(directory).points == before
    assert work.num_trials == len(before)


def test_the_target_may_change_but_a_search_is_no_grid(adaptive_file, tmp_path):
    config = load_study(adaptive_file)
    directory = tmp_path / "d"
    prepare_run(config, directory, workers=1)
    text = adaptive_file.read_text()
    adaptive_file.write_text(text + "error = 0.01\n")
    tighter = load_study(adaptive_file)
    assert tighter.identity() == config.identity()
    prepare_run(tighter, directory, workers=1)
    grid = text.replace('lr = "adaptive"', "lr = [0.1]").partition("[adaptive]")[0]
    adaptive_file.write_text(grid)
    with pytest.raises(StoreError, match=r"sweep\.base_lr"):
        prepare_run(load_study(adaptive_file), directory, workers=1)


def test_the_document_reads_back_as_equal(adaptive_file):
    config = load_study(adaptive_file)
    document = config.to_dict()
    assert document["sweep"]["base_lr"] == "adaptive"
    assert parse_study(document) == config
    assert list_trials(config) == ()  # none is known before a round is placed


def test_the_commands_on_an_adaptive_study(adaptive_file, tmp_path, capsys):
    assert cli.main(["plan", str(adaptive_file), "--workers", "1", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    first = document["trials"]
    assert first == 2 * 3 * 2  # two rules, three rates between 2^-8 and 2^-2, two seeds
    assert cli.main(["plan", str(adaptive_file), "--workers", "1"]) == 0
    assert "at most" in capsys.readouterr().out

    directory = tmp_path / "d"
    command = ["run", str(adaptive_file), "-o", str(directory), "--workers", "1"]
    assert cli.main([*command, "--shard", "20/20"]) == 0
    assert "round 0 waits for" in capsys.readouterr().err
    assert cli.main(command) == 0
    found = capsys.readouterr().err
    assert "round 1: " in found
    assert "nothing is missing" in found
    trained = len(read_numbers(directory))
    assert first < trained <= document["adaptive"]["most_trials"]
    assert cli.main(["status", str(directory), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["trials"], document["pending"]) == (trained, 0)
    assert any("width 32" in line for line in document["search"])
    assert cli.main(["status", str(directory)]) == 0
    assert "width 32" in capsys.readouterr().out
    assert cli.main(["fit", str(directory), "--json"]) == 0
    assert cli.main(["report", str(directory), "-o", str(tmp_path / "r.html")]) == 0


def test_a_waiting_shard_goes_on_when_the_others_are_done(
    adaptive_file, tmp_path, capsys, monkeypatch
):
    directory = tmp_path / "d"
    command = ["run", str(adaptive_file), "-o", str(directory), "--workers", "1"]
    looks = []

    def finish_the_rest(seconds):
        looks.append(seconds)
        train_rounds(load_study(adaptive_file), directory, most=1)

    monkeypatch.setattr("hptransfer.study._runner.time.sleep", finish_the_rest)
    assert cli.main([*command, "--shard", "1/20", "--wait"]) == 0
    assert looks
    assert "nothing is missing" in capsys.readouterr().err
