"""How a module stores and uses one of its parameters: which dimensions are inputs and outputs."""

import math
from dataclasses import dataclass
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

Use = Literal["table", "matrix", "gain", "bias", "unknown"]
"""``table``: looked up or added; ``matrix``: multiplied with the input; ``unknown``: a parameter
of a module that this does not know."""

_NORMS: tuple[type[nn.Module], ...] = (
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    _NormBase,
)
_GAIN_NAMES = frozenset({"weight", "gain", "gamma", "scale", "g"})
_BIAS_NAMES = frozenset({"bias", "beta", "b"})

HEAD_SIZES = ("head_dim", "head_size")
QUERY_COUNTS = ("num_heads", "num_attention_heads", "n_head", "n_heads")
_HEAD_MARKS = (
    *HEAD_SIZES,
    *QUERY_COUNTS,
    "num_key_value_heads",
    "num_kv_heads",
    "num_key_value_groups",
)
"""Attributes by which an attention module states its heads."""


@dataclass(frozen=True)
class Layout:
    """How a parameter is used.

    Attributes
    ----------
    use : Use
        See there.
    out, inn : tuple of int
        Dimensions of a matrix or table that are outputs, and that an output sums over.
    transposed : bool
        Whether the inputs come first.
    """

    use: Use
    out: tuple[int, ...] = ()
    inn: tuple[int, ...] = ()
    transposed: bool = False

    def fans(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return (fan_in, fan_out) of a tensor of this shape."""
        return (
            math.prod(shape[i] for i in self.inn),
            math.prod(shape[i] for i in self.out),
        )


def matrix_layout(ndim: int, *, transposed: bool = False) -> Layout:
    """Return the layout of a matrix, or of a stack of them along leading dimensions."""
    first, last = (ndim - 2,), (ndim - 1,)
    if transposed:
        return Layout("matrix", out=last, inn=first, transposed=True)
    return Layout("matrix", out=first, inn=last)


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm: one of torch's, or a class that has norm in its name."""
    return isinstance(module, _NORMS) or "norm" in type(module).__name__.lower()


def is_attention(module: nn.Module) -> bool:
    """Whether a module states a head size or a number of heads."""
    return isinstance(module, nn.MultiheadAttention) or any(
        isinstance(getattr(module, mark, None), int) for mark in _HEAD_MARKS
    )


def find_layout(module: nn.Module, leaf: str, shape: tuple[int, ...]) -> Layout:
    """Return how ``module`` uses its parameter ``leaf``, of that shape."""
    ndim = len(shape)
    if leaf in _BIAS_NAMES or leaf.endswith("_bias") or leaf.startswith("bias_"):
        return Layout("bias", out=tuple(range(ndim)))
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return Layout("table", out=(1,), inn=(0,))
    if ndim == 1 and (is_norm(module) or leaf in _GAIN_NAMES):
        return Layout("gain", out=(0,))
    if isinstance(module, _ConvNd) and leaf == "weight":
        kernel = tuple(range(2, ndim))
        if isinstance(module, _ConvTransposeNd):
            return Layout("matrix", out=(1,), inn=(0, *kernel), transposed=True)
        return Layout("matrix", out=(0,), inn=(1, *kernel))
    if isinstance(module, nn.Linear) and leaf == "weight":
        return matrix_layout(ndim)
    if isinstance(module, nn.MultiheadAttention | nn.RNNBase | nn.RNNCellBase) and ndim == 2:
        return matrix_layout(ndim)
    if type(module).__name__ == "Conv1D" and ndim == 2 and hasattr(module, "nf"):
        return matrix_layout(ndim, transposed=True)  # Hugging Face's: weight of (nx, nf)
    return Layout("unknown")
