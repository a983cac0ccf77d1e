"""Rules beyond the lattice, and other optimizers, against numbers written by hand.

Width 256, base width 64 (m = 4), η = 1, λ = 2^-4 in ``constant`` mode. Nothing here is computed.
"""

import pytest

from hptransfer.errors import ConfigError
from hptransfer.scaling import (
    BEYOND_LATTICE,
    LATTICE,
    OPTIMIZERS,
    for_optimizer,
    parse_rule,
    resolve,
)

ROLES = ("embedding", "norm", "bias", "hidden", "hidden_residual", "readout")

# lr by role; weight decay is λ/lr, 0 for norm and bias.
LR = {
    ("everett-full", "adamw"): (1, 1, 1, 1 / 4, 1 / 4, 1 / 4),
    ("everett-none", "adamw"): (1, 1, 1, 1 / 2, 1 / 2, 1 / 2),
    ("hayou-liu", "adamw"): (1 / 2, 1, 1, 1 / 4, 1 / 4, 1 / 4),
    ("completep", "adamw"): (1, 1, 1, 1 / 4, 1 / 4, 1 / 4),
    ("u-mup", "adamw"): (1 / 16, 1, 1, 1 / 16, 1 / 16, 1),
    ("sp", "lion"): (1 / 4, 1 / 4, 1 / 4, 1 / 4, 1 / 4, 1 / 4),
    ("mup", "lion"): (1, 1, 1, 1 / 4, 1 / 4, 1 / 4),
    ("mup", "adam"): (1, 1, 1, 1 / 4, 1 / 4, 1 / 4),
    ("sp", "sgd"): (1, 1, 1, 1, 1, 1),
    ("mup", "sgd"): (4, 4, 4, 1, 1, 1 / 4),
    ("sp", "adafactor"): (1 / 2, 1 / 2, 1 / 2, 1 / 2, 1 / 2, 1 / 2),
    ("mup", "adafactor"): (1, 1, 1, 1 / 2, 1 / 2, 1),
    ("sp", "muon"): (1 / 4, 1 / 4, 1 / 4, 1, 1, 1 / 4),
    ("mup", "muon"): (1, 1, 1, 1, 1, 1 / 4),
    ("mup-ln", "muon"): (1, 1 / 4, 1 / 4, 1, 1, 1 / 4),
    ("mup", "muon-matched"): (1, 1, 1, 1 / 2, 1 / 2, 1 / 4),
}

# Init std of embedding, hidden, hidden_residual (two layers, base two), readout.
STD = {
    "everett-full": (1, 2**-4, 2**-5, 2**-4),
    "everett-none": (1, 2**-4, 2**-5, 2**-4),
    "hayou-liu": (1, 2**-4, 2**-5, 2**-4),
    "completep": (1, 2**-4, 2**-5, 2**-5),
    "u-mup": (1, 1, 1, 1),
}

# Multiplier of hidden and readout.
MULTIPLIER = dict.fromkeys(STD, (1, 1)) | {"u-mup": (2**-4, 2**-8)}


def approx(value):
    return pytest.approx(value, rel=1e-13, abs=0)


@pytest.mark.parametrize(("name", "optimizer"), LR)
def test_learning_rates_by_hand(name, optimizer):
    resolved = resolve(
        name, width=256, base_width=64, weight_decay=2**-4, optimizer=optimizer, num_layers=2
    )
    assert tuple(resolved.roles) == ROLES
    for role, lr in zip(ROLES, LR[name, optimizer], strict=True):
        numbers = resolved.roles[role]
        assert numbers.lr == approx(lr), role
        decay = 0 if role in ("norm", "bias") else 2**-4 / lr
        assert numbers.weight_decay == approx(decay), role


@pytest.mark.parametrize("name", BEYOND_LATTICE)
def test_other_numbers_by_hand(name):
    resolved = resolve(name, width=256, base_width=64, num_layers=2, head_size=16)
    stds = [
        resolved.roles[r].init_std for r in ("embedding", "hidden", "hidden_residual", "readout")
    ]
    assert stds == approx(list(STD[name]))
    hidden, readout = MULTIPLIER[name]
    for role, multiplier in zip(ROLES, (1, 1, 1, hidden, hidden, readout), strict=True):
        assert resolved.roles[role].multiplier == approx(multiplier)
        assert resolved.roles[role].residual_multiplier == 1
    eps = 1e-8 / 4 if name == "completep" else 1e-8
    assert resolved.roles["hidden"].eps == resolved.roles["hidden_residual"].eps == approx(eps)
    assert resolved.roles["embedding"].eps == resolved.roles["readout"].eps == 1e-8
    assert resolved.attention_scale == approx(2**-4 if name == "u-mup" else 2**-2)


