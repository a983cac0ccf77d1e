"""``hptransfer rules``: the JSON document, the table, and bad input."""

import argparse
import json

import pytest

from hptransfer.cli import rules
from hptransfer.cli._arguments import add_options
from hptransfer.errors import ConfigError
from hptransfer.scaling import resolve


def run_rules(*argv):
    parser = argparse.ArgumentParser(description=rules.__doc__)
    add_options(parser, rules.OPTIONS)
    parser.add_argument("--json", action="store_true")
    return rules.run(parser.parse_args(argv))


def test_json_by_hand(capsys):
    code = run_rules(
        "SP+Embd", "--width=256", "--base-width=64", "--json", "--lr=0.5", "--weight-decay=0.25",
        "--weight-decay-mode=independent", "--head-size=16", "--base-head-size=1",
        "--num-layers=2", "--axis=global",
    )  # fmt: skip
    output = capsys.readouterr()
    assert (code, output.err) == (0, "")
    # On the global axis η = 0.5·4 = 2: the embedding gets η, all else η/m = 0.5.
    slow = {"lr": 0.5, "multiplier": 1, "residual_multiplier": 1, "eps": 1e-8}
    assert json.loads(output.out) == {
        "schema": 1,
        "parameterization": "sp+embd",
        "width": 256,
        "base_width": 64,
        "weight_decay_mode": "independent",
        "roles": {
            "embedding": slow | {"lr": 2, "init_std": 1, "weight_decay": 0.125},
            "norm": slow | {"init_std": 0, "weight_decay": 0},
            "bias": slow | {"init_std": 0, "weight_decay": 0},
            "hidden": slow | {"init_std": 0.0625, "weight_decay": 0.5},
            "hidden_residual": slow | {"init_std": 0.03125, "weight_decay": 0.5},
            "readout": slow | {"init_std": 0.0625, "weight_decay": 0.5},
        },
        "attention_scale": 0.25,
    }


def test_defaults_are_those_of_resolve(capsys):
    run_rules("mup", "--width=96", "--base-width=32", "--json")
    assert json.loads(capsys.readouterr().out) == resolve("mup", width=96, base_width=32).to_dict()


def test_growing_heads(capsys):
    run_rules("mup", "--width=256", "--base-width=64", "--num-heads=4", "--json")
    assert json.loads(capsys.readouterr().out)["attention_scale"] == 0.0625


def test_table(capsys):
    assert run_rules("µP", "--width=256", "--base-width=64", "--lr=0.5") == 0
    lines = capsys.readouterr().out.splitlines()
    cells = {line.split()[0]: line.split()[1:] for line in lines if line.strip()}
    assert cells["embedding"] == ["0.5", "1", "0", "1", "1e-08"]
    assert cells["readout"] == ["0.125", "0.03125", "0", "1", "1e-08"]
    assert lines[0] == "mup at width 256, base width 64 (m = 4)"
    assert "attention scale 0.125 (head size 64, base head size 64)" in lines
    assert max(len(line) for line in lines) <= 80


def test_rules_beyond_the_lattice(capsys, tmp_path):
    depth = ("--width=256", "--base-width=64", "--num-layers=8", "--base-num-layers=2")
    assert run_rules("CompleteP", *depth) == 0
    assert "residual branches are multiplied by 0.25" in capsys.readouterr().out.splitlines()
    assert run_rules("mup", "--width=256", "--base-width=64", "--optimizer=sgd", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["roles"]["embedding"]["lr"] == 4
    path = tmp_path / "ours.toml"
    path.write_text('name = "ours"\nlike = "mup"\n[roles.embedding]\nlr = -0.5\n')
    assert run_rules(str(path), "--width=256", "--base-width=64", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["parameterization"] == "ours"
    assert document["roles"]["embedding"]["lr"] == 0.5


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["spp", "--width=64", "--base-width=64"], "did you mean 'sp'"),
        (["sp", "--width=-64", "--base-width=64"], "width: .* found -64"),
        (["sp", "--width=64", "--base-width=64", "--lr=0"], "base_lr: .* found 0.0"),
        (["sp", "--width=64", "--base-width=64", "--lr=nan"], "base_lr: .* found nan"),
        (["sp", "--width=64", "--base-width=64", "--head-size=48"], "head_size: .* width 64"),
        (["sp", "--width=64", "--base-width=64", "--axis=globl"], "did you mean 'global'"),
        (["mup-ln", "--width=64", "--base-width=64", "--optimizer=sgd"], "says nothing for 'sgd'"),
    ],
)
def test_bad_input_exits_two_with_one_line(argv, message, capsys):
    with pytest.raises(ConfigError, match=message) as caught:
        run_rules(*argv)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""
