"""``studies/gpu_plan.py``: plans for a GPU that is elsewhere."""

import gpu_plan
import pytest

from hptransfer.study._plan import Plan
from hptransfer.study.store import group_path


@pytest.fixture
def study(study_file):
    text = study_file.read_text()
    study_file.write_text(text.replace('precision = "fp32"', 'precision = "bf16"'))
    return study_file


def read_groups(directory):
    return Plan.read(directory).groups


def test_every_trial_is_planned_once_and_the_cheapest_group_comes_first(study, tmp_path):
    config = gpu_plan.load_study(study)
    stacks = {width: (2, "captured") for width in config.sweep.width}
    gpu_plan.plan_study(study, tmp_path / "planned", stacks)
    groups = read_groups(tmp_path / "planned")
    planned = [trial for group in groups for trial in group.trial_ids]
    assert sorted(planned) == sorted(trial.id for trial in gpu_plan.list_trials(config))
    assert [group.seconds for group in groups] == sorted(group.seconds for group in groups)
    assert {group.device for group in groups} == {"cuda"}
    assert max(len(group.runs) for group in groups) <= 2


def test_groups_of_an_earlier_plan_stay(study, tmp_path):
    directory = tmp_path / "planned"
    widths = gpu_plan.load_study(study).sweep.width
    gpu_plan.plan_study(study, directory, {width: (2, "captured") for width in widths})
    before = {group.name for group in read_groups(directory)}
    gpu_plan.plan_study(study, directory, {width: (1, "captured") for width in widths})
    assert {group.name for group in read_groups(directory)} == before


def test_each_unfinished_step_is_compiled_once(study, tmp_path, monkeypatch):
    directory = tmp_path / "planned"
    widths = gpu_plan.load_study(study).sweep.width
    gpu_plan.plan_study(study, directory, {w: gpu_plan.parse_stack(f"{w}:3")[1] for w in widths})
    found = []
    monkeypatch.setattr(gpu_plan, "compile_ahead", lambda jobs, memory: found.extend(jobs))
    gpu_plan.compile_studies([directory, directory])
    assert sorted(job.terms.shape.width for job in found) == sorted(widths)
    for group in read_groups(directory):
        if group.width == widths[0]:
            group_path(directory, group.name).parent.mkdir(exist_ok=True)
            group_path(directory, group.name).touch()
    found.clear()
    gpu_plan.compile_studies([directory])
    assert widths[0] not in {job.terms.shape.width for job in found}
