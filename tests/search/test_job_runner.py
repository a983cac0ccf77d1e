"""A search of one's own jobs: run, watched, ended and told apart, whatever happens to whom."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import numpy as np
import pytest
from rich.console import Console

from cores import every_core
from hptransfer.cli import main as cli
from hptransfer.cli._progress import SearchProgress
from hptransfer.errors import ConfigError
from hptransfer.search import LrSearch, Trial, read_search
from hptransfer.search._job import Job, ResultSource
from hptransfer.search._search_state import Journal
from hptransfer.search.job_runner import SearchError, SearchEvent, run_search
from hptransfer.search.search_file import load_search
from search.jobs import environment, starts, write_job

LIMIT = 60.0


def run(path, directory):
    events = []
    search = run_search(load_search(path), directory, on_event=events.append)
    return search, events


def rows(directory):
    table = read_search(directory / "search.jsonl").table()
    columns = (table.width, table.lr, table.seed, table.loss)
    return [tuple(map(str, row)) for row in zip(*columns, strict=True)]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The table of an undisturbed search, one trial at a time."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run(write_job(folder), folder / "out")
    return rows(folder / "out")


def test_the_command_runs_a_search_to_its_end(tmp_path, capsys, monkeypatch, expected):
    path = write_job(tmp_path, "parallel = 3\n")
    assert cli.main(["search", str(path), "-o", str(tmp_path / "out")]) == 0
    out = capsys.readouterr()
    assert "width 32: lr 2^-5.9" in out.out or "width 32: lr 2^-6.0" in out.out
    assert f"next: hptransfer recommend {tmp_path / 'out'} --width 256" in out.out
    assert "first bracket" in out.err
    assert rows(tmp_path / "out") == expected
    assert max(Counter(starts(tmp_path)).values()) == 1
    some = next((tmp_path / "out" / "trials").iterdir())
    assert {"stdout.log", "stderr.log"} <= {each.name for each in some.iterdir()}
    monkeypatch.chdir(tmp_path)
    assert cli.main(["columns", str(path), "--json"]) == 2  # it lies elsewhere than its name says
    (tmp_path / "jobs").symlink_to(tmp_path / "out")
    assert cli.main(["columns", str(path), "--json"]) == 0
    capsys.readouterr()
    # Again: nothing is left to run. A command that has changed is said.
    before = starts(tmp_path)
    path.write_text(path.read_text().replace('"{trial}"', '"{trial}", "more"'))
    assert cli.main(["search", str(path), "-o", str(tmp_path / "out")]) == 0
    assert starts(tmp_path) == before
    # How the line is folded follows the length of the paths in it.
    said = " ".join(capsys.readouterr().err.split())
    assert "job.command is not what earlier trials had: [" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "what", "said"),
    [
        ("time_limit = 0.3\ngrace = 0.2", "time.sleep(99)", "ran longer than 0.3 s"),
        ("", "print('no loss'); sys.exit(0)", "it left no loss: expected one in "),
        ("", "sys.exit(1)", "exit code 1"),
        ("", "os.kill(os.getpid(), 9)", "ended by SIGKILL, often for want of memory"),
        ("", 'print(\'{"loss": "high"}\'); sys.exit(0)', "expected a loss, found 'high'"),
    ],
)
def test_a_trial_that_fails_is_one_line_and_nothing_else_is_lost(
    tmp_path, capsys, more, what, said
):
    bad = f"if seed == 1 and 2**-7 < lr < 2**-5: {what}"
    path = write_job(tmp_path, f"retries = 1\n{more}\n", before=bad)
    assert cli.main(["search", str(path), "-o", str(tmp_path / "out")]) == 1
    # What is longer than 80 columns goes on in an indented line.
    lines = capsys.readouterr().err.replace("\n  ", " ").splitlines()
    failed = [line for line in lines if line.endswith("set aside")]
    assert failed
    for line in failed:
        name = line.partition(":")[0]
        assert said in line
        assert f"(log: {tmp_path / 'out' / 'trials' / name / 'stderr.log'})" in line
        assert starts(tmp_path).count(name) == 2
        assert name in lines[-1]
    assert lines[-1].startswith(f"hptransfer: {len(failed)} of the search's trials failed")
    table = read_search(tmp_path / "out" / "search.jsonl").table()
    assert set(table.width) == {32, 64}
    assert not np.any((table.seed == 1) & (table.lr > 2**-7) & (table.lr < 2**-5))
    # Mended, the same command runs them, and they count.
    write_job(tmp_path)
    assert cli.main(["search", str(path), "-o", str(tmp_path / "out")]) == 0
    assert read_search(tmp_path / "out" / "search.jsonl").failed == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "what"),
    [
        ("", "print('{\"loss\": NaN}'); sys.exit(0)"),
        ("", "print('{\"loss\": null}'); sys.exit(0)"),
        ("diverged_exit_code = 3", "sys.exit(3)"),
        ("diverged_pattern = 'loss is (nan|inf)'", "print('step 3: loss is nan'); sys.exit(1)"),
    ],
)
def test_a_divergence_is_what_one_names_so(tmp_path, more, what):
    path = write_job(tmp_path, f"{more}\n", before=f"if lr > 2**-5: {what}")
    run(path, tmp_path / "out")
    table = read_search(tmp_path / "out" / "search.jsonl").table()
    assert np.array_equal(np.isnan(table.loss), table.lr > 2**-5)
    assert max(Counter(starts(tmp_path)).values()) == 1


@pytest.mark.slow
def test_a_trial_that_fails_once_runs_again(tmp_path, expected):
    once = "mark = trial + '.tried'\nif not os.path.exists(mark): open(mark, 'w'); sys.exit(7)"
    path = write_job(tmp_path, "parallel = 2\n", before=once)
    _, events = run(path, tmp_path / "out")
    assert rows(tmp_path / "out") == expected
    assert set(Counter(starts(tmp_path)).values()) == {2}
    assert all("exit code 7" in each.message for each in events if each.kind == "again")
    logs = {each.name for each in next((tmp_path / "out" / "trials").iterdir()).glob("*.log")}
    assert logs == {"stdout.log", "stderr.log", "stdout.1.log", "stderr.1.log"}


def test_each_trial_has_gpus_of_its_own(tmp_path, expected):
    path = write_job(tmp_path, "gpus = 2\ndevices = [4, 5, 6, 7, 8]\n")
    path.write_text(path.read_text() + "\n[job.env]\nSECONDS = '0.05'\n")
    run(path, tmp_path / "out")
    assert rows(tmp_path / "out") == expected
    seen = {line.split()[1] for line in (tmp_path / "starts.txt").read_text().splitlines()}
    assert seen == {"4,5", "6,7"}
    path.write_text(path.read_text().replace("gpus = 2", "gpus = 2\nparallel = 3"))
    with pytest.raises(ConfigError, match="expected 2 or less, for 5 GPUs by 2, found 3"):
        run(path, tmp_path / "out")


def start(path, directory, *more):
    with every_core():
        return subprocess.Popen(
            [sys.executable, "-m", "hptransfer", "search", str(path), "-o", str(directory), *more],
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def wait_until(seen):
    for _ in range(int(LIMIT / 0.02)):
        if seen():
            return
        time.sleep(0.02)
    raise AssertionError("it takes too long")


def slow(tmp_path, more="", seconds="99"):
    """A search whose first jobs wait, as long as there is no file to let them go."""
    waits = "time.time() < end and not os.path.exists('go')"
    wait = f"end = time.time() + {seconds}\nwhile {waits}: time.sleep(0.02)"
    return write_job(tmp_path, f"parallel = 2\n{more}\n", before=wait)


def has_started(tmp_path, num):
    path = tmp_path / "starts.txt"
    return lambda: path.exists() and len(path.read_text().splitlines()) >= num


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_it_ends_its_jobs_and_goes_on_later(tmp_path, expected, signum, code):
    path = slow(tmp_path)
    runner = start(path, tmp_path / "out")
    wait_until(has_started(tmp_path, 2))
    runner.send_signal(signum)
    assert "the same command resumes" in runner.communicate(timeout=LIMIT)[1]
    assert runner.returncode == code
    folders = list((tmp_path / "out" / "trials").iterdir())
    assert len(folders) == 2
    assert [Job.find(folder) for folder in folders] == [None, None]
    (tmp_path / "go").touch()
    run(path, tmp_path / "out")
    assert rows(tmp_path / "out") == expected


@pytest.mark.slow
def test_jobs_of_a_killed_runner_live_on_and_are_taken_over(tmp_path, expected):
    path = slow(tmp_path)
    runner = start(path, tmp_path / "out")
    wait_until(has_started(tmp_path, 2))
    runner.kill()
    runner.communicate()
    (tmp_path / "go").touch()
    _, events = run(path, tmp_path / "out")
    assert rows(tmp_path / "out") == expected
    assert max(Counter(starts(tmp_path)).values()) == 1  # nothing was trained twice
    assert sum("goes on where an earlier command left it" in e.message for e in events) == 2


@pytest.mark.slow
def test_two_runners_share_a_search(tmp_path, expected):
    path = write_job(tmp_path)
    path.write_text(path.read_text() + "\n[job.env]\nSECONDS = '0.1'\n")
    runners = [start(path, tmp_path / "out") for _ in range(2)]
    said = [runner.communicate(timeout=LIMIT) for runner in runners]
    assert [runner.returncode for runner in runners] == [0, 0], said
    assert rows(tmp_path / "out") == expected
    assert max(Counter(starts(tmp_path)).values()) == 1


def test_a_journal_that_another_runner_has_just_made_is_no_damage(tmp_path, expected):
    path = write_job(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "search.jsonl").touch()
    run(path, tmp_path / "out")
    assert rows(tmp_path / "out") == expected


def test_a_full_disk_under_the_journal_loses_nothing_finished(tmp_path, monkeypatch, expected):
    path = write_job(tmp_path)
    real = Journal._write

    def write(self, data):
        if b'"tell"' in data and len(starts(tmp_path)) >= 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(self, data)

    monkeypatch.setattr(Journal, "_write", write)
    with pytest.raises(OSError, match="No space left on device; not kept: ") as caught:
        run(path, tmp_path / "out")
    name = starts(tmp_path)[2]
    assert f"{name}: loss " in str(caught.value)
    assert f"trials/{name}/stderr.log" in str(caught.value)
    assert caught.value.filename == str(tmp_path / "out" / "search.jsonl")
    monkeypatch.undo()
    run(path, tmp_path / "out")
    assert rows(tmp_path / "out") == expected
    assert max(Counter(starts(tmp_path)).values()) == 1


def test_a_full_disk_under_a_trial_names_its_folder(tmp_path, monkeypatch, expected):
    path = write_job(tmp_path)
    real = Job.start

    def start_or_fail(folder, *args, **kwargs):
        if has_started(tmp_path, 3)():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(folder, *args, **kwargs)

    monkeypatch.setattr(Job, "start", start_or_fail)
    with pytest.raises(OSError, match="No space left on device; the same command") as caught:
        run(path, tmp_path / "out")
    assert "/trials/w32_" in caught.value.filename
    monkeypatch.undo()
    run(path, tmp_path / "out")
    assert rows(tmp_path / "out") == expected
    assert max(Counter(starts(tmp_path)).values()) == 1


def test_a_journal_cut_off_is_said_and_its_trial_runs_again(tmp_path, expected):
    path = write_job(tmp_path)
    run(path, tmp_path / "out")
    journal = tmp_path / "out" / "search.jsonl"
    journal.write_bytes(journal.read_bytes()[:-25])
    run(path, tmp_path / "out")
    said = [each.message for each in run(path, tmp_path / "out")[1] if each.kind == "note"]
    [line] = said
    assert line.startswith(f"{journal}: line ")
    assert starts(tmp_path)[-1] in line
    assert rows(tmp_path / "out") == expected


@pytest.mark.slow
def test_a_scheduler_asks_runs_and_tells(tmp_path, capsys, expected):
    path, directory = write_job(tmp_path), tmp_path / "out"
    command = ["search", str(path), "-o", str(directory)]
    assert cli.main([*command, "--ask", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert cli.main([*command, "--ask", "1", "--json"]) == 0
    [asked] = json.loads(capsys.readouterr().out)["trials"]
    assert asked["command"][-1] == asked["trial"]
    assert asked["trial"] not in "".join(lines)
    for line in lines:
        ours = f"{sys.executable} -m {line}"
        subprocess.run(["/bin/sh", "-c", ours], check=True, env=environment(), capture_output=True)
    assert rows(directory) == expected[:1] + rows(directory)[1:]
    assert len(rows(directory)) == 2
    done = subprocess.run(asked["command"], cwd=tmp_path, capture_output=True, check=True)
    loss = json.loads(done.stdout)["loss"]
    assert cli.main([*command, "--tell", f"{asked['trial']}={loss!r}"]) == 0
    run(path, directory)
    assert rows(directory) == expected
    capsys.readouterr()
    assert cli.main([*command, "--ask", "5"]) == 0
    out = capsys.readouterr()
    assert (out.out, out.err) == ("", "nothing to run: the search is done\n")
    assert cli.main([*command, "--trial", asked["trial"]]) == 0  # a requeued job: told already
    assert cli.main([*command, "--trial", "w9"]) == 2
    assert cli.main([*command, "--tell", "w9"]) == 2


@pytest.mark.slow
def test_progress_of_a_running_trial_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("hptransfer.search.job_runner.READ", 0.1)
    steps = "\n".join(
        [
            "for step in (10, 20):",
            "    print(json.dumps({'step': step, 'loss': 5.0}), flush=True)",
            "    time.sleep(0.3)",
        ]
    )
    path = write_job(tmp_path, "parallel = 4\n", before=steps)
    _, events = run(path, tmp_path / "out")
    assert {each.step for each in events if each.kind == "loss"} >= {10, 20}
    partial = read_search(tmp_path / "out" / "search.jsonl").partial_table()
    assert set(partial.groups["step"]) >= {10, 20}
    assert set(partial.loss[partial.groups["step"] < 100]) == {5.0}


@pytest.mark.slow
def test_one_signal_ends_many_jobs_within_their_grace(tmp_path):
    """A job that ignores SIGTERM is killed."""
    path = slow(tmp_path, "grace = 0.3")
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    path.write_text(path.read_text().replace("BEFORE = '''", f"BEFORE = '''{deaf}"))
    runner = start(path, tmp_path / "out")
    wait_until(has_started(tmp_path, 2))
    time.sleep(0.2)
    timer = threading.Timer(LIMIT, runner.kill)
    timer.start()
    runner.send_signal(signal.SIGINT)
    runner.communicate()
    timer.cancel()
    assert runner.returncode == 130
    assert all(Job.find(each) is None for each in (tmp_path / "out" / "trials").iterdir())


HISTORY = [{"loss": 9, "step": 1}, {"eval_loss": 3.5, "step": 2}, {"eval_loss": 3, "step": 4}]
LINES = '{"step": 1, "val_loss": 3.5}\n{"lr": 1}\nnot json\n{"val_loss": "3.25"}\n{"val_'
COLUMNS = "epoch,step,train_loss,val_loss\n0,10,3.9,\n0,19,,3.5\n1,39,,nan\n"


@pytest.mark.parametrize(
    ("name", "text", "key", "found"),
    [
        ("m.jsonl", LINES, "val_loss", [(1, 3.5), (None, 3.25)]),
        ("m.jsonl", '{"a": {"b": NaN}}\n', "a.b", [(None, None)]),
        ("trainer_state.json", json.dumps({"log_history": HISTORY}), "", [(2, 3.5), (4, 3.0)]),
        ("metrics.csv", COLUMNS, "", [(19, 3.5), (39, None)]),
        ("result.json", '{"eval": {"loss": 3.5}}', "eval.loss", [(None, 3.5)]),
        ("loss.txt", " 3.5\n", "", [(None, 3.5)]),
        ("m.jsonl", "", "loss", []),
    ],
)
def test_losses_are_read_from_what_trainers_leave(tmp_path, name, text, key, found):
    (tmp_path / name).write_text(text)
    source = ResultSource.parse(f"{name}:{key}" if key else name)
    read = source.read(tmp_path, name, tmp_path / "stdout.log", since=0.0).values
    assert [(step, None if np.isnan(loss) else loss) for step, loss in read] == found
    assert source.read(tmp_path, name, tmp_path, since=time.time() + 60).values == ()


def test_the_newest_of_several_files_counts(tmp_path):
    for version, loss in ((0, 4.0), (1, 3.0)):
        path = tmp_path / f"version_{version}" / "metrics.csv"
        path.parent.mkdir()
        path.write_text(f"step,val_loss\n1,{loss}\n")
        os.utime(path, (1000.0 + version, 1000.0 + version))
    source = ResultSource.parse("version_*/metrics.csv")
    assert source.read(tmp_path, source.file, tmp_path, since=0.0).values == ((1, 3.0),)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("width =", "widths =", "sweep.widths: expected 'width', found 'widths'"),
        ("width = [32, 64]", "width = []", "sweep.width: expected at least one value"),
        ("width = [32, 64]", "width = ['a']", "sweep.width: expected a number, found 'a'"),
        ("[sweep]", "[sweep]\ndepth = [[1]]", "sweep.depth: expected true or false, a number or "
         "text in quotes, found [1]"),
        ("[sweep]", "[sweep]\nint = [[1]]", "sweep.int: expected true or false, a number or "),
        ("[sweep]", "[sweep]\ndepth = [1, 2]", "job.command: expected {depth} in it"),
        ("[sweep]", "[sweep]\ncost = [1]", "sweep.cost: expected one number for each"),
        ("[sweep]", "[sweep]\nlr = 0.1", "sweep.base_lr: expected 'adaptive', found 0.1"),
        ("{lr}", "{learning_rate}", "job.command: expected one of {width}"),
        ('"{lr}"', '"0.1"', "job.command: expected {lr} in it"),
        ('"{seed}"', '"0"', "job.command: expected {seed} in it"),
        ("[job]", "[job]\ntime = 3", "unknown key 'job.time'; did you mean 'time_limit'?"),
        ("[job]", "[job]\nretries = -1", "job.retries: expected a value of 0 or more"),
        ("[job]", "[job]\ndiverged_pattern = '('", "job.diverged_pattern: expected a regular"),
        ("[job]", "[job]\ndiverged_exit_code = 0", "job.diverged_exit_code: expected a value of 1"),
        ("[job]", "[job]\nresult = ''", "job.result: expected text that is not empty"),
        ("[job]", "[job]\nenv = ['A']", "job.env: expected a section of keys and values"),
        ("[job]", "[jobs]", "unknown section 'jobs'; did you mean 'job'?"),
        ('name = "jobs"', 'name = "a/b"', "name: expected a name"),
    ],
)  # fmt: skip
def test_a_wrong_search_file_is_one_line(tmp_path, capsys, old, new, message):
    path = write_job(tmp_path)
    path.write_text(path.read_text().replace(old, new))
    assert cli.main(["search", str(path), "-o", str(tmp_path / "out")]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"hptransfer: {path}: {message}")
    assert not (tmp_path / "out").exists()


def test_asking_where_trials_stand_aside_names_them(tmp_path, capsys):
    path = write_job(tmp_path, "retries = 0\n", before="sys.exit(1)")
    command = ["search", str(path), "-o", str(tmp_path / "out")]
    assert cli.main(command) == 1
    capsys.readouterr()
    assert cli.main([*command, "--ask", "5"]) == 0
    said = capsys.readouterr().err
    failed = read_search(tmp_path / "out" / "search.jsonl").failed
    assert said.startswith(f"nothing to run: {len(failed)} failed and stand aside, ")
    assert said.endswith(f"{path} -o {tmp_path / 'out'} runs them again\n")
    assert cli.main([*command, "--ask", "5", "--json"]) == 0
    asked = json.loads(capsys.readouterr().out)
    assert (asked["done"], asked["failed"], asked["trials"]) == (False, [*failed], [])


def test_a_trial_that_fails_here_and_was_told_elsewhere_is_not_set_aside(tmp_path, expected):
    out = tmp_path / "out"
    first = "w32_log2lr-8_s0"
    path = write_job(tmp_path, "retries = 0\n", before=f"if trial == '{first}': sys.exit(1)")
    progress = SearchProgress(Console(file=io.StringIO(), force_terminal=True))
    events = []

    def tell_elsewhere(event):
        if event.kind == "start" and event.trial.id == first:
            [row] = [row for row in expected if row[:3] == ("32.0", str(2.0**-8), "0")]
            LrSearch(journal=out / "search.jsonl").tell(first, float(row[3]))
        events.append(event)
        progress(event)

    with progress:
        run_search(load_search(path), out, on_event=tell_elsewhere)
    assert rows(out) == expected
    assert "failed" not in {each.kind for each in events}
    [note] = [each for each in events if each.kind == "note"]
    assert (note.trial.id, first in note.message) == (first, True)
    assert "failed" not in progress.summary()
    assert progress._rows == {}  # the bar of each trial has ended


def test_a_job_that_was_found_running_has_a_bar_once_it_tells_a_loss():
    progress = SearchProgress(Console(file=io.StringIO(), force_terminal=True))
    trial = Trial(width=32, lr=2.0**-8, seed=0, keys={})
    for kind, bars in (("note", 0), ("loss", 1), ("completed", 0)):
        progress(SearchEvent(kind=kind, trial=trial, loss=4.5, step=10))
        assert len(progress._rows) == bars


def test_a_study_s_folder_is_no_search_s(tmp_path, capsys):
    path = write_job(tmp_path)
    (tmp_path / "study.json").write_text("{}")
    for folder, found in ((tmp_path, "a study's"), (path, "a file")):
        for more in ([], ["--ask", "1"], ["--tell", "w32=3.0"]):
            assert cli.main(["search", str(path), "-o", str(folder), *more]) == 2
            [line] = capsys.readouterr().err.splitlines()
            assert line.endswith(
                f"{folder}: expected a search's folder or a new one, found {found}"
            )
    assert not (tmp_path / "search.jsonl").exists()


def test_a_program_that_is_not_there_is_said_first(tmp_path, capsys):
    path = write_job(tmp_path)
    path.write_text(path.read_text().replace(sys.executable, "torchrnu"))
    assert cli.main(["search", str(path), "-o", str(tmp_path / "out")]) == 2
    assert "expected a program, found 'torchrnu'" in capsys.readouterr().err


@pytest.mark.slow
def test_keys_of_the_sweep_are_searches_and_placeholders(tmp_path):
    path = write_job(tmp_path)
    text = path.read_text().replace("width = [32, 64]", 'width = 32\nrule = ["sp", "mup"]')
    path.write_text(text.replace('"{trial}"]', '"{trial}", "{rule}"]'))
    search, _ = run(path, tmp_path / "out")
    assert {each.group["rule"] for each in search.optima} == {"sp", "mup"}
    table = read_search(tmp_path / "out" / "search.jsonl").table()
    assert Counter(table.groups["rule"])["sp"] == Counter(table.groups["rule"])["mup"]
    with pytest.raises(ConfigError, match="expected these and maybe more"):
        run(write_job(tmp_path), tmp_path / "out")


def test_failures_of_the_search_are_its_error(tmp_path):
    path = write_job(tmp_path, "retries = 0\n", before="sys.exit(1)")
    with pytest.raises(SearchError, match="trials failed and stand aside"):
        run(path, tmp_path / "out")
