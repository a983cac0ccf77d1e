"""Every number of the lattice against powers of two written by hand.

The tables hold, for base width 64, base_lr η = 2^-6 and λ = 2^-4, what the documented table says at
m = 1, 4 and ½ (widths 64, 256 and 32) for each side of each switch. Nothing here is computed.
"""

import pickle
from dataclasses import FrozenInstanceError, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hptransfer.errors import ConfigError
from hptransfer.scaling import (
    LATTICE,
    ROLES,
    Parameterization,
    RoleExponents,
    resolve,
)
from hptransfer.scaling._resolve import default_head_size

SWITCHES_ON = {
    "sp": (),
    "sp+embd": ("embd",),
    "sp+ln": ("ln",),
    "sp+attn": ("attn",),
    "sp+last": ("last",),
    "sp+embd+ln": ("embd", "ln"),
    "sp+embd+attn": ("embd", "attn"),
    "sp+embd+last": ("embd", "last"),
    "sp+ln+attn": ("ln", "attn"),
    "sp+ln+last": ("ln", "last"),
    "sp+attn+last": ("attn", "last"),
    "mup-embd": ("ln", "attn", "last"),
    "mup-ln": ("embd", "attn", "last"),
    "mup-attn": ("embd", "ln", "last"),
    "mup-last": ("embd", "ln", "attn"),
    "mup": ("embd", "ln", "attn", "last"),
}

WIDTHS = (64, 256, 32)

# lr of a tensor whose lr goes as η/m, and of one whose lr stays η; by width.
LR_SLOW = {64: 2**-6, 256: 2**-8, 32: 2**-5}
LR_FAST = {64: 2**-6, 256: 2**-6, 32: 2**-6}

# Weight decay of decayed tensors, by mode and width; λ·η/lr, λ, λ/lr.
DECAY_SLOW = {
    "constant": {64: 2**-4, 256: 2**-2, 32: 2**-5},
    "coupled": {64: 2**-4, 256: 2**-4, 32: 2**-4},
    "independent": {64: 2**2, 256: 2**4, 32: 2**1},
}
DECAY_FAST = {
    "constant": {64: 2**-4, 256: 2**-4, 32: 2**-4},
    "coupled": {64: 2**-4, 256: 2**-4, 32: 2**-4},
    "independent": {64: 2**2, 256: 2**2, 32: 2**2},
}

# Init stds; two layers, so that 1/√(2·num_layers) is ½.
HIDDEN_STD = {64: 2**-3, 256: 2**-4, 32: 2**-2.5}
RESIDUAL_STD = {64: 2**-4, 256: 2**-5, 32: 2**-3.5}
READOUT_STD_SP = {64: 2**-3, 256: 2**-4, 32: 2**-2.5}
READOUT_STD_LAST = {64: 2**-3, 256: 2**-5, 32: 2**-2}

# Attention scale: (head arguments, base_head_size) to (SP side, attn side) by width.
ATTENTION = [
    ({"head_size": 16}, None, dict.fromkeys(WIDTHS, 2**-2), dict.fromkeys(WIDTHS, 2**-2)),
    ({"head_size": 16}, 1, dict.fromkeys(WIDTHS, 2**-2), dict.fromkeys(WIDTHS, 2**-4)),
    ({"head_size": 16}, 4, dict.fromkeys(WIDTHS, 2**-2), dict.fromkeys(WIDTHS, 2**-3)),
    (
        {"num_heads": 4},
        None,
        {64: 2**-2, 256: 2**-3, 32: 2**-1.5},
        {64: 2**-2, 256: 2**-4, 32: 2**-1},
    ),
    (
        {"num_heads": 4},
        1,
        {64: 2**-2, 256: 2**-3, 32: 2**-1.5},
        {64: 2**-4, 256: 2**-6, 32: 2**-3},
    ),
]


def approx(value):
    return pytest.approx(value, rel=1e-13, abs=0)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", SWITCHES_ON)
def test_numbers_by_hand(name, width):
    on = SWITCHES_ON[name]
    fast = {"embedding": "embd" in on, "norm": "ln" in on, "bias": "ln" in on}
    std = {
        "embedding": 1,
        "norm": 0,
        "bias": 0,
        "hidden": HIDDEN_STD[width],
        "hidden_residual": RESIDUAL_STD[width],
        "readout": (READOUT_STD_LAST if "last" in on else READOUT_STD_SP)[width],
    }
    for mode in ("constant", "coupled", "independent"):
        for heads, base_head_size, sp_scale, attn_scale in ATTENTION:
            resolved = resolve(
                name,
                width=width,
                base_width=64,
                base_lr=2**-6,
                weight_decay=2**-4,
                weight_decay_mode=mode,
                num_layers=2,
                base_head_size=base_head_size,
                **heads,
            )
            assert resolved.parameterization == name
            assert tuple(resolved.roles) == ROLES == tuple(std)
            for role, numbers in resolved.roles.items():
                is_fast = fast.get(role, False)
                decay = (DECAY_FAST if is_fast else DECAY_SLOW)[mode][width]
                decay = 0 if role in ("norm", "bias") else decay
                assert numbers.lr == approx((LR_FAST if is_fast else LR_SLOW)[width]), role
                assert numbers.weight_decay == approx(decay), (role, mode)
                assert numbers.init_std == approx(std[role]), role
                assert (numbers.multiplier, numbers.residual_multiplier) == (1, 1)
                assert numbers.eps == 1e-8
            scale = (attn_scale if "attn" in on else sp_scale)[width]
            assert resolved.attention_scale == approx(scale), heads


