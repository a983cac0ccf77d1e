"""Statistics of learning-rate transfer: basins, the joint model, metrics and recommendations.

Start from a `LossTable`. `fit_table` splits it into groups, fits each and compares them;
`recommend` answers for a width that was not measured; `fit_transfer` and `fit_basin` are for a
table that holds one group. Every number is an `Estimate` with a 90 % interval, a status, and
the reason in words where the data do not identify it. Arrays in, frozen results out: numpy and
scipy only.
"""

from hptransfer.stats.ask import compute_regret, fast_transfer, lr_sensitivity
from hptransfer.stats.basins import DEFAULT_RESAMPLES, DEFAULT_SEED, fit_basin
from hptransfer.stats.cells import DEFAULT_WINDOW, Cells, build_cells
from hptransfer.stats.compare import DEFAULT_BY, fit_table
from hptransfer.stats.estimate import Estimate, Status
from hptransfer.stats.flops import flops_of
from hptransfer.stats.measures import ComputeRegret, FastTransfer, Sensitivity
from hptransfer.stats.proposal import Proposal, Step
from hptransfer.stats.recommend import recommend
from hptransfer.stats.recommendation import Recommendation
from hptransfer.stats.results import BasinFit, Form, TransferFit, TransferModel
from hptransfer.stats.shared import Share, Shared
from hptransfer.stats.table import Axis, LossTable
from hptransfer.stats.token_axis import TokenAdvice, TokenBasin, TokenFit, fit_tokens
from hptransfer.stats.transfer import fit_transfer

__all__ = [
    "DEFAULT_BY",
    "DEFAULT_RESAMPLES",
    "DEFAULT_SEED",
    "DEFAULT_WINDOW",
    "Axis",
    "BasinFit",
    "Cells",
    "ComputeRegret",
    "Estimate",
    "FastTransfer",
    "Form",
    "LossTable",
    "Proposal",
    "Recommendation",
    "Sensitivity",
    "Share",
    "Shared",
    "Status",
    "Step",
    "TokenAdvice",
    "TokenBasin",
    "TokenFit",
    "TransferFit",
    "TransferModel",
    "build_cells",
    "compute_regret",
    "fast_transfer",
    "fit_basin",
    "fit_table",
    "fit_tokens",
    "fit_transfer",
    "flops_of",
    "lr_sensitivity",
    "recommend",
]
