"""What the terminal shows of known tables: 80 columns, whole numbers, the answer first."""

import json
import re
from pathlib import Path

import pytest

from hptransfer.cli import _print
from hptransfer.cli.main import COMMANDS, main
from search.jobs import write_job

ROOT = Path(__file__).parents[2]
PLAIN = ROOT / "studies/recorded/wiki-plain.csv"
RECORDED = ROOT / "src/hptransfer/cli/h100_embedding.csv"


@pytest.mark.parametrize("path", [PLAIN, RECORDED], ids=["plain", "h100"])
@pytest.mark.parametrize("more", [[], ["--verbose"]], ids=["brief", "verbose"])
@pytest.mark.parametrize("command", [["fit"], ["recommend", "--width", "4096"]], ids=lambda c: c[0])
def test_every_line_fits_and_no_number_is_cut(
    command: list[str], more: list[str], path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command[0], str(path), *command[1:], *more]) == 0
    out, _ = capsys.readouterr()
    assert max(map(len, out.splitlines())) <= 80
    # An ellipsis stands after a letter of a name, never within a number.
    assert not re.search(r"\d…|…\d", out)
    if not more:
        assert len(out.splitlines()) <= 20


def test_the_recorded_demo_answers_in_twenty_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--recorded"]) == 0
    out, _ = capsys.readouterr()
    lines = out.splitlines()
    assert len(lines) <= 20
    assert max(map(len, lines)) <= 80
    text = " ".join(out.split())
    for expected in (
        "218 trials",
        "Is the embedding layer held back? Yes. Raising its learning rate alone makes sp 0.166 "
        "nats [0.153, 0.180] better at width 1024",
        "sp+embd less sp, nats: −0.061 [−0.077, −0.043] at 128",
        "risky embedding 0.02",
        "; all else 0.000",
        "typed unchanged it costs 1.43 nats or more",
        "It cannot say κ, R(∞)",
    ):
        assert expected in text, expected
    assert (tmp_path / "hptransfer-demo" / "recorded.html").stat().st_size < 1_500_000


@pytest.mark.parametrize("columns", [45, 60])
def test_a_narrow_terminal_is_fitted_and_loses_no_number(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    columns: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo", "--recorded"]) == 0
    wide, _ = capsys.readouterr()
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["demo", "--recorded"]) == 0
    narrow, _ = capsys.readouterr()
    assert max(map(len, narrow.splitlines())) <= columns
    number = re.compile(r"[\d.]*\d")
    assert sorted(number.findall(wide)) == sorted(number.findall(narrow))


MODEL = """\
from torch import nn
def make(width):
    return nn.Sequential(
        nn.Embedding(64, width), nn.Linear(width, width), nn.LayerNorm(width), nn.Linear(width, 64)
    )
"""
#: A call of every command: NAME stands for what the test puts in its place.
CALLS = {
    "demo": ["--recorded"],
    "plan": ["DEMO", "--tflops", "100"],
    "run": ["STUDY", "-o", "FINISHED", "--workers", "1"],
    "search": ["SEARCH"],
    "status": ["FINISHED"],
    "verify": ["STUDY", "FINISHED", "--count", "1", "--noise", "0.1"],
    "fit": ["TABLE"],
    "recommend": ["TABLE", "--width", "4096"],
    "report": ["TABLE"],
    "columns": ["TABLE"],
    "factors": ["METRICS"],
    "rules": ["sp+embd+ln", "--width", "4096", "--base-width", "64", "--lr", "0.0123456789"],
    "audit": ["tiny.py:make", "--base-width", "32", "--width", "256"],
    "coordinate-check": ["tiny.py:make", "--base-width", "32", "--width", "32,48,64",
                         "--seeds", "1", "--steps", "2"],
}  # fmt: skip
CALLS_OF_TABLES = ("fit", "recommend", "report", "columns")


def test_every_command_is_called() -> None:
    assert CALLS.keys() == COMMANDS.keys()


@pytest.mark.parametrize(
    ("command", "path"),
    [(command, PLAIN) for command in CALLS] + [(command, RECORDED) for command in CALLS_OF_TABLES],
    ids=lambda value: getattr(value, "stem", value),
)
def test_every_command_fits_80_columns_and_gives_its_answer_as_json(
    command: str, path: Path, finished: Path, study_file: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """No line is longer, no number ends in an ellipsis, and --json prints one document alone."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.py").write_text(MODEL)
    Path("job").mkdir()
    names = {
        "TABLE": path, "FINISHED": "finished", "STUDY": "small.toml",
        "DEMO": ROOT / "src/hptransfer/cli/demo.toml",
        "METRICS": ROOT / "studies/published/kalra_barkeshli_2026_metrics.csv",
        "SEARCH": write_job(Path("job"), "parallel = 3\n"),
    }  # fmt: skip
    call = [command, *(str(names.get(word, word)) for word in CALLS[command])]
    assert main(call) == 0, call
    out, err = capsys.readouterr()
    lines = [*out.splitlines(), *(line for line in err.splitlines() if "note:" not in line)]
    assert lines
    # What names a file of the user's is as long as the file's name.
    assert [line for line in lines if len(line) > 80 and str(tmp_path) not in line] == []
    assert not re.search(r"\d…|…\d", out)
    assert main([*call, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 1


def test_long_names_give_way_to_numbers() -> None:
    row = ["a-very-long-name-" * 6, "0.0012345 [0.0011, 0.0014]", "1.234", "usable"]
    text = _print.align(["group", "rate", "loss", "verdict"], [row])
    assert all(len(line) <= 80 for line in text.splitlines())
    assert all(number in text for number in ("0.0012345", "0.0011", "0.0014", "1.234"))
