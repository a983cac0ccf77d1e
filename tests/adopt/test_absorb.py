"""Multipliers that groups cannot set: what is refused, and with which words."""

from functools import partial

import pytest
import torch
from torch import nn

from adopt.models import MLP, Attention, Transformer
from hptransfer.adopt import infer_roles, param_groups
from hptransfer.errors import ConfigError
from hptransfer.scaling import BEYOND_LATTICE, LATTICE, RoleExponents, parse_rule


def groups_of(factory, rule, *, roles=None, width=64, **options):
    table = infer_roles(factory, base_width=16, width=width, roles=roles)
    return param_groups(factory(width), roles=table, parameterization=rule, lr=1.0, **options)


tied = partial(Transformer, tied=True)
growing = partial(Transformer, num_heads=2)


@pytest.mark.parametrize("rule", ["sp", "mup-last", "everett-full", "u-mup", "hayou-liu"])
def test_rules_without_a_word_on_tied_tables_refuse_them(rule):
    message = f"{rule}: 'tokens.weight' is embedding and readout at once .*'head.weight'"
    with pytest.raises(ConfigError, match=message):
        groups_of(tied, rule)


@pytest.mark.parametrize("rule", ["mup", "completep"])
def test_tied_tables_need_their_multiplier_applied(rule):
    depth = {"num_layers": 2, "base_num_layers": 2, "roles": {"*.down.weight": "hidden_residual"}}
    with pytest.raises(ConfigError, match=r"tied table 'tokens.weight' are multiplied by 0\.25"):
        groups_of(tied, rule, **depth)
    groups = groups_of(tied, rule, applied={"readout_multiplier"}, **depth)
    assert {g["lr"] for g in groups if "tied" in g["name"].split("+")} == {1}
    # At the base width the multiplier is 1, so there is nothing to apply.
    assert groups_of(tied, rule, width=16, **depth)


def test_a_fixed_head_size_has_nothing_to_apply():
    assert groups_of(Transformer, "mup")
    assert groups_of(growing, "sp")
    assert groups_of(growing, "mup-attn")


class Fused(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.num_heads = 2
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)


class Normed(Attention):
    def __init__(self, width):
        super().__init__(width, num_heads=2)
        self.q_norm = nn.RMSNorm(self.head_dim)


def around(make):
    return lambda width: nn.Sequential(
        nn.Embedding(5, width), make(width), nn.Linear(width, 5, bias=False)
    )


