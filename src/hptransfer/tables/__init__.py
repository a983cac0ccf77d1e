"""Reading loss tables: files, frames, study directories and trackers' runs; each cell checked."""

from hptransfer.tables._probed_trials import read_curves, read_probes
from hptransfer.tables.loss_rows import ReadOptions
from hptransfer.tables.notes import TableNote
from hptransfer.tables.results_frame import to_frame
from hptransfer.tables.table_reader import (
    LoadedTable,
    TableSource,
    list_columns,
    read_frame,
    read_source,
    read_study,
    read_table,
)

__all__ = [
    "LoadedTable",
    "ReadOptions",
    "TableNote",
    "TableSource",
    "list_columns",
    "read_curves",
    "read_frame",
    "read_probes",
    "read_source",
    "read_study",
    "read_table",
    "to_frame",
]
