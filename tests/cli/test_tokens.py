import json
from pathlib import Path

import numpy as np
import pytest

from hptransfer.cli.main import main


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three widths by three budgets, two seeds; x* = −5 − 0.6·ln(n/64) + 0.2·ln(T/1e8)."""
    rng = np.random.default_rng(0)
    rows = ["width,tokens,lr,seed,loss"]
    for n in (64, 128, 256, 512):
        for tokens in (1e8, 4e8, 1.6e9):
            optimum = -5.0 - 0.6 * np.log(n / 64) + 0.2 * np.log(tokens / 1e8)
            for k in range(-9, -1):
                for seed in (0, 1):
                    loss = 2.0 + 0.7 * (n / 64) ** -0.5 + 0.5 * (tokens / 1e8) ** -0.4
                    loss += 0.03 * (0.9 * k + 0.3 - optimum) ** 2 + rng.normal(0, 0.002)
                    rows.append(f"{n},{tokens:g},{np.exp(0.9 * k + 0.3)},{seed},{loss}")
    path = tmp_path_factory.mktemp("tokens") / "t.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def test_mixed_budgets_are_refused_with_the_way_out(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", str(table)]) == 2
    err = capsys.readouterr().err
    assert "expected one token budget" in err
    assert "or fit tokens as an axis with fit --token-axis" in err
    assert err.count("\n") == 1


def test_the_token_axis_is_fitted_when_asked_for(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", str(table), "--token-axis", "--json"]) == 0
    (fit,) = json.loads(capsys.readouterr().out)["fits"]
    assert fit["form"] == "power"
    assert [(b["width"], b["tokens"]) for b in fit["basins"]][:2] == [(64, 1e8), (64, 4e8)]
    for name, value in {"alpha": 0.5, "delta": 0.4, "b": 0.6, "c": 0.2, "loss_inf": 2.0}.items():
        e = fit["exponents"][name]
        assert e["low"] - 0.05 <= value <= e["high"] + 0.05, name
    assert main(["fit", str(table), "--token-axis"]) == 0
    out = capsys.readouterr().out
    for expected in ("δ, loss by tokens", "c, drift by tokens", "1.6e+09", "all trials"):
        assert expected in out, expected
    assert max(map(len, out.splitlines())) <= 120


def test_a_learning_rate_for_width_and_tokens(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = ["recommend", str(table), "--width", "1024", "--tokens", "6.4e9"]
    assert main([*target, "--json"]) == 0
    (item,) = json.loads(capsys.readouterr().out)["recommendations"]
    truth = np.exp(-5.0 - 0.6 * np.log(16) + 0.2 * np.log(64))
    assert item["lr"]["value"] == pytest.approx(truth, rel=0.1)
    assert item["tokens"] == 6.4e9
    assert item["verdict"] == "usable"
    assert main(target) == 0
    out = capsys.readouterr().out
    assert "learning rate at width 1024 and 6.4e+09 tokens" in out
    assert "regret of using it" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "T", "--token-axis", "--share", "alpha"], "--share: expected it left out"),
        (["fit", "T", "--token-axis", "--reference", "x"], "--reference: expected it left out"),
        (["recommend", "T", "--width", "8", "--tokens", "0"], "--tokens: expected a positive"),
    ],
)
def test_wrong_options_are_named(
    table: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main([str(table) if a == "T" else a for a in arguments]) == 2
    assert message in capsys.readouterr().err


def test_equal_trials_of_different_budgets_are_no_repeats(tmp_path: Path) -> None:
    from hptransfer.tables import read_table

    path = tmp_path / "t.csv"
    path.write_text("width,lr,loss,tokens\n8,1,3,1e6\n8,1,2,2e6\n8,1,2,2e6\n")
    found = read_table(path, token_axis=True)
    assert found.tokens is not None
    assert found.tokens.tolist() == [1e6, 2e6]
    assert found.loss.tolist() == [3.0, 2.0]
