"""A user's own module, as ``hptransfer audit`` imports it."""

import torch
from torch import nn

from adopt.models import Transformer

LR, DECAY = 1e-3, 0.1
nothing = 3


def make(width):
    return Transformer(width)


def make_tied(width):
    return Transformer(width, tied=True)


def make_constant_init(width):
    model = Transformer(width)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            nn.init.normal_(parameter, std=0.02)
    return model


def one_lr(model):
    return torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=DECAY)


def split(model):
    matrices, rest = [], []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.dim() == 2 and "tokens" not in name
        (matrices if is_matrix else rest).append(parameter)
    return matrices, rest


def as_mup(width, model, base_width=32):
    """µP's learning rates, weight decay coupled to them, as many write it."""
    matrices, rest = split(model)
    return torch.optim.AdamW(
        [{"params": matrices, "lr": LR * base_width / width}, {"params": rest, "lr": LR}],
        weight_decay=DECAY,
    )


def as_mup_warmed(width, model):
    optimizer = as_mup(width, model)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 10)
    return optimizer


def of_another_base(width, model):
    return as_mup(width, model, base_width=128)


def forgetful(model):
    return torch.optim.AdamW(split(model)[0], lr=LR)


def broken(width):
    raise ValueError("no such\nwidth")
