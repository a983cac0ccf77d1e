"""Ask and tell: one search for any number of loops, whatever ends them and in which order."""

import errno
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest

from hptransfer import LrSearch
from hptransfer.errors import ConfigError, DataError, FitError, StoreError
from hptransfer.search import Trial, read_search
from search.surface import train

WIDTHS = (32, 64, 128)


def run(search, *, how=train, num=None):
    while trials := search.ask(num):
        for trial in trials:
            search.tell(trial, how(trial))
    return search


def rows(table):
    columns = (table.width, table.lr, table.seed, table.loss, *table.groups.values())
    return [tuple(map(str, row)) for row in zip(*columns, strict=True)]


@pytest.fixture(scope="module")
def whole():
    """An undisturbed search, in memory."""
    return run(LrSearch(widths=WIDTHS))


def test_a_loop_ends_with_an_answer(whole):
    assert whole.ask() == []
    assert whole.is_done
    assert {each.state for each in whole.optima} <= {"done", "stopped"}
    for each in whole.optima:
        assert each.optimum == pytest.approx(-6 - 0.4 * math.log2(each.width / 32), abs=0.25)
    answer = whole.recommend(width=256)
    assert answer.lr.low < answer.lr.value < answer.lr.high
    assert math.log2(answer.lr.value) == pytest.approx(-7.2, abs=0.5)
    assert np.isnan(whole.table.loss).sum() == sum(
        train(t) is None
        for t in (
            Trial(width=w, lr=lr, seed=s)
            for w, lr, s in zip(whole.table.width, whole.table.lr, whole.table.seed, strict=True)
        )
    )


def test_what_is_asked_does_not_depend_on_who_tells_when(whole, tmp_path):
    """Two loops on one journal, each reopened over and over, telling in a drawn order."""
    rng = np.random.default_rng(0)
    path = tmp_path / "search.jsonl"
    searches = [LrSearch(widths=WIDTHS, journal=path) for _ in range(2)]
    while not searches[0].is_done:
        number = int(rng.integers(2))
        trials = searches[number].ask(int(rng.integers(1, 5)), wait=False)
        for index in rng.permutation(len(trials))[:2]:
            searches[number].tell(trials[index], train(trials[index]))
        if rng.random() < 0.3:
            searches[number].release(searches[number].ask(wait=False))
            searches[number] = LrSearch(journal=path)
    assert rows(searches[0].table) == rows(whole.table)
    assert rows(read_search(path).table()) == rows(whole.table)


def test_asking_again_gives_the_same_until_it_is_told():
    search = LrSearch(widths=WIDTHS)
    first = search.ask(3)
    assert search.ask(3) == first
    search.tell(first[0], 3.0)
    again = search.ask(3)
    assert again[:2] == first[1:]
    assert len(again) == 3
    assert len(search.ask()) > 3


def test_a_trial_is_one_askers_until_its_lease_runs_out_or_it_ends(tmp_path, monkeypatch):
    path = tmp_path / "search.jsonl"
    mine = LrSearch(widths=WIDTHS, journal=path, lease=60)
    first = mine.ask()
    other = LrSearch(journal=path)
    assert other.ask(wait=False) == []
    monkeypatch.setattr("time.sleep", lambda seconds, give=mine.release: give(first[:1]))
    with pytest.warns(UserWarning, match=r"others have \d+ trials"):
        assert other.ask() == first[:1]
    mine.ask()
    monkeypatch.setattr("time.time", lambda: 4e9)
    assert other.ask(wait=False) == first
    # Gone without a word, as from a notebook whose cell is run again.
    monkeypatch.undo()
    del mine
    assert LrSearch(journal=path).ask(wait=False) == []
    del other
    assert LrSearch(journal=path).ask(wait=False) == first