@pytest.mark.parametrize("mode", ["constant", "coupled", "independent"])
@pytest.mark.parametrize("heads", [{"head_size": 16}, {"num_heads": 4}])
def test_all_equal_at_the_base_width(mode, heads):
    keys = {
        resolve(
            name,
            width=96 * 2,
            base_width=96 * 2,
            base_lr=3e-3,
            weight_decay=0.1,
            weight_decay_mode=mode,
            num_layers=3,
            **heads,
        ).key()
        for name in LATTICE
    }
    assert len(keys) == 1


def test_base_head_size_of_one_is_the_exception_at_the_base_width():
    keys = {
        name: resolve(name, width=64, base_width=64, head_size=16, base_head_size=1).key()
        for name in LATTICE
    }
    assert {name for name in LATTICE if keys[name] != keys["sp"]} == {
        name for name, on in SWITCHES_ON.items() if "attn" in on
    }
    assert len(set(keys.values())) == 2


def test_key_tells_equal_numbers():
    fixed = {name: resolve(name, width=256, base_width=64, head_size=16).key() for name in LATTICE}
    # With a fixed head size attn changes nothing, and nothing else coincides.
    assert fixed["sp"] == fixed["sp+attn"]
    assert fixed["mup"] == fixed["mup-attn"]
    assert len(set(fixed.values())) == 8
    growing = [resolve(name, width=256, base_width=64, num_heads=4).key() for name in LATTICE]
    assert len(set(growing)) == 16
    assert (
        resolve("sp", width=64, base_width=64).key()
        != resolve("sp", width=128, base_width=64).key()
    )


@given(
    name=st.sampled_from(list(SWITCHES_ON)),
    width=st.sampled_from([32, 96, 160, 320, 1024]),
    base_lr=st.floats(1e-6, 1.0),
    weight_decay=st.floats(0.0, 1.0),
    mode=st.sampled_from(["constant", "coupled", "independent"]),
)
@settings(deadline=None)
def test_global_axis_is_the_other_one_shifted(name, width, base_lr, weight_decay, mode):
    common = {"base_width": 96, "weight_decay": weight_decay, "weight_decay_mode": mode}
    on_global = resolve(name, width=width, base_lr=base_lr, axis="global", **common)
    aligned = resolve(name, width=width, base_lr=base_lr * (width / 96), **common)
    for role in ROLES:
        assert vars(on_global.roles[role]) == pytest.approx(vars(aligned.roles[role]), rel=1e-12)
    assert on_global.attention_scale == aligned.attention_scale


@given(width=st.integers(1, 10_000), base_width=st.integers(1, 10_000))
@settings(deadline=None)
def test_sp_on_the_global_axis_is_one_lr(width, base_width):
    resolved = resolve(
        "sp", width=width, base_width=base_width, base_lr=3e-4, axis="global", head_size=1
    )
    assert {numbers.lr for numbers in resolved.roles.values()} == {3e-4}


@given(
    name=st.sampled_from(list(SWITCHES_ON)),
    width=st.sampled_from([32, 64, 256, 448]),
    base_lr=st.floats(1e-6, 1.0),
    axis=st.sampled_from(["hidden-aligned", "global"]),
)
@settings(deadline=None)
def test_shrink_per_step_is_what_the_mode_says(name, width, base_lr, axis):
    eta = base_lr * (width / 64) if axis == "global" else base_lr
    for mode, shrink in (("constant", eta * 0.1), ("coupled", None), ("independent", 0.1)):
        resolved = resolve(
            name,
            width=width,
            base_width=64,
            base_lr=base_lr,
            weight_decay=0.1,
            weight_decay_mode=mode,
            axis=axis,
        )
        for role in ("embedding", "hidden", "hidden_residual", "readout"):
            numbers = resolved.roles[role]
            expected = numbers.lr * 0.1 if shrink is None else shrink
            assert numbers.lr * numbers.weight_decay == pytest.approx(expected, rel=1e-12)


def test_init_std_of_another_fan_in():
    resolved = resolve("mup", width=256, base_width=64, num_layers=2)
    assert resolved.init_std("hidden", 256) == approx(2**-4)
    assert resolved.init_std("hidden", 1024) == approx(2**-5)
    assert resolved.init_std("hidden_residual", 1024) == approx(2**-6)
    assert resolved.init_std("readout", 256) == approx(2**-5)
    assert resolved.init_std("embedding", 4096) == 1
    assert resolved.init_std("norm", 1) == 0
    with pytest.raises(ConfigError, match=r"role.*'hiden'.*'hidden'"):
        resolved.init_std("hiden", 256)
    with pytest.raises(ConfigError, match="fan_in"):
        resolved.init_std("hidden", 0)