def test_attention_as_the_head_size_grows():
    scales = {
        name: resolve(name, width=256, base_width=64, num_heads=4).attention_scale
        for name in BEYOND_LATTICE
    }
    standard, mup = 2**-3, 2**-4  # H = 64, H_base = 16: 1/√H, √H_base/H
    assert scales == {
        "everett-full": standard,
        "everett-none": standard,
        "hayou-liu": standard,
        "completep": mup,
        "u-mup": 2**-6,
    }


def test_depth_of_completep_by_hand():
    resolved = resolve("completep", width=256, base_width=64, num_layers=8, base_num_layers=2)
    for role in ("hidden", "hidden_residual"):
        assert resolved.roles[role].eps == approx(1e-8 / 16)
        assert resolved.roles[role].lr == 1 / 4
    assert resolved.roles["hidden_residual"].residual_multiplier == 1 / 4
    assert resolved.roles["hidden"].residual_multiplier == 1
    # The residual's init is that of the base's depth, since the branch itself is multiplied.
    assert resolved.roles["hidden_residual"].init_std == approx(2**-5)
    # The lattice's goes with the depth, whatever the base's.
    mup = resolve("mup", width=256, base_width=64, num_layers=8, base_num_layers=2)
    assert mup.roles["hidden_residual"].init_std == approx(2**-6)


def relative(rule):
    return not BEYOND_LATTICE[rule].absolute if rule in BEYOND_LATTICE else True


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_relative_rule_is_sp_at_the_base_width(optimizer):
    names = [
        name
        for name in (*LATTICE, *filter(relative, BEYOND_LATTICE))
        if optimizer in parse_rule(name).optimizers
    ]
    assert {"sp", "mup"} <= set(names)
    for mode in ("constant", "coupled", "independent"):
        keys = {
            resolve(
                name,
                width=192,
                base_width=192,
                base_lr=3e-3,
                weight_decay=0.1,
                weight_decay_mode=mode,
                num_heads=3,
                optimizer=optimizer,
            ).key()
            for name in names
        }
        assert len(keys) == 1


@pytest.mark.parametrize("optimizer", ["adamw", "lion", "sgd", "adafactor"])
def test_sp_on_the_global_axis_is_one_lr_for_every_optimizer(optimizer):
    sp = resolve("sp", width=320, base_width=64, base_lr=3e-4, axis="global", optimizer=optimizer)
    assert {numbers.lr for numbers in sp.roles.values()} == {3e-4}


def test_the_global_axis_leaves_muon_alone():
    resolved = resolve("mup", width=256, base_width=64, axis="global", optimizer="muon")
    assert resolved.roles["hidden"].lr == 1
    assert resolved.roles["readout"].lr == 1
    assert resolved.roles["embedding"].lr == 4


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("u-µP", "u-mup"),
        ("u-μp", "u-mup"),
        ("uMuP", "u-mup"),
        ("CompleteP", "completep"),
        ("u mup", "u-mup"),
        ("U  µP", "u-mup"),
        ("complete p", "completep"),
        (" Everett-Full ", "everett-full"),
        ("mup - ln", "mup-ln"),
        ("µP", "mup"),
    ],
)
def test_spellings(spelling, name):
    assert parse_rule(spelling).name == name
    assert parse_rule(parse_rule(spelling)).name == name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("completeq", "'completeq' is not known; did you mean 'completep'"),
        ("everett", "did you mean 'everett-(full|none)'"),
        ("spp", "did you mean 'sp'"),
        ("sp+embd+embd", "more than once"),
    ],
)
def test_unknown_names_are_one_line(name, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse_rule(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "optimizer", "message"),
    [
        ("sp+embd", "sgd", "sp[+]embd says nothing for 'sgd': its exponents are for updates whose "
                           "size does not depend .*; it is defined for adam, adamw, lion, muon"),
        ("mup-ln", "adafactor", "not relative to the tensor's size"),
        ("everett-none", "muon", "not for an orthogonalised one"),
        ("completep", "lion", "Adam's update and its ε; it is defined for adam, adamw"),
        ("u-mup", "sgd", "u-mup says nothing"),
        ("mup", "adams", "optimizer: expected one of .* did you mean 'adam'"),
    ],
)  # fmt: skip
def test_refusals_explain_themselves(name, optimizer, message):
    with pytest.raises(ConfigError, match=message) as caught:
        for_optimizer(parse_rule(name), optimizer)
    assert "\n" not in str(caught.value)


def test_an_absolute_rule_has_no_global_axis():
    with pytest.raises(ConfigError, match=r"axis: u-mup .* found 'global'"):
        resolve("u-mup", width=256, base_width=64, axis="global")
