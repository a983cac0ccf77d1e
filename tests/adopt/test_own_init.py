"""What `init_` keeps of a model, what it says, and that memory decides nothing."""

import copy
import dataclasses
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from adopt.authors import (
    MODULATED_ROLES,
    VOCAB,
    Deep,
    Modulated,
    Plain,
    Seeded,
    StateSpace,
    Unset,
)
from adopt.models import Transformer
from hptransfer.adopt import RoleTable, audit, infer_roles, init_
from hptransfer.adopt._own_init import measure_own_init
from hptransfer.errors import ConfigError

BASE, WIDTH = 64, 256
STATE_ROLES = {"layers.*.A_log": "other", "layers.*.D": "other"}


def make(factory, roles=None, **options):
    """Return a model before and after ``init_``, and the report."""
    table = infer_roles(factory, base_width=BASE, width=WIDTH, roles=roles)
    torch.manual_seed(0)
    model = factory(WIDTH)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    settings = {"parameterization": "mup", "seed": 0, "verbose": False} | options
    report = init_(model, roles=table, **settings)
    return before, model, report


def same(before, model, name):
    return torch.equal(before[name], model.get_parameter(name))


@pytest.mark.parametrize(
    "name",
    [
        "pos_embed", "modulation.weight", "gate.bias", "identity.weight", "q_norm.weight",
        "plus_one_norm.weight", "ls.gamma", "grn.weight", "grn.bias", "mix.time_mix_key",
        "temperature", "residual_gains", "final.weight",
    ],
)  # fmt: skip
def test_what_the_author_set_stays(name):
    before, model, report = make(Modulated, MODULATED_ROLES)
    assert same(before, model, name)
    kinds = [change.kind for change in report.changes if name in change.names]
    assert len(kinds) == 1
    assert not same(before, model, "patch.weight")
    assert not same(before, model, "gate.weight")


def test_the_report_has_one_line_for_each_kind():
    _, _, report = make(Modulated, MODULATED_ROLES)
    assert report.find("frozen") == ("pos_embed",)
    assert set(report.find("zeros")) == {"modulation.weight", "final.weight"}
    assert set(report.find("constants")) == {
        "gate.bias", "q_norm.weight", "ls.gamma", "temperature",
    }  # fmt: skip
    assert set(report.find("values")) == {"identity.weight", "residual_gains", "mix.time_mix_key"}
    lines = str(report).splitlines()
    assert len(lines) == len(report.changes)
    assert "init_: kept frozen: pos_embed" in lines
    assert any(line.startswith("init_: kept at 0, as the model starts them: ") for line in lines)
    assert report.find("nothing") == ()


def test_it_prints_what_it_did(capsys):
    make(Plain)
    assert capsys.readouterr().out == ""
    _, _, report = make(Plain, verbose=True)
    assert capsys.readouterr().out == f"{report}\n"


def test_a_state_space_keeps_its_steps_decays_and_skips():
    before, model, _ = make(StateSpace, STATE_ROLES)
    for layer in (0, 1):
        for leaf in ("dt_proj.bias", "A_log", "D"):
            assert same(before, model, f"layers.{layer}.{leaf}")
    # Told as a gain, its values stay all the same.
    before, model, _ = make(StateSpace, dict.fromkeys(STATE_ROLES, "norm"))
    assert same(before, model, "layers.0.A_log")


@pytest.mark.parametrize("fill", [0.0, 1e-38, 1e30, math.nan, None])
@pytest.mark.parametrize("factory", [Plain, Modulated, StateSpace])
def test_memory_decides_nothing(factory, fill):
    roles = {Modulated: MODULATED_ROLES, StateSpace: STATE_ROLES}.get(factory)
    table = infer_roles(factory, base_width=BASE, width=WIDTH, roles=roles)
    with torch.device("meta"):
        model = factory(WIDTH)
    model.to_empty(device="cpu")
    if fill is not None:
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                tensor.fill_(fill)
    report = init_(model, roles=table, parameterization="mup", seed=0, verbose=False)
    before, expected, _ = make(factory, roles)
    for name, parameter in expected.named_parameters():
        found = model.get_parameter(name)
        if name.endswith("dt_proj.bias"):  # random, and of the author's own law
            for end in (torch.min, torch.max):
                assert end(found).item() == pytest.approx(end(before[name]).item(), abs=0.5)
        else:
            assert torch.equal(found, parameter), name
    if factory is Plain and fill is not None:
        assert report.find("buffers") == ("scale_table",)
        assert "buffers that do not hold what the constructor writes" in str(report)


