"""A small version of benchmarks/calibration.py, which the documentation's tables come from."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "calibration.py"


@pytest.fixture(scope="module")
def calibration():
    spec = importlib.util.spec_from_file_location("calibration", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["calibration"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["calibration"]


def test_intervals_of_mixed_studies_cover_the_truth(calibration):
    rows = {row["quantity"]: row for row in calibration.measure_coverage(20, 5, 100)}
    assert set(rows) == {
        *("x*(n)", "x* at 4x", "loss at 4x", "alpha", "gamma", "kappa", "loss_inf")
    }
    for name, row in rows.items():
        assert row["identified"] >= (0.7 if name == "kappa" else 0.9) * row["asked"], row
        # Widths of one study share its noise estimate and its skew, so that they count as one.
        num = min(row["identified"], 20)
        # Too few hits, at 85 %, would happen by chance about once in a thousand.
        assert row["inside90"] * num >= binom.ppf(1e-3, num, 0.85), row
        assert row["outside99"] * num <= binom.ppf(0.999, num, 0.03), row


def test_errors_reach_the_bound_and_kappa_is_called_what_it_is(calibration, monkeypatch):
    chosen = [pair for pair in calibration.settings() if pair[0].startswith("64-512")]
    keep = [chosen[0], next(pair for pair in chosen if "0.016" in pair[0])]
    monkeypatch.setattr(calibration, "settings", lambda: iter(keep))
    num = 12
    rows = calibration.measure_efficiency(num, 5, 50)
    for row in rows:
        if row["useful"]:
            # A root mean square of 12 errors exceeds 1.2 times 1.45 rarely.
            assert row["ratio"] < 1.2 * 1.45, row
    seen, lost = (row for row in rows if row["quantity"] == "kappa")
    assert seen["bound"] <= 0.15
    assert seen["identified"] * num >= binom.ppf(1e-3, num, 0.9)
    assert lost["bound"] >= 1.0
    assert lost["not_identified"] * num >= binom.ppf(1e-3, num, 0.9)


def test_the_script_prints_its_table_and_one_json_document(calibration, capsys):
    efficiency = calibration.measure_efficiency(1, 0, 20)
    coverage = calibration.measure_coverage(1, 0, 20)
    calibration.print_tables(efficiency, coverage)
    printed = capsys.readouterr().out
    assert "called not identified in" in printed
    assert "outside 99 %" in printed
    command = [
        sys.executable,
        str(SCRIPT),
        "--studies",
        "0",
        "--mixed",
        "1",
        "--laws",
        "1",
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    document = json.loads(done.stdout)
    assert document["schema"] == 1
    assert len(document["coverage"]) == 7
    assert np.isfinite(document["coverage"][0]["inside90"])
