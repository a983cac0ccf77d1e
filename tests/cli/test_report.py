from pathlib import Path

import pytest

from hptransfer.cli.main import main


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
    assert html.count("<section>") == 2
    assert "&lt;script&gt;.csv" in html
    assert "<script>.csv" not in html


def test_the_page_needs_a_place(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for target in (tmp_path, tmp_path / "gone" / "report.html"):
        assert main(["report", str(table), "-o", str(target)]) == 2
        assert "--output: expected a file in a directory that exists" in capsys.readouterr().err