def test_a_constant_that_goes_with_width_is_the_authors_too():
    class Scaled(Plain):
        def __init__(self, width):
            super().__init__(width)
            self.scale = nn.Parameter(torch.tensor(width**-0.5))

    table = infer_roles(Scaled, base_width=BASE, width=WIDTH, roles={"scale": "other"})
    for fill in (None, 0.3):
        model = Scaled(WIDTH)
        if fill:
            with torch.no_grad():
                model.scale.fill_(fill)
        init_(model, roles=table, parameterization="mup", verbose=False)
        assert model.scale.item() == pytest.approx(WIDTH**-0.5)


def test_stale_memory_of_other_weights_is_not_taken_for_the_authors():
    table = infer_roles(Modulated, base_width=BASE, width=WIDTH, roles=MODULATED_ROLES)
    model, expected = Modulated(WIDTH), Modulated(WIDTH)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
    init_(model, roles=table, parameterization="mup", verbose=False)
    for name in ("pos_embed", "identity.weight", "mix.time_mix_key", "gate.bias", "temperature"):
        assert torch.equal(model.get_parameter(name), expected.get_parameter(name)), name


def test_buffers_that_are_right_are_not_named():
    assert make(Plain)[2].find("buffers") == ()


def test_a_few_numbers_that_go_with_the_heads_are_right_at_every_width():
    """ALiBi's slopes: two of them at the base width, and wider than those at twice it."""

    class Slopes(Plain):
        def __init__(self, width):
            super().__init__(width)
            heads = width // 16
            self.register_buffer("slopes", 2.0 ** (-8 * torch.arange(1, heads + 1) / heads))

    for width in (64, 256):
        table = infer_roles(Slopes, base_width=32, width=width)
        model = Slopes(width)
        right = init_(model, roles=table, parameterization="mup", verbose=False)
        model.slopes.fill_(1e30)
        wrong = init_(model, roles=table, parameterization="mup", verbose=False)
        assert (right.find("buffers"), wrong.find("buffers")) == ((), ("slopes",))


def test_a_second_look_that_fails_leaves_a_warning(monkeypatch):
    """At half the width, which a large model is looked at, this factory raises."""

    class Slopes(Plain):
        def __init__(self, width):
            super().__init__(width)
            heads = {64: 2, 256: 8}[width]
            self.register_buffer("slopes", 2.0 ** (-8 * torch.arange(1, heads + 1) / heads))

    table = infer_roles(Slopes, base_width=64, width=256)
    most = sum(p.numel() for p in Slopes(64).parameters())
    monkeypatch.setattr("hptransfer.adopt._own_init.MAX_PARAMETERS", most)
    model = Slopes(256)
    model.slopes.fill_(1e30)
    report = init_(model, roles=table, parameterization="mup", verbose=False)
    assert report.find("buffers") == ("slopes",)


def test_garbage_in_the_buffers_of_a_wrapped_model_is_named():
    table = infer_roles(Plain, base_width=BASE, width=WIDTH)
    model = nn.DataParallel(Plain(WIDTH))
    model.module.scale_table.fill_(1e30)
    report = init_(model, roles=table, parameterization="mup", verbose=False)
    assert report.find("buffers") == ("scale_table",)


def test_memory_that_the_constructor_leaves_unset_is_drawn():
    for _ in range(2):
        _, model, report = make(Unset)
        assert set(report.find("unset")) == {"up", "down"}
        assert model.up.std().item() == pytest.approx(WIDTH**-0.5, rel=0.05)


def test_a_constructor_with_a_seed_of_its_own_is_drawn_over():
    before, model, report = make(Seeded)
    assert set(report.find("drawn")) == {"table.weight", "mid.weight", "head.weight"}
    assert not same(before, model, "mid.weight")


