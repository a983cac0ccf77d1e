"""Which learning rate does the big model need, known from small ones, and how wrong could it be?

The public names, loaded when first used: rules need neither SciPy nor PyTorch, statistics and
tables no PyTorch.

>>> import hptransfer
>>> hptransfer.resolve("sp+embd", width=256, base_width=64).roles["embedding"].lr
1.0
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hptransfer._version import __version__ as __version__

if TYPE_CHECKING:  # what a type checker reads in the place of `_HOMES`
    from hptransfer import adopt as adopt
    from hptransfer.errors import ConfigError as ConfigError
    from hptransfer.errors import DataError as DataError
    from hptransfer.errors import FitError as FitError
    from hptransfer.errors import HptransferError as HptransferError
    from hptransfer.errors import StoreError as StoreError
    from hptransfer.report import analyse as analyse
    from hptransfer.report import make_answer as make_answer
    from hptransfer.report import write_report as write_report
    from hptransfer.scaling import LATTICE as LATTICE
    from hptransfer.scaling import Parameterization as Parameterization
    from hptransfer.scaling import Resolved as Resolved
    from hptransfer.scaling import parse_parameterization as parse_parameterization
    from hptransfer.scaling import resolve as resolve
    from hptransfer.search import LrSearch as LrSearch
    from hptransfer.stats import BasinFit as BasinFit
    from hptransfer.stats import Estimate as Estimate
    from hptransfer.stats import LossTable as LossTable
    from hptransfer.stats import Recommendation as Recommendation
    from hptransfer.stats import TableFit as TableFit
    from hptransfer.stats import TransferFit as TransferFit
    from hptransfer.stats import fit_table as fit_table
    from hptransfer.study import StudyConfig as StudyConfig
    from hptransfer.study import load_study as load_study
    from hptransfer.study import run_study as run_study
    from hptransfer.tables import read_source as read_source
    from hptransfer.tables import read_table as read_table

_HOMES = {
    "errors": "ConfigError DataError FitError HptransferError StoreError",
    "report": "analyse make_answer write_report",
    "scaling": "LATTICE Parameterization Resolved parse_parameterization resolve",
    "search": "LrSearch",
    "stats": "BasinFit Estimate LossTable Recommendation TableFit TransferFit fit_table",
    "study": "StudyConfig load_study run_study",
    "tables": "read_source read_table",
}
_HOME_OF = {"adopt": ""} | {name: home for home in _HOMES for name in _HOMES[home].split()}
__all__ = ["__version__", *_HOME_OF]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'hptransfer' has no attribute {name!r}")
    home = _HOME_OF[name]
    if not home:  # a package of its own
        return import_module(f"hptransfer.{name}")
    return getattr(import_module(f"hptransfer.{home}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
