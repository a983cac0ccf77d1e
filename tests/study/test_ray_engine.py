"""Studies as Ray tasks: the local engine's numbers, whatever happens to the workers."""

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from hptransfer.errors import ConfigError
from hptransfer.study import _ray_cluster
from hptransfer.study._own_model import OwnModel
from hptransfer.study._ray_engine import RayEngine, _Site, _train_group
from hptransfer.study._runner import RunError, Shard, open_engine, prepare_run, run_groups
from hptransfer.study._trial import list_trials
from hptransfer.study.config import load_study
from hptransfer.study.events import Event
from study.own_model import TRACKING_STUDY, stacking_pays, write_own
from study.training import read_rows

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two_workers():
    """Ray on this machine with room for two groups at a time, for all tests that train."""
    if importlib.util.find_spec("ray") is None:  # imported only once its doors are closed
        pytest.skip("Ray is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")  # or they starve beside other tests
        patch.setattr(_ray_cluster, "count_cores", lambda: 2)
        with open_engine("ray") as engine:
            yield engine


@pytest.fixture
def long_study(study_file):
    """A study whose groups report steps well before they end, on a fast machine too."""
    study_file.write_text(study_file.read_text().replace("steps = 12", "steps = 800"))
    return study_file


def plan(study_file, directory):
    """Make a directory with a plan of single-threaded groups."""
    config = load_study(study_file)
    return config, prepare_run(config, directory, workers=os.cpu_count()).groups


def train(config, directory, groups, *, on_event=lambda event: None, **options):
    run_groups(config, directory, groups, on_event=on_event, **options)


@pytest.fixture(scope="module")
def known_rows():
    return {}


@pytest.fixture
def train_here(known_rows, tmp_path):
    """Give what the local engine says of a study; each is trained once."""

    def rows(study_file):
        text = study_file.read_text()
        if text not in known_rows:
            config, groups = plan(study_file, tmp_path / "local")
            train(config, tmp_path / "local", groups, workers=1)
            known_rows[text] = read_rows(tmp_path / "local")
        return known_rows[text]

    return rows


def test_a_study_gives_the_local_engines_numbers(two_workers, study_file, tmp_path, train_here):
    config, groups = plan(study_file, tmp_path / "ray")
    events = []
    train(config, tmp_path / "ray", groups, engine=two_workers, on_event=events.append)
    assert read_rows(tmp_path / "ray") == train_here(study_file)
    done = [event for event in events if event.kind == "done"]
    assert sorted(event.group for event in done) == sorted(group.name for group in groups)
    assert sum(event.completed + event.diverged for event in done) == len(list_trials(config))
    # What is finished is not trained again, and nothing is said of it.
    train(config, tmp_path / "ray", groups, engine=two_workers, on_event=pytest.fail)


def list_listening(pids):
    """Addresses that these processes listen on, as the kernel writes them."""
    sockets = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    sockets.add(str(descriptor.readlink()))
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in sockets:
                found.append(words[1].partition(":")[0])
    return found


