"""The GPT's parameters: name, shape, role and fan-in of each, declared in one place."""

from dataclasses import dataclass

from hptransfer.model.shape import GPTShape
from hptransfer.scaling import Role


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
    """

    name: str
    shape: tuple[int, ...]
    role: Role
    fan_in: int


def list_parameters(shape: GPTShape) -> tuple[ParameterSpec, ...]:
    """Return every parameter of the GPT in forward order."""
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
    """Return the number of learned scalars of one trial."""
    total = 0
    for spec in list_parameters(shape):
        size = 1
        for dim in spec.shape:
            size *= dim
        total += size
    return total
