"""Kinds of models that people write: right rates by hand, initial weights that are the rule's."""

import re
import warnings
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from adopt.models import Block
from hptransfer.adopt import (
    UnclearRolesError,
    audit,
    coordinate_check,
    infer_roles,
    init_,
    make_token_batches,
    param_groups,
    rule_optimizer,
)
from hptransfer.errors import ConfigError

VOCAB, BASE, WIDTH, LR = 11, 64, 256, 2**-8
M = WIDTH // BASE


def old_weight_norm(module):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return weight_norm(module)


class Wrapped(nn.Module):
    """A decoder whose linear layers outside attention are parametrized."""

    def __init__(self, width, wrap=parametrizations.weight_norm, *, readout=True):
        super().__init__()
        self.table = nn.Embedding(VOCAB, width)
        self.norm, self.up = nn.LayerNorm(width), wrap(nn.Linear(width, 2 * width))
        self.down = wrap(nn.Linear(2 * width, width))
        head = nn.Linear(width, VOCAB, bias=False)
        self.head = wrap(head) if readout else head

    def forward(self, tokens):
        x = self.table(tokens)
        return self.head(x + self.down(torch.relu(self.up(self.norm(x)))))


class LowRank(nn.Module):
    """A matrix and two factors beside it, kept as F.linear does or as x @ W does."""

    def __init__(self, width, *, transposed=False, rank=4):
        super().__init__()
        self.first = nn.Linear(5, width)
        self.base = nn.Linear(width, 2 * width, bias=False)
        a, b = (width, rank), (rank, 2 * width)
        self.lora_A = nn.Parameter(torch.randn(a if transposed else a[::-1]) * width**-0.5)
        self.lora_B = nn.Parameter(torch.zeros(b if transposed else b[::-1]))
        self.last = nn.Linear(2 * width, 3)


class Squeezed(nn.Module):
    """The same of modules: the first one's outputs do not grow, and it is no readout."""

    def __init__(self, width):
        super().__init__()
        self.first = nn.Linear(5, width)
        self.adapter = nn.ModuleDict({"into": nn.Linear(width, 4), "back": nn.Linear(4, width)})
        self.last = nn.Linear(width, 3)


class Experts(nn.Module):
    """Stacks of experts with biases that no name tells, a router and a buffer that balances it."""

    def __init__(self, width, num_experts=4):
        super().__init__()
        self.table = nn.Embedding(VOCAB, width)
        self.router = nn.Linear(width, num_experts)
        self.register_buffer("balance", torch.zeros(num_experts))
        self.w1 = nn.Parameter(torch.randn(num_experts, width, 2 * width) * width**-0.5)
        self.b1 = nn.Parameter(torch.zeros(num_experts, 2 * width))
        self.w2 = nn.Parameter(torch.randn(num_experts, 2 * width, width) * width**-0.5)
        self.b2 = nn.Parameter(torch.zeros(num_experts, width))
        self.head = nn.Linear(width, VOCAB, bias=False)


class Spectral(nn.Module):
    """A Fourier layer: complex kernels of (in, out, modes), beside pointwise convolutions."""

    def __init__(self, width, modes=4):
        super().__init__()
        self.modes = modes
        self.lift, self.project = nn.Linear(1, width), nn.Linear(width, 1)
        values = torch.randn(width, width, modes, dtype=torch.cfloat) * width**-0.5
        self.kernel = nn.Parameter(values)
        self.skip = nn.Conv1d(width, width, 1)

    def forward(self, x):
        x = self.lift(x).transpose(1, 2)
        modes = torch.fft.rfft(x)[..., : self.modes]
        x = torch.fft.irfft(torch.einsum("bim,iom->bom", modes, self.kernel), n=x.shape[-1])
        return self.project(F.gelu(x + self.skip(x)).transpose(1, 2))


class Positions(nn.Module):
    """More positions than words, and a table of relative positions with a row for each pair."""

    def __init__(self, width):
        super().__init__()
        self.wpe, self.wte = nn.Embedding(64, width), nn.Embedding(VOCAB, width)
        self.relative = nn.Embedding(99, width // 8)
        self.block, self.head = Block(width), nn.Linear(width, VOCAB, bias=False)

    def forward(self, tokens):
        positions = torch.arange(tokens.shape[1])
        return self.head(self.block(self.wte(tokens) + self.wpe(positions)))


class Scaled(nn.Module):
    """A table times a power of the width, as in Gemma and the first Transformer."""

    def __init__(self, width, power=0.5):
        super().__init__()
        self.scale = width**power
        self.table, self.block = nn.Embedding(VOCAB, width), Block(width)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCAB, bias=False)

    def forward(self, tokens):
        return self.head(self.norm(self.block(self.table(tokens) * self.scale)))


