"""Statistics of learning-rate transfer: basins, the joint model, metrics and recommendations.

Start from a `LossTable`. `fit_table` splits it into groups, fits each and compares them; the
`TableFit` that it returns recommends a rate at a width that was not measured, and answers other
questions from the same fits; `fit_axes` is for a table that spans tokens or batches too. Every
number is an `Estimate` with a 90 % interval, a status, and the reasons where the data do not
identify it: those of a width are a `BasinFit`, and the classes of all other results are in
`hptransfer.stats.results`. Arrays in, frozen results out: numpy and scipy only.
"""

from hptransfer.stats._axes_fit import fit_axes
from hptransfer.stats._metrics import flops_of
from hptransfer.stats._table_fit import TableFit, fit_table
from hptransfer.stats.estimate import BasinFit, Estimate, to_document
from hptransfer.stats.loss_table import Axis, LossTable, build_cells
from hptransfer.stats.reasons import Reason
from hptransfer.stats.results import Form, Recommendation, TransferFit

__all__ = [
    "Axis",
    "BasinFit",
    "Estimate",
    "Form",
    "LossTable",
    "Reason",
    "Recommendation",
    "TableFit",
    "TransferFit",
    "build_cells",
    "fit_axes",
    "fit_table",
    "flops_of",
    "to_document",
]
