"""Against the PyPI package ``mup``: effective learning rates, weight decay, and training.

``mup`` writes the readout of µP as a multiplier 1/m; ours is the init form. A weight W behind a
multiplier s is the weight sW, with learning rate lr·s and weight decay wd/s under Adam, lr·s² and
wd/s² under SGD (docs/parameterizations.md). Every number of ``mup`` is brought to that form here.
"""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from adopt.models import MLP, VOCAB, Transformer, train
from hptransfer.adopt import infer_roles, param_groups
from hptransfer.errors import ConfigError

mup = pytest.importorskip("mup", reason="the package mup is not installed (pip install --no-deps)")

BASE, WIDTH, M = 8, 32, 4
LR, DECAY = 2**-7, 2**-3
SCALE = (BASE // 2) ** 0.5 / (WIDTH // 2)  # two heads: √H_base/H


class MuMLP(MLP):
    def __init__(self, width):
        super().__init__(width)
        self.last = mup.MuReadout(width, 3)


class MuTransformer(Transformer):
    def __init__(self, width, **options):
        super().__init__(width, **options)
        self.head = mup.MuReadout(width, VOCAB, bias=False)


OURS = {"mlp": MLP, "transformer": partial(Transformer, num_heads=2, scale=SCALE)}
THEIRS = {"mlp": MuMLP, "transformer": partial(MuTransformer, num_heads=2, scale=SCALE)}


def make_pair(kind):
    """Return mup's model and ours with the same effective weights, and our role table."""
    torch.manual_seed(0)
    theirs = THEIRS[kind](WIDTH).double()
    mup.set_base_shapes(theirs, THEIRS[kind](BASE), delta=THEIRS[kind](2 * BASE))
    if kind == "transformer":
        nn.init.normal_(theirs.positions)
    ours = OURS[kind](WIDTH).double()
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            ours.get_parameter(name).copy_(weight * multiplier_of(theirs, name))
    return theirs, ours, infer_roles(OURS[kind], base_width=BASE, width=WIDTH)


def multiplier_of(model, name):
    """What mup's module multiplies the weight's output by: 1/m at a readout's weight."""
    module = model.get_submodule(name.rpartition(".")[0])
    is_readout = isinstance(module, mup.MuReadout) and name.endswith("weight")
    return 1 / module.width_mult() if is_readout else 1.0


def decayed(model):
    """Groups for mup's optimizers that, as ours, decay no gain and no bias."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    rest = [p for p in model.parameters() if p.dim() <= 1]
    return [{"params": matrices}, {"params": rest, "weight_decay": 0.0}]


MAKE = {
    "adamw": lambda groups: mup.MuAdamW(groups, lr=LR, weight_decay=DECAY, eps=1e-20),
    "adam": lambda groups: mup.MuAdam(groups, lr=LR, eps=1e-20),
    "sgd": lambda groups: mup.MuSGD(groups, lr=LR, weight_decay=DECAY, momentum=0.9),
}
POWER = {"adamw": 1, "adam": 1, "sgd": 2}
PLAIN = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": partial(torch.optim.SGD, lr=1.0, momentum=0.9),
}


def our_groups(model, table, optimizer):
    return param_groups(
        model,
        roles=table,
        parameterization="mup",
        lr=LR,
        weight_decay=0.0 if optimizer == "adam" else DECAY,
        optimizer=optimizer,
        eps=1e-20,
        applied={"attention_scale"},
    )


@pytest.mark.parametrize("optimizer", MAKE)
@pytest.mark.parametrize("kind", OURS)
def test_the_same_learning_rate_and_weight_decay_parameter_by_parameter(kind, optimizer):
    theirs, ours, table = make_pair(kind)
    their_optimizer = MAKE[optimizer](decayed(theirs))
    expected = {
        id(p): (group["lr"], group["weight_decay"])
        for group in their_optimizer.param_groups
        for p in group["params"]
    }
    found = {
        id(p): (group["lr"], group["weight_decay"])
        for group in our_groups(ours, table, optimizer)
        for p in group["params"]
    }
    assert len(expected) == len(found) == len(list(ours.parameters()))
    for name, weight in theirs.named_parameters():
        factor = multiplier_of(theirs, name) ** POWER[optimizer]
        lr, decay = expected[id(weight)]
        assert found[id(ours.get_parameter(name))] == pytest.approx(
            (lr * factor, decay / factor), rel=1e-12
        ), name


def train_mlp(model, optimizer):
    inputs = torch.randn(16, 5, generator=torch.Generator().manual_seed(1)).double()
    targets = torch.stack([inputs.prod(1), inputs.sum(1).sin(), inputs.square().sum(1)], dim=1)
    losses = []
    for _ in range(50):
        loss = (model(inputs) - targets).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


@pytest.mark.parametrize("optimizer", MAKE)
@pytest.mark.parametrize("kind", OURS)
def test_equal_losses_over_fifty_steps(kind, optimizer):
    run = train_mlp if kind == "mlp" else partial(train, steps=50)
    theirs, ours, table = make_pair(kind)
    start = copy.deepcopy(ours)
    expected = run(theirs, MAKE[optimizer](decayed(theirs)))
    found = run(ours, PLAIN[optimizer](our_groups(ours, table, optimizer)))
    assert len(found) == 50
    assert found[-1] < found[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    # The check can fail: SP's groups from the same weights give other losses.
    groups = param_groups(start, roles=table, parameterization="sp", lr=LR, optimizer=optimizer)
    assert (run(start, PLAIN[optimizer](groups)) - expected).abs().max() > 1e-3


def test_the_same_init():
    torch.manual_seed(0)
    model = MuMLP(WIDTH)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    mup.set_base_shapes(model, MuMLP(BASE), delta=MuMLP(2 * BASE))
    # torch's own init goes as 1/√fan_in; mup then rescales, so that readouts go as 1/(m√base).
    for name, weight in model.named_parameters():
        if name.endswith("weight"):
            effective = weight * multiplier_of(model, name)
            factor = M**-0.5 if name == "last.weight" else 1.0
            torch.testing.assert_close(effective, before[name] * factor)


# Where we differ on purpose.


def test_difference_mup_decays_gains_and_biases_and_we_do_not():
    theirs, ours, table = make_pair("mlp")
    optimizer = mup.MuAdamW(theirs.parameters(), lr=LR, weight_decay=DECAY)
    bias = theirs.middle.bias
    (decay,) = (
        group["weight_decay"]
        for group in optimizer.param_groups
        if any(p is bias for p in group["params"])
    )
    assert decay == DECAY
    ours_of = our_groups(ours, table, "adamw")
    (mine,) = (g for g in ours_of if any(p is ours.middle.bias for p in g["params"]))
    assert mine["weight_decay"] == 0.0


def test_difference_weight_decay_inside_adams_gradient_is_refused():
    # mup multiplies Adam's weight_decay by m, though it is part of a gradient that Adam divides by
    # its RMS; no factor makes that a shrink by lr·weight_decay.
    theirs, ours, table = make_pair("mlp")
    optimizer = mup.MuAdam(theirs.parameters(), lr=LR, weight_decay=DECAY)
    assert M * DECAY in {group["weight_decay"] for group in optimizer.param_groups}
    with pytest.raises(ConfigError, match="weight_decay: 'adam' adds it to the gradient"):
        param_groups(
            ours,
            roles=table,
            parameterization="mup",
            lr=LR,
            weight_decay=DECAY,
            optimizer="adam",
        )


def test_difference_a_growing_head_size_is_not_passed_over():
    plain = partial(Transformer, num_heads=2)
    theirs = partial(MuTransformer, num_heads=2)(WIDTH)
    mup.set_base_shapes(theirs, partial(MuTransformer, num_heads=2)(BASE))  # no word about it
    mup.MuAdam(theirs.parameters(), lr=LR)
    table = infer_roles(plain, base_width=BASE, width=WIDTH)
    with pytest.raises(ConfigError, match=r"attention logits are multiplied by 0\.125 at head"):
        param_groups(plain(WIDTH), roles=table, parameterization="mup", lr=LR)


class Transposed(nn.Module):
    """As Hugging Face's Conv1D: (fan_in, fan_out)."""

    def __init__(self, nx, nf):
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.empty(nx, nf))


Transposed.__name__ = "Conv1D"


def test_difference_fan_in_is_what_the_module_says_not_the_last_dimension():
    def factory(width):
        return nn.Sequential(
            nn.Linear(3, width), Transposed(width, width**2 // 4), nn.Linear(width**2 // 4, 2)
        )

    table = infer_roles(factory, base_width=BASE, width=WIDTH)
    model = factory(WIDTH)
    groups = param_groups(model, roles=table, parameterization="mup", lr=1.0)
    (mine,) = (g["lr"] for g in groups if any(p is model[1].weight for p in g["params"]))
    assert mine == 1 / M
    shape = mup.infshape.zip_infshape(factory(BASE)[1].weight.shape, model[1].weight.shape)
    assert shape.width_mult() == M**2  # the ratio of its fan-out