@pytest.mark.parametrize(
    ("factory", "rule", "options", "message"),
    [
        (growing, "mup", {}, r"mup: attention logits are multiplied by 0\.0883883 at head size 32, "
                             r"not by 1/√32 = 0\.176777, .*applied=\{\"attention_scale\"\}"),
        (around(Fused), "mup", {}, "attention logits are multiplied by .* at head size 32"),
        (around(Fused), "mup", {"query": "*.qkv.weight"}, "queries, keys and values in one"),
        (around(Normed), "mup", {"query": "*.q_proj.weight"}, "'1.q_norm.weight' normalises"),
        (growing, "mup", {"query": "*.q_prj.weight"}, "query: .* names no parameter"),
        (growing, "mup", {"query": "head.weight"}, "it is readout, not hidden"),
        (MLP, "u-mup", {}, r"u-mup: attention logits are multiplied by H\^-1, and no module"),
        (Transformer, "completep", {}, r"completep: depends on depth; give num_layers and base"),
        (Transformer, "completep", {"num_layers": 4, "base_num_layers": 2},
         r"residual branches are multiplied by .*applied=\{\"residual_multiplier\"\}"),
        (Transformer, "mup", {"num_layers": 0}, "num_layers: expected a whole number above 0"),
        (growing, "mup", {"head_size": 0}, "head_size: expected a whole number above 0, found 0"),
        (Transformer, "u-mup", {"axis": "global"}, "axis: u-mup .* found 'global'"),
        (Transformer, "sp+embd", {"optimizer": "sgd"}, "says nothing for 'sgd'"),
    ],
)  # fmt: skip
def test_refusals_are_one_line(factory, rule, options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        groups_of(factory, rule, **options)
    assert "\n" not in str(caught.value)


def test_a_gain_behind_a_multiplier_is_refused():
    sp = LATTICE["sp"]
    gain = RoleExponents(init=0.0, lr=0.0, multiplier=0.5)
    rule = type(sp)(name="own", roles={**sp.roles, "norm": gain}, attention=-0.5)
    with pytest.raises(
        ConfigError,
        match=r"own: the output of 'layers.0.norm1.weight' \(norm\) is "
        r"multiplied by 2, .*\{\"norm_multiplier\"\}",
    ):
        groups_of(Transformer, rule)
    assert groups_of(Transformer, rule, applied="norm_multiplier")


def test_muon_takes_matrices_and_adamw_the_rest():
    class Experts(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.stack = nn.Parameter(torch.zeros(3, width, width))

    def factory(width):
        return nn.Sequential(
            nn.Embedding(5, width), nn.Linear(width, 4 * width), Experts(width),
            nn.Linear(4 * width, 5),
        )  # fmt: skip

    groups = groups_of(
        factory, "mup", optimizer="muon", muon_lr=0.25, weight_decay=0.5, axis="global"
    )
    found = {(g["optimizer"], g["name"]): (g["lr"], g["weight_decay"]) for g in groups}
    # Global axis: η = 4 for AdamW's groups; Muon's lr is muon_lr, its shrink λ·muon_lr.
    assert found == {
        ("adamw", "embedding"): (4, 0.5),
        ("muon", "hidden"): (0.25, 0.5),
        ("adamw", "bias"): (4, 0),
        ("adamw", "hidden+readout"): (1, 2),
    }
    muon = torch.optim.Muon([g for g in groups if g["optimizer"] == "muon"])
    assert muon.param_groups[0]["adjust_lr_fn"] == "original"
    torch.optim.AdamW([g for g in groups if g["optimizer"] == "adamw"])


def test_muon_on_a_transposed_matrix_has_the_shape_factor_of_its_fans():
    class Conv1D(nn.Module):
        def __init__(self, nx, nf):
            super().__init__()
            self.nf = nf
            self.weight = nn.Parameter(torch.zeros(nx, nf))

    def factory(width):
        return nn.Sequential(
            nn.Embedding(5, width), Conv1D(width, 4 * width), Conv1D(4 * width, width),
            nn.Linear(width, 5),
        )  # fmt: skip

    groups = groups_of(factory, "mup", optimizer="muon")
    model = factory(64)
    table = infer_roles(factory, base_width=16, width=64)
    groups = param_groups(model, roles=table, parameterization="mup", lr=1.0, optimizer="muon")
    lr = {id(p): g["lr"] for g in groups for p in g["params"]}
    # The optimizer gives them √max(1, 64/256) = 1 and √(256/64) = 2; the rule says 2 and 1.
    assert (lr[id(model[1].weight)], lr[id(model[2].weight)]) == (2, 0.5)


@pytest.mark.parametrize(
    ("rule", "optimizer"),
    [
        (rule, optimizer)
        for rule in ("mup", "sp+embd", *BEYOND_LATTICE)
        for optimizer in sorted(parse_rule(rule).optimizers)
        if not parse_rule(rule).absolute
    ],
)
def test_relative_rules_at_the_base_width_are_sp(rule, optimizer):
    told = {"*.down.weight": "hidden_residual", "*.out.weight": "hidden_residual"}
    depth = {"num_layers": 2, "base_num_layers": 2}
    sp, other = (
        groups_of(growing, name, width=16, roles=told, optimizer=optimizer, **depth)
        for name in ("sp", rule)
    )
    for one, two in zip(sp, other, strict=True):
        assert {k: v for k, v in one.items() if k != "params"} == {
            k: v for k, v in two.items() if k != "params"
        }
        assert one["lr"] == 1.0
