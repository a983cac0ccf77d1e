"""Plans for GPUs, on faked ones: what is stacked and compiled, and which worker has which."""

import json
import subprocess
from dataclasses import replace

import numpy as np
import pytest

from hptransfer.cli import main as cli
from hptransfer.study import _local_engine, _preview, parse_study
from hptransfer.study._executor import make_shape
from hptransfer.study._local_engine import LocalEngine, describe_machine, measure_speeds
from hptransfer.study._plan import Machine, Speed, make_groups, memory_budget
from hptransfer.study._runner import prepare_run, run_groups
from hptransfer.study._trial import estimate_memory, list_trials, merge_by_width
from hptransfer.study.config import load_study
from hptransfer.study.store import read_trials
from hptransfer.train import _calibrate
from hptransfer.train._calibrate import CompileJob, MeasuredStep, StepTerms, compile_ahead

GPU = Machine(
    device="cuda", name="an accelerator", memory=2**36, workers=1, threads=4, devices=("one",)
)


def make_config(steps=500, num_seeds=8):
    return parse_study(
        {
            "name": "small",
            "data": {"text": "wiki", "vocab_size": 4096},
            "model": {"num_layers": 3, "head_size": 64, "context": 128},
            "sweep": {
                "parameterization": ["sp"],
                "width": [64, 256],
                "base_width": 64,
                "log2_lr": [-7, -6, -5, -4],
                "seed": list(range(num_seeds)),
            },
            "train": {"batch": 32, "steps": steps},
        }
    )


def fake_measurements(monkeypatch, *, growth=None, compiled=None):
    """Let a run's step take 2 ms uncompiled, 1 ms compiled, and K = 8 fill the device."""
    asked = {"growth": [], "compiled": [], "ahead": []}

    def grow(terms, **options):
        asked["growth"].append((terms.shape.width, options))
        found = MeasuredStep(
            num_stacked=8, precision="bf16", mode="captured", seconds=2e-3, run_bytes=2**28
        )
        return replace(found, **(growth or {}))

    def compile_it(job):
        asked["compiled"].append(job)
        found = MeasuredStep(
            num_stacked=job.num_stacked, precision=job.precision, mode="compiled+captured",
            seconds=1e-3, compile_seconds=20.0, run_bytes=2**28,
        )  # fmt: skip
        return replace(found, **(compiled or {}))

    def ahead(jobs, *, memory):
        asked["ahead"] += jobs

    monkeypatch.setattr(_local_engine, "measure_growth", grow)
    monkeypatch.setattr(_local_engine, "measure_compiled", compile_it)
    monkeypatch.setattr(_local_engine, "compile_ahead", ahead)
    return asked


def plan(config, machine=GPU):
    num_runs = dict.fromkeys(config.sweep.width, 4 * len(config.sweep.seed))
    speeds = measure_speeds(config, num_runs, machine)
    runs = merge_by_width(config, list_trials(config))
    return speeds, make_groups(config, runs, machine=machine, speeds=speeds)


def test_a_long_study_is_compiled_for_the_size_that_its_groups_have(monkeypatch):
    asked = fake_measurements(monkeypatch)
    speeds, groups = plan(make_config(steps=10_000))
    assert {speed.mode for speed in speeds.values()} == {"compiled+captured"}
    assert [job.num_stacked for job in asked["ahead"]] == [8, 8]
    assert asked["compiled"] == asked["ahead"]
    for group in groups:
        assert (group.mode, len(group.runs), group.stacked) == ("compiled+captured", 8, 0)
        assert group.seconds == pytest.approx(8 * 10_000 * 1e-3)
        assert group.memory == 8 * 2**28


def test_a_study_of_a_minute_is_not_compiled(monkeypatch):
    asked = fake_measurements(monkeypatch)
    speeds, groups = plan(make_config(steps=400))
    assert asked["compiled"] == asked["ahead"] == []
    assert {(speed.mode, speed.seconds) for speed in speeds.values()} == {("captured", 2e-3)}
    assert {group.mode for group in groups} == {"captured"}
    # One group that lasts, where eight runs would be done in seconds.
    assert [len(group.runs) for group in groups] == [32, 32]


