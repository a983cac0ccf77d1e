"""The plan: every trial once, equal numbers once, rounds that never change."""

import json
from dataclasses import asdict, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hptransfer.errors import StoreError
from hptransfer.model import GPTShape, count_parameters
from hptransfer.study._executor import index_trials
from hptransfer.study._plan import (
    Machine,
    Plan,
    Speed,
    choose_group_size,
    make_groups,
    name_group,
    split_path,
    write_split,
)
from hptransfer.study._trial import (
    estimate_memory,
    flops_per_token,
    list_trials,
    merge_by_width,
    num_flops,
    num_params,
    num_tokens,
)
from hptransfer.study.config import parse_study
from hptransfer.study.study_settings import open_study
from study.small import DATA
from study.training import read_plan

MACHINE = Machine(device="cpu", name="a processor", memory=2**34, workers=2, threads=1)


def make_config(**sweep):
    return parse_study(
        {
            "name": "small",
            "data": {"text": "wiki", "vocab_size": 300},
            "model": {"num_layers": 2, "head_size": 8, "context": 16},
            "sweep": {
                "parameterization": ["sp", "sp+embd", "mup"],
                "width": [16, 32],
                "log2_lr": [-7, -6, -5],
                "seed": [0, 1],
                **sweep,
            },
            "train": {"batch": 4, "steps": 10},
        }
    )


def plan_all(config, machine=MACHINE, trials=None):
    widths = config.sweep.width
    return make_groups(
        config,
        merge_by_width(config, list_trials(config) if trials is None else trials),
        machine=machine,
        speeds={width: Speed(precision="fp32", seconds=width / 1e3) for width in widths},
    )


@pytest.mark.parametrize("D", [16, 32])
def test_costs_by_hand(D):
    config = make_config()
    V, T, layers = 300, 16, 2
    shape = GPTShape(width=D, num_layers=layers, head_size=8, context=T, vocab_size=V)
    assert num_params(config, D) == count_parameters(shape)
    assert flops_per_token(config, D) == 6 * (layers * 12 * D * D + D * V) + 12 * layers * D * T
    assert num_flops(config, D) == flops_per_token(config, D) * num_tokens(config, D)
    assert num_tokens(config, D) == 10 * 4 * 16
    assert estimate_memory(config, D) > 16 * num_params(config, D)


@settings(max_examples=30, deadline=None)
@given(
    workers=st.integers(1, 9),
    memory=st.integers(2**20, 2**36),
    device=st.sampled_from(["cpu", "cuda"]),
    num_seeds=st.integers(1, 5),
)
def test_every_trial_is_planned_once(workers, memory, device, num_seeds):
    config = make_config(seed=list(range(num_seeds)))
    machine = Machine(device=device, name="x", memory=memory, workers=workers, threads=1)
    groups = plan_all(config, machine)
    ids = [trial for group in groups for trial in group.trial_ids]
    assert sorted(ids) == sorted(trial.id for trial in list_trials(config))
    assert len({group.name for group in groups}) == len(groups)
    by_id = {trial.id: trial for trial in list_trials(config)}
    for group in groups:
        assert {by_id[trial].width for trial in group.trial_ids} == {group.width}
    assert [group.seconds for group in groups] == sorted(
        (group.seconds for group in groups), reverse=True
    )


def test_equal_numbers_train_once():
    """At the base width the three rules are one; above it each is its own."""
    config = make_config()
    runs = {width: 0 for width in config.sweep.width}
    for group in plan_all(config):
        runs[group.width] += len(group.runs)
        for run in group.runs:
            assert len(run) == (3 if group.width == 16 else 1)
    assert runs == {16: 3 * 2, 32: 3 * 3 * 2}


def test_a_plan_stays_what_it_was():
    """Names hold hashes of all ids in their order: another one would orphan stored results."""
    assert [(group.name, len(group.runs)) for group in plan_all(make_config())] == [
        ("width-32-6cb8e49b", 9),
        ("width-32-9d79d010", 9),
        ("width-16-c2e1f57e", 3),
        ("width-16-abd99da0", 3),
    ]


def test_stacking_is_bounded_by_memory_and_shared_by_workers():
    config = make_config()
    roomy = choose_group_size(config, 32, num_runs=18, machine=MACHINE)
    assert roomy == 9  # two workers, half each
    tight = Machine(
        device="cpu",
        name="x",
        workers=2,
        threads=1,
        memory=int(4.5 * 2 * estimate_memory(config, 32)),
    )
    assert choose_group_size(config, 32, num_runs=18, machine=tight) == 2
    starved = Machine(device="cpu", name="x", workers=2, threads=1, memory=1)
    assert choose_group_size(config, 32, num_runs=18, machine=starved) == 1
    assert choose_group_size(config, 32, num_runs=1, machine=MACHINE) == 1


@pytest.fixture
def directory(tmp_path):
    open_study(tmp_path / "study", make_config(), data=DATA)
    return tmp_path / "study"


