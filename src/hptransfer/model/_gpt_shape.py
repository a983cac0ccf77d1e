"""The GPT's shape, and what follows from it: each parameter's name, shape, role and fan-in."""

import math
from dataclasses import dataclass

from hptransfer.scaling import MATRIX_ROLES, Role


@dataclass(frozen=True, kw_only=True)
class GPTShape:
    """Sizes of the decoder-only GPT of Kalra & Barkeshli 2026.

    Attributes
    ----------
    width : int
        D, the size of the residual stream.
    num_layers : int
        Number of blocks.
    head_size : int
        H; the number of heads is D / H.
    context : int
        T, the longest sequence, and the number of learned positions.
    vocab_size : int
        V.

    Examples
    --------
    >>> shape = GPTShape(width=64, num_layers=2, head_size=16, context=128, vocab_size=4096)
    >>> shape.num_heads, shape.feed_forward
    (4, 256)
    """

    width: int
    num_layers: int
    head_size: int
    context: int
    vocab_size: int

    @property
    def num_heads(self) -> int:
        """N = D / H."""
        return self.width // self.head_size

    @property
    def feed_forward(self) -> int:
        """F = 4·D, the hidden size of the feed-forward layer."""
        return 4 * self.width


@dataclass(frozen=True, kw_only=True)
class ParameterSpec:
    """One learned tensor.

    Attributes
    ----------
    name : str
        Dotted name, such as ``layers.0.attention.qkv``.
    shape : tuple of int
        Without the leading K; matrices are (fan_in, fan_out), as in x @ W.
    role : Role
        Which rule sets its init, learning rate and weight decay.

    Examples
    --------
    >>> spec = ParameterSpec(name="readout", shape=(64, 4096), role="readout")
    >>> spec.fan_in == spec.shape[0]  # x @ W sums over the first dimension
    True
    """

    name: str
    shape: tuple[int, ...]
    role: Role

    @property
    def fan_in(self) -> int:
        """Number of inputs that one output sums over; 1 for tables and gains."""
        return self.shape[0] if self.role in MATRIX_ROLES else 1


def list_parameters(shape: GPTShape) -> tuple[ParameterSpec, ...]:
    """Return every parameter of the GPT in forward order.

    Examples
    --------
    >>> shape = GPTShape(width=64, num_layers=1, head_size=16, context=128, vocab_size=4096)
    >>> for spec in list_parameters(shape)[:4]:
    ...     print(spec.name, spec.shape, spec.role)
    token_embedding (4096, 64) embedding
    position_embedding (128, 64) embedding
    layers.0.attention_norm (64,) norm
    layers.0.attention.qkv (64, 192) hidden
    """
    D, F, V, T = shape.width, shape.feed_forward, shape.vocab_size, shape.context

    tensors: list[tuple[str, tuple[int, ...], Role]] = [
        ("token_embedding", (V, D), "embedding"),
        ("position_embedding", (T, D), "embedding"),
    ]
    for layer in range(shape.num_layers):
        prefix = f"layers.{layer}"
        tensors += [
            (f"{prefix}.attention_norm", (D,), "norm"),
            (f"{prefix}.attention.qkv", (D, 3 * D), "hidden"),
            (f"{prefix}.attention.out", (D, D), "hidden_residual"),
            (f"{prefix}.feed_forward_norm", (D,), "norm"),
            (f"{prefix}.feed_forward.up", (D, F), "hidden"),
            (f"{prefix}.feed_forward.down", (F, D), "hidden_residual"),
        ]
    tensors += [("final_norm", (D,), "norm"), ("readout", (D, V), "readout")]
    return tuple(ParameterSpec(name=name, shape=sizes, role=role) for name, sizes, role in tensors)


def count_parameters(shape: GPTShape) -> int:
    """Return the number of learned scalars of one trial.

    Examples
    --------
    >>> shape = GPTShape(width=64, num_layers=2, head_size=16, context=128, vocab_size=4096)
    >>> count_parameters(shape)
    631104
    """
    return sum(math.prod(spec.shape) for spec in list_parameters(shape))