@pytest.mark.parametrize("end", ["told", "given back", "run out"])
def test_ask_waits_though_others_end_right_after_its_look(end, tmp_path, monkeypatch):
    path = tmp_path / "search.jsonl"
    mine, other = LrSearch(widths=WIDTHS, journal=path), LrSearch(widths=WIDTHS, journal=path)
    first = mine.ask()
    look = other._ask

    def look_and_end(*arguments):
        seen = look(*arguments)
        if end == "told":
            for trial in first:
                mine.tell(trial, train(trial))
        elif end == "given back":
            mine.release(first)
        else:
            monkeypatch.setattr("time.time", lambda: 4e9)
        return seen

    monkeypatch.setattr(other, "_ask", look_and_end)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.warns(UserWarning, match=rf"others have {len(first)} trials"):
        trials = other.ask()
    assert trials
    assert (trials == first) == (end != "told")


def test_a_process_that_has_ended_holds_nothing_unless_it_gave_it_away(tmp_path):
    path = tmp_path / "search.jsonl"
    code = (
        "from hptransfer import LrSearch; import sys;"
        f"print(len(LrSearch([32, 64], journal={str(path)!r}).ask(2, handoff={{}})))"
    )
    for handoff in (False, True):
        command = [sys.executable, "-c", code.format(handoff)]
        assert subprocess.run(command, check=True, capture_output=True).stdout == b"2\n"
    search = LrSearch(journal=path)
    taken = search.ask(wait=False)
    lease = [json.loads(line) for line in path.read_text().splitlines()][-2]
    assert lease["owner"] == "handed off"
    assert not {trial.id for trial in taken} & set(lease["trials"])
    # Whoever was given them tells by name.
    for name in lease["trials"]:
        search.tell(name, 3.5)
    assert len(search.table) == 2


def test_told_twice_it_must_agree(tmp_path):
    search = LrSearch(widths=WIDTHS, journal=tmp_path / "search.jsonl")
    trial, diverged = search.ask()[:2]
    search.tell(trial, 3.25)
    search.tell(trial, 3.25)
    search.tell(diverged, None)
    search.tell(diverged, math.inf)
    before = (tmp_path / "search.jsonl").read_bytes()
    with pytest.raises(DataError, match=rf"line 6: .*{trial.id}.*line 4 tells, 3.25, found 3.5;"):
        search.tell(trial, 3.5)
    assert (tmp_path / "search.jsonl").read_bytes() == before
    # Written past our lock, by hand or on a file system without any, it is found on reading.
    line = before.decode().splitlines()[3].replace("3.25", "3.5")
    (tmp_path / "search.jsonl").write_bytes(before + f"{line}\n".encode())
    with pytest.raises(DataError, match=r"line 6: .*line 4 tells"):
        LrSearch(journal=tmp_path / "search.jsonl")


def test_each_combination_of_keys_is_a_search(whole):
    keys = {"parameterization": ["sp", "mup"], "weight_decay": [0.0, 0.1]}
    search = LrSearch(widths=WIDTHS, keys=keys)
    names = set()
    while trials := search.ask():
        for trial in trials:
            names.add(trial.id)
            shift = 1.0 if trial.keys["parameterization"] == "mup" else 0.0
            here = Trial(width=trial.width, lr=trial.lr * 2**shift, seed=trial.seed)
            search.tell(trial, train(here))
    assert len(names) == len(search.table)
    assert set(search.table.groups) == set(keys)
    assert len(search.optima) == 12
    sp = search.recommend(width=256, parameterization="sp", weight_decay=0.0)
    mup = search.recommend(width=256, parameterization="mup", weight_decay=0.0)
    assert math.log2(sp.lr.value / mup.lr.value) == pytest.approx(1.0, abs=0.4)
    with pytest.raises(ConfigError, match="one of the 4 searches"):
        search.recommend(width=128)


def test_partial_losses_are_kept_and_place_nothing(whole):
    search = LrSearch(widths=WIDTHS)
    for trial in search.ask():
        for step in (100, 200):
            search.tell(trial, 9.0 - step / 100, step=step)
    assert len(search.table) == 0
    assert len(search.partial_table) == 2 * len(search.ask())
    assert sorted(set(search.partial_table.groups["step"])) == [100, 200]
    assert rows(run(search).table) == rows(whole.table)