def test_rounds_are_read_back_and_a_grown_grid_adds_only_what_is_new(directory):
    assert read_plan(directory) == ()
    config = make_config()
    first = plan_all(config)
    plan = Plan.read(directory).add_round(first, machine=MACHINE)
    assert plan == Plan.read(directory)
    assert plan.groups == first
    assert plan.trial_ids == {trial.id for trial in list_trials(config)}

    grown = make_config(seed=[0, 1, 2])
    missing = [trial for trial in list_trials(grown) if trial.id not in plan.trial_ids]
    assert {trial.seed for trial in missing} == {2}
    second = plan_all(grown, trials=missing)
    plan.add_round(second, machine=MACHINE)
    assert read_plan(directory) == first + second
    assert [path.name for path in sorted((directory / "plan").iterdir())] == [
        "round-000.json",
        "round-001.json",
    ]


def test_a_round_that_another_process_wrote_first_stays(directory):
    """Its file appears after we looked, and while we measured: ours would train it all twice."""
    config = make_config()
    stale = Plan.read(directory)
    ours = stale.add_round(plan_all(config), machine=MACHINE)
    before = (directory / "plan" / "round-000.json").read_bytes()
    assert stale.add_round((), machine=MACHINE) == ours
    assert (directory / "plan" / "round-000.json").read_bytes() == before
    assert len(list((directory / "plan").iterdir())) == 1


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"groups": [{"name": 3}]}'])
def test_a_damaged_round_is_named(directory, damage):
    Plan.read(directory).add_round(plan_all(make_config()), machine=MACHINE)
    path = directory / "plan" / "round-000.json"
    assert json.loads(path.read_text())["machine"]["name"] == "a processor"
    path.write_text(damage)
    with pytest.raises(StoreError, match=r"round-000\.json.*damage") as caught:
        read_plan(directory)
    assert "\n" not in str(caught.value)


def edit(directory, change):
    path = directory / "plan" / "round-000.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda d: d["groups"][0].update(width=72), "other trials than its name says"),
        (lambda d: d["groups"][0].update(name="../../evil"), "'../../evil'"),
        (lambda d: d["groups"][0].update(precision="fp3"), "groups.0.precision"),
        (lambda d: d["groups"][0].update(device="cdua"), "'cdua'"),
        (lambda d: d["groups"][0].update(threads=0), "0 threads"),
        (lambda d: d["groups"][0].update(seconds=-1), "seconds"),
        (lambda d: d["groups"][0].update(mode="fast"), "'fast'"),
        (lambda d: d["groups"][0].update(runs=[]), "other trials than its name says"),
        (lambda d: d["groups"][0]["runs"].reverse(), "other trials than its name says"),
        (lambda d: d.update(groups=3), "groups"),
        (lambda d: d.pop("machine"), "machine"),
        (lambda d: d.update(surprise=1), "surprise"),
    ],
)
def test_a_plan_that_no_version_writes_is_named(directory, change, named):
    Plan.read(directory).add_round(plan_all(make_config()), machine=MACHINE)
    path = edit(directory, lambda document: document.pop("digest") and document.update(schema=1))
    assert len(read_plan(directory)) == 4  # as an older version wrote it
    edit(directory, change)
    with pytest.raises(StoreError) as caught:
        read_plan(directory)
    message = str(caught.value)
    assert message.startswith(f"{path}: expected a plan's round, found damage (")
    assert named in message
    assert "\n" not in message


def test_trials_swapped_between_widths_are_named(directory):
    config = make_config()
    groups = plan_all(config)
    plan = Plan.read(directory).add_round(groups, machine=MACHINE)
    trials = list_trials(config)
    assert index_trials(plan, trials) == {trial.id: trial for trial in trials}
    runs = groups[-1].runs
    moved = replace(groups[0], runs=runs, name=name_group(groups[0].width, runs))
    with pytest.raises(StoreError, match=r"width 32 in group width-32-.*, found 16"):
        index_trials(plan.add_round([moved], machine=MACHINE), trials)
    with pytest.raises(StoreError, match="another study's"):
        index_trials(plan, trials[:3])


def test_rounds_in_one_anothers_place_and_gaps_are_named(directory):
    config = make_config()
    for _ in range(3):
        Plan.read(directory).add_round(plan_all(config), machine=MACHINE)
    first, second, _ = sorted((directory / "plan").iterdir())
    whole = second.read_bytes()
    second.write_bytes(first.read_bytes())
    with pytest.raises(StoreError, match="found another"):
        read_plan(directory)
    second.write_bytes(whole)
    assert len(read_plan(directory)) == 12
    second.unlink()
    with pytest.raises(StoreError, match=r"expected round-001\.json, found round-002"):
        read_plan(directory)


def test_a_split_that_is_no_half_of_its_group_is_named(directory):
    group, other = plan_all(make_config())[:2]
    write_split(directory, group)
    path = split_path(directory, group.name)
    assert list(Plan.read(directory).splits) == [group.name]
    document = json.loads(path.read_text()) | {"schema": 1}
    del document["digest"]
    for groups in ([document["groups"][0]] * 2, [asdict(group), asdict(other)]):
        path.write_text(json.dumps(document | {"groups": groups}))
        with pytest.raises(StoreError, match=r"split-width.*halves make group"):
            Plan.read(directory)