def test_compiling_that_fails_or_is_no_gain_leaves_the_step_as_it_was(monkeypatch):
    for compiled in (
        {"seconds": None, "problem": "the step cannot be compiled (no compiler)"},
        {"seconds": 3e-3, "problem": ""},
    ):
        fake_measurements(monkeypatch, compiled=compiled)
        speeds, groups = plan(make_config(steps=10_000))
        assert {speed.note for speed in speeds.values()} == {compiled["problem"]}
        assert {group.mode for group in groups} == {"captured"}
        assert {group.seconds for group in groups} == {8 * 10_000 * 2e-3}


def test_a_compiled_step_that_takes_more_memory_is_made_smaller(monkeypatch):
    asked = fake_measurements(monkeypatch, compiled={"run_bytes": memory_budget(GPU) // 5})
    _, groups = plan(make_config(steps=10_000))
    assert [job.num_stacked for job in asked["compiled"]] == [8, 5, 8, 5]
    # 32 runs in 7 groups of 5: padded, so that one compiled program serves all.
    assert [len(group.runs) for group in groups] == [5, 5, 5, 5, 5, 5, 2] * 2
    assert [group.stacked for group in groups] == [0, 0, 0, 0, 0, 0, 5] * 2
    assert [group.num_padding for group in groups] == [0, 0, 0, 0, 0, 0, 3] * 2
    assert all(group.memory <= memory_budget(GPU) for group in groups)


def test_workers_on_one_gpu_share_its_memory_and_those_on_two_do_not(monkeypatch):
    monkeypatch.setattr(_local_engine, "find_device", lambda: "cuda")
    monkeypatch.setattr(_local_engine, "describe_device", lambda device: "H")
    monkeypatch.setattr(_local_engine, "find_memory", lambda device: 1000)
    monkeypatch.setattr(_local_engine, "count_cores", lambda: 16)
    for num_gpus, workers, count, share in [
        (1, None, 1, 800), (2, None, 2, 800), (2, 2, 2, 800), (2, 4, 4, 400), (2, 3, 3, 400),
        (1, 3, 3, 266),
    ]:  # fmt: skip
        monkeypatch.setattr(_local_engine, "list_gpus", lambda n=num_gpus: ("H",) * n)
        machine = describe_machine(workers=workers)
        assert machine.devices == ("H",) * num_gpus
        assert (machine.workers, machine.threads) == (count, 16 // count)
        assert memory_budget(machine) == share


@pytest.mark.slow
def test_each_worker_sees_a_gpu_of_its_own(study_file, tmp_path, monkeypatch):
    """Two faked devices; what trains does so on the processor."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, 7")
    seen = []

    def start(*args, **options):
        seen.append(options["env"]["CUDA_VISIBLE_DEVICES"])
        return subprocess.Popen(*args, **options)

    config, directory = load_study(study_file), tmp_path / "out"
    work = prepare_run(config, directory, workers=2)
    events = []
    _local_engine.run_in_workers(
        directory,
        work.groups,
        events.append,
        root=config.root,
        workers=3,
        num_gpus=2,
        checkpoint_interval=60.0,
        start_process=start,
    )
    assert seen == ["5", "7", "5"][: len(work.groups)]
    assert len(set(seen)) == 2
    assert [event.kind for event in events if event.is_last] == ["done"] * len(work.groups)


class CompiledEngine(LocalEngine):
    """Plans compiled steps in groups of two, here."""

    def measure(self, config, num_runs, machine):
        return {
            width: Speed(precision="fp32", seconds=1e-3, mode="compiled", num_stacked=2)
            for width in num_runs
        }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_compiled_study_with_padding_gives_what_an_eager_one_gives(study_file, tmp_path):
    text = study_file.read_text().replace("seed = [0, 1]", "seed = [0]")
    study_file.write_text(text.replace("width = [16, 32]", "width = [32]"))
    config = load_study(study_file)
    tables, planned = {}, {}
    for name, engine in (("eager", LocalEngine()), ("compiled", CompiledEngine())):
        work = prepare_run(config, tmp_path / name, workers=1, engine=engine)
        run_groups(config, tmp_path / name, work.groups, on_event=lambda event: None, workers=1)
        planned[name] = [(group.mode, group.num_padding) for group in work.groups]
        tables[name] = read_trials(tmp_path / name).rows.to_pandas().set_index("id").sort_index()
    assert planned["compiled"] == [("compiled", 0), ("compiled", 1)]
    assert {mode for mode, _ in planned["eager"]} == {"eager"}
    eager, compiled = tables["eager"], tables["compiled"]
    assert list(eager.index) == list(compiled.index)
    assert list(eager.state) == list(compiled.state)
    np.testing.assert_allclose(compiled.loss.astype(float), eager.loss.astype(float), rtol=1e-5)


def make_terms():
    return StepTerms(shape=make_shape(make_config(), 64), batch=4, device="cpu", threads=1)


def test_steps_are_compiled_side_by_side_as_memory_allows(monkeypatch, tmp_path):
    monkeypatch.setenv("HPTRANSFER_CACHE", str(tmp_path))
    monkeypatch.setattr(_calibrate, "count_cores", lambda: 16)
    monkeypatch.setattr(_calibrate, "POLL_SECONDS", 0.0)

    def job(size):
        return CompileJob(terms=make_terms(), num_stacked=size, precision="bf16", memory=size)

    alive, most = [], []

    class Process:
        def __init__(self, command, **options):
            self.size = _calibrate.json.loads(command[-1])["memory"]
            alive.append(self.size)
            most.append(sum(alive))
            self.looks = 0

        def poll(self):
            self.looks += 1
            if self.looks < 3:
                return None
            if self.size in alive:
                alive.remove(self.size)
            return 0

    compile_ahead([job(2), job(7), job(5), job(3)], memory=10, start_process=Process)
    assert max(most) == 10
    assert most[:2] == [7, 10]
    assert len(most) == 4
    compile_ahead([job(2)], memory=10, start_process=None)  # one alone needs no process
    compile_ahead([job(20), job(30)], memory=10, start_process=None)


def test_growth_stops_where_stacking_more_saves_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("HPTRANSFER_CACHE", str(tmp_path))
    tried = []

    def time_steps(terms, num_stacked, precision, *, mode):
        tried.append((num_stacked, precision))
        seconds = {8: 4.0, 16: 2.1, 32: 2.09, 64: 1.0}[num_stacked]
        return MeasuredStep(
            num_stacked=num_stacked, precision=precision, mode=mode,
            seconds=seconds * (0.5 if precision == "fp32" else 1), run_bytes=10,
        )  # fmt: skip

    monkeypatch.setattr(_calibrate, "_time_steps", time_steps)
    options = {"precisions": ("fp32", "bf16"), "memory": 10**6}
    found = _calibrate.measure_growth(make_terms(), **options, limit=64)
    assert (found.num_stacked, found.precision) == (16, "fp32")
    assert tried == [(8, "bf16"), (16, "bf16"), (32, "bf16"), (16, "fp32")]
    tried.clear()
    assert _calibrate.measure_growth(make_terms(), **options, limit=64) == found
    assert tried == []  # known by now
    assert _calibrate.measure_growth(make_terms(), **options, limit=8).num_stacked == 8


@pytest.mark.parametrize(
    ("width", "batch", "stacked", "reserved"),
    [(128, 32, 56, 10970e6), (128, 8, 84, 6008e6), (256, 8, 28, 4123e6), (1024, 32, 8, 10966e6)],
)
def test_memory_on_a_gpu_is_estimated_from_what_was_reserved_there(width, batch, stacked, reserved):
    """Peaks of compiled and captured groups on an H100, by what the process had reserved."""
    config = make_config()
    train = config.train.model_copy(update={"batch": batch})
    config = config.model_copy(update={"train": train})
    expected = stacked * estimate_memory(config, width, device="cuda")
    assert 0.8 <= reserved / expected <= 1.1


def test_a_plan_and_a_status_name_the_devices(study_file, tmp_path, monkeypatch, capsys):
    class TwoGpus(CompiledEngine):
        def describe(self, *, workers=None):
            return replace(
                describe_machine(workers=1), name="H100", workers=2, devices=("H100", "H100")
            )

    prepare_run(load_study(study_file), tmp_path / "out", engine=TwoGpus())
    assert cli.main(["status", str(tmp_path / "out")]) == 0
    assert "planned for 2 x H100" in capsys.readouterr().out
    assert cli.main(["status", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["devices"] == ["2 x H100"]
    monkeypatch.setattr(_preview, "LocalEngine", TwoGpus)
    assert cli.main(["plan", str(study_file)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "steps by width: compiled at 16, 32" in shown
    assert "on 2 x H100 (workers: 2" in shown
