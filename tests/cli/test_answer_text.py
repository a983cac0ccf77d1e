"""What the terminal shows of known tables: 80 columns, whole numbers, the answer first."""

import re
from pathlib import Path

import pytest

from hptransfer.cli import _answer_text
from hptransfer.cli.main import main

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
        "Is the embedding layer held back? Yes. Raising its learning rate alone makes sp 0.165 "
        "nats [0.155, 0.174] better at width 1024",
        "sp+embd less sp, nats: −0.061 [−0.070, −0.051] at 128",
        "usable embedding 0.02",
        "; all else 0.000",
        "typed unchanged it costs 1.43 nats or more",
        "It cannot say κ, R(∞)",
    ):
        assert expected in text, expected
    assert (tmp_path / "hptransfer-demo" / "recorded.html").stat().st_size < 1_500_000


def test_long_names_give_way_to_numbers() -> None:
    row = ["a-very-long-name-" * 6, "0.0012345 [0.0011, 0.0014]", "1.234", "usable"]
    text = _answer_text.align(["group", "rate", "loss", "verdict"], [row])
    assert all(len(line) <= 80 for line in text.splitlines())
    assert all(number in text for number in ("0.0012345", "0.0011", "0.0014", "1.234"))
