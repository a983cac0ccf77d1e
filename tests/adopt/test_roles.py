"""Roles from a factory at two widths: what is seen, what must be told, and refusals."""

import json
from functools import partial

import pytest
import torch
from torch import nn

from adopt.models import MLP, Attention, Transformer
from hptransfer.adopt import RoleTable, UnclearRolesError, infer_roles
from hptransfer.errors import ConfigError


def roles_of(factory, base_width=16, width=64, **options):
    table = infer_roles(factory, base_width=base_width, width=width, **options)
    return {entry.name: entry.role for entry in table}


class Holder(nn.Module):
    """A module of one kind beside an ordinary stem and head."""

    def __init__(self, **modules):
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)


def around(make):
    """Return a factory of a model with ``make(width)`` as ``x`` between embedding and readout."""

    def factory(width):
        return Holder(
            stem=nn.Embedding(7, width), x=make(width), head=nn.Linear(width, 7, bias=False)
        )

    return factory


class Raw(nn.Module):
    """Parameters held bare."""

    def __init__(self, **shapes):
        super().__init__()
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.zeros(shape)))


class Conv1D(nn.Module):
    """The layer of Hugging Face's GPT-2: a matrix stored as (fan_in, fan_out)."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.zeros(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))


class ScaleNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.amplitude = nn.Parameter(torch.ones(width))


def test_a_transformer():
    table = infer_roles(Transformer, base_width=16, width=64)
    roles = {entry.name: entry.role for entry in table}
    assert roles["tokens.weight"] == roles["positions"] == "embedding"
    assert roles["head.weight"] == "readout"
    block = {name.removeprefix("layers.1."): r for name, r in roles.items() if "layers.1." in name}
    assert block == {
        "norm1.weight": "norm",
        "norm1.bias": "bias",
        "attention.q_proj.weight": "hidden",
        "attention.k_proj.weight": "hidden",
        "attention.v_proj.weight": "hidden",
        "attention.out.weight": "hidden",
        "norm2.weight": "norm",
        "norm2.bias": "bias",
        "up.weight": "hidden",
        "up.bias": "bias",
        "down.weight": "hidden",
        "down.bias": "bias",
    }
    down = table["layers.0.down.weight"]
    assert (down.fan_in, down.fan_out, down.base_fan_in, down.base_fan_out) == (256, 64, 64, 16)
    assert (down.shape, down.base_shape, down.infinite) == ((64, 256), (16, 64), (0, 1))
    assert table["head.weight"].infinite == (1,)
    assert (table.width_mult, table.head_size, table.base_head_size) == (4.0, 8, 8)


def test_no_memory_is_used():
    # 2^40 numbers for each hidden matrix: only the meta device can hold them.
    table = infer_roles(MLP, base_width=2**10, width=2**20)
    assert table["middle.weight"].fan_in == 2**20


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (nn.LayerNorm, {"weight": "norm", "bias": "bias"}),
        (nn.RMSNorm, {"weight": "norm"}),
        (nn.BatchNorm1d, {"weight": "norm", "bias": "bias"}),
        (partial(nn.GroupNorm, 2), {"weight": "norm", "bias": "bias"}),
        (ScaleNorm, {"amplitude": "norm"}),
        (lambda w: nn.LayerNorm(8), {"weight": "norm", "bias": "bias"}),
        (lambda w: nn.Linear(w, 3 * w), {"weight": "hidden", "bias": "bias"}),  # fused QKV
        (lambda w: nn.Linear(3, w), {"weight": "embedding", "bias": "bias"}),
        (lambda w: nn.Linear(3, 5), {"weight": "embedding", "bias": "bias"}),
        (lambda w: Conv1D(4 * w, w), {"weight": "hidden", "bias": "bias"}),
        (lambda w: nn.Conv2d(w, 2 * w, 3), {"weight": "hidden", "bias": "bias"}),
        (lambda w: nn.Conv2d(3, w, 3), {"weight": "embedding", "bias": "bias"}),
        (lambda w: nn.Conv1d(w, w, 3, groups=w), {"weight": "embedding", "bias": "bias"}),
        (lambda w: nn.ConvTranspose1d(w, 2 * w, 3), {"weight": "hidden", "bias": "bias"}),
        (
            lambda w: nn.GRU(w, w),
            {
                "weight_ih_l0": "hidden",
                "weight_hh_l0": "hidden",
                "bias_ih_l0": "bias",
                "bias_hh_l0": "bias",
            },
        ),
        (
            lambda w: nn.MultiheadAttention(w, 2),
            {
                "in_proj_weight": "hidden",
                "in_proj_bias": "bias",
                "out_proj.weight": "hidden",
                "out_proj.bias": "bias",
            },
        ),
        (lambda w: Raw(cls_token=(1, 1, w)), {"cls_token": "embedding"}),
        (lambda w: Raw(mixing=(w, w)), {"mixing": "hidden"}),
        (lambda w: Raw(mixing=(4, w, w)), {"mixing": "hidden"}),
        (
            lambda w: Attention(w, kv_heads=1),  # keys and values of a fixed number of heads
            {f"{p}.weight": "hidden" for p in ("q_proj", "k_proj", "v_proj", "out")},
        ),
        (
            lambda w: Raw(gate_up_proj=(4, w, 6 * w), down_proj=(4, 3 * w, w)),
            {"gate_up_proj": "hidden", "down_proj": "hidden"},
        ),
    ],
)  # fmt: skip
def test_modules(make, expected):
    roles = roles_of(around(make))
    assert {name[2:]: role for name, role in roles.items() if name.startswith("x.")} == expected
    assert (roles["stem.weight"], roles["head.weight"]) == ("embedding", "readout")


@pytest.mark.parametrize(
    ("make", "name", "fans"),
    [
        (lambda w: Conv1D(4 * w, w), "x.weight", (64, 256)),
        (lambda w: nn.Linear(w, 4 * w), "x.weight", (64, 256)),
        (lambda w: nn.Conv2d(w, 2 * w, 3), "x.weight", (64 * 9, 128)),
        (lambda w: nn.ConvTranspose1d(w, 2 * w, 3), "x.weight", (64 * 3, 128)),
        (lambda w: nn.Conv1d(w, w, 3, groups=w), "x.weight", (3, 64)),
        # Experts: the first stack reads the width, whichever way round it is stored.
        (lambda w: Raw(up=(4, w, 6 * w), down=(4, 3 * w, w)), "x.up", (64, 384)),
        (lambda w: Raw(up=(4, w, 6 * w), down=(4, 3 * w, w)), "x.down", (192, 64)),
        (lambda w: Raw(up=(4, 6 * w, w), down=(4, w, 3 * w)), "x.up", (64, 384)),
        (lambda w: Raw(up=(4, 6 * w, w), down=(4, w, 3 * w)), "x.down", (192, 64)),
        (lambda w: nn.Embedding(9, w), "x.weight", (9, 64)),
        (lambda w: nn.LayerNorm(w), "x.weight", (1, 64)),
    ],
)
def test_fans(make, name, fans):
    entry = infer_roles(around(make), base_width=16, width=64)[name]
    assert (entry.fan_in, entry.fan_out) == fans


def test_readout_by_use():
    roles = roles_of(
        lambda w: Holder(
            a=nn.Linear(3, w), b=nn.Linear(w, w), value=nn.Linear(w, 1), policy=nn.Linear(w, 4)
        )
    )
    assert roles["value.weight"] == roles["policy.weight"] == "readout"
    assert roles_of(lambda w: nn.Sequential(nn.Linear(3, w), nn.Linear(w, 2))) == {
        "0.weight": "embedding",
        "0.bias": "bias",
        "1.weight": "readout",
        "1.bias": "bias",
    }
    # The readout may be registered before the layers, where it is the only one.
    roles = roles_of(
        lambda w: Holder(head=nn.Linear(w, 4), stem=nn.Linear(3, w), x=nn.Linear(w, w))
    )
    assert roles["head.weight"] == "readout"


def test_the_base_width_itself_sees_what_grows():
    at_base = infer_roles(Transformer, base_width=16, width=16)
    wider = infer_roles(Transformer, base_width=16, width=64)
    assert at_base.width_mult == 1.0
    assert [(e.name, e.role, e.infinite) for e in at_base] == [
        (e.name, e.role, e.infinite) for e in wider
    ]
    narrower = infer_roles(Transformer, base_width=64, width=16)
    assert [e.role for e in narrower] == [e.role for e in wider]
    assert narrower.width_mult == 0.25


def test_told_roles_by_name_and_pattern():
    roles = roles_of(
        Transformer,
        roles={
            "layers.*.down.weight": "hidden_residual",
            "layers.*.attention.out.weight": "hidden_residual",
            "layers.0.down.weight": "hidden",  # a name goes before patterns
        },
    )
    assert roles["layers.0.down.weight"] == "hidden"
    assert roles["layers.1.down.weight"] == "hidden_residual"
    assert roles["layers.0.attention.out.weight"] == "hidden_residual"

    def factory(width):
        return around(lambda w: Raw(w=(w, 3 * w), table=(9, w), out=(w, 5), scale_=()))(width)

    said = {"x.w": "hidden", "x.table": "embedding", "x.out": "readout", "x.scale_": "norm"}
    table = infer_roles(factory, base_width=16, width=64, roles=said)
    assert (table["x.w"].fan_in, table["x.w"].fan_out) == (192, 64)
    assert (table["x.out"].fan_in, table["x.out"].fan_out) == (64, 5)
    assert (table["x.table"].fan_out, table["x.table"].is_table) == (64, True)
    turned = infer_roles(
        factory, base_width=16, width=64, roles=said | {"x.w": "hidden:transposed"}
    )
    assert (turned["x.w"].fan_in, turned["x.w"].fan_out) == (64, 192)


def test_tied_tables():
    table = infer_roles(partial(Transformer, tied=True), base_width=16, width=64)
    entry = table["tokens.weight"]
    assert (entry.role, entry.tied) == ("tied", ("head.weight",))
    assert table["head.weight"] is entry

    # A matrix that two layers share is no tied table.
    def factory(width):
        model = Holder(a=nn.Linear(3, width), b=nn.Linear(width, width), c=nn.Linear(width, width))
        model.c.weight = model.b.weight
        return model

    entry = infer_roles(factory, base_width=16, width=64)["b.weight"]
    assert (entry.role, entry.tied) == ("hidden", ("c.weight",))


def test_json_round_trip():
    table = infer_roles(partial(Transformer, tied=True), base_width=16, width=64)
    text = table.to_json()
    assert json.loads(text)["schema"] == 1
    assert RoleTable.from_json(text) == table
    assert len(table) == 29 - 1
    with pytest.raises(KeyError):
        table["nothing"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "expected the JSON document"),
        ("[]", "expected the JSON document"),
        ('{"schema": 2}', "expected schema 1, found 2"),
        ('{"schema": 1, "width": 3}', "missing or unknown"),
        ('{"schema": 1, "parameters": [{"name": "a", "role": "hiden"}]}', "a: .* found 'hiden'"),
        ('{"schema": 1, "parameters": [{"name": "a", "role": "hidden"}]}', "missing or unknown"),
    ],
)
def test_other_json_is_one_line(text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        RoleTable.from_json(text)
    assert "\n" not in str(caught.value)


def deeper(width):
    return Transformer(width, num_layers=width // 16)


def taller(width):
    model = MLP(width)
    if width > 16:
        model.extra = nn.Linear(3, 3)
    return model


def tied_when_wide(width):
    return Transformer(width, tied=width > 16)


@pytest.mark.parametrize(
    ("factory", "options", "message"),
    [
        (
            around(lambda w: Raw(w=(w, 3 * w))),
            {},
            r"cannot tell the role of 'x.w', shape \(16, 48\) at width 16 and \(64, 192\) at "
            r'width 64, in a Raw; say it: roles=\{"x.w": "hidden"\}',
        ),
        (around(lambda w: Raw(table=(9, w))), {}, r"'x.table', shape \(9, 16\) at width 16"),
        (around(lambda w: Raw(a_log=(w,))), {}, r"'x.a_log', shape \(16,\) at width 16"),
        (around(lambda w: Raw(up=(4, w, 6 * w))), {}, "'x.up'"),
        (around(lambda w: Raw(pair=(w, 2 * w, w))), {}, "'x.pair'.* in a Raw"),
        # A router: grows in its fan-in only, but is no output of the model.
        (around(lambda w: nn.ModuleList([nn.Linear(w, 4), nn.Linear(w, w)])), {}, "'x.0.weight'"),
        (taller, {}, r"'extra.weight' \(2 in all\) is a parameter at width 64 and not at width 16; "
                     "depth may differ"),
        (tied_when_wide, {}, "tokens.weight = head.weight is one tied parameter at width 64 and "
                             "several at width 16; tie at both widths, or at neither"),
        (lambda w: MLP(32), {}, "expected shapes that change with width, found the same at "
                                "widths 16 and 64"),
        (lambda w: MLP(32), {"width": 16}, "the same at widths 16 and 32"),
        (lambda w: 3, {}, "expected a torch.nn.Module at width 64, found int"),
        (MLP, {"roles": {"midle.weight": "hidden"}}, "'midle.weight' names no parameter of the "
                                                     "model; the nearest is 'middle.weight'"),
        (MLP, {"roles": {"heads.*": "hidden"}}, "'heads.*' names no parameter"),
        (MLP, {"roles": {"last.weight": "readuot"}}, "roles of 'last.weight': .*'readout'"),
        (MLP, {"roles": {"middle.weight": "hidden:transposed"}}, r"Linear stores it as \(fan"),
        (MLP, {"roles": {"last.bias": "bias:transposed"}}, "expected ':transposed' on a matrix"),
        (
            partial(Transformer, tied=True),
            {"roles": {"tokens.weight": "embedding", "head.weight": "readout"}},
            "tokens.weight = head.weight is one parameter, told 'embedding' by 'tokens.weight' "
            "and 'readout' by 'head.weight'",
        ),
        (
            Transformer,
            {"roles": {"layers.*.up.weight": "hidden", "*.0.up.weight": "hidden_residual"}},
            "'layers.0.up.weight', told 'hidden' by .* and 'hidden_residual' by",
        ),
        (MLP, {"width": 0}, "width: expected a whole number above 0, found 0"),
    ],
)  # fmt: skip
def test_refusals_are_one_line(factory, options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        infer_roles(factory, **{"base_width": 16, "width": 64} | options)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.jit's own
def test_scripted_parts_have_roles_and_a_scripted_model_asks_for_them():
    """A scripted part no longer says of which class it was."""

    class Gated(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.first, self.last = nn.Linear(7, width), nn.Linear(width, 3)
            self.act = torch.jit.script(nn.GELU())

        def forward(self, x):
            return self.last(self.act(self.first(x)))

    found = infer_roles(Gated, base_width=16, width=32)
    assert [each.name for each in found] == [
        "first.weight", "first.bias", "last.weight", "last.bias"
    ]  # fmt: skip
    with pytest.raises(UnclearRolesError, match=r"'first\.weight', .* in a RecursiveScriptModule"):
        infer_roles(lambda w: torch.jit.script(Gated(w)), base_width=16, width=32)
