"""Statistics of learning-rate transfer: basins, the joint model, metrics and recommendations.

Start from a `LossTable`. `fit_table` splits it into groups, fits each and compares them; the
`TableFit` that it returns recommends a rate at a width that was not measured, and answers other
questions from the same fits. `fit_transfer` and `fit_basin` are for a table that holds one group,
`fit_axes` for one that spans tokens or batches too. Every number is an `Estimate` with a 90 %
interval, a status, and the reasons where the data do not identify it. Arrays in, frozen results
out: numpy and scipy only.
"""

from hptransfer.stats._axes_fit import AxesFit, fit_axes
from hptransfer.stats._group_data import DEFAULT_BY, DEFAULT_RESAMPLES, DEFAULT_SEED
from hptransfer.stats._group_fit import fit_basin, fit_transfer
from hptransfer.stats._metrics import flops_of
from hptransfer.stats._table_fit import TableFit, fit_table
from hptransfer.stats.cells import DEFAULT_WINDOW, Cells, build_cells
from hptransfer.stats.estimate import Estimate, Status, to_document
from hptransfer.stats.loss_table import Axis, LossTable
from hptransfer.stats.priors import NO_PRIOR, PRIORS, Prior, read_priors, write_priors
from hptransfer.stats.reasons import Reason
from hptransfer.stats.results import (
    BasinFit,
    ComputeRegret,
    FastTransfer,
    Form,
    Proposal,
    Recommendation,
    Sensitivity,
    Share,
    Shared,
    Step,
    TransferFit,
    TransferModel,
)

__all__ = [
    "DEFAULT_BY",
    "DEFAULT_RESAMPLES",
    "DEFAULT_SEED",
    "DEFAULT_WINDOW",
    "NO_PRIOR",
    "PRIORS",
    "AxesFit",
    "Axis",
    "BasinFit",
    "Cells",
    "ComputeRegret",
    "Estimate",
    "FastTransfer",
    "Form",
    "LossTable",
    "Prior",
    "Proposal",
    "Reason",
    "Recommendation",
    "Sensitivity",
    "Share",
    "Shared",
    "Status",
    "Step",
    "TableFit",
    "TransferFit",
    "TransferModel",
    "build_cells",
    "fit_axes",
    "fit_basin",
    "fit_table",
    "fit_transfer",
    "flops_of",
    "read_priors",
    "to_document",
    "write_priors",
]
