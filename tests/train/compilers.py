"""Compilers that fail, in place of torch's."""

import torch


class FailingBackward(torch.autograd.Function):
    """What a compiler gives whose program fails in the backward pass, as it is compiled there."""

    @staticmethod
    def forward(ctx, losses):
        return losses.clone()

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError("no compiler here\nwhatever else it says")