class Twice(nn.Module):
    """One block used three times, a small table tied to the readout, as in ALBERT."""

    def __init__(self, width):
        super().__init__()
        self.table, self.into = nn.Embedding(VOCAB, 8), nn.Linear(8, width)
        self.layers = nn.ModuleList([Block(width)] * 3)
        self.back, self.decoder = nn.Linear(width, 8), nn.Linear(8, VOCAB, bias=False)
        self.decoder.weight = self.table.weight


class Vision(nn.Module):
    """Patches by a convolution, a class token, learned positions and torch's encoder layers."""

    def __init__(self, width):
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, 17, width) * 0.02)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, width // 16, 2 * width, batch_first=True)
            for _ in range(2)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)


def product(width):
    """Return a model with a bilinear layer, whose outputs sum over width² products."""
    layers = {"first": nn.Linear(5, width), "pair": nn.Bilinear(width, width, width)}
    return nn.ModuleDict(layers | {"last": nn.Linear(width, 3)})


def find_roles(factory):
    """Return the roles, what is asked, and the learning rates over η of param_groups by name."""
    told = {}
    try:
        table = infer_roles(factory, base_width=BASE, width=WIDTH)
    except UnclearRolesError as error:
        told = error.suggestions
        table = infer_roles(factory, base_width=BASE, width=WIDTH, roles=told)
    groups = param_groups(
        factory(WIDTH), roles=table, parameterization="mup", lr=LR, weight_decay=0.1
    )
    lrs = {
        name: g["lr"] / LR for g, names in zip(groups, groups.names, strict=True) for name in names
    }
    decayed = {
        name
        for g, names in zip(groups, groups.names, strict=True)
        for name in names
        if g["weight_decay"]
    }
    return table, told, lrs, decayed


def by_hand(lrs, *falling, power=-1):
    """Tell whether the named parameters' rates fall as m^power and all others' stay."""
    assert set(falling) <= set(lrs)
    return lrs == {name: pytest.approx(M**power if name in falling else 1) for name in lrs}


def check(factory, rule="mup", *, batches=None, loss=None, **options):
    """Return a coordinate check of a rule at four widths; of token sequences by default."""
    if batches is None:
        batches, loss = make_token_batches(factory, 32)
    return coordinate_check(
        factory,
        [32, 64, 128, 256],
        optimizer=rule_optimizer(factory, base_width=32, parameterization=rule, lr=LR, **options),
        batches=batches,
        loss=loss,
        seeds=(0,),
    )


WEIGHT_NORMS = {
    "parametrized": (parametrizations.weight_norm, "{}.parametrizations.weight.original{}"),
    "old": (old_weight_norm, "{}.weight_{}"),
}


@pytest.mark.parametrize("kind", WEIGHT_NORMS)
def test_weight_norm_is_read_through(kind):
    wrap, pattern = WEIGHT_NORMS[kind]
    parts = "01" if kind == "parametrized" else "gv"

    def name(path, part):
        return pattern.format(path, parts[part])

    def make(width):
        return Wrapped(width, wrap)

    table, told, lrs, decayed = find_roles(make)
    assert told == {name("head", 0): "norm"}  # no rule speaks of a readout's gain
    matrices = [name(path, 1) for path in ("up", "down", "head")]
    assert by_hand(lrs, *matrices)
    assert decayed == {"table.weight", *matrices}
    assert [table[each].role for each in matrices] == ["hidden", "hidden", "readout"]
    model = make(WIDTH)
    report = init_(model, roles=table, parameterization="mup", verbose=False)
    assert set(report.find("gains")) == {name(path, 0) for path in ("up", "down", "head")}
    assert not report.find("behind")
    model(torch.zeros(1, 2, dtype=torch.long))  # the older one makes its weights when it is called
    for path, std in (("up", WIDTH**-0.5), ("down", (2 * WIDTH) ** -0.5), ("head", M**-1 / 8)):
        weight = model.get_submodule(path).weight.detach()
        assert float(weight.std()) == pytest.approx(std, rel=0.05)


