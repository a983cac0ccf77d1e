"""A user's own rule from TOML: what it says, what it inherits, and refusals."""

import pytest

from hptransfer.errors import ConfigError
from hptransfer.scaling import LATTICE, RoleExponents, load_rule, resolve

FULL = """
name = "mean-field"
attention = -0.5
optimizers = ["adamw"]
[roles.embedding]
init = 0
lr = 0
[roles.norm]
init = 0
lr = 0
[roles.bias]
init = 0
lr = 0
[roles.hidden]
init = 0
lr = -0.5
multiplier = -0.5
[roles.hidden_residual]
init = 0
lr = -0.5
multiplier = -0.5
[roles.readout]
init = 0
lr = 0.0
multiplier = -1
"""


def write(tmp_path, text):
    path = tmp_path / "rule.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_whole_rule(tmp_path):
    rule = load_rule(write(tmp_path, FULL))
    assert (rule.name, rule.optimizers) == ("mean-field", {"adamw"})
    assert rule.roles["hidden"] == RoleExponents(init=0, lr=-0.5, multiplier=-0.5)
    readout = resolve(rule, width=256, base_width=64).roles["readout"]
    assert (readout.init_std, readout.multiplier, readout.lr) == (2**-3, 1 / 4, 1)


def test_a_rule_like_another(tmp_path):
    text = 'name = "ours"\nlike = "µP"\n[roles.embedding]\nlr = -0.5\n'
    rule = load_rule(str(write(tmp_path, text)))
    assert rule.roles["embedding"] == RoleExponents(init=0, lr=-0.5)
    assert rule.roles["hidden"] == LATTICE["mup"].roles["hidden"]
    assert (rule.attention, rule.tied_readout) == (-1.0, -1.0)
    assert rule.optimizers == {"adam", "adamw"}
    resolved = resolve(rule, width=256, base_width=64)
    assert resolved.parameterization == "ours"
    assert resolved.roles["embedding"].lr == 0.5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "rule.toml: expected TOML"),
        ('like = "mup"', "rule.toml: name: expected text in quotes, found nothing"),
        ('name = "mup"\nlike = "sp"', "name: expected a name of its own, found 'mup'"),
        ('name = "a"\nlike = "mip"', "like: parameterization: 'mip' is not known"),
        ('name = "a"\nlike = 3', "like: expected a rule's name in quotes, found 3"),
        ('name = "a"\nlik = "mup"', "unknown key 'lik'; did you mean 'like'"),
        ('name = "a"\n[roles.readuot]\nlr = 1', "'roles.readuot'; did you mean 'readout'"),
        ('name = "a"\nlike = "mup"\n[roles.norm]\nl = 1', "'roles.norm.l'; did you mean 'lr'"),
        ('name = "a"\nlike = "mup"\n[roles.norm]\nlr = "x"', "roles.norm.lr: .*, found 'x'"),
        ('name = "a"\nlike = "mup"\n[roles.norm]\nlr = nan', "roles.norm.lr: .*, found nan"),
        ('name = "a"\nlike = "mup"\nattention = true', "attention: .*, found True"),
        ('name = "a"\nlike = "mup"\nroles = 3', "roles: expected sections"),
        ('name = "a"\nlike = "mup"\nroles = {norm = 3}', "roles.norm: expected a section, found 3"),
        ('name = "a"\n[roles.embedding]\nlr = 0', "embedding.init: .*, found nothing"),
        (FULL.replace("attention = -0.5", ""), "attention: .*, or like.*, found nothing"),
        ('name = "a"\nlike = "sp"\noptimizers = ["adm"]', "found 'adm'; did you mean 'adam"),
        ('name = "a"\nlike = "mup"\noptimizers = ["sgd"]', "exponents for 'sgd' are not those"),
        ('name = "a"\nlike = "sp"\noptimizers = []', "optimizers: expected a list of names"),
    ],
)
def test_refusals_are_one_line(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_rule(write(tmp_path, text))
    assert "\n" not in str(caught.value)
    assert "rule.toml" in str(caught.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="expected a rule in TOML, found no such file"):
        load_rule(tmp_path / "none.toml")
