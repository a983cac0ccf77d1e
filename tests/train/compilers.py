"""Compilers and captures that fail, in place of torch's."""

from contextlib import contextmanager

import torch

from hptransfer.train import _module_ensemble, _program


class FailingBackward(torch.autograd.Function):
    """What a compiler gives whose program fails in the backward pass, as it is compiled there."""

    @staticmethod
    def forward(ctx, losses):
        return losses.clone()

    @staticmethod
    def backward(ctx, grad):
        raise RuntimeError("no compiler here\nwhatever else it says")


def refuse_captures(monkeypatch, why="here", *, at_end=False):
    """Let a CPU try to capture steps, and fail; return the list of captures under way.

    A step that is captured up to the end is taken here, as it would not be on a GPU.
    """
    under_way = []

    @contextmanager
    def graph(graph, *, pool):
        if at_end:
            under_way.append(graph)
            yield
            under_way.pop()
        raise RuntimeError(f"{why}\nwhatever else it says")

    for name in ("CUDAGraph", "synchronize", "empty_cache", "graph_pool_handle"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    for module in (_program, _module_ensemble):
        monkeypatch.setattr(module, "take_aside", lambda take, device: take())
    return under_way
