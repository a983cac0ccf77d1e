import json
from pathlib import Path
from typing import Any

import pytest

from hptransfer.cli.main import main

MODEL = """\
from torch import nn
def make(width):
    return nn.Sequential(
        nn.Embedding(64, width), nn.Linear(width, width), nn.Linear(width, 64)
    )
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = [
        f"{width},{2.0**k},{3 + 8 / width + 0.1 * (k + 0.1 * seed) ** 2},{seed}"
        for width in (32, 64, 128)
        for k in range(-3, 4)
        for seed in (0, 1)
    ]
    path = tmp_path / "<script>.csv"
    path.write_text("width,lr,loss,seed\n" + "\n".join(rows) + "\n")
    return path


def test_one_page_of_two_sources(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "report.html"
    assert main(["report", str(table), str(table), "-o", str(page)]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [str(page)]
    assert err == ""
    html = page.read_text(encoding="utf-8")
    assert html.count("<section ") == 2
    assert "&lt;script&gt;.csv" in html
    assert "<script>.csv" not in html


def test_the_page_needs_a_place(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for target in (tmp_path, tmp_path / "gone" / "report.html"):
        assert main(["report", str(table), "-o", str(target)]) == 2
        assert "--output: expected a file in a directory that exists" in capsys.readouterr().err


def test_a_coordinate_check_alone_is_a_page(
    tmp_path: Path, coordinates: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    check, page = tmp_path / "check.json", tmp_path / "report.html"
    check.write_text(json.dumps(coordinates), encoding="utf-8")
    assert main(["report", "--coordinates", str(check), "-o", str(page)]) == 0
    assert "Coordinate check of &lt;b&gt;sp" in page.read_text(encoding="utf-8")
    # A check at the recommended learning rate has a section of its own.
    both = coordinates | {"recommended_lr": coordinates | {"name": "mup at lr 0.01"}}
    check.write_text(json.dumps(both), encoding="utf-8")
    assert main(["report", "--coordinates", str(check), "-o", str(page)]) == 0
    assert page.read_text(encoding="utf-8").count("Coordinate check of mup at lr 0.01</h1>") == 1
    assert main(["report", "-o", str(page)]) == 2
    assert "expected a study or a loss table, or --coordinates" in capsys.readouterr().err


def test_a_check_is_drawn_with_that_at_the_recommended_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hptransfer.cli.coordinate_check.LONG_STEPS", 2)
    monkeypatch.setattr("hptransfer.cli.coordinate_check.LONG_WARMUP", 1)
    Path("drawn.py").write_text(MODEL)
    call = ["coordinate-check", "drawn.py:make", "--base-width", "16", "--width", "16,24,32"]
    call += ["--seeds", "1", "--steps", "1", "--recommended-lr", "0.25", "--plot", "both.html"]
    assert main(call) == 0
    page = Path("both.html").read_text(encoding="utf-8")
    assert page.count("<section ") == 2
    assert "Coordinate check of mup at lr 0.25</h1>" in page


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no json", "expected a coordinate check's JSON, found other text"),
        ("[1]", "expected a coordinate check, found no key 'name'"),
        ('{"schema": 1, "name": "a"}', "expected a coordinate check, found no key 'widths'"),
        ('{"recommended_lr": []}', "expected a coordinate check, found no key 'name'"),
    ],
)
def test_a_file_that_is_no_coordinate_check_is_one_line(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check = tmp_path / "check.json"
    check.write_text(text)
    assert main(["report", "--coordinates", str(check), "-o", str(tmp_path / "r.html")]) == 2
    error = capsys.readouterr().err
    assert f"{check}: {message}" in error
    assert error.count("\n") == 1


def test_another_schema_is_refused(
    tmp_path: Path, coordinates: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    check = tmp_path / "check.json"
    check.write_text(json.dumps(coordinates | {"schema": 2}))
    assert main(["report", "--coordinates", str(check), "-o", str(tmp_path / "r.html")]) == 2
    assert "expected schema 1 of a coordinate check, found 2" in capsys.readouterr().err
