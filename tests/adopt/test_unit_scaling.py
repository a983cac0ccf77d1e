"""Against the package ``unit-scaling``: u-µP's learning rates, parameter by parameter."""

import pytest
import torch
from torch import nn

from hptransfer.adopt import infer_roles, param_groups

uu = pytest.importorskip("unit_scaling", reason="unit-scaling is not installed")

WIDTH, LR, DECAY = 256, 2**-2, 2**-4


class Model(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.tokens = uu.Embedding(11, width)
        self.norm = uu.LayerNorm(width, elementwise_affine=True)
        self.qkv = uu.Linear(width, 3 * width, bias=True)
        self.down = uu.Linear(4 * width, width)
        self.head = uu.LinearReadout(width, 11)


@pytest.mark.parametrize("base_width", [64, 128])
def test_learning_rates_and_weight_decay(base_width):
    from unit_scaling.optim import lr_scale_func_adam, scaled_parameters

    table = infer_roles(Model, base_width=base_width, width=WIDTH)
    model = Model(WIDTH)
    groups = param_groups(
        model,
        roles=table,
        parameterization="u-mup",
        lr=LR,
        weight_decay=DECAY,
        weight_decay_mode="independent",
        applied={"multipliers", "attention_scale"},
    )
    ours = {id(p): g for g in groups for p in g["params"]}
    theirs = scaled_parameters(model.parameters(), lr_scale_func_adam, lr=LR, weight_decay=DECAY)
    assert len(ours) == len(theirs) == 7
    for group in theirs:
        (parameter,) = group["params"]
        mine = ours[id(parameter)]
        assert mine["lr"] == pytest.approx(group["lr"], rel=1e-12)
        # On purpose: they decay gains and biases as well.
        expected = group["weight_decay"] if parameter.dim() > 1 else 0.0
        assert mine["weight_decay"] == pytest.approx(expected, rel=1e-12)
    # By hand: η/√256 for tables and hidden matrices of that fan-in, η/√1024, and η.
    assert sorted({g["lr"] for g in groups}) == [LR / 32, LR / 16, LR]
    torch.optim.AdamW(groups)
