"""The GPT: shapes, declared parameters and the stacked forward pass."""

from hptransfer.model.gpt import Tap, compute_hidden, compute_losses
from hptransfer.model.loss import readout_cross_entropy
from hptransfer.model.parameters import ParameterSpec, count_parameters, list_parameters
from hptransfer.model.shape import GPTShape

__all__ = [
    "GPTShape",
    "ParameterSpec",
    "Tap",
    "compute_hidden",
    "compute_losses",
    "count_parameters",
    "list_parameters",
    "readout_cross_entropy",
]