def test_weight_norms_gain_is_rescaled_with_its_weight():
    def make(width):
        return Wrapped(width, readout=False)

    table, _, _, _ = find_roles(make)
    model = make(WIDTH)
    before = model.up.weight.detach().clone(), model.head.weight.detach().clone()
    init_(model, roles=table, parameterization="mup", mode="rescale", verbose=False)
    for module, old, factor in ((model.up, before[0], 1.0), (model.head, before[1], M**-0.5)):
        assert float(module.weight.detach().std() / old.std()) == pytest.approx(factor, rel=0.1)


def test_a_parametrization_that_sets_the_size_is_said():
    def make(width):
        return Wrapped(width, parametrizations.spectral_norm)

    table, told, lrs, _ = find_roles(make)
    matrices = [f"{path}.parametrizations.weight.original" for path in ("up", "down", "head")]
    assert not told
    assert by_hand(lrs, *matrices)
    model = make(WIDTH)
    report = init_(model, roles=table, parameterization="mup", verbose=False)
    assert set(report.find("behind")) == set(matrices)
    assert re.search(r"another std than the rule's, namely 0\.0\d+(, 0\.\d+)*: ", str(report))
    # Its own iterations fit what was drawn: the weights' norms are 1 at once.
    made = [module.weight.detach() for module in (model.eval().up, model.head)]
    norms = [float(torch.linalg.matrix_norm(each, 2)) for each in made]
    assert norms == pytest.approx([1.0, 1.0], rel=0.05)


def prune_some(module):
    return prune.l1_unstructured(module, "weight", 0.25)


@pytest.mark.parametrize("wrap", [spectral_norm, prune_some])
def test_what_older_hooks_make_is_the_modules_weight(wrap):
    def make(width):
        return Wrapped(width, wrap)

    table, told, lrs, _ = find_roles(make)
    matrices = [f"{path}.weight_orig" for path in ("up", "down", "head")]
    assert not told
    assert by_hand(lrs, *matrices)
    assert [table[each].role for each in matrices] == ["hidden", "hidden", "readout"]
    report = init_(make(WIDTH), roles=table, parameterization="mup", verbose=False)
    assert set(report.find("behind")) == (set(matrices) if wrap is spectral_norm else set())


@pytest.mark.parametrize("wrap", [spectral_norm, parametrizations.spectral_norm])
def test_a_readout_of_a_size_of_its_own_is_named(wrap, caplog, monkeypatch):
    monkeypatch.setattr("hptransfer.adopt._param_groups._LOGGED", set())  # said once a process

    def make(width):
        return Wrapped(width, wrap)

    table, _, _, _ = find_roles(make)
    (head,) = (each.name for each in table if each.role == "readout")
    caplog.clear()
    (note,) = param_groups(make(WIDTH), roles=table, parameterization="mup", lr=LR).notes
    assert f"sets the size of the weights of {head}, so" in note
    plain = infer_roles(Wrapped, base_width=BASE, width=WIDTH, roles={"head.*original0": "norm"})
    assert param_groups(Wrapped(WIDTH), roles=plain, parameterization="mup", lr=LR).notes == ()
    init_(make(WIDTH), roles=table, parameterization="mup", verbose=False)
    (said,) = [r.message for r in caplog.records if "another std than the rule's" in r.message]
    assert head in said


def test_the_check_looks_at_parametrized_modules_and_not_at_their_weights():
    def make(width):
        return Wrapped(width, readout=False)

    found = check(make)
    assert [module.name for module in found.modules] == ["table", "norm", "up", "down", "head"]
    assert found.passed
    assert not found.unseen
    assert found["head"].own_change is not None


@pytest.mark.parametrize("transposed", [False, True])
def test_low_rank_factors(transposed):
    table, told, lrs, _ = find_roles(lambda width: LowRank(width, transposed=transposed))
    role = "hidden:transposed" if transposed else "hidden"
    assert told == {"lora_A": role, "lora_B": role}
    assert by_hand(lrs, "base.weight", "lora_A", "last.weight")
    model = LowRank(WIDTH, transposed=transposed)
    init_(model, roles=table, parameterization="mup", verbose=False)
    assert float(model.lora_A.detach().std()) == pytest.approx(WIDTH**-0.5, rel=0.1)
    assert not model.lora_B.any()


def test_a_low_rank_factor_that_is_parametrized_is_asked_about():
    def make(width):
        model = LowRank(width)
        parametrize.register_parametrization(model, "lora_A", nn.Identity())
        return model

    _, told, _, _ = find_roles(make)
    assert "parametrizations.lora_A.original" in told