@pytest.mark.parametrize("size", [16, 24, 40, 64])
def test_few_values_of_noise_are_noise(size):
    def biases(width):
        made = [nn.Linear(9, size * width // BASE) for _ in range(200)]
        return nn.ModuleDict({"many": nn.ModuleList(made), "head": nn.Linear(width, 3)})

    table = infer_roles(biases, base_width=BASE, width=WIDTH)
    report = init_(biases(WIDTH), roles=table, parameterization="mup", verbose=False)
    assert report.find("values") == ()


class Steps(nn.Module):
    """Mamba-2's heads of a fixed size, each with a step size of its own, log-uniform."""

    def __init__(self, width, size, layers):
        super().__init__()
        self.table, self.head = nn.Embedding(VOCAB, width), nn.Linear(width, VOCAB)
        self.layers = nn.ModuleList(nn.Module() for _ in range(layers))
        for layer in self.layers:
            step = torch.exp(torch.rand(width // size) * math.log(100) + math.log(1e-3))
            layer.dt_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))


@pytest.mark.parametrize("heads", [2, 4])
@pytest.mark.parametrize("layers", [1, 4, 100])
def test_few_values_with_a_mean_are_the_authors(heads, layers):
    factory = partial(Steps, size=BASE // heads, layers=layers)
    names = {f"layers.{k}.dt_bias" for k in range(layers)}
    before, model, report = make(factory, {"layers.*.dt_bias": "bias"})
    assert set(report.find("values")) == names
    assert all(same(before, model, name) for name in names)


def test_few_values_of_noise_are_noise_in_all_layers_together():
    def biases(width):
        made = [nn.Linear(9, 8 * width // BASE) for _ in range(50)]
        return nn.ModuleDict({"many": nn.ModuleList(made), "head": nn.Linear(width, 3)})

    _, model, report = make(biases)
    assert report.find("values") == ()
    assert not any(layer.bias.any() for layer in model["many"])


def test_the_biases_of_a_head_of_two_outputs_are_noise():
    def classifier(width):
        return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))

    for base in range(8, 136, 2):
        own = measure_own_init(classifier, base)
        assert own.parameters["2.bias"].kind == "noise", base


def test_one_random_number_for_all_is_the_authors():
    class Signed(nn.Module):
        def __init__(self, width):
            super().__init__()
            sign = 1.0 if torch.rand(1) <= 0.5 else -1.0
            self.signs = nn.Parameter(torch.full((width,), sign))
            self.table, self.head = nn.Embedding(VOCAB, width), nn.Linear(width, VOCAB)

    _, model, report = make(Signed, {"signs": "norm"})
    assert report.find("values") + report.find("restored") == ("signs",)
    assert abs(model.signs.sum().item()) == WIDTH
    audit(Signed, base_width=BASE, width=WIDTH, roles={"signs": "norm"})


def test_keep_and_reset():
    before, model, report = make(Modulated, MODULATED_ROLES, keep="gate.*", reset=["final.weight"])
    assert same(before, model, "gate.weight")
    assert same(before, model, "gate.bias")
    assert set(report.find("kept")) == {"gate.weight", "gate.bias"}
    assert model.final.weight.std().item() == pytest.approx(BASE**-0.5 / 4, rel=0.1)
    _, model, _ = make(Modulated, MODULATED_ROLES, reset=["ls.gamma", "gate.bias"])
    assert torch.equal(model.ls.gamma, torch.ones(WIDTH))
    assert not model.gate.bias.any()
    with pytest.raises(ConfigError, match="keep: 'gat' names no parameter"):
        make(Modulated, MODULATED_ROLES, keep="gat")


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("per_layer", [True, False])
def test_scalings_with_depth_that_the_own_init_shows_stay(per_layer, constant):
    factory = partial(Deep, per_layer=per_layer, constant=constant)
    _, model, report = make(factory)
    for k, block in enumerate(model.h):
        depth = k + 1 if per_layer else 6
        wanted = (2 * depth) ** -0.5 * (4 * WIDTH) ** -0.5
        assert block["proj"].weight.std().item() == pytest.approx(wanted, rel=0.03)
        assert block["fc"].weight.std().item() == pytest.approx(WIDTH**-0.5, rel=0.03)
    assert set(report.find("depth")) == {f"h.{k}.proj.weight" for k in range(6)}
    # What the caller says goes before.
    _, model, report = make(factory, base_std={"hidden": 0.02})
    assert model.h[3]["proj"].weight.std().item() == pytest.approx(0.02 / 2, rel=0.03)
    assert report.find("depth") == ()


def test_no_depth_is_seen_where_there_is_none():
    _, _, report = make(Transformer)
    assert report.find("depth") == ()


class Tied(nn.Module):
    def __init__(self, width, std=0.02, scale=True):
        super().__init__()
        self.factor = BASE / width if scale else 1.0
        self.table, self.mid = nn.Embedding(VOCAB, width), nn.Linear(width, width, bias=False)
        nn.init.normal_(self.table.weight, std=std)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCAB, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens):
        x = self.table(tokens)
        x = self.norm(x + self.mid(F.layer_norm(x, x.shape[-1:])))
        return self.factor * self.head(x)


@pytest.mark.parametrize(("std", "expected"), [(0.02, 0.02), (1.0, BASE**-0.5)])
def test_a_tied_tables_first_loss_is_near_ln_v(std, expected):
    applied = {"applied": {"readout_multiplier"}}
    _, model, _ = make(partial(Tied, std=std), **applied)
    assert model.table.weight.std().item() == pytest.approx(expected, rel=0.05)
    tokens = torch.randint(VOCAB, (8, 17), generator=torch.Generator().manual_seed(0))
    loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(VOCAB), abs=0.5)
    _, model, _ = make(partial(Tied, std=std), base_std={"table.weight": 0.5}, **applied)
    assert model.table.weight.std().item() == pytest.approx(0.5, rel=0.05)


def test_rescaling_multiplies_the_models_own_weights():
    def own(width):
        model = Modulated(width)
        nn.init.normal_(model.gate.weight, std=0.02)  # constant in width
        nn.init.normal_(model.final.weight, std=0.02)
        return model

    before, model, report = make(own, MODULATED_ROLES, mode="rescale")
    # w_own(n) · [σ_rule(n)/σ_rule(n₀)] · [σ_own(n₀)/σ_own(n)]: hidden as m^-1/2, readout as 1/m.
    for name, factor in (("gate.weight", 0.5), ("final.weight", 0.25)):
        found, own_values = model.get_parameter(name), before[name]
        ratio = found / own_values
        assert ratio.std() < 1e-4 * ratio.mean()
        assert found.std().item() == pytest.approx(0.02 * factor, rel=0.1)
    for name in ("pos_embed", "gate.bias", "modulation.weight", "q_norm.weight", "temperature"):
        assert same(before, model, name)
    # A bias of plain noise is the model's own too.
    assert same(before, model, "patch.bias")
    assert set(report.find("rescaled")) == {"patch.weight", "gate.weight", "final.weight"}
    once = {name: p.detach().clone() for name, p in model.named_parameters()}
    table = infer_roles(own, base_width=BASE, width=WIDTH, roles=MODULATED_ROLES)
    init_(model, roles=table, parameterization="mup", mode="rescale", verbose=False)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, once[name], rtol=1e-3, atol=0)


