"""Exports: each framework's own matching rule gives every parameter the groups' numbers."""

import json

import pytest
import torch
from torch import nn

from adopt.models import Transformer
from hptransfer.adopt import export, infer_roles, param_groups
from hptransfer.errors import ConfigError

ROLES = {"layers.0.down.weight": "hidden_residual"}
TABLE = infer_roles(Transformer, base_width=16, width=64, roles=ROLES)
#: `completep` tells one layer's projection from its likes: a pattern for all layers would not do.
RULES = {
    "mup": {},
    "sp+embd": {},
    "u-mup": {"applied": {"attention_scale", "multipliers"}},
    "completep": {"num_layers": 8, "base_num_layers": 2},
}


def make_groups(rule="mup", model=None, **options):
    model = model or Transformer(64)
    settings = {"weight_decay": 0.25, "eps": 1e-9} | RULES[rule] | options
    return model, param_groups(model, roles=TABLE, parameterization=rule, lr=2**-6, **settings)


def numbers_of(model, groups):
    by_id = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    return {name: by_id[id(p)] for name, p in model.named_parameters()}


@pytest.mark.parametrize("rule", RULES)
def test_optax(rule):
    optax = pytest.importorskip("optax", reason="optax is not installed")
    import jax
    from jax import numpy as jnp

    model, groups = make_groups(rule)
    made = export(groups, to="optax")
    expected = numbers_of(model, groups)
    assert set(made.labels) == set(expected)
    transformation = made.make()

    def step(value, gradient):
        def nest(leaf):
            tree = {}
            for name in expected:
                *path, last = name.split(".")
                node = tree
                for part in path:
                    node = node.setdefault(part, {})
                node[last] = jnp.full((), leaf)
            return tree

        parameters = nest(value)
        updates, _ = transformation.update(
            nest(gradient), transformation.init(parameters), parameters
        )
        leaves = jax.tree_util.tree_flatten_with_path(updates)[0]
        return {".".join(key.key for key in path): float(leaf) for path, leaf in leaves}

    moved, shrunk = step(0.0, 1.0), step(1.0, 0.0)
    assert isinstance(transformation, optax.GradientTransformation)
    for name, (lr, decay) in expected.items():
        assert moved[name] == pytest.approx(-lr, rel=1e-5), name
        assert shrunk[name] == pytest.approx(-lr * decay, rel=1e-5), name


def test_a_schedule_multiplies_every_label():
    pytest.importorskip("optax", reason="optax is not installed")
    from jax import numpy as jnp

    _, groups = make_groups()
    made = export(groups, to="optax")
    names = list(made.labels)
    transformation = made.make(lambda step: 0.5, labels=dict(made.labels), b1=0.8)
    zeros = {name: jnp.zeros(()) for name in names}
    ones = {name: jnp.ones(()) for name in names}
    updates, _ = transformation.update(ones, transformation.init(zeros), zeros)
    for name in names:
        lr = made.transforms[made.labels[name]]["learning_rate"]
        assert float(updates[name]) == pytest.approx(-0.5 * lr, rel=1e-5)


def wrapped():
    """A model with what wrappers put into names, as after checkpointing and compiling blocks."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model = Transformer(64)
    for k, layer in enumerate(model.layers):
        model.layers[k] = checkpoint_wrapper(layer)
    return model


@pytest.mark.filterwarnings("ignore")  # its own imports'
@pytest.mark.parametrize("make", [lambda: Transformer(64), wrapped])
@pytest.mark.parametrize("rule", RULES)
def test_torchtitan(rule, make):
    titan = pytest.importorskip(
        "torchtitan.components.optimizer.optimizer",
        reason="torchtitan is not installed with what it imports",
        exc_type=ImportError,
    )
    model, groups = make_groups(rule, make())
    configs = [titan.ParamGroupConfig(**each) for each in export(groups, to="torchtitan")]
    built, _ = titan.OptimizersContainer._build_param_groups(model, configs, {})
    ((kind, found),) = built.items()
    assert kind == "AdamW"
    optimizer = torch.optim.AdamW(found)
    assert numbers_of(model, optimizer.param_groups) == numbers_of(model, groups)
    assert {g["eps"] for g in found} == {g["eps"] for g in groups}


def first_match(configs, name):
    """torchtitan's rule: the first pattern that is found in a name takes the parameter."""
    import re

    return next(each for each in configs if re.search(each["pattern"], name))


def test_patterns_without_torchtitan():
    model, groups = make_groups("completep")
    configs = json.loads(json.dumps(export(groups, to="torchtitan")))
    expected = numbers_of(model, groups)
    for name, (lr, decay) in expected.items():
        kwargs = first_match(configs, name)["optimizer_kwargs"]
        assert (kwargs["lr"], kwargs["weight_decay"]) == (lr, decay), name
    # Layers share a pattern where they share their numbers.
    assert any(r"layers\.(?:" in each["pattern"] and r"\d+" in each["pattern"] for each in configs)
    with pytest.raises(StopIteration):
        first_match(configs, "head.weight_extra")


def test_muon_and_names_from_the_model():
    model, groups = make_groups(optimizer="muon", muon_lr=0.02)
    configs = export(list(groups), to="torchtitan", model=model)
    assert {each["optimizer_name"] for each in configs} == {"AdamW", "DistMuon"}
    muon = first_match(configs, "layers.1.up.weight")
    assert muon["optimizer_kwargs"]["adjust_lr_fn"] == "original"
    assert muon["optimizer_kwargs"]["lr"] == 0.02
    with pytest.raises(ConfigError, match="optax has no optimizer 'muon'"):
        export(groups, to="optax")


def test_refusals_are_one_line():
    model, groups = make_groups()
    for call, message in (
        (lambda: export(groups, to="jax"), "to: expected one of torchtitan, optax"),
        (lambda: export(list(groups), to="optax"), "give model="),
        (lambda: export(groups, to="optax", model=nn.Linear(2, 2)), "no parameter of the model"),
        (
            lambda: export(make_groups(optimizer="sgd")[1], to="torchtitan"),
            "torchtitan has no optimizer 'sgd'",
        ),
        (
            lambda: export(make_groups(decay_semantics="independent")[1], to="optax"),
            "shrink a tensor by lr · weight_decay",
        ),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert export(groups, to="optax", model=model).labels == export(groups, to="optax").labels
