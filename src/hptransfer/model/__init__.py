"""The GPT: shapes, declared parameters and the stacked forward pass."""

from hptransfer.model._gpt_shape import (
    GPTShape,
    ParameterSpec,
    count_parameters,
    list_parameters,
)
from hptransfer.model.gpt import compute_hidden, compute_losses, readout_cross_entropy

__all__ = [
    "GPTShape",
    "ParameterSpec",
    "compute_hidden",
    "compute_losses",
    "count_parameters",
    "list_parameters",
    "readout_cross_entropy",
]