def test_low_rank_modules():
    _, told, lrs, _ = find_roles(Squeezed)
    assert told == {"adapter.into.weight": "hidden"}
    assert by_hand(lrs, "adapter.into.weight", "last.weight")


def test_adapters_on_a_frozen_model():
    def make(width):
        model = Squeezed(width)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith("adapter."))
        return model

    def optimizer(model):
        return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR)

    roles = {"adapter.into.weight": "hidden"}
    found = audit(make, base_width=BASE, width=WIDTH, optimizer=optimizer, roles=roles)
    assert found.embedding.verdict.startswith("what multiplies inputs of a fixed size is held back")
    assert "'adapter" in found.embedding.fix


def test_biases_of_experts():
    table, told, lrs, decayed = find_roles(Experts)
    assert told == {"b1": "bias", "b2": "bias", "router.weight": "readout"}
    assert by_hand(lrs, "w1", "w2", "router.weight", "head.weight")
    assert not {"b1", "b2", "router.bias"} & decayed
    assert table["w1"].transposed
    assert table["w2"].fan_in == 2 * WIDTH


def test_complex_kernels_sum_over_their_inputs_alone():
    table, told, lrs, _ = find_roles(Spectral)
    assert told == {"kernel": "hidden"}
    assert by_hand(lrs, "kernel", "skip.weight", "project.weight")
    model = Spectral(WIDTH)
    init_(model, roles=table, parameterization="mup", verbose=False)
    kernel = model.kernel.detach()
    assert float(kernel.abs().square().mean()) == pytest.approx(1 / WIDTH, rel=0.05)
    assert float(kernel.real.std() / kernel.imag.std()) == pytest.approx(1.0, rel=0.05)
    found = audit(Spectral, base_width=BASE, width=WIDTH, roles=told)
    assert [each.kind for each in found.warnings] == ["decayed"]


def test_a_single_bias_that_is_drawn_is_a_bias():
    model = Spectral(WIDTH)
    table, _, _, _ = find_roles(Spectral)
    report = init_(model, roles=table, parameterization="mup", verbose=False)
    assert not model.project.bias.any()
    assert not report.find("restored")


def test_the_vocabulary_is_not_the_largest_table():
    _, told, lrs, _ = find_roles(Positions)
    assert not told
    assert lrs["head.weight"] == 1 / M
    assert lrs["relative.weight"] == 1
    batches, _ = make_token_batches(Positions, BASE)
    assert max(int(batch.max()) for batch in batches) < VOCAB


@pytest.mark.parametrize(("power", "passes"), [(0.0, True), (0.5, False)])
def test_a_table_is_judged_behind_its_multiplier(power, passes):
    found = check(partial(Scaled, power=power))
    assert found.passed == found["table"].passed == passes
    assert found["table"].change_slope.value == pytest.approx(power, abs=0.1)


def test_layers_used_twice_stand_once():
    table, told, lrs, _ = find_roles(Twice)
    assert not told
    assert table["layers.2.up.weight"].name == "layers.0.up.weight"
    assert table["table.weight"].role == "tied"
    assert table["back.weight"].role == "readout"
    matrices = [entry.name for entry in table if entry.role in ("hidden", "readout")]
    assert by_hand(lrs, *matrices)
    assert len(matrices) == 7


def test_a_vision_transformer():
    table, told, lrs, _ = find_roles(Vision)
    hidden = ("self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight",
              "linear2.weight")  # fmt: skip
    layers = [f"blocks.{k}.{name}" for k in range(2) for name in hidden]
    assert not told
    assert by_hand(lrs, *layers, "head.weight")
    assert table["patch.weight"].role == table["cls_token"].role == "embedding"
    model = Vision(WIDTH)
    init_(model, roles=table, parameterization="mup", verbose=False)
    assert float(model.patch.weight.detach().std()) == pytest.approx(48**-0.5, rel=0.05)
    assert not model.cls_token.any()


def test_a_bilinear_layer_sums_over_products():
    table, told, lrs, _ = find_roles(product)
    assert not told
    assert table["pair.weight"].fan_in == WIDTH**2
    assert lrs["pair.weight"] == pytest.approx(M**-2)
    assert lrs["last.weight"] == 1 / M


