import json
from pathlib import Path

import pytest

from hptransfer.cli.main import main

MINE = str(Path(__file__).parents[1] / "adopt" / "mine.py")
WIDTHS = ["--base-width", "32", "--width", "256"]


def test_the_text_has_roles_verdict_and_fix(capsys: pytest.CaptureFixture[str]) -> None:
    optimizer = ["--optimizer", f"{MINE}:one_lr"]
    assert main(["audit", f"{MINE}:make", *WIDTHS, *optimizer]) == 0
    out, err = capsys.readouterr()
    text = " ".join(out.split())
    for expected in (
        "from base width 32 to width 256 (m = 8)",
        "embedding 2 0.001 ×1 ×8",
        "today's learning rates are sp's, on the global axis; today's initial weights are sp's",
        "verdict: the embedding layer is held back by a factor of 8",
        "fix: give 'positions', 'tokens.weight' a group of their own with lr=0.008",
        "warning: init std of readout goes ÷2.72 as width goes ×8; under mup it goes ÷8",
    ):
        assert expected in text, expected
    assert err == ""


def test_json_is_one_document_and_modules_are_found_from_the_working_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_small_model.py").write_text(
        "from torch import nn\n"
        "class Models:\n"
        "    @staticmethod\n"
        "    def make(width):\n"
        "        return nn.Sequential(nn.Embedding(5, width), nn.Linear(width, width),\n"
        "                             nn.Linear(width, 5))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["/nowhere"])
    assert main(["audit", "my_small_model:Models.make", *WIDTHS, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 1
    assert document["model"] == "my_small_model:Models.make"
    assert list(document["roles"]) == ["embedding", "hidden", "bias", "readout"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["adopt.mine"], "MODULE:FACTORY: expected MODULE:NAME or FILE.py:NAME"),
        (["no_such_module:make"], "importing 'no_such_module' raised ModuleNotFoundError"),
        ([f"{MINE}:mak"], "has no 'mak'; did you mean 'make'?"),
        ([f"{MINE}:nothing"], "expected a function, found 'nothing', int"),
        ([f"{MINE}:broken"], "factory: at width 32 it raised ValueError: no such width"),
        ([f"{MINE}:make", "--role", "head"], "--role: expected PARAMETER=ROLE, found 'head'"),
        ([f"{MINE}:make", "--role", "hed=hidden"], "roles: 'hed' names no parameter"),
        ([f"{MINE}:make_tied", "--applied", "logits"], "applied: expected one of attention_scale"),
        ([f"{MINE}:make_tied", "--applied", "attention_scale,logits"], "found 'logits'"),
        (
            [f"{MINE}:make", "--optimizer", f"{MINE}:forgetful"],
            "optimizer: 'positions' (16 in all) is in none of its groups",
        ),
    ],
)
def test_what_is_wrong_is_one_line_and_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", *arguments, *WIDTHS]) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert out == ""
    assert err.count("\n") == 1
