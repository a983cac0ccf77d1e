"""The attention head size that a model's modules state."""

from collections.abc import Iterable, Iterator

from torch import nn

from hptransfer.adopt.layout import HEAD_SIZES, QUERY_COUNTS


def _stated(model: nn.Module, keys: Iterable[str]) -> Iterator[int]:
    for module in model.modules():
        for key in keys:
            number = getattr(module, key, None)
            if isinstance(number, int) and not isinstance(number, bool):
                yield number


def find_head_size(model: nn.Module, width: int) -> int | None:
    """Return the attention head size of a model of this width.

    It is what modules state (``head_dim``, ``head_size``), else the width over the number of heads
    that they state. None where no module states either, or where two state different ones.
    """
    sizes = set(_stated(model, HEAD_SIZES))
    if not sizes:
        counts = set(_stated(model, QUERY_COUNTS))
        sizes = {width // count for count in counts if count > 0 and width % count == 0}
    return sizes.pop() if len(sizes) == 1 else None