def test_lazy_modules_are_refused_in_one_line():
    def make(width):
        return nn.Sequential(nn.LazyLinear(width), nn.Linear(width, width), nn.Linear(width, 3))

    with pytest.raises(ConfigError, match=r"'0\.weight' is lazy and has no shape yet") as error:
        infer_roles(make, base_width=BASE, width=WIDTH)
    assert "\n" not in str(error.value)


class Functional(nn.Module):
    """Logits that are products with the table itself, times a power of the width."""

    def __init__(self, width, power):
        super().__init__()
        self.scale = width**power
        self.table, self.block = nn.Embedding(VOCAB, width), Block(width)
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens):
        return (self.norm(self.block(self.table(tokens))) @ self.table.weight.T) * self.scale


@pytest.mark.parametrize(("power", "passes"), [(-1.0, True), (0.0, False)])
def test_products_with_the_table_are_judged_as_a_readout(power, passes):
    found = check(
        partial(Functional, power=power),
        roles={"table.weight": "tied"},
        applied="readout_multiplier",
    )
    product = found["table [product]"]
    assert product.own_change is not None
    assert product.passed == passes
    assert not found.unseen


class Router(nn.Module):
    """A router of a class of one's own, with a weight and a bias."""

    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, width) * width**-0.5)
        self.bias = nn.Parameter(torch.zeros(4))

    def forward(self, x):
        return F.linear(x, self.weight, self.bias).softmax(-1)


@pytest.mark.parametrize(("up", "down", "use"), [((3, 3), (2, 4), "matrix"), ((2, 4), (1, 1), "")])
def test_experts_of_no_side_of_the_width_are_laid_out_by_the_first(up, down, use):
    class Stacks(nn.Module):
        def __init__(self, width):
            super().__init__()
            for name, (rows, columns) in (("up", up), ("down", down)):
                values = torch.randn(4, rows * width, columns * width)
                setattr(self, name, nn.Parameter(values))

    def find_roles():
        return infer_roles(Stacks, base_width=BASE, width=WIDTH)

    if use:
        assert {each.role for each in find_roles()} <= {"hidden", "hidden_residual"}
    else:
        with pytest.raises(ConfigError, match="up"):
            find_roles()


class GatedExperts(nn.Module):
    """Experts as 3-d parameters of (experts, inputs, outputs), gate and up in one, with biases."""

    def __init__(self, width):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(4, width, 4 * width) * width**-0.5)
        self.gate_up_proj_bias = nn.Parameter(torch.zeros(4, 4 * width))
        self.down_proj = nn.Parameter(torch.randn(4, 2 * width, width) * (2 * width) ** -0.5)
        self.down_proj_bias = nn.Parameter(torch.zeros(4, width))

    def forward(self, x, shares):
        both = torch.einsum("btd,edf->btef", x, self.gate_up_proj) + self.gate_up_proj_bias
        gate, up = both.chunk(2, -1)
        out = torch.einsum("btef,efd->bted", F.silu(gate) * up, self.down_proj)
        return ((out + self.down_proj_bias) * shares[..., None]).sum(2)


class Mixture(nn.Module):
    """Routers in a list of their own beside lists of norms and of experts."""

    def __init__(self, width):
        super().__init__()
        self.table = nn.Embedding(VOCAB, width)
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(2))
        self.routers = nn.ModuleList(Router(width) for _ in range(2))
        self.experts = nn.ModuleList(GatedExperts(width) for _ in range(2))
        self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, VOCAB, bias=False)

    def forward(self, tokens):
        x = self.table(tokens)
        for norm, router, experts in zip(self.norms, self.routers, self.experts, strict=True):
            h = norm(x)
            x = x + experts(h, router(h))
        return self.head(self.norm(x))


def test_routers_of_a_class_of_their_own_and_experts_with_gate_and_up_in_one():
    table, told, lrs, decayed = find_roles(Mixture)
    assert told == {"routers.*.weight": "readout"}
    experts = [f"experts.{k}.{name}" for k in range(2) for name in ("gate_up_proj", "down_proj")]
    routers = ["routers.0.weight", "routers.1.weight"]
    assert by_hand(lrs, *experts, *routers, "head.weight")
    assert all(table[name].transposed for name in experts)
    assert not any("bias" in name for name in decayed)
    result = check(Mixture, roles=told)
    assert result.passed, result.verdict
    fault = check(Mixture, roles={"routers.*.weight": "embedding"})
    assert not fault["routers.0"].passed