def test_rescaling_as_the_package_mup_does():
    mup = pytest.importorskip("mup", reason="the package mup is not installed")

    class Readout(nn.Module):
        def __init__(self, width, theirs):
            super().__init__()
            self.first, self.mid = nn.Linear(5, width), nn.Linear(width, width)
            self.last = mup.MuReadout(width, 3) if theirs else nn.Linear(width, 3)

    torch.manual_seed(0)
    theirs = Readout(WIDTH, True)
    ours = Readout(WIDTH, False)
    ours.load_state_dict(theirs.state_dict())
    mup.set_base_shapes(theirs, Readout(BASE, True), delta=Readout(2 * BASE, True))
    factory = partial(Readout, theirs=False)
    table = infer_roles(factory, base_width=BASE, width=WIDTH)
    init_(ours, roles=table, parameterization="mup", mode="rescale", verbose=False)
    multiplier = 1 / theirs.last.width_mult()
    for name, factor in (("first.weight", 1), ("mid.weight", 1), ("last.weight", multiplier)):
        expected, found = theirs.get_parameter(name) * factor, ours.get_parameter(name)
        # The std at the base width is measured: small tensors' by a few per cent.
        torch.testing.assert_close(found / found.std(), expected / expected.std())
        assert found.std().item() == pytest.approx(expected.std().item(), rel=0.1)


