import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hptransfer.cli import _print
from hptransfer.cli._answers import describe_results
from hptransfer.cli.main import main
from hptransfer.report import analyse
from hptransfer.stats import LossTable
from hptransfer.tables import read_source
from study.training import complete


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Two parameterizations of known L∞; the first drifts, and diverges at its right edge."""
    rng = np.random.default_rng(1)
    rows = ["parameterization,width,lr,weight_decay,seed,loss"]
    for name, floor, drift in (("sp", 3.4, 2.0), ("mup", 3.0, 0.0)):
        for width in (32, 64, 128, 256):
            for log2_lr in range(-9, -1):
                for seed in (0, 1):
                    u = (log2_lr + 5.5) * np.log(2) + drift * (width / 32) ** -0.7
                    loss = floor + 8 / width**0.5 + 0.06 * u**2 + rng.normal(0, 0.003)
                    lost = name == "sp" and width == 256 and log2_lr == -2
                    cell = "nan" if lost else f"{loss:.6f}"
                    rows.append(f"{name},{width},{2.0**log2_lr},0,{seed},{cell}")
    path = tmp_path / "t.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def is_estimate(value: Any) -> bool:
    return list(value) == ["value", "low", "high", "status", "reason"]


def test_json_is_the_documented_document(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", str(table), "--json", "--reference", "mup"]) == 0
    out, err = capsys.readouterr()
    document = json.loads(out, parse_constant=refuse_constant)
    assert err == ""
    assert document["schema"] == 1
    sp, mup = document["fits"]
    assert sp["group"] == {"parameterization": "sp", "weight_decay": 0.0}
    assert sp["axis"] == "as given"
    assert [basin["width"] for basin in sp["basins"]] == [32, 64, 128, 256]
    assert all(type(basin["width"]) is int for basin in sp["basins"])
    for basin in sp["basins"]:
        assert is_estimate(basin["lr"])
        assert is_estimate(basin["loss"])
        assert is_estimate(basin["curvature"])
        assert basin["bracketed"] is True
        assert basin["num_points"] >= 3
    assert set(sp["exponents"]) == {"alpha", "beta", "gamma", "loss_inf"}
    assert set(sp["metrics"]) == {"E", "E_out", "kappa", "R_inf"}
    assert all(is_estimate(e) for e in (*sp["exponents"].values(), *sp["metrics"].values()))
    assert [each["width"] for each in sp["lr_sensitivity"]] == [32, 64, 128, 256]
    assert all(is_estimate(each["lr_sensitivity"]) for each in sp["lr_sensitivity"])
    assert is_estimate(sp["fast_transfer"]["margin"])
    assert sp["fast_transfer"]["verdict"] in ("fast", "not fast", "undecided")
    assert all(is_estimate(each["extra_compute"]) for each in sp["regrets"])
    gap = sp["metrics"]["R_inf"]
    assert gap["low"] <= 0.4 <= gap["high"]
    assert mup["metrics"]["R_inf"]["value"] == 0


def test_tables_say_in_words(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", str(table), "--form", "power", "--verbose"]) == 0
    out, _ = capsys.readouterr()
    for expected in ("√E", "R(∞)", "β (or b) the drift", "log2 lr*",
                     "not identified", "the reference", "diverged"):  # fmt: skip
        assert expected in out, expected
    assert max(map(len, out.splitlines())) <= 80
    assert main(["fit", str(table), "--form", "power"]) == 0
    brief, _ = capsys.readouterr()
    assert out.startswith(brief)
    # A line for each group under a heading, the size above, and some lines of summary.
    assert [line.split()[0] for line in brief.splitlines()[1:4]] == ["group", "sp", "mup"]
    assert len(brief.splitlines()) <= 12


def test_an_optimum_at_the_edge_is_no_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{width},{2.0**k},{5 - 0.1 * k + 1 / width}" for width in (32, 64) for k in range(5)]
    path = tmp_path / "edge.csv"
    path.write_text("width,lr,loss\n" + "\n".join(rows) + "\n")
    assert main(["fit", str(path), "--verbose"]) == 0
    out, _ = capsys.readouterr()
    # In a narrow column each word may have a line of its own.
    assert {"edge", "bracketed"} <= set(out.split())
    assert main(["fit", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out, parse_constant=refuse_constant)
    assert not any(basin["bracketed"] for basin in document["fits"][0]["basins"])


def test_grouping_and_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        f"{width},{2.0**k},{3 + 1 / width + 0.1 * (k - 2) ** 2},{kind}"
        for width in (32, 64)
        for k in range(5)
        for kind in ("[red]", "b")
    ]
    path = tmp_path / "t.csv"
    path.write_text("n_embd,rate,val/loss,kind\n" + "\n".join(rows) + "\n")
    columns = "width=n_embd,lr=rate,loss=val/loss"
    assert main(["fit", str(path), "--columns", columns, "--by", "kind", "--reference", "b"]) == 0
    out, _ = capsys.readouterr()
    assert "kind [red]" in out  # a name, not markup
    assert main(["fit", str(path), "--columns", columns, "--by", "knd"]) == 2
    assert "did you mean 'kind'" in capsys.readouterr().err
    assert main(["fit", str(path), "--by", "kind"]) == 2
    _, err = capsys.readouterr()
    assert err.startswith("hptransfer: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("width,lr,loss\n8,0,1\n", "row 1 (line 2): column 'lr': expected a positive number"),
        ("width,lr\n8,1\n", "no column 'loss'"),
        ("", "empty file"),
    ],
)
@pytest.mark.parametrize("command", ["fit", "recommend", "report"])
def test_wrong_input_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str, command: str
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    more = {"recommend": ["--width", "64"], "report": ["-o", str(tmp_path / "r.html")]}
    assert main([command, str(path), *more.get(command, [])]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"hptransfer: {path}: ")
    assert message in err
    assert err.count("\n") == 1


def test_damaged_files_are_named_and_the_rest_is_printed(
    finished: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    damaged = min((finished / "groups").glob("*.parquet"))
    damaged.write_bytes(damaged.read_bytes()[:-9])
    pq.write_table(pa.table({"x": [1]}), finished / "groups" / "other.parquet")
    page = tmp_path / "r.html"
    for arguments in (
        ["fit", str(finished)],
        ["fit", str(finished), "--json"],
        ["recommend", str(finished), "--width", "512"],
        ["recommend", str(finished), "--width", "512", "--json"],
        ["report", str(finished), "-o", str(page)],
    ):
        assert main(arguments) == 3
        out, err = capsys.readouterr()
        assert out
        note, line = err.splitlines()
        assert note.startswith(f"hptransfer: note: {finished}: groups/other.parquet holds no")
        assert line.startswith(f"hptransfer: {damaged}: damaged: ")
    assert f"{damaged}: damaged: " in page.read_text(encoding="utf-8")


def test_json_holds_no_number_that_json_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    document = {
        "a": float("nan"), "b": [np.float64("inf"), np.int64(3), True, None], "width": 64.0,
        "c": ({"width": 0.5},), "d": Path("x"),
    }  # fmt: skip
    _print.print_json(document)
    assert json.loads(capsys.readouterr().out, parse_constant=refuse_constant) == {
        "a": None,
        "b": [None, 3, True, None],
        "width": 64,
        "c": [{"width": 0.5}],
        "d": "x",
    }


def test_the_command_starts_without_torch_and_rich(table: Path) -> None:
    code = (
        "import sys; from hptransfer.cli.main import main; main(sys.argv[1:]);"
        "print(*(n for n in ('torch', 'rich') if n in sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "fit", str(table), "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr.strip() == ""


def test_a_lone_group_without_columns_has_a_name() -> None:
    from hptransfer.stats import fit_table

    x = np.arange(5.0)
    lone = LossTable(
        width=np.full(5, 8.0), lr=2.0**x, loss=(x - 2) ** 2 + 1, seed=np.zeros(5, dtype=np.int64)
    )
    assert "all trials at 8" in " ".join(describe_results(fit_table(lone), ()).split())


def test_fit_tells_how_stable_training_was(study_file, tmp_path, capsys):
    grid = study_file.read_text().replace("log2_lr = [-7, -5, 6]", "log2_lr = [-9, -7, -5, -3, -1]")
    study_file.write_text(grid + "\n[probes]\nevery = 3\n")
    probed = tmp_path / "small"
    complete(study_file, probed)
    assert main(["fit", str(probed), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert main(["fit", str(study_file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stability"] == document["stability"]
    bracketed = sum(basin["bracketed"] for fit in document["fits"] for basin in fit["basins"])
    assert len(document["stability"]) == bracketed > 0
    assert {each["num_trials"] for each in document["stability"]} == {2}
    assert all(each["edge"] > 0 for each in document["stability"])
    assert main(["fit", str(probed), "--verbose"]) == 0
    assert "η/η_c" in capsys.readouterr().out


def write_groups(path: Path, groups: dict[str, tuple[str, float]]) -> Path:
    """Write a table of groups, each of a setting and with a floor of its loss."""
    rows = [
        f"{name},{kind},{width},{2.0**k},{floor + 8 / width + 0.06 * (k + 5) ** 2}"
        for name, (kind, floor) in groups.items()
        for width in (32, 64, 128)
        for k in range(-8, -1)
    ]
    path.write_text("\n".join(["parameterization,kind,width,lr,loss", *rows]) + "\n")
    return path


def test_each_setting_names_its_own_reference(tmp_path, capsys):
    groups = {"a": ("x", 3.0), "b": ("x", 3.1), "c": ("y", 2.0), "d": ("y", 1.9)}
    assert main(["fit", str(write_groups(tmp_path / "t.csv", groups)), "--by", "kind"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "less the reference's" in out
    assert "less a's" not in out
    assert "0.100 at 128 to a" in out
    assert "−0.100 at 128 to c" in out


def test_a_setting_without_sp_is_compared_with_its_first_group(tmp_path, capsys):
    told = {"sp": ("x", 3.1), "mup": ("x", 3.0), "mup-embd": ("y", 3.2), "completep": ("y", 3.3)}
    path = write_groups(tmp_path / "t.csv", told)
    assert main(["fit", str(path), "--by", "kind", "--json"]) == 0
    fits = json.loads(capsys.readouterr().out)["fits"]
    found = {fit["group"]["parameterization"]: fit["reference"] for fit in fits}
    assert found == {"sp": "sp", "mup": "sp", "mup-embd": "mup-embd", "completep": "mup-embd"}


def test_fit_and_report_compare_with_the_same_group(tmp_path, capsys):
    path = write_groups(tmp_path / "t.csv", {"mup": ("x", 3.0), "SP": ("x", 3.1)})
    source = analyse(read_source(path))
    assert {fit.reference for fit in source.fits} == {"SP"}
    assert main(["fit", str(path), "--json"]) == 0
    assert {fit["reference"] for fit in json.loads(capsys.readouterr().out)["fits"]} == {"SP"}
    assert main(["fit", str(path)]) == 0
    assert "less SP's" in " ".join(capsys.readouterr().out.split())


def test_a_lone_minimum_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.csv"
    rows = ["64,0.01,3.0", "64,0.02,2.9", "64,0.04,3.1", "128,0.01,2.9", "128,0.02,2.8"]
    for count, rate in ((3, "0.018"), (5, "0.018 at 64")):
        path.write_text("\n".join(["width,lr,loss", *rows[:count]]))
        assert main(["fit", str(path)]) == 0
        out = capsys.readouterr().out
        assert re.search(rf"^all trials +{rate} +–", out, re.MULTILINE), out
        assert ("narrowest to widest" in out) == (count > 3)
