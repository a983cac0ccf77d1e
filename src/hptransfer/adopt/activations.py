"""What a model's modules put out, and how far it has moved: forward hooks and their RMS."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

ModuleFilter = Callable[[str, nn.Module], bool]
"""Tells by path and module whether to look at it."""

Outputs = dict[str, list[Tensor]]
"""By path: every floating-point tensor that the module put out, in order."""


def is_leaf(name: str, module: nn.Module) -> bool:
    """Tell whether a module has no modules in it: the default choice of what to look at."""
    return not any(module.children())


def record(model: nn.Module, run: Callable[[], object], modules: ModuleFilter = is_leaf) -> Outputs:
    """Return what the chosen modules put out while ``run`` runs the model.

    The model is in evaluation mode meanwhile and no gradients are taken, so that dropout does not
    pass for learning. A module that is called several times gives all its outputs.
    """
    outputs: Outputs = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            # Cloned: a later in-place activation would write over it.
            outputs.setdefault(name, []).extend(t.detach().clone() for t in _tensors(output))

        return hook

    chosen = [(name, module) for name, module in model.named_modules() if modules(name, module)]
    handles = [module.register_forward_hook(keep(name)) for name, module in chosen]
    try:
        with torch.no_grad(), _evaluation(model):
            run()
    finally:
        for handle in handles:
            handle.remove()
    return {name: tensors for name, tensors in outputs.items() if tensors}


def rms(tensors: list[Tensor], before: list[Tensor] | None = None) -> float:
    """Return the root mean square of all entries, or of their change since ``before``.

    NaN where the shapes are no longer the same ones.
    """
    total, count = 0.0, 0
    if before is not None and [t.shape for t in tensors] != [t.shape for t in before]:
        return math.nan
    for k, tensor in enumerate(tensors):
        wide = tensor.double()
        if before is not None:
            wide = wide - before[k].double()
        total += float(wide.square().sum())
        count += wide.numel()
    return math.sqrt(total / count) if count else math.nan


def _tensors(output: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors in a module's output, however it is nested."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for item in output.values():
            yield from _tensors(item)
    elif isinstance(output, list | tuple):
        for item in output:
            yield from _tensors(item)


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode, and each back into its own afterwards."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