def test_a_failed_trial_is_set_aside_and_no_divergence(whole):
    search = LrSearch(widths=WIDTHS)
    trial = search.ask()[0]
    search.fail(trial, "exit code 1")
    assert search.failed == {trial.id: "exit code 1"}
    run(search)
    assert trial.lr in search.table.lr  # its other seed
    assert len(search.table.loss[(search.table.lr == trial.lr) & (search.table.width == 32)]) == 1
    search.retry()
    assert search.ask() == [trial]
    # Another that gave up on a trial which somebody has told by now changes nothing.
    search.tell(trial, 3.0)
    search.fail(trial, "lost")
    assert not search.failed


@pytest.mark.parametrize("loss", ["bad", [3.0], {"loss": 3.0}, True, 10**400])
def test_a_loss_that_is_no_number_is_refused_and_the_trial_stays(loss):
    search = LrSearch(widths=WIDTHS)
    trial = search.ask()[0]
    with pytest.raises(ConfigError, match="loss: expected a number, or None"):
        search.tell(trial, loss)
    assert search.ask()[0] == trial


def test_where_all_fails_it_ends(tmp_path):
    search = LrSearch(widths=WIDTHS)
    while trials := search.ask():
        for trial in trials:
            search.fail(trial, "no such file")
    assert len(search.table) == 0
    with pytest.raises(FitError, match="none told yet"):
        search.recommend(width=64)


def test_widths_and_seeds_may_be_added(whole, tmp_path):
    path = tmp_path / "search.jsonl"
    run(LrSearch(widths=(32, 64), journal=path))
    search = LrSearch(widths=WIDTHS, seeds=(0, 1, 2), journal=path)
    assert {trial.seed for trial in search.ask()} == {2}
    run(search)
    assert set(search.table.width) == set(WIDTHS)
    counts = np.unique(np.stack([search.table.width, search.table.lr]), axis=1, return_counts=True)
    assert set(counts[1]) == {3}
    with pytest.raises(ConfigError, match=r"line \d+: this is a search of widths \[32, 64, 128\]"):
        LrSearch(widths=(32, 64), journal=path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "widths: expected the widths to search"),
        ({"widths": []}, "widths: expected positive numbers"),
        ({"widths": [32, 32]}, "each once"),
        ({"widths": [32], "seeds": []}, "seeds: expected whole numbers"),
        ({"widths": "narrow"}, "widths: expected positive numbers"),
        ({"widths": b"narrow"}, "widths: expected positive numbers"),
        ({"widths": [64, [128]]}, r"widths: expected positive numbers.*found \[64, \[128\]\]"),
        ({"widths": np.ones((2, 2))}, "widths: expected positive numbers"),
        ({"widths": object()}, "widths: expected positive numbers"),
        ({"widths": [32], "seeds": [0, [1]]}, "seeds: expected whole numbers"),
        ({"widths": [32], "keys": ["wd"]}, "keys: expected a mapping"),
        ({"widths": [32], "keys": {"lr": [1]}}, "expected names beside"),
        ({"widths": [32], "keys": {"wd": 0.1}}, "wd: expected a list"),
        ({"widths": [32], "limit": 1.0}, "did you mean 'limits'"),
        ({"widths": [32], "step": 0.0}, "step: expected a value"),
        ({"widths": [32], "cost": lambda width: 0.0}, "cost: expected a number above 0"),
        ({"widths": [32], "lease": 0}, "lease: expected seconds"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message):
    with pytest.raises(ConfigError, match=message) as caught:
        LrSearch(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 48}, r"width: expected one of \[32, 64, 128\], found 48"),
        ({"seed": 7}, "seed: expected one of"),
        ({"lr": 0.0}, "lr: expected a number above 0"),
        ({"keys": {"wd": 1}}, "wd: expected no key"),
    ],
)
def test_trials_of_another_search_are_refused(change, message):
    search = LrSearch(widths=WIDTHS)
    with pytest.raises(ConfigError, match=message):
        search.tell(Trial(**{"width": 32, "lr": 0.01, "seed": 0, **change}), 3.0)
    with pytest.raises(ConfigError, match="expected a trial's id"):
        search.tell("w32_log2lr-99_s0", 3.0)


