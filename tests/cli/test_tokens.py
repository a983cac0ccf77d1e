"""`recommend` over tokens and batch, and what is said of tables that span them."""

import json
from pathlib import Path

import numpy as np
import pytest

from hptransfer.cli.main import main


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three widths by three budgets by two batches, on a plane of the logarithms."""
    rng = np.random.default_rng(0)
    rows = ["width,tokens,batch,seq_len,lr,loss"]
    for n in (64, 128, 256):
        for tokens in (1e9, 4e9, 1.6e10):
            for batch in (128, 512):
                optimum = -5.0 - 0.5 * np.log(n / 64) + 0.2 * np.log(tokens / 1e9)
                optimum += 0.3 * np.log(batch / 128)
                for k in range(-12, 0):
                    x = 0.6 * k
                    loss = 2.0 + 0.7 * (n / 64) ** -0.5 + 0.5 * (tokens / 1e9) ** -0.4
                    loss += 0.03 * (x - optimum) ** 2 + rng.normal(0, 0.001)
                    rows.append(f"{n},{tokens:g},{batch},1024,{np.exp(x)},{loss}")
    path = tmp_path_factory.mktemp("tokens") / "t.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def ask(table: Path, *words: str) -> list[str]:
    return ["recommend", str(table), "--width", "512", *words]


def test_mixed_budgets_are_refused_with_the_way_out(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", str(table)]) == 2
    err = capsys.readouterr().err
    assert "expected one token budget" in err
    assert "or ask for a budget with recommend --tokens" in err
    assert err.count("\n") == 1


def test_a_rate_for_width_tokens_and_batch(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ask(table, "--tokens", "6.4e10", "--batch", "512"), "--json"]) == 0
    (item,) = json.loads(capsys.readouterr().out)["recommendations"]
    truth = np.exp(-5.0 - 0.5 * np.log(8) + 0.2 * np.log(64) + 0.3 * np.log(4))
    assert item["lr"]["low"] < truth < item["lr"]["high"]
    assert item["lr"]["value"] == pytest.approx(truth, rel=0.3)
    assert set(item["forms"]) == {"Q", "S", "SN", "H"}
    assert item["verdict"] in ("usable", "risky")
    assert main(ask(table, "--tokens", "6.4e10", "--batch", "512")) == 0
    out = capsys.readouterr().out
    assert "width 512, tokens 6.4e+10, batch 512 (× 1024 tokens)?" in " ".join(out.split())
    assert max(map(len, out.splitlines())) <= 80


def test_an_axis_left_out_of_the_question_is_a_doubt(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*ask(table, "--tokens", "6.4e10"), "--json"]) == 2
    assert "have the same width, lr" in capsys.readouterr().err
    assert main(ask(table, "--tokens", "6.4e10", "--columns", "batch=batch")) == 2
    assert "ask for the target's with recommend --batch" in capsys.readouterr().err


def test_questions_that_the_table_cannot_hear_are_refused(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, message in (
        (("--tokens", "-1"), "--tokens: expected a number above 0"),
        (("--batch", "nan"), "--batch: expected a number above 0"),
        (("--tokens", "1e9", "--form", "power"), "--form: expected it left out with --tokens"),
        (
            ("--tokens", "1e9", "--batch", "512", "--scatter", "-1"),
            "scatter: expected 0 or a positive number",
        ),
    ):
        assert main(ask(table, *words)) == 2
        assert message in capsys.readouterr().err
    plain = tmp_path / "plain.csv"
    plain.write_text("width,lr,loss\n64,0.1,3\n64,0.2,2.9\n64,0.4,3\n")
    assert main(ask(plain, "--batch", "512")) == 2
    assert "no column 'batch'" in capsys.readouterr().err


def test_a_batch_in_sequences_needs_their_length(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = tmp_path / "short.csv"
    short.write_text(table.read_text().replace("seq_len", "other"))
    assert main(ask(short, "--tokens", "1e10", "--batch", "512")) == 2
    assert "name their length with --columns context=NAME" in capsys.readouterr().err
