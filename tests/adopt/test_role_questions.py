"""Roles that must be told: one question, with a mapping that can be pasted as printed."""

import ast
import dataclasses
import re
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from adopt.authors import Grn, Plain, StateSpace, TimeMix
from adopt.models import MLP, Attention, Transformer
from hptransfer.adopt import (
    RoleTable,
    UnclearRolesError,
    guard,
    infer_roles,
    init_,
    param_groups,
)
from hptransfer.errors import ConfigError
from hptransfer.scaling import LATTICE, resolve

BASE, WIDTH = 64, 256
P = lambda *shape: nn.Parameter(torch.ones(*shape))  # noqa: E731


def ask(factory, *, base_width=BASE, width=WIDTH):
    """Return the error, and the roles that its message gives when pasted as printed."""
    with pytest.raises(UnclearRolesError) as caught:
        infer_roles(factory, base_width=base_width, width=width)
    text = str(caught.value)
    assert "\n" not in text
    pasted = ast.literal_eval(re.search(r"roles=(\{.*?\})", text)[1])
    assert pasted == caught.value.suggestions
    table = infer_roles(factory, base_width=base_width, width=width, roles=pasted)
    return caught.value, pasted, {entry.name: entry.role for entry in table}


class Tower(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.conv1 = nn.Conv2d(3, d, 4, 4, bias=False)
        self.class_embedding, self.positional_embedding = P(d), P(17, d)
        self.blocks = nn.ModuleList(
            nn.ModuleList([nn.LayerNorm(d), nn.MultiheadAttention(d, d // 16), nn.Linear(d, d)])
            for _ in range(2)
        )
        self.proj = P(d, 32)


class Clip(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.visual = Tower(d)
        self.token_embedding, self.positional_embedding = nn.Embedding(50, d), P(9, d)
        self.text = nn.ModuleList([nn.Linear(d, d)])
        self.text_projection, self.logit_scale = P(d, 32), nn.Parameter(torch.tensor(2.66))


def test_all_unclear_parameters_come_in_one_question():
    error, pasted, roles = ask(Clip)
    assert pasted == {
        "positional_embedding": "embedding",
        "text_projection": "readout",
        "logit_scale": "other",
        "visual.positional_embedding": "embedding",
        "visual.proj": "readout",
    }
    assert roles["visual.class_embedding"] == "embedding"  # by its name: it is 1-d
    assert set(error.reasons) == set(pasted)
    assert "and of 4 more" in str(error)


def test_layers_share_a_pattern():
    _, pasted, roles = ask(StateSpace)
    assert pasted == {"layers.*.A_log": "other", "layers.*.D": "other"}
    assert roles["layers.1.A_log"] == "other"

    def mixture(width):
        layers = [nn.ModuleDict({"lin": nn.Linear(width, width), "router": nn.Linear(width, 8)})
                  for _ in range(24)]  # fmt: skip
        return nn.ModuleDict(
            {"table": nn.Embedding(50, width), "layers": nn.ModuleList(layers),
             "head": nn.Linear(width, 50)}
        )  # fmt: skip

    _, pasted, _ = ask(mixture)
    assert pasted == {"layers.*.router.weight": "readout"}


class LowRank(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.stem, self.head = nn.Linear(4, d), nn.Linear(d, 4)
        self.a, self.b = P(d, d), P(d, d)
        self.pos_bias, self.mix = P(16, d), P(1, 1, d)


def test_names_decide_vectors_alone():
    _, pasted, roles = ask(LowRank)
    assert pasted == {"pos_bias": "embedding", "mix": "other"}
    assert roles["a"] == roles["b"] == "hidden"

    def vectors(width):
        return nn.ModuleDict(
            {"stem": nn.Linear(4, width), "grn": Grn(width), "mix": TimeMix(width),
             "head": nn.Linear(width, 4)}
        )  # fmt: skip

    _, pasted, roles = ask(vectors)
    assert pasted == {"mix.time_mix_key": "other"}
    assert (roles["grn.weight"], roles["grn.bias"]) == ("norm", "bias")


def test_other_learns_at_eta_is_not_decayed_and_keeps_its_init():
    roles = {"layers.*.A_log": "other", "layers.*.D": "other"}
    table = infer_roles(StateSpace, base_width=BASE, width=WIDTH, roles=roles)
    model = StateSpace(WIDTH)
    for rule, lr in (("mup", 0.5), ("mup-ln", 0.5), ("hayou-liu", 0.5), ("sp", 0.125)):
        groups = param_groups(model, roles=table, parameterization=rule, lr=0.5, weight_decay=0.1)
        by_id = {id(p): g for g in groups for p in g["params"]}
        group = by_id[id(model.layers[0].A_log)]
        assert (group["lr"], group["weight_decay"]) == (lr, 0.0), rule
    # No rule's printed numbers know of it.
    assert "other" not in resolve("mup", width=256, base_width=64).roles
    assert LATTICE["mup"].get_exponents("other").lr == 0.0


@pytest.mark.parametrize("own_module", [True, False])
def test_routers_are_asked_about_wherever_they_stand(own_module):
    class Block(nn.Module):
        def __init__(self, d):
            super().__init__()
            self.num_heads, self.head_dim = d // 16, 16
            self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
            router = nn.Linear(d, 8, bias=False)
            if own_module:
                self.moe = nn.ModuleDict({"router": router})
            else:
                self.router = router

    def factory(width):
        return nn.ModuleDict(
            {"head": nn.Linear(width, 50), "table": nn.Embedding(50, width),
             "blocks": nn.ModuleList([Block(width)])}
        )  # fmt: skip

    _, pasted, _ = ask(factory)
    assert [*pasted.values()] == ["readout"]
    assert "router" in next(iter(pasted))


class Net(nn.Module):
    """A readout defined before the layers, in a net that states heads."""

    def __init__(self, width):
        super().__init__()
        self.n_head = width // 16
        self.table, self.lm_head = nn.Embedding(50, width), nn.Linear(width, 50, bias=False)
        self.blocks = nn.ModuleList(Attention(width, kv_heads=1) for _ in range(2))


@pytest.mark.parametrize("held", [True, False])
def test_a_linear_with_the_vocabularys_outputs_is_a_readout(held):
    factory = (lambda w: nn.ModuleDict({"net": Net(w)})) if held else Net
    table = infer_roles(factory, base_width=BASE, width=1024)
    name = "net.lm_head.weight" if held else "lm_head.weight"
    assert table[name].role == "readout"
    model = factory(1024)
    init_(model, roles=table, parameterization="mup", verbose=False)
    std = model.get_parameter(name).std().item()
    assert std == pytest.approx(BASE**-0.5 / 16, rel=0.02)


class FunctionalTying(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.table, self.mid = nn.Embedding(50, width), nn.Linear(width, width)

    def forward(self, tokens):
        return F.linear(self.mid(self.table(tokens)), self.table.weight)


def test_a_table_without_a_readout_is_asked_about():
    error, pasted, roles = ask(FunctionalTying)
    assert pasted == {"table.weight": "tied"}
    assert "'embedding' if it has none" in str(error)
    assert roles["table.weight"] == "tied"
    table = infer_roles(FunctionalTying, base_width=BASE, width=WIDTH, roles=pasted)
    with pytest.raises(ConfigError, match=r"logits of the tied table 'table.weight'"):
        param_groups(FunctionalTying(WIDTH), roles=table, parameterization="mup", lr=1.0)
    with pytest.raises(ConfigError, match=r"'table.weight' is embedding and readout at once, for"):
        param_groups(FunctionalTying(WIDTH), roles=table, parameterization="sp", lr=1.0)
    encoder = infer_roles(
        FunctionalTying, base_width=BASE, width=WIDTH, roles={"table.weight": "embedding"}
    )
    assert encoder["table.weight"].role == "embedding"


def heads_of(make, base_width=BASE, width=WIDTH):
    def factory(w):
        return nn.ModuleDict(
            {"table": nn.Embedding(50, w), "attn": make(w), "head": nn.Linear(w, 50)}
        )

    table = infer_roles(factory, base_width=base_width, width=width)
    return table.base_head_size, table.head_size


class Stated(nn.Module):
    def __init__(self, d, out=None, **stated):
        super().__init__()
        vars(self).update(stated)
        out = out or d
        self.q, self.k, self.v = (nn.Linear(d, out, bias=False) for _ in range(3))
        self.o = nn.Linear(out, d, bias=False)


@pytest.mark.parametrize(
    ("make", "sizes"),
    [
        (lambda d: Stated(d, num_heads=4), (16, 64)),
        (lambda d: Stated(d, heads=4), (16, 64)),
        (lambda d: Stated(d, config=SimpleNamespace(n_head=4, n_embd=d)), (16, 64)),
        (lambda d: Stated(d, head_dim=16, num_heads=d // 16), (16, 16)),
        (lambda d: Stated(d, out=64, n_heads=4, key_value_proj_dim=16), (16, 16)),
        (lambda d: Stated(d, out=64, n_heads=4, d_kv=16), (16, 16)),
        # Without a stated size: the query projection's outputs over the heads, not the width.
        (lambda d: Stated(d, out=64, n_heads=4), (16, 16)),
        (lambda d: nn.MultiheadAttention(d, 4), (16, 64)),
    ],
)
def test_head_sizes(make, sizes):
    assert heads_of(make) == sizes


def test_a_dial_of_the_width_has_the_head_sizes_of_its_shapes():
    assert heads_of(lambda n: Stated(n, num_heads=2), 64, 512) == (32, 256)

    def dial(n):
        d = 64 * n
        return nn.ModuleDict(
            {"table": nn.Embedding(50, d), "attn": Stated(d, num_heads=2),
             "head": nn.Linear(d, 50)}
        )  # fmt: skip

    table = infer_roles(dial, base_width=1, width=8)
    assert (table.base_head_size, table.head_size) == (32, 256)
    with pytest.raises(ConfigError, match=r"from 1 to 3 \(3 times\) shapes grow 4 times"):
        infer_roles(lambda n: MLP(8 * 2**n), base_width=1, width=3)


class TwoTowers(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.vision = nn.ModuleList([Stated(128, num_heads=4, head_dim=32)])
        self.bridge, self.table = nn.Linear(128, width), nn.Embedding(50, width)
        self.text = nn.ModuleList([Stated(width, num_heads=4, head_dim=width // 4)])
        self.head = nn.Linear(width, 50, bias=False)


def test_head_sizes_that_disagree_are_refused_by_name():
    table = infer_roles(TwoTowers, base_width=64, width=1024)
    assert {each.module: (each.base_head_size, each.head_size) for each in table.heads} == {
        "vision.0": (32, 32),
        "text.0": (16, 256),
    }
    groups = partial(param_groups, TwoTowers(1024), roles=table, parameterization="mup", lr=1.0)
    with pytest.raises(
        ConfigError, match=r"logits in 'text.0' .* differ between modules: 16 → 256"
    ):
        groups()
    # The query projection of the module that grows absorbs its own scale, and no other's.
    made = groups(query="text.*.q.weight")
    lrs = {id(p): g["lr"] for g in made for p in g["params"]}
    model = TwoTowers(1024)
    made = param_groups(model, roles=table, parameterization="mup", lr=1.0, query="text.*.q.weight")
    lrs = {id(p): g["lr"] for g in made for p in g["params"]}
    assert lrs[id(model.text[0].q.weight)] == pytest.approx(1 / 16 / 4)
    assert lrs[id(model.vision[0].q.weight)] == 1.0
    assert RoleTable.from_json(table.to_json()) == table


@pytest.mark.parametrize("extra", [0, 2])
def test_fused_projections_absorb_no_attention_scale(extra):
    class Fused(nn.Module):
        def __init__(self, w):
            super().__init__()
            self.num_heads, self.head_dim = 4, w // 4
            self.table = nn.Embedding(50, w)
            out = w + 2 * self.head_dim if extra else 3 * w
            self.query_key_value = nn.Linear(w, out, bias=False)
            self.dense, self.head = nn.Linear(w, w, bias=False), nn.Linear(w, 50)

    table = infer_roles(Fused, base_width=64, width=1024)
    with pytest.raises(ConfigError, match="queries, keys and values in one"):
        param_groups(
            Fused(1024), roles=table, parameterization="mup", lr=1.0, query="query_key_value.weight"
        )


class Item(nn.Module):
    def __init__(self, width):
        super().__init__()
        rates = [rate.item() for rate in torch.linspace(0, 0.1, 4)]
        self.stem = nn.Linear(12, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.Dropout(rate))
            for rate in rates
        )
        self.head = nn.Linear(width, 10)


def test_constructors_that_read_numbers_out_of_tensors():
    table = infer_roles(Item, base_width=2**10, width=2**18)  # more than memory holds
    assert table["head.weight"].role == "readout"

    class Reads(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.stem, self.head = nn.Linear(12, width), nn.Linear(width, 10)
            self.scale = self.stem.weight.std().item()

    assert infer_roles(Reads, base_width=16, width=64)["head.weight"].role == "readout"
    with pytest.raises(ConfigError, match="at width 64 it raised ValueError: no such width"):
        infer_roles(lambda w: (_ for _ in ()).throw(ValueError("no such\nwidth")),
                    base_width=16, width=64)  # fmt: skip


def test_depth_may_differ_for_rules_that_define_it():
    deeper = lambda width: Transformer(width, num_layers=width // 16)  # noqa: E731
    residual = {"layers.*.down.weight": "hidden_residual", "layers.*.out.weight": "hidden_residual",
                "layers.*.attention.out.weight": "hidden_residual"}  # fmt: skip
    del residual["layers.*.out.weight"]
    table = infer_roles(deeper, base_width=32, width=64, roles=residual)
    assert (table.num_layers, table.base_num_layers) == (4, 2)
    groups = param_groups(deeper(64), roles=table, parameterization="completep", lr=1.0)
    same_depth = infer_roles(
        partial(Transformer, num_layers=4), base_width=32, width=64, roles=residual
    )
    expected = param_groups(
        Transformer(64, num_layers=4), roles=same_depth, parameterization="completep", lr=1.0,
        num_layers=4, base_num_layers=2,
    )  # fmt: skip
    numbers = [[(g["name"], g["lr"], g["eps"], len(g["params"])) for g in each]
               for each in (groups, expected)]  # fmt: skip
    assert numbers[0] == numbers[1]
    with pytest.raises(ConfigError, match="mup: says nothing of depth, and the model has 4 layers"):
        param_groups(deeper(64), roles=table, parameterization="mup", lr=1.0)


def test_a_vector_told_as_a_matrix_is_refused_once():
    with pytest.raises(
        ConfigError, match=r"'layers.0.D': 'hidden' is a matrix, and this has shape"
    ):
        infer_roles(
            StateSpace, base_width=BASE, width=WIDTH,
            roles={"layers.*.A_log": "other", "layers.*.D": "hidden"},
        )  # fmt: skip


def test_parts_and_shards_of_a_model():
    table = infer_roles(Plain, base_width=BASE, width=WIDTH)
    stage = Plain(WIDTH)
    del stage.head, stage.norm2
    with pytest.raises(ConfigError, match="say partial=True where the model is a part"):
        param_groups(stage, roles=table, parameterization="mup", lr=1.0)
    whole = param_groups(Plain(WIDTH), roles=table, parameterization="mup", lr=1.0)
    part = param_groups(stage, roles=table, parameterization="mup", lr=1.0, partial=True)
    names = {n for each in part.names for n in each}
    lrs = [{n: g["lr"] for g, each in zip(made, made.names, strict=True) for n in each}
           for made in (part, whole)]  # fmt: skip
    assert names == {n for n, _ in stage.named_parameters()}
    assert all(lrs[0][name] == lrs[1][name] for name in names)

    shard = Plain(WIDTH)
    shard.mid.weight = nn.Parameter(shard.mid.weight[: WIDTH // 2].clone())
    with pytest.raises(ConfigError, match="a shard as a plain tensor; use DTensors"):
        param_groups(shard, roles=table, parameterization="mup", lr=1.0)
    made = param_groups(shard, roles=table, parameterization="mup", lr=1.0, partial=True)
    assert len(made) == len(whole)
    with pytest.raises(ConfigError, match="initial weights before sharding"):
        init_(shard, roles=table, parameterization="mup", partial=True, verbose=False)


def test_flat_parameters_and_zero_are_named():
    table = infer_roles(MLP, base_width=16, width=64)
    flat = nn.Module()
    flat._flat_param = nn.Parameter(torch.zeros(10))
    with pytest.raises(ConfigError, match=r"FSDP1's flat parameter.*use_orig_params=True"):
        param_groups(flat, roles=table, parameterization="mup", lr=1.0)
    zero = MLP(64)
    for parameter in zero.parameters():
        parameter.data = torch.empty(0)
        parameter.ds_id = 0
    with pytest.raises(ConfigError, match=r"ZeRO has taken it apart.*guard\(engine.optimizer\)"):
        param_groups(zero, roles=table, parameterization="mup", lr=1.0)
    for parameter, entry in zip(zero.parameters(), table, strict=True):
        parameter.ds_shape = entry.shape
    assert len(param_groups(zero, roles=table, parameterization="mup", lr=1.0)) == 2


def test_groups_carry_the_whole_rule():
    table = infer_roles(Plain, base_width=BASE, width=WIDTH)
    groups = param_groups(
        Plain(WIDTH), roles=table, parameterization="mup", lr=0.5, weight_decay=0.1, scale_eps=True
    )
    for group in groups:
        assert group["rule_weight_decay"] == group["weight_decay"]
        assert (group["tuned_lr"], group["rule_optimizer"]) == (0.5, "adamw")
    # Gradients before the readout fall as 1/m; the readout's own, and its bias's, do not.
    eps = {name: g["eps"] for g, names in zip(groups, groups.names, strict=True) for name in names}
    assert eps["table.weight"] == eps["mid.weight"] == eps["norm1.weight"] == 1e-8 / 4
    assert eps["head.weight"] == eps["head.bias"] == 1e-8
    lines = str(groups).splitlines()
    assert len(lines) == len(groups)
    assert "lr 0.5, wd 0.1, eps 2.5e-09, 1 tensors, 12,800 parameters" in lines[0]
    sp = param_groups(Plain(WIDTH), roles=table, parameterization="sp", lr=0.5, scale_eps=True)
    assert {g["eps"] for g in sp} == {1e-8 / 2, 1e-8}
    guard(torch.optim.AdamW(groups, lr=0.5)).remove()


def test_an_eps_that_holds_updates_back_is_said(caplog, monkeypatch):
    monkeypatch.setattr("hptransfer.adopt._param_groups._LOGGED", set())  # said once a process
    wide = infer_roles(Plain, base_width=BASE, width=8 * BASE)
    make = partial(param_groups, Plain(8 * BASE), roles=wide, lr=0.25)
    (note,) = make(parameterization="mup").notes
    assert "fall 8 times and eps stays 1e-08" in note
    # `coordinate-check` prints it too, where no Python is typed.
    assert "(scale_eps)" in note
    assert "=" not in note
    assert note in caplog.text
    for options in (
        {"eps": 1e-12},
        {"scale_eps": True},
        {"scale_eps": False},
        {"optimizer": "lion"},
    ):
        assert make(parameterization="mup", **options).notes == (), options
    assert make(parameterization="sp").notes == ()
    near = infer_roles(Plain, base_width=BASE, width=4 * BASE)
    assert param_groups(Plain(4 * BASE), roles=near, parameterization="mup", lr=0.25).notes == ()


class Experts(nn.Module):
    def __init__(self, d, f, n):
        super().__init__()
        self.w1, self.w2, self.w3 = (
            nn.Parameter(torch.randn(n, *s)) for s in ((f, d), (d, f), (f, d))
        )


def test_muon_says_what_it_takes():
    def factory(width):
        return nn.ModuleDict(
            {"table": nn.Embedding(64, width), "qkv": nn.Linear(width, 3 * width),
             "attn": Stated(width, out=64, n_heads=4), "experts": Experts(width, 2 * width, 4),
             "head": nn.Linear(width, 64)}
        )  # fmt: skip

    table = infer_roles(factory, base_width=64, width=128)
    groups = param_groups(
        factory(128), roles=table, parameterization="mup", lr=0.01, optimizer="muon", muon_lr=0.02
    )
    taken = {n for g, ns in zip(groups, groups.names, strict=True) for n in ns
             if g["optimizer"] == "muon"}  # fmt: skip
    assert taken == {"qkv.weight"}
    total = sum(p.numel() for g in groups for p in g["params"])
    share = 3 * 128 * 128 / total
    first, second, third, fourth = groups.notes
    assert f"Muon takes {100 * share:.3g} % of the parameters and AdamW" in first
    stacks = 100 * 3 * 4 * 128 * 256 / total
    assert f"experts.w1, experts.w2, experts.w3 ({stacks:.3g} % of the parameters) hold s" in second
    assert "attn.q.weight" in third
    assert f"qkv.weight ({100 * share:.3g} % of the parameters) hold queries, keys and" in fourth


def test_torchs_muon_takes_experts_and_heads_that_are_parameters_of_their_own():
    """Each expert and each head then has an update with singular values of about 1."""

    class Layer(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.table, self.head = nn.Embedding(32, width), nn.Linear(width, 32, bias=False)
            self.experts = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(3))
            self.heads = nn.ModuleList(nn.Linear(width, width // 4, bias=False) for _ in range(4))

        def forward(self, tokens):
            x = self.table(tokens)
            x = x + torch.cat([head(x) for head in self.heads], dim=-1)
            return self.head(x + sum(expert(x).relu() for expert in self.experts))

    table = infer_roles(Layer, base_width=32, width=64)
    model = Layer(64)
    groups = param_groups(
        model, roles=table, parameterization="mup", lr=0.01, optimizer="muon", muon_lr=0.02
    )
    assert len(groups.notes) == 1
    muon = torch.optim.Muon(
        [g for g in groups if g["optimizer"] == "muon"], lr=0.02, weight_decay=0.0
    )
    matrices = [*model.experts, *model.heads]
    assert {id(p) for g in muon.param_groups for p in g["params"]} == {
        id(m.weight) for m in matrices
    }
    before = [m.weight.detach().clone() for m in matrices]
    model(torch.arange(32)).square().mean().backward()
    muon.step()
    for earlier, module in zip(before, matrices, strict=True):
        update = (module.weight.detach() - earlier) / 0.02
        assert torch.linalg.matrix_norm(update, ord=2) == pytest.approx(1.0, abs=0.3)


@pytest.mark.parametrize(
    ("semantics", "times"), [("lr", 1), ("relative", None), ("independent", None)]
)
def test_weight_decay_by_what_it_means_to_the_optimizer(semantics, times):
    table = infer_roles(Plain, base_width=BASE, width=WIDTH)
    options = {"roles": table, "parameterization": "mup", "lr": 0.5, "weight_decay": 0.25}
    plain = param_groups(Plain(WIDTH), **options)
    groups = param_groups(Plain(WIDTH), decay_semantics=semantics, **options)
    for one, other in zip(plain, groups, strict=True):
        shrink = one["lr"] * one["weight_decay"]
        assert other["weight_decay"] == (one["weight_decay"] if times else shrink)
    with pytest.raises(ConfigError, match="decay_semantics: expected one of lr, relative"):
        param_groups(Plain(WIDTH), decay_semantics="coupled", **options)


def test_a_table_read_back_is_the_same():
    table = infer_roles(TwoTowers, base_width=64, width=256)
    assert RoleTable.from_json(table.to_json()) == dataclasses.replace(table, factory=None)
