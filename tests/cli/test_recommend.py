import json
import re
from pathlib import Path

import numpy as np
import pytest

from hptransfer.cli.main import main


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rng = np.random.default_rng(2)
    rows = ["width,lr,seed,loss"]
    for width in (32, 64, 128, 256):
        for log2_lr in range(-9, -2):
            for seed in (0, 1):
                u = (log2_lr + 6) * np.log(2)
                loss = 3 + 8 / width**0.5 + 0.06 * u**2 + rng.normal(0, 0.002)
                rows.append(f"{width},{2.0**log2_lr},{seed},{loss:.6f}")
    path = tmp_path / "t.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def test_json_is_the_documented_document(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recommend", str(table), "--width", "1024", "--json"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert err == ""
    assert document["schema"] == 1
    (item,) = document["recommendations"]
    assert item["group"] == {}
    assert item["width"] == 1024
    assert item["lr"]["low"] <= 2.0**-6 <= item["lr"]["high"]
    assert item["loss"]["low"] <= 3.25 <= item["loss"]["high"]
    assert list(item["regret"]) == ["recommended", "same_lr", "inverse_width"]
    assert item["verdict"] in ("usable", "risky", "unusable")
    assert item["because"]
    proposal = item["next"]
    assert proposal["missing"] == []
    assert [list(step) for step in proposal["steps"]] == [
        ["width", "new", "lrs", "trials", "cost", "half_width", "gain"]
    ] * len(proposal["steps"])
    halves = [proposal["half_width"], *(step["half_width"] for step in proposal["steps"])]
    assert halves == sorted(halves, reverse=True)


def test_the_answer_in_words(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recommend", str(table), "--width", "512", "--verbose"]) == 0
    out, _ = capsys.readouterr()
    for expected in ("width 512", "all trials: usable", "learning rate", "0.01", "because",
                     "noise leaves lr* open to a factor of", "forms that carry it"):  # fmt: skip
        assert expected in out, expected
    assert max(map(len, out.splitlines())) <= 80
    assert main(["recommend", str(table), "--width", "512"]) == 0
    brief, _ = capsys.readouterr()
    assert out.startswith(brief)
    assert len(brief.splitlines()) <= 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--width", "0"], "--width: expected a positive width, found 0"),
        (["--width", "nan"], "--width: expected a positive width, found nan"),
        (["--width", "512", "--tokens", "1e9"], "no column .tokens., so there is no token axis"),
    ],
)
def test_wrong_options(
    table: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["recommend", str(table), *arguments]) == 2
    _, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert re.search(message, err)


def test_a_table_that_cannot_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.csv"
    path.write_text("width,lr,loss\n8,0.5,1\n8,1,2\n")
    assert main(["recommend", str(path), "--width", "64", "--verbose"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "unusable" in out
    assert "not identified" in out
    assert "next: needed for an answer: a point to the left of 2^-1 at width 8" in out
