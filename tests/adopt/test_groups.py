"""Param groups: numbers by hand, coverage of the model, multipliers absorbed or refused."""

from functools import partial

import pytest
import torch

from adopt.models import MLP, Transformer
from hptransfer.adopt import infer_roles, param_groups
from hptransfer.errors import ConfigError
from hptransfer.scaling import LATTICE

TABLE = infer_roles(Transformer, base_width=16, width=64)


def numbers_of(model, groups, key="lr"):
    """Map each parameter's name to its group's number."""
    by_id = {id(p): group[key] for group in groups for p in group["params"]}
    return {name: by_id[id(p)] for name, p in model.named_parameters()}


def test_mup_by_hand():
    model = Transformer(64)
    groups = param_groups(
        model, roles=TABLE, parameterization="mup", lr=2**-6, weight_decay=2**-4, eps=1e-9
    )
    assert [(g["name"], g["lr"], g["weight_decay"], g["eps"]) for g in groups] == [
        ("embedding", 2**-6, 2**-4, 1e-9),
        ("norm+bias", 2**-6, 0, 1e-9),
        ("hidden+readout", 2**-8, 2**-2, 1e-9),
    ]
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
    torch.optim.AdamW(groups)


@pytest.mark.parametrize("name", LATTICE)
def test_the_lattice_at_the_base_width_is_one_rule(name):
    table = infer_roles(Transformer, base_width=16, width=16)
    model = Transformer(16)
    groups = param_groups(model, roles=table, parameterization=name, lr=0.01, weight_decay=0.1)
    assert {(g["lr"], g["weight_decay"]) for g in groups} == {(0.01, 0.1), (0.01, 0.0)}


def test_numbers_follow_each_tensors_own_fan_in():
    # The last matrix's fan-in does not grow as the width does: 32 to 256, ×8 where m = 4.
    factory = lambda width: MLP(width, hidden=width * width // 8)  # noqa: E731
    table = infer_roles(factory, base_width=16, width=64)
    model = factory(64)
    lr = numbers_of(model, param_groups(model, roles=table, parameterization="mup", lr=1.0))
    assert (lr["first.weight"], lr["middle.weight"], lr["last.weight"]) == (1, 1 / 4, 1 / 16)
    groups = param_groups(model, roles=table, parameterization="mup", lr=1.0)
    assert [g["name"] for g in groups] == ["embedding+bias", "hidden", "readout"]
    # SP is one learning rate, whatever a tensor's own fans.
    sp = numbers_of(model, param_groups(model, roles=table, parameterization="sp", lr=1.0))
    assert set(sp.values()) == {1 / 4}
    on_global = param_groups(model, roles=table, parameterization="sp", lr=1.0, axis="global")
    assert [g["lr"] for g in on_global] == [1.0]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch.compile's own
@pytest.mark.parametrize("wrap", [torch.compile, torch.nn.DataParallel])
def test_wrapped_models_have_the_same_groups(wrap):
    model = MLP(64)
    table = infer_roles(MLP, base_width=16, width=64)
    bare = param_groups(model, roles=table, parameterization="mup", lr=1.0)
    wrapped = param_groups(wrap(model), roles=table, parameterization="mup", lr=1.0)
    assert [(g["name"], list(map(id, g["params"]))) for g in bare] == [
        (g["name"], list(map(id, g["params"]))) for g in wrapped
    ]


def frozen():
    model = Transformer(64)
    model.tokens.weight.requires_grad_(False)
    return model


def test_frozen_parameters_can_be_left_out():
    model = frozen()
    groups = param_groups(model, roles=TABLE, parameterization="mup", lr=1.0, skip_frozen=True)
    held = {id(p) for g in groups for p in g["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}


class Extra(Transformer):
    def __init__(self, width):
        super().__init__(width)
        self.value = torch.nn.Linear(width, 1)


def untied_of_tied():
    return Transformer(64), infer_roles(partial(Transformer, tied=True), base_width=16, width=64)


@pytest.mark.parametrize(
    ("model", "table", "options", "message"),
    [
        (frozen(), TABLE, {}, r"'tokens.weight' is frozen .* skip_frozen=True"),
        (Extra(64), TABLE, {}, r"'value.weight', shape \(1, 64\), is a parameter of the model and "
                               "not in the table"),
        (Transformer(64, num_layers=1), TABLE, {}, r"'layers.1.norm1.weight' is in the table and "
                                                   "no parameter of the model"),
        (Transformer(32), TABLE, {}, r"'positions' has shape \(1, 6, 64\) in the table \(width "
                                     r"64\) and \(1, 6, 32\) in the model"),
        (*untied_of_tied(), {}, "'tokens.weight' and 'head.weight' are one parameter in the "
                                "table and two"),
        (Transformer(64), TABLE, {"lr": 0.0}, "lr: expected a finite number above 0, found 0"),
        (Transformer(64), TABLE, {"parameterization": "mip"}, "'mip' is not known; .* 'mup'"),
        (Transformer(64), TABLE, {"optimizer": "sdg"}, "optimizer: .* did you mean 'sgd'"),
        (Transformer(64), TABLE, {"weight_decay": -1.0}, "weight_decay: .* found -1"),
        (Transformer(64), TABLE, {"applied": {"atention_scale"}}, "did you mean 'attention_scale'"),
    ],
)  # fmt: skip
def test_refusals_are_one_line(model, table, options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        param_groups(model, roles=table, **{"parameterization": "mup", "lr": 1.0} | options)
    assert "\n" not in str(caught.value)