def list_family(pid):
    """A process and all that descend from it."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            rest = stat.read_text().rpartition(")")[2].split()
            parents.setdefault(int(rest[1]), []).append(int(stat.parent.name))
    family, waiting = [], [pid]
    while waiting:
        family.append(waiting.pop())
        waiting += parents.get(family[-1], [])
    return family


CLIENT = """
import sys, logging, ray
ray.init(address=sys.argv[1], log_to_driver=False, logging_level=logging.ERROR)
print("in")
"""


@pytest.mark.skipif(not Path("/proc/net/tcp6").exists(), reason="no list of sockets here")
def test_a_ray_of_ours_listens_on_loopback_and_refuses_who_has_no_token(two_workers, tmp_path):
    import ray

    ray.get(ray.remote(lambda: 1).remote())  # so that workers are there
    listening = list_listening(list_family(os.getpid()))
    assert listening
    assert {*listening} <= {"0100007F", "0000000000000000FFFF00000100007F"}
    address = ray.get_runtime_context().gcs_address
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
    for change in ({}, {"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "0" * 64}):
        ended = subprocess.run(
            [sys.executable, "-c", CLIENT, address],
            env={**environment, "HOME": str(tmp_path), "RAY_AUTH_MODE": "token", **change},
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert ended.returncode != 0
        assert "in" not in ended.stdout.split()


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("model", ["gpt", "own"])
def test_a_worker_killed_in_the_middle_costs_nothing(
    two_workers, long_study, tmp_path, train_here, signum, model, monkeypatch
):
    if model == "own":
        monkeypatch.setattr(OwnModel, "_time", stacking_pays)
        long_study = write_own(tmp_path, TRACKING_STUDY.replace("steps = 12", "steps = 400"))
    config, groups = plan(long_study, tmp_path / "ray")
    killed, events = [], []

    def kill(event):
        events.append(event)
        if event.kind == "step" and not killed:
            killed.append(event)
            os.kill(int(event.worker.rpartition(":")[2]), signum)

    train(
        config, tmp_path / "ray", groups, engine=two_workers, on_event=kill, checkpoint_interval=0.1
    )
    [victim] = killed
    [done] = [event for event in events if event.kind == "done" and event.group == victim.group]
    assert done.worker != victim.worker
    assert not [event for event in events if event.kind == "failed"]
    rows = read_rows(tmp_path / "ray")
    assert sorted(row["id"] for row in rows) == sorted(trial.id for trial in list_trials(config))
    assert rows == train_here(long_study)


def test_shards_of_ones_own_model_meet_under_ray(
    two_workers, study_file, tmp_path, train_here, monkeypatch
):
    monkeypatch.setattr(OwnModel, "_time", stacking_pays)
    own = write_own(study_file.parent, TRACKING_STUDY)
    config, _ = plan(own, tmp_path / "ray")
    for index in (1, 2):
        shard = Shard(index=index, count=2)
        share = prepare_run(config, tmp_path / "ray", workers=2, shard=shard).groups
        assert share
        train(config, tmp_path / "ray", share, engine=two_workers)
    assert read_rows(tmp_path / "ray") == train_here(own)


def test_a_group_that_loses_too_many_workers_fails_and_the_others_finish(
    two_workers, long_study, tmp_path
):
    import ray

    directory = tmp_path / "ray"
    config, groups = plan(long_study, directory)
    killed = []

    def kill(event):
        if event.kind == "step" and not killed:
            killed.append(event)
            os.kill(int(event.worker.rpartition(":")[2]), signal.SIGKILL)

    engine = RayEngine(ray, max_retries=0)
    with pytest.raises(RunError, match=r"1 of .* lost 1 times") as caught:
        train(config, directory, groups, engine=engine, on_event=kill)
    [victim] = killed
    assert victim.worker.startswith(f"{socket.gethostname()}:")
    assert victim.worker in str(caught.value)
    assert "\n" not in str(caught.value)
    stored = {path.stem for path in (directory / "groups").glob("*.parquet")}
    assert stored == {group.name for group in groups} - {victim.group}


def test_a_worker_lost_once_it_has_stored_its_group_leaves_the_next_one_to_say_so(
    study_file, tmp_path
):
    directory = tmp_path / "run"
    config, groups = plan(study_file, directory)
    train(config, directory, groups, workers=1)
    site = _Site(
        directory=str(directory),
        root=str(config.root),
        identity=config.identity(),
        checkpoint_interval=60.0,
    )
    group = groups[0]
    assert _train_group(site, group.name, None, retry=False) is None
    event = Event.from_line(_train_group(site, group.name, None, retry=True))
    assert (event.kind, event.group) == ("done", group.name)
    assert event.completed + event.diverged == len(group.trial_ids)


def test_a_group_that_fails_leaves_the_others_stored(two_workers, study_file, tmp_path):
    """A task is sent for a group that the plan on its machine does not have."""
    directory = tmp_path / "ray"
    config, groups = plan(study_file, directory)
    failed = []
    with pytest.raises(RunError, match="1 of"):
        train(
            config,
            directory,
            [replace(groups[0], name="unknown"), *groups[1:]],
            engine=two_workers,
            on_event=lambda event: failed.append(event) if event.kind == "failed" else None,
        )
    assert [event.group for event in failed] == ["unknown"]
    stored = {path.stem for path in (directory / "groups").glob("*.parquet")}
    assert stored == {group.name for group in groups[1:]}


def test_ctrl_c_saves_what_is_under_way_and_the_next_run_goes_on(
    two_workers, long_study, tmp_path, train_here
):
    directory = tmp_path / "ray"
    config, groups = plan(long_study, directory)

    def interrupt(event):
        if event.kind == "step":
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(config, directory, groups, engine=two_workers, on_event=interrupt)
    assert list((directory / "checkpoints").glob("*.safetensors"))
    train(config, directory, groups, workers=1)
    assert read_rows(directory) == train_here(long_study)


@pytest.mark.parametrize("moment", ["gcs_server", "raylet", "checkpoint"])
def test_sigterm_with_a_live_ray_ends_with_143(long_study, tmp_path, moment):
    """While Ray starts, once it has, and in training."""
    pytest.importorskip("ray")
    directory = tmp_path / "ray"
    plan(long_study, directory)
    command = [sys.executable, "-m", "hptransfer", "run", str(long_study), "-o", str(directory)]
    with (tmp_path / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            [*command, "--engine", "ray", "--checkpoint", "0"],
            stdout=subprocess.DEVNULL, stderr=stderr,
        )  # fmt: skip
    while process.poll() is None and not (
        list(directory.glob("checkpoints/*.safetensors"))
        if moment == "checkpoint"
        else any(moment in name_program(pid) for pid in list_family(process.pid))
    ):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    said = (tmp_path / "stderr").read_text()
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("hptransfer: interrupted")


def name_program(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0].decode()
    return ""


def test_a_directory_that_a_worker_does_not_see_is_named(two_workers, study_file, tmp_path):
    """A task on another machine, say: here the directory is gone when it looks."""
    directory = tmp_path / "ray"
    config, groups = plan(study_file, directory)
    directory.rename(tmp_path / "elsewhere")
    events = []
    with pytest.raises(RunError, match="shared folder"):
        train(config, directory, groups[:1], engine=two_workers, on_event=events.append)
    [failed] = events
    assert str(directory) in failed.message
    assert not directory.exists()
    # Another study's directory under that path is no better.
    study_file.write_text(study_file.read_text().replace("steps = 12", "steps = 13"))
    prepare_run(load_study(study_file), directory, workers=1)
    with pytest.raises(RunError, match="found another study's"):
        train(config, directory, groups[:1], engine=two_workers)


def test_other_text_on_a_worker_is_refused(two_workers, study_file, tmp_path):
    directory = tmp_path / "ray"
    config, groups = plan(study_file, directory)
    (study_file.parent / "text" / "b.txt").write_text("another page\n\nand one more\n")
    with pytest.raises(RunError, match="text of the first run"):
        train(config, directory, groups[:1], engine=two_workers)
    assert not list((directory / "groups").iterdir())


def test_a_plan_for_gpus_is_refused_where_there_are_none(two_workers, study_file, tmp_path):
    config, groups = plan(study_file, tmp_path / "ray")
    with pytest.raises(ConfigError, match="GPU"):
        train(config, tmp_path / "ray", [replace(groups[0], device="cuda")], engine=two_workers)
