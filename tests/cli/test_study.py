"""plan, run, status and demo on a small study."""

import io
import itertools
import json
import re
import shutil
import signal
from importlib.resources import files

import pytest
from rich.console import Console

from hptransfer.cli import main as cli
from hptransfer.cli._progress import RoundProgress
from hptransfer.report import analyse
from hptransfer.study._plan import StackedGroup
from hptransfer.study.config import load_study
from hptransfer.study.events import Event
from study.training import complete, prepare


@pytest.mark.slow
def test_a_run_says_where_its_results_are_and_a_rerun_that_nothing_is_missing(
    study_file, tmp_path, monkeypatch, capsys
):
    """In the directory of the study's name by default."""
    monkeypatch.chdir(tmp_path)
    command = ["run", str(study_file), "--workers", "1"]
    assert cli.main([*command, "--shard", "1/2"]) == 0
    assert (tmp_path / "small" / "study.json").exists()
    capsys.readouterr()
    assert cli.main(["status", "small", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert 0 < document["pending"] < document["trials"]
    assert cli.main([*command, "--shard", "1/2"]) == 0
    # How many groups the plan makes depends on the speed that this machine was seen to have.
    left = r"nothing is left for shard 1/2, [1-9]\d* groups of other shards are missing"
    assert re.search(left, " ".join(capsys.readouterr().err.split()))
    assert cli.main(command) == 0
    found = capsys.readouterr()
    assert "results are in small" in found.out
    assert "24/24 trials" in found.err
    # What is to be typed next can be pasted.
    (tmp_path / "small").rename(tmp_path / "a b")
    assert cli.main([*command, "-o", "a b"]) == 0
    found = capsys.readouterr()
    assert "nothing is missing" in found.err
    assert "next: hptransfer report 'a b' -o report.html" in found.out


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "a/b", "1/", "-1/2"])
def test_a_wrong_shard_is_refused(study_file, shard, capsys):
    assert cli.main(["run", str(study_file), f"--shard={shard}"]) == 2
    assert "--shard" in capsys.readouterr().err


