"""Whole studies: only what is missing is trained, and never to other numbers."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from hptransfer.errors import ConfigError, DataError, StoreError
from hptransfer.study import read_status
from hptransfer.study._checkpoint import defer_signals
from hptransfer.study._executor import Executor, make_training
from hptransfer.study._local_engine import run_in_workers
from hptransfer.study._plan import Plan
from hptransfer.study._runner import RunError, Shard, prepare_run, run_groups, run_study
from hptransfer.study._trial import list_trials
from hptransfer.study.config import load_study
from hptransfer.study.store import read_trials
from hptransfer.study.study_settings import read_settings
from study.training import complete, leave_checkpoints, prepare, read_plan, read_rows


def test_a_study_from_text_to_rows(study_file, finished):
    config = load_study(study_file)
    rows = read_rows(finished)
    assert sorted(row["id"] for row in rows) == sorted(t.id for t in list_trials(config))
    states = {(row["width"], row["log2_lr"]): row["state"] for row in rows}
    assert states[16, -7.0] == states[32, -5.0] == "completed"
    assert states[16, 6.0] == "diverged"
    for row in rows:
        assert (row["loss"] is None) == (row["state"] == "diverged")
        assert row["base_lr"] == 2.0 ** row["log2_lr"]
        assert len(row["loss_curve"]) == len(row["curve_steps"])
        assert row["loss_curve"][0] == pytest.approx(row["init_loss"])
        # Of the GPT without probes, undisturbed; all other columns are filled.
        empty = {name for name, value in row.items() if value is None}
        assert empty - {"loss", "diverged_step"} == {
            "probe_steps", "probe_names", "probe_values", "factory", "optimizer", "code_hash",
            "resumed_from",
        }  # fmt: skip
    # At the base width SP and µP are one run; above it each has its own.
    shared = {row["id"]: row["trained_as"] for row in rows if row["width"] == 16}
    assert len(set(shared.values())) == len(shared) / 2
    assert all(row["trained_as"] == row["id"] for row in rows if row["width"] == 32)
    data = read_settings(finished)["data"]
    assert 0 < data["bigram_entropy"] <= data["unigram_entropy"] + 0.1


def test_rerunning_trains_nothing_and_changes_nothing(study_file, finished):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    work = complete(study_file, finished)
    assert work.groups == ()
    assert work.num_finished == len(read_rows(finished))
    after = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    assert after == before


def test_a_lost_group_is_trained_again_to_the_same_bits(study_file, finished):
    expected = read_rows(finished)
    victim = sorted((finished / "groups").glob("*.parquet"))[0]
    victim.unlink()
    work = complete(study_file, finished)
    assert len(work.groups) == 1
    assert read_rows(finished) == expected


def test_a_damaged_group_is_set_aside_and_trained_again(study_file, finished):
    expected = read_rows(finished)
    victim = sorted((finished / "groups").glob("*.parquet"))[0]
    victim.write_bytes(victim.read_bytes()[:-50])
    work = complete(study_file, finished)
    assert len(work.damaged) == 1
    assert read_rows(finished) == expected
    assert all(pq.read_metadata(path) for path in finished.rglob("*.parquet"))


@pytest.mark.slow
def test_worker_processes_give_the_same_numbers_as_this_process(study_file, finished, tmp_path):
    other, kinds = tmp_path / "workers", []
    work = prepare(study_file, other)
    run_groups(
        load_study(study_file), other, work.groups, workers=2,
        on_event=lambda event: kinds.append((event.kind, event.completed + event.diverged)),
    )  # fmt: skip
    assert read_rows(other) == read_rows(finished)
    assert sum(count for _, count in kinds) == len(read_rows(other))


def test_shards_split_the_groups_and_together_finish(study_file, finished, tmp_path):
    directory = tmp_path / "shards"
    first = complete(study_file, directory, shard=Shard(index=1, count=2))
    second = complete(study_file, directory, shard=Shard(index=2, count=2))
    assert first.groups
    assert second.groups
    assert not set(first.groups) & set(second.groups)
    whole = tmp_path / "whole"
    prepare(study_file, whole, shard=Shard(index=1, count=2))
    complete(study_file, whole)
    assert read_rows(directory) == read_rows(whole)
    assert len(read_rows(directory)) == len(read_rows(finished))


def test_every_shard_gets_work_where_there_are_as_many_runs(study_file, tmp_path):
    shards = [Shard(index=index, count=6) for index in range(1, 7)]
    works = [prepare(study_file, tmp_path / "d", shard=shard) for shard in shards]
    assert all(work.groups for work in works)
    assert len({group for work in works for group in work.groups}) == len(works[0].groups) + sum(
        len(work.groups) for work in works[1:]
    )


def test_a_grown_grid_trains_only_what_is_new(study_file, finished):
    before = {path.name: path.read_bytes() for path in (finished / "groups").iterdir()}
    text = study_file.read_text().replace("seed = [0, 1]", "seed = [0, 1, 2]")
    study_file.write_text(text)
    work = complete(study_file, finished)
    assert work.num_trials == work.num_finished / 2
    after = {path.name: path.read_bytes() for path in (finished / "groups").iterdir()}
    assert before.items() <= after.items()
    assert {row["seed"] for row in read_rows(finished)} == {0, 1, 2}


def test_a_grid_that_grows_while_a_process_starts_is_no_damage(study_file, tmp_path, monkeypatch):
    directory = tmp_path / "out"
    prepare(study_file, directory)
    num_planned = len(read_plan(directory))
    read = Plan.read

    def grow_first(path):
        monkeypatch.setattr(Plan, "read", read)
        study_file.write_text(study_file.read_text().replace("seed = [0, 1]", "seed = [0, 1, 2]"))
        prepare(study_file, directory)
        return read(path)

    monkeypatch.setattr(Plan, "read", grow_first)
    Executor(directory, root=study_file.parent)
    assert len(read_plan(directory)) > num_planned


def test_another_study_or_another_text_is_refused(study_file, finished):
    text = study_file.read_text()
    study_file.write_text(text.replace("steps = 12", "steps = 13"))
    with pytest.raises(StoreError, match="steps"):
        complete(study_file, finished)
    study_file.write_text(text)
    (study_file.parent / "text" / "b.txt").write_text("another page\n\nand one more\n")
    with pytest.raises(StoreError, match="text") as caught:
        complete(study_file, finished)
    assert "\n" not in str(caught.value)


def test_a_file_is_no_study(study_file, tmp_path):
    with pytest.raises(ConfigError, match=r"expected a study, load_study\(FILE\), found"):
        run_study(study_file, tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_too_short_a_text_is_refused_before_anything_is_written(study_file, tmp_path):
    (study_file.parent / "text" / "a.txt").write_text("one page\n\nand one more\n")
    with pytest.raises(DataError, match="too short"):
        complete(study_file, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_group_that_fails_leaves_the_others_stored(study_file, tmp_path):
    directory = tmp_path / "failing"
    groups = prepare(study_file, directory).groups

    def make(config, group, trials, tokens):
        if group == groups[0]:
            raise ValueError("no such\nnumber")
        return make_training(config, group, trials, tokens)

    with pytest.raises(RunError, match=r"1 of .* groups failed.*ValueError: no such") as caught:
        complete(study_file, directory, make=make)
    assert groups[0].name in str(caught.value)
    assert "\n" not in str(caught.value)
    stored = {path.stem for path in (directory / "groups").glob("*.parquet")}
    assert stored == {group.name for group in groups[1:]}


@pytest.mark.slow
def test_a_worker_that_dies_fails_its_group_alone(study_file, tmp_path):
    config = load_study(study_file)
    directory = tmp_path / "dying"
    work = prepare_run(config, directory, workers=4)
    assert len(work.groups) > 2
    started, events = [], []

    def start(*args, **kwargs):
        process = subprocess.Popen(*args, **kwargs)
        if not started:
            process.kill()
        started.append(process)
        return process

    run_in_workers(
        directory, work.groups, events.append, workers=2, checkpoint_interval=60.0,
        root=config.root, start_process=start,
    )  # fmt: skip
    [failed] = [event for event in events if event.kind == "failed"]
    assert "its process was ended by SIGKILL" in failed.message
    assert len(started) == 3
    stored = {path.stem for path in (directory / "groups").glob("*.parquet")}
    assert stored == {group.name for group in work.groups} - {failed.group}
    assert all(process.poll() is not None for process in started)


def test_no_groups_start_no_worker(study_file, tmp_path):
    def start(*args, **kwargs):
        raise AssertionError("a process was started")

    run_in_workers(
        tmp_path, [], print, root=tmp_path, workers=2, checkpoint_interval=60.0,
        start_process=start,
    )  # fmt: skip


def test_where_a_worker_cannot_be_started_none_is_left(study_file, tmp_path):
    config = load_study(study_file)
    work = prepare_run(config, tmp_path / "study", workers=4)
    started = []

    def start(*args, **kwargs):
        if started:
            raise OSError("too many processes")
        started.append(subprocess.Popen(*args, **kwargs))
        return started[-1]

    with pytest.raises(OSError, match="too many"):
        run_in_workers(
            tmp_path / "study", work.groups, print, workers=2, checkpoint_interval=60.0,
            root=config.root, start_process=start,
        )  # fmt: skip
    [process] = started
    assert process.returncode is not None  # as found then, not asked for now
    process.stdin.close()
    process.stdout.close()


@pytest.mark.slow
def test_an_interrupt_ends_the_workers_and_keeps_what_is_stored(study_file, tmp_path):
    config = load_study(study_file)
    directory = tmp_path / "interrupted"
    work = prepare_run(config, directory, workers=4)
    assert len(work.groups) > 2

    def interrupt(event):
        if event.kind == "done":
            raise KeyboardInterrupt

    started = []

    def start(*args, **kwargs):
        started.append(subprocess.Popen(*args, **kwargs))
        return started[-1]

    with pytest.raises(KeyboardInterrupt):
        run_in_workers(
            directory, work.groups, interrupt, workers=2, checkpoint_interval=60.0,
            root=config.root, start_process=start,
        )  # fmt: skip
    assert len(list((directory / "groups").glob("*.parquet"))) >= 1
    # None takes the place of one that was ended, and none is left.
    assert len(started) == 2
    assert all(process.poll() is not None for process in started)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_and_sigterm_save_the_group_under_way(study_file, tmp_path, workers):
    """The next run goes on in the middle, to the same bits."""
    study_file.write_text(study_file.read_text().replace("steps = 12", "steps = 400"))
    finished = tmp_path / "finished"
    complete(study_file, finished)
    config = load_study(study_file)
    directory = tmp_path / "interrupted"
    work = prepare(study_file, directory)
    seen = []

    def terminate(event):
        seen.append(event)
        if event.kind == "step" and len([e for e in seen if e.kind == "step"]) == 1:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run_groups(config, directory, work.groups, workers=workers, on_event=terminate)
    saved = list((directory / "checkpoints").glob("*.safetensors"))
    assert saved
    again = []
    work = prepare(study_file, directory)
    run_groups(config, directory, work.groups, workers=1, on_event=again.append)
    assert read_rows(directory) == read_rows(finished)
    assert list((directory / "checkpoints").iterdir()) == []


def list_children(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return []


def read_proc(pid, name):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/{name}").read_bytes()
    return b""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no list of processes here")
def test_ctrl_c_while_workers_import_prints_no_traceback(study_file, tmp_path):
    directory = tmp_path / "out"
    prepare(study_file, directory)
    command = [sys.executable, "-m", "hptransfer", "run", str(study_file), "-o", str(directory)]
    process = subprocess.Popen(
        [*command, "--workers", "2"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip

    def importing():
        """Workers that have started and have not loaded torch yet."""
        return [
            pid for pid in list_children(process.pid)
            if b"_local_engine" in read_proc(pid, "cmdline")
            and b"libtorch" not in read_proc(pid, "maps")
        ]  # fmt: skip

    while process.poll() is None and len(importing()) < 2:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.002)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    [line] = process.communicate()[1].decode().splitlines()
    assert line.startswith("hptransfer: interrupted")
    assert process.returncode == 130


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143)])
def test_checkpoints_survive_a_kill_and_a_preemption(study_file, tmp_path, signum, code):
    """With a checkpoint after every step, a group that was ended goes on where it was."""
    study_file.write_text(study_file.read_text().replace("steps = 12", "steps = 300"))
    finished = tmp_path / "finished"
    complete(study_file, finished)
    directory = tmp_path / "killed"
    prepare(study_file, directory)
    command = [sys.executable, "-m", "hptransfer", "run", str(study_file), "-o", str(directory)]
    command += ["--workers", "1", "--checkpoint", "0"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, **quiet)
    while process.poll() is None and not list(directory.glob("checkpoints/*.safetensors")):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.01)
    process.send_signal(signum)
    assert process.wait() == code
    [saved] = directory.glob("checkpoints/*.safetensors")
    assert not list(directory.glob("groups/*.parquet"))
    config = load_study(study_file)
    work = prepare(study_file, directory)
    steps = []
    run_groups(config, directory, work.groups, workers=1, on_event=steps.append)
    assert read_rows(directory) == read_rows(finished)
    assert not saved.exists()


def test_signals_wait_for_the_block_and_are_then_delivered():
    found = []

    def interrupt_a_block():
        with defer_signals() as held:
            found.append([*held])
            signal.raise_signal(signal.SIGINT)
            found.append([*held])

    with pytest.raises(KeyboardInterrupt):
        interrupt_a_block()
    assert found == [[], [signal.SIGINT]]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with defer_signals() as held:
            signal.raise_signal(signal.SIGINT)
            assert not held
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_the_main_thread_nothing_is_held():
    found = []

    def look():
        with defer_signals() as held:
            found.append([*held])

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [[]]


@pytest.mark.slow
def test_sigkill_in_the_middle_then_a_rerun_gives_the_same_bits(study_file, tmp_path):
    """Kill the whole command while it trains; what it left must complete to the same table."""
    study_file.write_text(study_file.read_text().replace("steps = 12", "steps = 150"))
    finished = tmp_path / "finished"
    complete(study_file, finished)
    directory = tmp_path / "killed"
    prepare(study_file, directory)
    command = [sys.executable, "-m", "hptransfer", "run", str(study_file), "-o", str(directory)]
    process = subprocess.Popen(
        [*command, "--workers", "1"],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    # Kill once the first group is stored: later ones are then under way or to come.
    while process.poll() is None and not list(directory.glob("groups/*.parquet")):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    num_stored = len(list(directory.glob("groups/*.parquet")))
    assert 1 <= num_stored < len(read_plan(directory))
    done = subprocess.run([*command, "--workers", "1"], capture_output=True, text=True, check=True)
    assert str(directory) in done.stdout
    assert read_rows(directory) == read_rows(finished)


@pytest.mark.parametrize("changed", [None, "describe_device", "__version__"])
def test_a_checkpoint_by_other_versions_or_devices_is_said_and_recorded(
    study_file, tmp_path, monkeypatch, changed
):
    directory = tmp_path / "out"
    saved = leave_checkpoints(study_file, directory)
    if changed:
        other = "another" if changed == "__version__" else lambda device: "another"
        monkeypatch.setattr(f"hptransfer.study._executor.{changed}", other)
    events = []
    complete(study_file, directory, on_event=events.append)
    told = {event.group: event.message for event in events if event.kind == "note"}
    assert set(told) == ({path.stem for path in saved} if changed else set())
    assert all("another" in line and "bits may differ" in line for line in told.values())
    rows = read_trials(directory).rows.to_pylist()
    resumed = {row["group"] for row in rows if row["resumed_from"] is not None}
    assert resumed == set(told)
    num_resumed = sum(row["resumed_from"] is not None for row in rows)
    assert read_status(directory).num_resumed == num_resumed