class Parallel(nn.Module):
    """A matrix of (outputs, inputs) in a class of one's own, as tensor-parallel layers are."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * inputs**-0.5)


class Channels(nn.Module):
    """A kernel of fixed length for each channel, and vectors of attention for each head."""

    def __init__(self, width):
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(width, 16) * 0.1)
        self.att_src = nn.Parameter(torch.randn(1, width // 16, 16) * 0.25)
        self.r_w_bias = nn.Parameter(torch.randn(width // 16, 16) * 0.02)


class SplineLinear(nn.Module):
    """A matrix of (outputs, inputs) and a kernel beside it, as a layer of splines has."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.base_weight = nn.Parameter(torch.randn(outputs, inputs) * inputs**-0.5)
        self.spline = nn.Parameter(torch.randn(outputs, inputs, 5) * inputs**-0.5)


class Heads(nn.Module):
    """Projections to and from heads as (inputs, heads, size) and (heads, size, outputs)."""

    def __init__(self, width):
        super().__init__()
        self.num_heads, self.head_dim = width // 16, 16
        self.query = nn.Parameter(torch.randn(width, width // 16, 16) * width**-0.5)
        self.merge = nn.Parameter(torch.randn(width // 16, 16, width) * width**-0.5)


def own_classes(width):
    """Return a model whose tables and matrices are in classes of one's own."""
    return nn.ModuleDict(
        {
            "positions": Parallel(width, 9),
            "first": SplineLinear(48, width),
            "heads": Heads(width),
            "mixes": nn.ModuleList(Channels(width) for _ in range(2)),
            "middle": nn.Linear(width, width),
            "last": SplineLinear(width, 10),
            "output_layer": Parallel(width, VOCAB),
        }
    )


def test_matrices_and_kernels_in_classes_of_ones_own():
    table, told, lrs, _ = find_roles(own_classes)
    assert told == {
        "positions.weight": "embedding",
        "first.base_weight": "hidden",
        "first.spline": "hidden",
        "heads.query": "hidden:transposed",
        "heads.merge": "hidden",
        "mixes.*.kernel": "other",
        "mixes.*.att_src": "hidden",
        "mixes.*.r_w_bias": "bias",
        "last.base_weight": "readout",
        "last.spline": "readout:transposed",
        "output_layer.weight": "readout",
    }
    outputs = ("last.base_weight", "last.spline", "output_layer.weight")
    assert by_hand(lrs, "heads.query", "heads.merge", "middle.weight", *outputs)
    assert table["heads.query"].fan_in == table["heads.merge"].fan_in == WIDTH
    model = own_classes(WIDTH)
    kernel = model["mixes"][0].kernel.detach().clone()
    init_(model, roles=table, parameterization="mup", verbose=False)
    assert torch.equal(model["mixes"][0].kernel, kernel)
    # A sum over 16 entries of fixed number, whatever the width.
    assert float(model["mixes"][1].att_src.detach().std()) == pytest.approx(0.25, rel=0.2)


class Denoiser(nn.Module):
    """Convolutions down and up again, told a time, that end in as many channels as they get."""

    def __init__(self, width):
        super().__init__()
        self.time = nn.Sequential(nn.Linear(8, width), nn.SiLU(), nn.Linear(width, 2 * width))
        self.stem, self.down = nn.Conv2d(3, width, 3, 1, 1), nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.norm1, self.middle = nn.GroupNorm(8, 2 * width), nn.Conv2d(2 * width, 2 * width, 1)
        self.up, self.norm2 = nn.ConvTranspose2d(2 * width, width, 2, 2), nn.GroupNorm(8, width)
        self.out = nn.Conv2d(width, 3, 3, 1, 1)

    def forward(self, x):
        h = self.down(self.stem(x)) + self.time(torch.ones(len(x), 8))[..., None, None]
        h = self.middle(F.silu(self.norm1(h)))
        return self.out(F.silu(self.norm2(self.up(h))))


def test_a_convolution_that_is_the_readout_is_judged_as_one():
    _, told, lrs, _ = find_roles(Denoiser)
    assert not told
    assert by_hand(lrs, "time.2.weight", "down.weight", "middle.weight", "up.weight", "out.weight")
    images = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    data = {"batches": [images], "loss": lambda m, x: (m(x) - x.roll(1, 0)).square().mean()}
    result = check(Denoiser, **data)
    assert result.passed, result.verdict
    assert result["out"].own_change is not None
    assert not check(Denoiser, "sp", **data)["stem"].passed