def test_refusals_are_one_line(monkeypatch):
    table = infer_roles(Plain, base_width=BASE, width=WIDTH)
    read = RoleTable.from_json(table.to_json())
    model = Plain(WIDTH)
    options = {"parameterization": "mup", "verbose": False}
    with pytest.raises(ConfigError, match=r"knows no factory .* factory=make_model"):
        init_(model, roles=read, **options)
    init_(model, roles=read, factory=Plain, **options)
    with pytest.raises(ConfigError, match="mode: expected one of draw, rescale"):
        init_(model, roles=table, mode="scale", **options)
    with torch.no_grad():
        model.mid.weight.zero_()
    with pytest.raises(ConfigError, match=r"'mid.weight' holds none .*mode='draw'"):
        init_(model, roles=table, mode="rescale", **options)
    with pytest.raises(ConfigError, match="leaves 'up' unset"):
        make(Unset, mode="rescale")
    with pytest.raises(ConfigError, match="roles: expected the table that infer_roles returns"):
        init_(model, **options)
    roles = infer_roles(StateSpace, base_width=BASE, width=WIDTH, roles=STATE_ROLES)
    empty = StateSpace(WIDTH)
    with torch.no_grad():
        empty.layers[0].A_log.zero_()
    monkeypatch.setattr("hptransfer.adopt._model_init.MAX_PARAMETERS", 10)
    with pytest.raises(ConfigError, match=r"'layers.0.A_log' .* keep='layers.0.A_log'"):
        init_(empty, roles=roles, **options)


def test_a_part_of_a_model():
    table = infer_roles(Plain, base_width=BASE, width=WIDTH)
    stage = Plain(WIDTH)
    del stage.head, stage.norm2
    init_(stage, roles=table, parameterization="mup", partial=True, verbose=False)
    _, whole, _ = make(Plain)
    assert torch.equal(stage.mid.weight, whole.mid.weight)
    same_table = dataclasses.replace(table, parameters=table.parameters[:5])
    assert same_table.factory is Plain


class NearZero(nn.Module):
    """A gate and tokens that start next to 0, a tiny policy, and a frozen copy that lags behind."""

    def __init__(self, width):
        super().__init__()
        self.first = nn.Linear(5, width)
        self.online, self.prefix = nn.Linear(width, width), nn.Parameter(torch.randn(1, width))
        self.register_tokens = nn.Parameter(torch.randn(1, 4, width) * 1e-6)
        self.gate, self.policy = nn.Linear(width, width), nn.Linear(width, 3)
        nn.init.normal_(self.gate.weight, std=1e-5)
        nn.init.orthogonal_(self.policy.weight, 0.01)
        self.target = copy.deepcopy(self.online).requires_grad_(False)


@pytest.mark.parametrize("mode", ["draw", "rescale"])
def test_noise_next_to_0_stays_and_frozen_copies_stay_copies(mode):
    before, model, report = make(NearZero, {"prefix": "other"}, mode=mode)
    assert set(report.find("values")) >= {"prefix", "register_tokens", "gate.weight"}
    for name in ("prefix", "register_tokens", "gate.weight"):
        assert same(before, model, name)
    assert report.find("copies") == ("target.weight",)
    assert torch.equal(model.target.weight, model.online.weight)


def test_matrices_of_another_size_than_the_rules_are_named():
    _, _, report = make(NearZero, {"prefix": "other"})
    assert report.find("far") == ("policy.weight",)
    assert "WARNING: the model's own matrices are of another size" in str(report)
    assert "(×0.01 the rule's): policy.weight" in str(report)
    for options in ({"base_std": {"policy.weight": 1e-3}}, {"keep": "policy.weight"}):
        _, _, quiet = make(NearZero, {"prefix": "other"}, **options)
        assert not quiet.find("far")


def test_more_draws_of_one_noise_reach_further():
    """Of 64 values the largest are below those of 256 more often than not."""
    own = measure_own_init(NearZero, BASE).parameters["prefix"]
    assert all(own.holds(torch.randn(1, 4096) * std) for std in (0.5, 1.0, 2.0))
    assert not own.holds(torch.randn(1, 4096) * 20)
