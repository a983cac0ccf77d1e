"""Which learning rate does the big model need, known from small ones, and how wrong could it be?

The public names, loaded when first used: rules need neither SciPy nor PyTorch, statistics and
tables no PyTorch.

>>> import hptransfer
>>> hptransfer.resolve("sp+embd", width=256, base_width=64).roles["embedding"].lr
1.0
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hptransfer._version import __version__

if TYPE_CHECKING:
    from hptransfer import adopt
    from hptransfer.errors import (
        ConfigError,
        DataError,
        FitError,
        HptransferError,
        StoreError,
    )
    from hptransfer.report import analyse, make_answer, write_report
    from hptransfer.scaling import (
        LATTICE,
        Parameterization,
        Resolved,
        parse_parameterization,
        resolve,
    )
    from hptransfer.search import LrSearch
    from hptransfer.stats import (
        BasinFit,
        Estimate,
        LossTable,
        Recommendation,
        TableFit,
        TransferFit,
        fit_table,
    )
    from hptransfer.study import StudyConfig, load_study, run_study
    from hptransfer.tables import read_source, read_table

__all__ = [
    "LATTICE",
    "BasinFit",
    "ConfigError",
    "DataError",
    "Estimate",
    "FitError",
    "HptransferError",
    "LossTable",
    "LrSearch",
    "Parameterization",
    "Recommendation",
    "Resolved",
    "StoreError",
    "StudyConfig",
    "TableFit",
    "TransferFit",
    "__version__",
    "adopt",
    "analyse",
    "fit_table",
    "load_study",
    "make_answer",
    "parse_parameterization",
    "read_source",
    "read_table",
    "resolve",
    "run_study",
    "write_report",
]

_HOMES = {
    "errors": ("ConfigError", "DataError", "FitError", "HptransferError", "StoreError"),
    "report": ("analyse", "make_answer", "write_report"),
    "scaling": ("LATTICE", "Parameterization", "Resolved", "parse_parameterization", "resolve"),
    "search": ("LrSearch",),
    "stats": (
        "BasinFit",
        "Estimate",
        "LossTable",
        "Recommendation",
        "TableFit",
        "TransferFit",
        "fit_table",
    ),
    "study": ("StudyConfig", "load_study", "run_study"),
    "tables": ("read_source", "read_table"),
}
_HOME_OF = {"adopt": ""} | {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'hptransfer' has no attribute {name!r}")
    home = _HOME_OF[name]
    if not home:  # a package of its own
        return import_module(f"hptransfer.{name}")
    return getattr(import_module(f"hptransfer.{home}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
