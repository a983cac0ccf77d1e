"""abc-equivalence: one rule in two forms trains to the same losses in float64.

Every pair is trained with an ε large enough to matter, so that its factor is tested too.
"""

from dataclasses import replace
from functools import partial

import pytest
import torch

from adopt.models import MLP, Transformer, train
from hptransfer.adopt import infer_roles, init_, param_groups
from hptransfer.scaling import LATTICE, RoleExponents

M = 4
BASE, WIDTH = 8, 32
STEPS = 12
EPS = 1e-3
COMMON = {"lr": 2**-6, "weight_decay": 2**-3}
OPTIMIZERS = {
    "adamw": torch.optim.AdamW,
    "sgd": partial(torch.optim.SGD, momentum=0.9),
    "adafactor": torch.optim.Adafactor,
}

MUP = LATTICE["mup"]
# µP as (multiplier, init) exponents (-½, ½) | (0, ½) | (½, ½), with learning rates c - θ under
# Adam, c - 2θ under SGD, and ε as the gradient; θ = -½ for embeddings and ½ for the readout.
MULTIPLIER_FORM = replace(
    MUP,
    name="mup-multiplier",
    roles={
        **MUP.roles,
        "embedding": RoleExponents(init=-0.5, lr=-0.5, multiplier=0.5, eps=0.5),
        "readout": RoleExponents(init=-0.5, lr=-0.5, multiplier=-0.5, eps=-0.5),
    },
)
MULTIPLIER_FORM_SGD = replace(
    MULTIPLIER_FORM,
    roles={
        role: replace(each, lr=0.0, lr_fan_out=1.0 if role in ("norm", "bias") else 0.0)
        for role, each in MULTIPLIER_FORM.roles.items()
    },
    optimizers=frozenset({"sgd"}),
)
MULTIPLIER_FORM_ADAFACTOR = replace(
    MULTIPLIER_FORM,
    roles={
        role: replace(each, lr=-0.5 if role.startswith("hidden") else 0.0)
        for role, each in MULTIPLIER_FORM.roles.items()
    },
    optimizers=frozenset({"adafactor"}),
)


def losses_of(factory, rule, *, optimizer="adamw", roles=None, eps=EPS, **options):
    """Train ``factory(WIDTH)`` under a rule from its initial weights."""
    table = infer_roles(factory, base_width=BASE, width=WIDTH, roles=roles)
    model = factory(WIDTH).double()
    common = {"roles": table, "parameterization": rule, "optimizer": optimizer, **options}
    base_std = {"embedding": 0.5, "hidden_residual": 0.25}
    # Adafactor's update is relative to a tensor's size: a table at 0 has none.
    init_(model, seed=3, base_std=base_std, reset="positions", **common)
    groups = param_groups(model, eps=eps, **common, **COMMON)
    return train(model, OPTIMIZERS[optimizer](groups, lr=1.0), steps=STEPS)


def assert_same(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=1e-9)
    assert one[-1] != one[0]


@pytest.mark.parametrize(
    ("optimizer", "rule"),
    [
        ("adamw", MULTIPLIER_FORM),
        ("sgd", MULTIPLIER_FORM_SGD),
        ("adafactor", MULTIPLIER_FORM_ADAFACTOR),
    ],
)
def test_the_two_forms_of_mup(optimizer, rule):
    init_form = losses_of(Transformer, "mup", optimizer=optimizer)
    multiplied = partial(Transformer, embedding_multiplier=M**0.5, readout_multiplier=M**-0.5)
    form = partial(losses_of, multiplied, optimizer=optimizer, applied={"multipliers"})
    assert_same(init_form, form(rule))
    # Not applied by the model, the same rule is absorbed: it is the init form again.
    assert_same(init_form, losses_of(Transformer, rule, optimizer=optimizer))
    # The check can fail: without the factors of ε or of the learning rate the losses part.
    roles = dict(rule.roles)
    if optimizer == "adamw":
        roles["embedding"] = replace(roles["embedding"], eps=0.0)
    else:
        roles["readout"] = replace(roles["readout"], lr=-0.5)
    assert (form(replace(rule, roles=roles)) - init_form).abs().max() > 1e-4


def test_absorbed_groups_are_those_of_the_init_form():
    table = infer_roles(Transformer, base_width=BASE, width=WIDTH)
    model = Transformer(WIDTH)
    one, other = (
        param_groups(model, roles=table, parameterization=rule, eps=EPS, **COMMON)
        for rule in ("mup", MULTIPLIER_FORM)
    )
    assert len(one) == len(other) == 3
    for mine, theirs in zip(one, other, strict=True):
        assert mine["name"] == theirs["name"]
        for key in ("lr", "weight_decay", "eps", "rule_lr"):
            assert mine[key] == pytest.approx(theirs[key], rel=1e-12)


def test_a_growing_head_size_is_absorbed_by_the_queries():
    heads = {"num_heads": 2}  # head size 4 to 16
    scale = 4**0.5 / 16
    plain = partial(Transformer, **heads)
    absorbed = losses_of(plain, "mup", query="layers.*.attention.q_proj.weight")

    def scaled(width):
        return Transformer(width, scale=scale, **heads)

    assert_same(absorbed, losses_of(scaled, "mup", applied={"attention_scale"}))
    assert (absorbed - losses_of(plain, "mup-attn")).abs().max() > 1e-4


RESIDUAL = {
    "layers.*.down.weight": "hidden_residual",
    "layers.*.attention.out.weight": "hidden_residual",
}


def test_residual_multipliers_of_completep_are_absorbed():
    deep = partial(Transformer, num_layers=4)
    options = {"roles": RESIDUAL, "num_layers": 4, "base_num_layers": 2}
    absorbed = losses_of(deep, "completep", **options)
    multiplied = partial(deep, multiplier=0.5)
    applied = losses_of(multiplied, "completep", applied={"residual_multiplier"}, **options)
    assert_same(absorbed, applied)
    assert (absorbed - losses_of(multiplied, "completep", **options)).abs().max() > 1e-4


class UnitMLP(MLP):
    """The multipliers of u-µP in the forward pass."""

    def forward(self, x):
        for layer, power in ((self.first, -0.5), (self.middle, -0.5), (self.last, -1.0)):
            x = layer.weight.shape[1] ** power * (x @ layer.weight.T) + layer.bias
            if layer is not self.last:
                x = torch.relu(x)
        return x


def test_multipliers_of_u_mup_are_absorbed():
    losses = []
    for factory, applied in ((MLP, {"attention_scale"}),
                             (UnitMLP, {"attention_scale", "multipliers"})):  # fmt: skip
        table = infer_roles(factory, base_width=BASE, width=WIDTH)
        model = factory(WIDTH).double()
        common = {"roles": table, "parameterization": "u-mup", "applied": applied}
        init_(model, seed=1, **common)
        optimizer = torch.optim.AdamW(param_groups(model, lr=2**-3, eps=EPS, **common))
        inputs = torch.randn(8, 5, generator=torch.Generator().manual_seed(0)).double()
        for _ in range(STEPS):
            loss = (model(inputs) - inputs[:, :3]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    assert_same(*torch.stack(losses).chunk(2))
