"""The GPT's shape, and what follows from it: each parameter's name, shape, role and fan-in."""

import math
from dataclasses import dataclass

from hptransfer.scaling import Role


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

    def __post_init__(self) -> None:
        assert self.width % self.head_size == 0, "the study file's check comes first"

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
    fan_in : int
        Number of inputs that one output sums over; 1 for tables and gains.

    Examples
    --------
    >>> spec = ParameterSpec(name="readout", shape=(64, 4096), role="readout", fan_in=64)
    >>> spec.fan_in == spec.shape[0]  # x @ W sums over the first dimension
    True
    """

    name: str
    shape: tuple[int, ...]
    role: Role
    fan_in: int


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

    def matrix(name: str, fan_in: int, fan_out: int, role: Role) -> ParameterSpec:
        return ParameterSpec(name=name, shape=(fan_in, fan_out), role=role, fan_in=fan_in)

    def table(name: str, rows: int) -> ParameterSpec:
        return ParameterSpec(name=name, shape=(rows, D), role="embedding", fan_in=1)

    def gain(name: str) -> ParameterSpec:
        return ParameterSpec(name=name, shape=(D,), role="norm", fan_in=1)

    specs = [table("token_embedding", V), table("position_embedding", T)]
    for layer in range(shape.num_layers):
        prefix = f"layers.{layer}"
        specs += [
            gain(f"{prefix}.attention_norm"),
            matrix(f"{prefix}.attention.qkv", D, 3 * D, "hidden"),
            matrix(f"{prefix}.attention.out", D, D, "hidden_residual"),
            gain(f"{prefix}.feed_forward_norm"),
            matrix(f"{prefix}.feed_forward.up", D, F, "hidden"),
            matrix(f"{prefix}.feed_forward.down", F, D, "hidden_residual"),
        ]
    specs += [gain("final_norm"), matrix("readout", D, V, "readout")]
    return tuple(specs)


def count_parameters(shape: GPTShape) -> int:
    """Return the number of learned scalars of one trial.

    Examples
    --------
    >>> shape = GPTShape(width=64, num_layers=2, head_size=16, context=128, vocab_size=4096)
    >>> count_parameters(shape)
    631104
    """
    return sum(math.prod(spec.shape) for spec in list_parameters(shape))
