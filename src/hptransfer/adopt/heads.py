"""The attention head size that a model's modules state."""

from collections.abc import Iterator

from torch import nn

from hptransfer.adopt.layout import HEAD_SIZES


def _stated_sizes(model: nn.Module) -> Iterator[int]:
    for module in model.modules():
        for key in HEAD_SIZES:
            size = getattr(module, key, None)
            if isinstance(size, int) and not isinstance(size, bool):
                yield size


def find_head_size(model: nn.Module) -> int | None:
    """Return the head size that modules state (``head_dim``, ``head_size``).

    None where no module states one, or where two state different ones.
    """
    sizes = set(_stated_sizes(model))
    return sizes.pop() if len(sizes) == 1 else None
