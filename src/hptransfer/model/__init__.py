"""The GPT: shapes, declared parameters and the stacked forward pass."""

from hptransfer.model._gpt_shape import (
    GPTShape,
    ParameterSpec,
    count_parameters,
    list_parameters,
)
from hptransfer.model.gpt import (
    Tap,
    compute_hidden,
    compute_losses,
    is_product,
    scale_of_weights,
)
from hptransfer.model.loss import readout_cross_entropy

__all__ = [
    "GPTShape",
    "ParameterSpec",
    "Tap",
    "compute_hidden",
    "compute_losses",
    "count_parameters",
    "is_product",
    "list_parameters",
    "readout_cross_entropy",
    "scale_of_weights",
]
