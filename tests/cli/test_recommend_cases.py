"""What people brought to `recommend`, and the answers that it must give (shared cases)."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from hptransfer.cli.main import main

TABLES = Path(__file__).parents[3] / "shared" / "cases" / "tables"
pytestmark = pytest.mark.skipif(not TABLES.exists(), reason="the shared cases are not here")


def ask(capsys: pytest.CaptureFixture[str], name: str, *words: str) -> tuple[Any, str]:
    assert main(["recommend", str(TABLES / name), *words, "--json"]) == 0
    out, err = capsys.readouterr()
    return json.loads(out)["recommendations"][0], err


def test_a_constant_added_to_one_width_moves_no_answer(
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = ("43-joint-misses-the-basins", "43-shifted-minus", "43-shifted-plus")
    found = [ask(capsys, f"{name}.csv", "--width", "2048")[0] for name in names]
    for item in found:
        # The basins are .00254 .00285 .00312 .00273.
        assert 0.0024 < item["lr"]["value"] < 0.0033
        assert item["lr"]["low"] < 0.00273 < item["lr"]["high"]
        assert item["lr"]["value"] == pytest.approx(found[0]["lr"]["value"], rel=1e-6)
        assert item["verdict"] == found[0]["verdict"]


def test_a_verdict_comes_with_the_rate_it_judges(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["recommend", str(TABLES / "44-usable-without-a-rate.csv"), "--width", "16384"]) == 0
    )
    out, _ = capsys.readouterr()
    row = next(line for line in out.splitlines() if line.startswith("all trials "))
    assert re.fullmatch(r"all trials +×\d.*nats +(usable|risky) +0\.0\d+", row), row


def test_what_changes_with_width_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    item, err = ask(capsys, "31-batch-with-width.csv", "--columns", "width=dim", "--width", "1024")
    assert "batch_size" in err
    assert "the answer holds where they change likewise" in err
    assert item["lr"]["value"] is not None
