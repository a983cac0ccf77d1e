"""Reading loss tables: files, frames, study directories and trackers' runs; each cell checked."""

from hptransfer.tables._loss_rows import ReadOptions
from hptransfer.tables._raw_table import TableNote
from hptransfer.tables._stored_trials import LossCurve, attach_rates, read_curves, read_probes
from hptransfer.tables.table_reader import (
    LoadedTable,
    TableSource,
    list_columns,
    read_frame,
    read_source,
    read_table,
    to_frame,
)

__all__ = [
    "LoadedTable",
    "LossCurve",
    "ReadOptions",
    "TableNote",
    "TableSource",
    "attach_rates",
    "list_columns",
    "read_curves",
    "read_frame",
    "read_probes",
    "read_source",
    "read_table",
    "to_frame",
]