def test_a_rule_of_ones_own_with_multipliers():
    # Mean-field: init exponent 0 with multiplier 1/m on the readout, 1/√m on hidden matrices.
    sp = LATTICE["sp"]
    own = Parameterization(
        name="own",
        roles={**sp.roles, "readout": RoleExponents(init=0.0, lr=0.0, multiplier=-1.0)},
        attention=-0.5,
    )
    readout = resolve(own, width=256, base_width=64).roles["readout"]
    assert readout.init_std == approx(2**-3)
    assert readout.multiplier == 0.25
    assert readout.lr == 1.0
    with pytest.raises(AssertionError, match="own"):
        Parameterization(name="own", roles={}, attention=-0.5)


def test_defaults_and_metadata():
    resolved = resolve("µP", width=256, base_width=32)
    assert (resolved.head_size, resolved.base_head_size, resolved.num_layers) == (32, 32, 12)
    assert (resolved.weight_decay_mode, resolved.axis) == ("constant", "hidden-aligned")
    assert (resolved.base_lr, resolved.width_mult) == (1.0, 8.0)
    assert pickle.loads(pickle.dumps(resolved)) == resolved
    with pytest.raises(FrozenInstanceError):
        resolved.width = 3
    with pytest.raises(TypeError):
        LATTICE["sp"].roles["norm"] = RoleExponents(init=0, lr=0)
    assert default_head_size(96, 96) == 32


def test_to_dict_is_the_documented_shape():
    document = resolve("sp+embd", width=256, base_width=64).to_dict()
    assert list(document) == [
        "schema",
        "parameterization",
        "width",
        "base_width",
        "weight_decay_mode",
        "roles",
        "attention_scale",
    ]
    assert document["roles"]["embedding"] == {
        "init_std": 1,
        "lr": 1,
        "weight_decay": 0,
        "multiplier": 1,
        "residual_multiplier": 1,
        "eps": 1e-8,
    }
    assert document["attention_scale"] == 0.125


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 0}, "width: expected a whole number above 0, found 0"),
        ({"width": 64.0}, "width: .* found 64.0"),
        ({"width": True}, "width: .* found True"),
        ({"base_width": -64}, "base_width: .* found -64"),
        ({"base_lr": 0.0}, "base_lr: expected a finite number above 0, found 0.0"),
        ({"base_lr": -1.0}, "base_lr: .* found -1.0"),
        ({"base_lr": float("nan")}, "base_lr: .* found nan"),
        ({"base_lr": float("inf")}, "base_lr: .* found inf"),
        ({"base_lr": 5e-324}, "lr of embedding: .* found 0.0"),
        ({"base_lr": 1e-300, "weight_decay": 1e10, "weight_decay_mode": "independent"},
         "weight_decay of embedding: .* found inf"),
        ({"weight_decay": -0.1}, "weight_decay: expected a finite number of 0 or more, found -0.1"),
        ({"weight_decay_mode": "couple"}, "weight_decay_mode: .* did you mean 'coupled'"),
        ({"axis": "Global"}, "axis: .* did you mean 'global'"),
        ({"head_size": 48}, r"head_size: .* width 256, found 48 \(remainder 16\)"),
        ({"head_size": 0}, "head_size: .* found 0"),
        ({"num_heads": 3}, r"num_heads: .* width 256, found 3 \(remainder 1\)"),
        ({"num_heads": 128}, r"num_heads: .* base_width 64, found 128 \(remainder 64\)"),
        ({"num_heads": 4, "head_size": 16}, "either head_size or num_heads"),
        ({"base_head_size": 0}, "base_head_size: .* found 0"),
        ({"num_layers": 0}, "num_layers: .* found 0"),
        ({"eps": 0.0}, "eps: .* found 0.0"),
        ({"width": 100}, "give head_size or num_heads"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(change, message):
    with pytest.raises(ConfigError, match=message) as caught:
        resolve("sp", **{"width": 256, "base_width": 64} | change)
    assert "\n" not in str(caught.value)


def test_base_head_size_frees_the_base_width_from_num_heads():
    resolved = resolve("mup", width=256, base_width=64, num_heads=128, base_head_size=1)
    assert resolved.attention_scale == 0.5


@pytest.mark.parametrize("make", [set, list, tuple, frozenset])
def test_a_rule_of_ones_own_takes_its_optimizers_in_any_collection(make):
    rule = replace(LATTICE["mup"], name="ours", optimizers=make(["adamw"]))
    assert rule.optimizers == frozenset(["adamw"])
    assert resolve(rule, width=256, base_width=64) == replace(
        resolve("mup", width=256, base_width=64), parameterization="ours"
    )
    with pytest.raises(ConfigError, match="lion"):
        resolve(rule, width=256, base_width=64, optimizer="lion")