def test_status(finished, capsys):
    assert cli.main(["status", str(finished)]) == 0
    out = capsys.readouterr().out
    assert "24 of 24 trials are finished" in out
    assert "unigram entropy" in out
    assert cli.main(["status", str(finished), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["pending"] == 0
    assert sum(group["diverged"] for group in document["groups"]) == 8
    assert all(group["best_loss"] > 0 for group in document["groups"])


@pytest.mark.parametrize("command", ["status", "fit"])
def test_a_damaged_file_is_named_the_rest_is_shown_and_the_code_is_3(finished, capsys, command):
    victim = sorted((finished / "groups").iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:100])
    assert cli.main([command, str(finished)]) == 3
    found = capsys.readouterr()
    assert "mup" in found.out
    told = found.err.replace("\n  ", " ").splitlines()  # long lines go on indented
    [line] = [line for line in told if ": damaged" in line]
    assert victim.name in line
    study = next(finished.parent.glob("*.toml"))
    assert cli.main(["run", str(study), "-o", str(finished), "--workers", "1"]) == 0
    # Where the line is folded follows the length of the path in it.
    assert "damaged, set aside; its trials" in " ".join(capsys.readouterr().err.split())
    assert cli.main(["status", str(finished)]) == 0


def test_plan_counts_and_names_what_is_trained_once(study_file, capsys):
    assert cli.main(["plan", str(study_file), "--workers", "1"]) == 0
    out = capsys.readouterr().out
    assert "24 trials in 18 runs" in out
    assert "trained once: sp, mup" in out
    assert cli.main(["plan", str(study_file), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [row["runs"] for row in document["widths"]] == [6, 12]
    assert document["equal"] == [["sp", "mup"]]


def test_plan_for_devices_that_are_not_at_hand(study_file, capsys):
    (study_file.parent / "text" / "a.txt").unlink()  # nor is the text
    argv = ["plan", str(study_file), "--json", "--tflops"]
    assert cli.main([*argv, "2"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["seconds"] == pytest.approx(document["flops"] / 2e12)
    assert [row["epochs_per_run"] for row in document["widths"]] == [None, None]
    assert cli.main([*argv, "2", "--workers", "4"]) == 0
    assert json.loads(capsys.readouterr().out)["seconds"] == pytest.approx(document["flops"] / 8e12)
    assert cli.main([*argv, "0"]) == 2


def test_plan_tells_what_the_grid_could_tell(study_file, tmp_path, capsys):
    def expected(*options):
        assert cli.main(["plan", str(study_file), "--json", *options]) == 0
        return json.loads(capsys.readouterr().out)["expected"]

    [stated] = expected()
    assert stated["like"] == "stated values"
    told = {each["name"]: each["standard_error"] for each in stated["quantities"]}
    assert told["alpha"] is None  # two widths
    text = study_file.read_text()
    wider = text.replace("width = [16, 32]", "width = [16, 32, 64, 128]\nbase_width = 16")
    study_file.write_text(wider.replace("6]", "-6, -8]"))
    one, other = (
        {each["name"]: each["standard_error"] for each in expected(*options)[0]["quantities"]}
        for options in ([], ["--noise", "0.01"])
    )
    assert all(other[name] == pytest.approx(2 * error) for name, error in one.items())

    table = tmp_path / "earlier.csv"
    rows = [
        f"mup,{width},{2.0**x},{seed},"
        f"{3 + 8 / width**0.5 + 0.05 * (x + 6) ** 2 + 0.001 * ((seed * 7 + x * 3) % 5)}"
        for width in (16, 32, 64, 128)
        for x in range(-9, -3)
        for seed in (0, 1)
    ]
    table.write_text("parameterization,width,lr,seed,loss\n" + "\n".join(rows))
    [like] = expected("--like", str(table))
    assert like["like"] == "mup"
    assert 0 < like["noise"] < 0.01
    assert cli.main(["plan", str(study_file), "--noise", "0"]) == 2
    assert "--noise" in capsys.readouterr().err
    table.write_text("width,lr,loss\n16,0.1,3.0\n")
    assert cli.main(["plan", str(study_file), "--like", str(table)]) == 2
    assert "--like" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("steps = 12", "stpes = 12"), "steps"),
        (("width = [16, 32]", "width = [16, 30]"), "30"),
        (("log2_lr = [-7, -5, 6]", "lr = [0.1, 0.0]"), "lr"),
        (("log2_lr = [-7, -5, 6]", "lr = [0.1, -1]"), "lr"),
        (("files:text/*.txt", "files:text/*.md"), "text/*.md"),
        (("files:text/*.txt", "files:empty.txt"), "empty.txt"),
        (("batch = 4", "batch = 4000"), "too short"),
        (("context = 16", "context = 257"), "257"),
    ],
)
def test_bad_studies_are_one_line_and_code_2(study_file, tmp_path, change, named, capsys):
    (tmp_path / "empty.txt").write_text("")
    study_file.write_text(study_file.read_text().replace(*change))
    assert cli.main(["run", str(study_file), "-o", str(tmp_path / "out")]) == 2
    found = capsys.readouterr()
    assert found.out == ""
    assert len(found.err.splitlines()) == 1
    assert named in found.err
    assert not (tmp_path / "out").exists()


def test_demo_ends_with_metrics_a_verdict_and_the_report(study_file, tmp_path, monkeypatch, capsys):
    """The demo's path from text to report, on a study small enough for a test."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "package"
    folder.mkdir()
    text = study_file.read_text().replace('["sp", "mup"]', '["sp", "sp+embd", "mup"]')
    (folder / "demo.toml").write_text(text.replace("log2_lr = [-7, -5, 6]", "log2_lr = [-7, -5]"))
    monkeypatch.setattr("hptransfer.cli.demo.files", lambda package: folder)
    (tmp_path / "hptransfer-demo").mkdir()
    shutil.copytree(tmp_path / "text", tmp_path / "hptransfer-demo" / "text")
    assert cli.main(["demo", "--workers", "1"]) == 0
    out = capsys.readouterr().out
    assert "sp+embd" in out
    assert "rate to type" in out
    assert out.rstrip().endswith("report: hptransfer-demo/report.html")
    assert len(out.splitlines()) <= 20
    assert max(map(len, out.splitlines())) <= 80
    page = (tmp_path / "hptransfer-demo" / "report.html").read_text(encoding="utf-8")
    assert "sp+embd" in page


def test_the_demo_study_is_what_the_readme_promises():
    """Its grid: four widths or more, seven rates at 2x steps or finer, two seeds or more."""
    config = load_study(files("hptransfer.cli").joinpath("demo.toml"))
    assert config.data.text == "wiki"
    assert set(config.sweep.parameterization) == {"sp", "sp+embd", "mup"}
    assert len(config.sweep.width) >= 4
    assert len(config.sweep.seed) >= 2
    rates = sorted(config.sweep.base_lr)
    assert len(rates) >= 7
    assert all(high / low <= 2 for low, high in itertools.pairwise(rates))


def test_progress_tells_trials_speed_losses_and_time_left(study_file, monkeypatch):
    config = load_study(study_file)
    group = StackedGroup(
        name="g", width=16, runs=(("a",), ("b", "c")), precision="fp32", device="cpu",
        threads=1, seconds=10.0,
    )  # fmt: skip
    other = StackedGroup(**{**vars(group), "name": "h", "runs": (("d",),), "seconds": 30.0})
    clock = iter(float(second) for second in range(0, 1000, 40))
    monkeypatch.setattr("hptransfer.cli._progress.time.monotonic", lambda: next(clock))
    console = Console(record=True, width=200, force_terminal=False)
    with RoundProgress(
        config, (group, other), num_finished=1, num_trials=4, console=console
    ) as progress:
        progress(Event(kind="step", group="g", step=6, steps=12, losses=(3.0, 5.25)))
        progress(Event(kind="done", group="g", completed=2, diverged=1))
        assert progress.summary().startswith("4/5 trials (1 diverged), ")
        assert " tokens/s, " in progress.summary()
        assert progress.summary().endswith(" left")
        progress(Event(kind="failed", group="h", message="no memory"))
    text = console.export_text()
    assert "4/5 trials" in text
    assert "group h failed: no memory" in text


def test_live_bars_show_widths_and_losses(study_file):
    config = load_study(study_file)
    group = StackedGroup(
        name="g", width=16, runs=(("a",),), precision="fp32", device="cpu", threads=1, seconds=10.0
    )
    console = Console(record=True, width=200, force_terminal=True)
    with RoundProgress(config, (group,), num_finished=0, num_trials=1, console=console) as progress:
        progress(Event(kind="step", group="g", step=6, steps=12, losses=(3.0, 5.25)))
        progress._bars.refresh()
        progress(Event(kind="step", group="g", step=7, steps=12, losses=(3.0,)))
        progress(Event(kind="step", group="g", step=8, steps=12))
        progress(Event(kind="done", group="g", completed=0, diverged=1))
    text = console.export_text()
    assert "width 16 × 1" in text
    assert "loss 3.000 to 5.250" in text


def test_a_resumed_run_counts_its_own_work_alone(study_file, monkeypatch):
    """Half of the group was trained before: rate and time left are of the other half."""
    config = load_study(study_file)
    group = StackedGroup(
        name="g", width=16, runs=(("a",),), precision="fp32", device="cpu", threads=1, seconds=10.0
    )
    now = [0.0]
    monkeypatch.setattr("hptransfer.cli._progress.time.monotonic", lambda: now[0])
    console = Console(record=True, width=200, force_terminal=True)
    with RoundProgress(config, (group,), num_finished=0, num_trials=1, console=console) as progress:
        progress(Event(kind="start", group="g", step=6, steps=12))
        assert progress.summary() == "0/1 trials, starting"
        progress._bars.refresh()
        now[0] = 8.0
        progress(Event(kind="step", group="g", step=8, steps=12, losses=(3.0,)))
        # 2 steps of 4 sequences of 16 tokens in 8 seconds; 4 steps are left.
        assert progress.summary() == "0/1 trials, 16 tokens/s, 0:16 left"
        progress(Event(kind="evaluate", group="g", step=12, steps=12))
        progress._bars.refresh()
    text = console.export_text()
    assert "starting at step 6" in text
    assert "final evaluation" in text


def test_status_shows_groups_under_way_and_watches_until_all_is_trained(
    study_file, tmp_path, monkeypatch, capsys
):
    """A group that was interrupted is under way; once it is trained the watch ends by itself."""
    directory = tmp_path / "watched"
    kinds = []

    def interrupt(event):
        kinds.append(event.kind)
        if event.kind == "start":  # looked at after the first block of steps, which is saved
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        complete(study_file, directory, on_event=interrupt)
    assert kinds[0] == "start"
    assert cli.main(["status", str(directory), "--json"]) == 0
    [group] = json.loads(capsys.readouterr().out)["under_way"]
    assert 0 < group["step"] < group["steps"] == 12
    assert cli.main(["status", str(directory)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert f"under way: width {group['width']} × {group['runs']}, at step {group['step']}" in out
    assert "0 of 24 trials are finished; width 16, 32: none" in out

    slept = []
    monkeypatch.setattr(
        "hptransfer.cli.status.time.sleep",
        lambda seconds: slept.append(seconds) or complete(study_file, directory),
    )
    assert cli.main(["status", str(directory), "--watch", "7"]) == 0
    assert slept == [7.0]
    out = capsys.readouterr().out
    assert out.count("under way") == 1
    assert "24 of 24 trials are finished" in out


def test_plan_and_run_say_what_they_do_before_there_is_anything_to_show(
    study_file, finished, monkeypatch, capsys
):
    monkeypatch.setattr("hptransfer.cli._print.NOTICE_SECONDS", 0.0)
    for command in (["plan", str(study_file)], ["run", str(study_file), "-o", str(finished)]):
        assert cli.main([*command, "--workers", "1"]) == 0
        assert "measuring how fast each new width trains" in capsys.readouterr().err


def test_an_incomplete_study_is_said_in_every_output(study_file, finished, tmp_path, capsys):
    """A grid that has grown and is not trained: fit, recommend, report, status, text and JSON."""
    grown = study_file.read_text().replace("width = [16, 32]", "width = [16, 32, 64]")
    study_file.write_text(grown)
    prepare(study_file, finished)
    page = tmp_path / "page.html"
    calls = {
        "fit": ["fit", str(finished)],
        "recommend": ["recommend", str(finished), "--width", "128"],
        "status": ["status", str(finished)],
    }
    for name, call in calls.items():
        assert cli.main(call) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "24 of 36" in said, name
        assert "width 64: none" in said, name
        assert cli.main([*call, "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        if name == "status":
            assert document["pending"] == 12
        else:
            assert document["incomplete"] == "24 of 36 planned trials, width 64: none"
            call += ["--where", "parameterization=mup", "--json"]
            assert cli.main(call) == 0
            document = json.loads(capsys.readouterr().out)
            assert document["incomplete"] == "12 of 18 planned trials, width 64: none"
    assert cli.main(["report", str(finished), "-o", str(page), "--json"]) == 0
    assert "24 of 36 planned" in json.loads(capsys.readouterr().out)["sources"][0]["facts"]
    assert "24 of 36 planned" in page.read_text("utf-8")


def test_chosen_rows_of_a_complete_study_lack_nothing(finished, capsys):
    for command in (["fit", str(finished)], ["recommend", str(finished), "--width", "128"]):
        assert cli.main([*command, "--where", "parameterization=mup", "--json"]) == 0
        assert "incomplete" not in json.loads(capsys.readouterr().out)
        assert cli.main([*command, "--where", "parameterization=mup"]) == 0
        assert "planned" not in capsys.readouterr().out


def test_a_study_file_stands_for_its_results(finished, tmp_path, monkeypatch, capsys):
    """Its folder, loss curves and all; what to type next names the folder, quoted for a shell."""
    shutil.move(finished, tmp_path / "small")
    monkeypatch.chdir(tmp_path)
    curves = []

    def spy(study, **options):
        curves.append(options["curves"])
        return analyse(study, **options)

    monkeypatch.setattr("hptransfer.cli.report.analyse", spy)
    for source in ("small.toml", "small"):
        assert cli.main(["report", source, "-o", "page.html"]) == 0
    assert curves[0] == curves[1]
    assert len(curves[0]) == 24
    capsys.readouterr()
    ask = ["recommend", "small.toml", "--width", "128", "--write-next", "what next.toml"]
    assert cli.main(ask) == 0
    assert "next: hptransfer run 'what next.toml' -o small\n" in capsys.readouterr().err


def test_columns_lists_those_of_a_study(finished, capsys):
    assert cli.main(["columns", str(finished), "--json"]) == 0
    columns = {each["name"]: each for each in json.loads(capsys.readouterr().out)["columns"]}
    assert {n: columns[n]["used_as"] for n in ("width", "loss")} == {"width": "width",
                                                                    "loss": "loss"}  # fmt: skip
    assert columns["width"]["distinct"] == 2


def test_columns_lists_those_of_a_search(tmp_path, capsys):
    from hptransfer import LrSearch

    search = LrSearch(widths=[16, 32], seeds=(0,), journal=tmp_path / "search.jsonl")
    for trial in search.ask():
        search.tell(trial, 3.0 + trial.lr)
    assert cli.main(["columns", str(tmp_path), "--json"]) == 0
    columns = json.loads(capsys.readouterr().out)["columns"]
    assert {each["used_as"] for each in columns} >= {"width", "lr", "loss", "seed"}


def test_bars_fit_80_columns_and_cut_no_number(study_file):
    """The longest that there is to say: many trials, a fast device, days, wide groups."""
    config = load_study(study_file)
    runs = tuple((str(k),) for k in range(1024))
    group = StackedGroup(
        name="g", width=16384, runs=runs, precision="fp32", device="cpu", threads=1, seconds=1e6
    )
    console = Console(record=True, width=80, force_terminal=True)
    with RoundProgress(
        config, (group,), num_finished=99_999, num_trials=900_001, console=console
    ) as progress:
        progress._diverged = 12_345
        progress(Event(kind="step", group="g", step=1, steps=12, losses=(10.125, 10.25)))
        shown = Console(record=True, width=80, file=io.StringIO())
        shown.print(progress._bars.get_renderable())
        summary = progress._bars.caption
    text = shown.export_text()
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert summary in " ".join(text.split())
    assert "loss 10.125 to 10.250" in text


def test_a_training_that_was_too_short_is_said_in_every_answer(finished, capsys):
    for command in (["fit"], ["recommend", "--width", "64"]):
        assert cli.main([*command, str(finished)]) == 0
        assert "of the unigram entropy of the text" in " ".join(capsys.readouterr().out.split())
    assert cli.main(["recommend", "--width", "64", str(finished), "--json"]) == 0
    assert "unigram entropy" in json.loads(capsys.readouterr().out)["warning"]
