"""``hptransfer factors``: the published table's effects, the document, and bad input."""

import argparse
import json
from pathlib import Path

import pytest

from hptransfer.cli import factors
from hptransfer.cli._arguments import add_options
from hptransfer.cli.main import main
from hptransfer.errors import ConfigError, DataError

PUBLISHED = Path(__file__).parents[2] / "studies/published/kalra_barkeshli_2026_metrics.csv"


def run_factors(*argv: object) -> int:
    parser = argparse.ArgumentParser(description=factors.__doc__)
    add_options(parser, factors.OPTIONS)
    parser.add_argument("--json", action="store_true")
    return factors.run(parser.parse_args([str(arg) for arg in argv]))


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def read_json(capsys: pytest.CaptureFixture[str]) -> dict:
    return json.loads(capsys.readouterr().out, parse_constant=refuse_constant)


def test_published_effects(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_factors(PUBLISHED, "--metric", "E", "--json") == 0
    document = read_json(capsys)
    assert (document["schema"], document["setting"]) == (1, ["weight_decay"])
    found = {factor["switch"]: factor for factor in document["factors"]}
    assert list(found) == ["embd", "ln", "attn", "last"]
    medians = {switch: float(f"{factor['value']:.3g}") for switch, factor in found.items()}
    assert medians == {"embd": 0.149, "ln": 4.81, "attn": 0.641, "last": 0.841}
    falling = {switch: factor["falling"] for switch, factor in found.items()}
    assert falling == {"embd": 58, "ln": 14, "attn": 45, "last": 35}
    for factor in found.values():
        assert (factor["metric"], factor["effect"], factor["pairs"]) == ("E", "ratio", 60)
        assert factor["falling"] + factor["rising"] == 60
        assert factor["low"] < factor["value"] < factor["high"]
        assert (factor["unit"], factor["units"]) == ("weight_decay", 8)
    # What C1 of the source rests on: all eight weight decays agree.
    assert found["embd"]["high"] < 0.4
    assert found["embd"]["p_value"] == 2 / 2**8


def test_published_bound_is_left_out_and_said(capsys: pytest.CaptureFixture[str]) -> None:
    run_factors(PUBLISHED, "--json")
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert [factor["metric"] for factor in document["factors"]] == [
        name for name in ("E", "R_inf", "kappa") for _ in range(4)
    ]
    (note,) = document["notes"]
    assert note.startswith("R_inf: -2.2045 stands 9 times")
    assert note in err
    for factor in document["factors"]:
        bounded = factor["at_bound"]
        assert factor["pairs"] + bounded == 60
        assert (bounded > 0) == (factor["metric"] == "R_inf")


def test_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_factors(PUBLISHED) == 0
    out = capsys.readouterr().out
    first = out[: out.index("R_inf, on − off")]
    assert "E, on / off" in first
    cells = {line.split()[0]: line.split() for line in first.splitlines() if line}
    assert cells["embd"][1] == "0.149"
    assert cells["embd"][4:7] == ["60", "58", "2"]
    assert [cells[switch][-1] for switch in ("embd", "ln", "attn", "last")] == [
        "falls", "rises", "falls", "unclear",
    ]  # fmt: skip
    assert "124 rows; setting: weight_decay (8)" in out
    assert "flips all pairs of one weight_decay together" in " ".join(out.split())
    assert "-2.2045 stands 9 times" in out
    assert max(len(line) for line in out.splitlines()) <= 80


def test_few_pairs_are_said_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.csv"
    path.write_text("parameterization,seconds\nsp,4\nsp+embd,2\n")
    assert run_factors(path, "--metric", "seconds=ratio") == 0
    out = capsys.readouterr().out
    assert "0.500" in out
    assert "not identified" in out
    assert "no interval: 1 pair(s), 5 or more are needed" in out
    assert "setting: none" in out


def test_one_setting_warns_of_its_interval(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from hptransfer.scaling import LATTICE

    path = tmp_path / "t.csv"
    rows = [f"{name},{3 + ('embd' in name)}.{place}" for place, name in enumerate(LATTICE)]
    path.write_text("name,E\n" + "\n".join(rows) + "\n")
    assert run_factors(path, "--columns", "parameterization=name") == 0
    out = capsys.readouterr().out
    assert "intervals and p may be too small: pairs taken as independent: 1 setting(s)" in " ".join(
        out.split()
    )


def test_what_fit_prints_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From losses to factors through ``fit --json``."""
    rows = ["parameterization,width,lr,loss"]
    for name, drift in (("sp", 1.0), ("sp+embd", 0.0)):
        for width in (32, 64, 128, 256):
            for x in range(-9, -1):
                u = x + 5.5 + drift * (width / 32) ** -0.7
                wiggle = (1 + drift) * (-1) ** x * 0.002
                rows.append(f"{name},{width},{2.0**x},{3 + 8 / width**0.5 + 0.03 * u**2 + wiggle}")
    losses = tmp_path / "losses.csv"
    losses.write_text("\n".join(rows))
    assert main(["fit", str(losses), "--json"]) == 0
    path = tmp_path / "metrics.json"
    path.write_text(capsys.readouterr().out)
    assert run_factors(path, "--metric", "E", "--json") == 0
    embd = read_json(capsys)["factors"][0]
    assert (embd["switch"], embd["pairs"], embd["falling"]) == ("embd", 1, 1)
    assert 0 < embd["value"] < 1
    assert embd["status"] == "not identified"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--metric", "F"], "no column 'F'"),
        (["--metric", "E=ration"], "E: expected =ratio or =difference, found 'ration'"),
        (["--metric", "="], "--metric: expected a column such as E, found '='"),
        (["--metric", "R_inf=ratio"], r"row 1 \(line 2\): column 'R_inf': expected a positive"),
        (["--columns", "E"], "expected OURS=THEIRS such as E=fit_error, found 'E'"),
        (["--columns", "kapa=x"], "no column of ours is called 'kapa'; did you mean 'kappa'"),
        (["--columns", "E=a,E=b"], "E is given twice, as 'a' and 'b'"),
        (["--by", "depth"], "--by: no column 'depth' that could be a setting; found weight_decay"),
        (["--where", "embedding_lr=1", "--where", "weight_decay=7"], "no cell of 'weight_decay'"),
        (["--where", "parameterization=SP"], "found no such pair among 8 rows"),
    ],
)
def test_bad_input_is_one_line(options: list[str], message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message) as caught:
        run_factors(PUBLISHED, *options)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_metric_options() -> None:
    assert factors.parse_metrics(["E", "R_inf", "score=ratio", "a=b=difference", "other"]) == {
        "E": "ratio", "R_inf": "difference", "score": "ratio", "a=b": "difference",
        "other": "difference",
    }  # fmt: skip


def test_a_metric_that_is_asked_for_may_have_another_name(tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "t.csv"
    path.write_text("parameterization,my score\nsp,2\nsp+embd,1\nmup,1\nmup-embd,3\n")
    asked = ["factors", str(path), "--metric", "score=ratio", "--columns", "score=my score"]
    assert main([*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["factors"]
    assert {each["metric"] for each in found} == {"score"}