def test_arrays_and_ranges_are_widths_and_seeds(whole):
    search = LrSearch(np.array(WIDTHS), seeds=range(2))
    assert search.ask() == LrSearch(widths=WIDTHS).ask()
    assert isinstance(search.ask()[0].width, int)
    assert {(each.width, each.seed) for each in LrSearch(32, seeds=1).ask()} == {(32, 1)}
    assert {
        (each.width, each.seed) for each in LrSearch(np.int64(32), seeds=np.array(1)).ask()
    } == {(32, 1)}


def test_any_iterable_of_numbers_is_widths_and_seeds():
    costs = dict.fromkeys(WIDTHS, 1.0)
    for widths in (costs, costs.keys(), set(WIDTHS), map(np.int64, WIDTHS), map(float, WIDTHS)):
        search = LrSearch(widths, seeds=iter((0, 1)))
        assert search.widths == WIDTHS
        assert search.ask() == LrSearch(widths=WIDTHS).ask()


def test_own_measurements_count(whole):
    search = LrSearch(widths=WIDTHS)
    for seed in (0, 1):
        for lr in (2**-8, 0.0123, 2**-5):
            trial = Trial(width=32, lr=lr, seed=seed)
            search.tell(trial, train(trial))
    assert {trial.lr for trial in search.ask()} & {2**-8, 0.0123, 2**-5} == set()
    assert len(run(search).table) >= 6


def test_a_line_cut_off_is_said_and_nothing_else_lost(tmp_path):
    path = tmp_path / "search.jsonl"
    search = LrSearch(widths=WIDTHS, journal=path)
    trials = search.ask()
    search.tell(trials[0], 3.0)
    search.tell(trials[1], 3.5)
    path.write_bytes(path.read_bytes()[:-30])
    search = LrSearch(journal=path)
    assert len(search.table) == 1
    search.tell(trials[1], 3.5)
    assert len(search.table) == 2
    search = LrSearch(journal=path)
    assert len(search.table) == 2
    [note] = search.notes
    assert note.startswith(f"{path}: line 5: cut in the middle")
    assert trials[1].id in note
    assert search.ask() == trials[2:]


def test_a_full_disk_leaves_the_journal_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "search.jsonl"
    search = LrSearch(widths=WIDTHS, journal=path)
    trial = search.ask()[0]
    before = path.read_bytes()
    real = os.write

    def write(handle, data):
        if len(data) > 20:
            return real(handle, data[:20])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.write", write)
    with pytest.raises(OSError, match="No space left") as caught:
        search.tell(trial, 3.0)
    assert caught.value.filename == str(path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    search.tell(trial, 3.0)
    assert len(LrSearch(journal=path).table) == 1


@pytest.mark.parametrize("text", ["width,lr,loss\n", '{"event": "search", "schema": 99}\n'])
def test_what_is_no_journal_is_refused(text, tmp_path):
    path = tmp_path / "search.jsonl"
    path.write_text(text)
    with pytest.raises(StoreError, match="line 1: expected"):
        LrSearch(journal=path)


def test_names_of_trials_differ_where_trials_do():
    names = {
        Trial(width=64, lr=lr, seed=0, keys={"data": data}).id
        for lr in (2**-6, 2**-6.25, 2 ** (-1 / 3), 0.01, 0.010000001)
        for data in ("a/b", "a-b", "a b", "é" * 200)
    }
    assert len(names) == 20
    assert all("/" not in name and len(name) < 120 for name in names)
