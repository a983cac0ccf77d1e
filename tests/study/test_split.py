"""Groups that run out of memory train in halves, and everybody sees the same halves."""

from dataclasses import replace

import pytest
import torch

from hptransfer.errors import StoreError
from hptransfer.study._executor import make_training
from hptransfer.study._plan import (
    Plan,
    halve_group,
    split_path,
    write_split,
)
from hptransfer.study._runner import RunError, Shard
from hptransfer.study.store import checkpoint_path
from study.training import complete, prepare, read_rows

#: Bytes beyond any machine's address space: the allocator's own refusal.
TOO_MANY = 2**50


def crowd(runs, *, step=0):
    """Make trainings that run out of memory at a step, if they have more than so many runs."""

    def make(config, group, trials, tokens):
        training = make_training(config, group, trials, tokens)
        advance = training.advance

        def fail_or_advance():
            if len(trials) > runs and training.step == step:
                torch.empty(TOO_MANY, dtype=torch.uint8)
            return advance()

        training.advance = fail_or_advance
        return training

    return make


def test_halves_train_each_run_once_under_names_of_their_own(study_file, tmp_path):
    group = max(prepare(study_file, tmp_path / "out").groups, key=lambda group: len(group.runs))
    odd = replace(group, runs=group.runs[:5])
    first, second = halve_group(odd)
    assert first.runs + second.runs == odd.runs
    assert [len(half.runs) for half in (first, second)] == [3, 2]
    assert len({odd.name, first.name, second.name}) == 3
    assert first.seconds + second.seconds == pytest.approx(odd.seconds)
    assert first.memory + second.memory == pytest.approx(odd.memory, abs=1)
    own = {"name": "", "runs": (), "seconds": 0, "memory": 0}
    assert replace(first, **own) == replace(odd, **own)


def test_out_of_memory_halves_until_it_fits(study_file, tmp_path):
    """The same rows, to the bit, as with a plan whose groups were that small before they began."""
    small = tmp_path / "small"
    for group in prepare(study_file, small).groups:
        write_split(small, group)
        for half in halve_group(group):
            if len(half.runs) > 2:
                write_split(small, half)
    complete(study_file, small)

    directory, events = tmp_path / "out", []
    groups = prepare(study_file, directory).groups
    sizes = {group.name: len(group.runs) for group in groups}
    assert set(sizes.values()) == {3, 6}
    complete(study_file, directory, on_event=events.append, interval=0, make=crowd(2, step=5))
    assert read_rows(directory) == read_rows(small)
    assert {row["num_stacked"] for row in read_rows(directory)} == {1, 2}
    # Every event is of a group that was asked for, and each of those ends once.
    assert {event.group for event in events} == sizes.keys()
    done = [event for event in events if event.is_last]
    assert sorted(event.group for event in done) == sorted(sizes)
    assert sum(event.completed + event.diverged for event in done) == len(read_rows(directory))
    notes = [event.message for event in events if event.kind == "note"]
    for told in ("6 runs stacked, halved: 3 and 3 start", "3 runs stacked, halved: 2 and 1 start"):
        assert any(f"out of memory with {told} anew" in note for note in notes)
    assert all(0 <= event.step <= event.steps for event in events)
    assert list((directory / "checkpoints").iterdir()) == []
    assert prepare(study_file, directory).groups == ()


def test_a_later_run_trains_what_is_missing_of_the_halves(study_file, tmp_path):
    directory = tmp_path / "out"
    group = prepare(study_file, directory).groups[0]

    class EndedError(Exception):
        """Stands for a kill after the split."""

    def end(event):
        if event.kind == "note":
            raise EndedError

    with pytest.raises(RunError):  # the group's own, since ours is an error like any other
        complete(
            study_file, directory, groups=[group], on_event=end, interval=0,
            make=crowd(len(group.runs) - 1, step=3),
        )  # fmt: skip
    halves = halve_group(group)
    assert set(halves) <= set(prepare(study_file, directory).groups)
    assert group not in prepare(study_file, directory).groups
    assert not checkpoint_path(directory, group.name).exists()
    complete(study_file, directory, groups=halves[:1])
    assert halves[0] not in prepare(study_file, directory).groups
    events = []
    complete(study_file, directory, groups=[group], on_event=events.append)  # as a retry would
    [done] = [event for event in events if event.is_last]
    assert done.completed + done.diverged == len(group.trial_ids)
    complete(study_file, directory)
    assert len(read_rows(directory)) == 24


def test_a_single_run_that_does_not_fit_fails_alone(study_file, tmp_path):
    directory = tmp_path / "out"

    def make(config, group, trials, tokens):
        if group.width == 32:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore")
        return make_training(config, group, trials, tokens)

    with pytest.raises(RunError) as caught:
        complete(study_file, directory, make=make)
    message = str(caught.value)
    assert "out of memory with a single run of width 32" in message
    assert "CUDA out of memory. Tried to allocate 2.00 GiB." in message
    assert "\n" not in message
    assert {row["width"] for row in read_rows(directory)} == {16}


def test_a_share_stays_what_it_was_when_another_group_is_split(study_file, tmp_path):
    directory = tmp_path / "out"
    shards = [Shard(index=index, count=2) for index in (1, 2)]
    before = [prepare(study_file, directory, shard=shard).groups for shard in shards]
    write_split(directory, before[0][0])
    after = [prepare(study_file, directory, shard=shard).groups for shard in shards]
    assert after[0] == (*halve_group(before[0][0]), *before[0][1:])
    assert after[1] == before[1]


def test_a_group_split_by_another_process_meanwhile_is_stored_in_halves(study_file, tmp_path):
    directory = tmp_path / "out"
    group = prepare(study_file, directory).groups[0]

    def make(config, trained, trials, tokens):
        training = make_training(config, trained, trials, tokens)
        finish = training.finish
        training.finish = lambda: (write_split(directory, group), finish())[1]
        return training

    complete(study_file, directory, groups=[group], make=make)
    stored = {path.stem for path in (directory / "groups").iterdir()}
    assert stored == {half.name for half in halve_group(group)}


def test_halves_of_a_whole_that_was_stored_all_the_same_are_not_trained(study_file, tmp_path):
    directory = tmp_path / "out"
    group = prepare(study_file, directory).groups[0]
    complete(study_file, directory, groups=[group])
    write_split(directory, group)
    plan, halves = Plan.read(directory), halve_group(group)
    assert [plan.find_stored(half.name) for half in halves] == [group.name] * 2
    events = []
    complete(study_file, directory, groups=halves, on_event=events.append, make=pytest.fail)
    assert [event.kind for event in events] == ["done", "done"]
    assert {path.stem for path in (directory / "groups").iterdir()} == {group.name}


def test_the_first_split_stays_and_a_damaged_one_is_named(study_file, tmp_path):
    directory = tmp_path / "out"
    groups = prepare(study_file, directory).groups
    path = split_path(directory, groups[0].name)
    write_split(directory, groups[0])
    before = path.read_bytes()
    write_split(directory, replace(groups[0], runs=groups[0].runs[:2]))
    assert path.read_bytes() == before
    plan = Plan.read(directory)
    assert plan.list_parts(groups[0]) == halve_group(groups[0])
    assert plan.list_parts(groups[1]) == (groups[1],)
    assert plan.groups == groups
    path.write_text("{")
    with pytest.raises(StoreError, match=r"split-.*\.json.*damage"):
        Plan.read(directory)
