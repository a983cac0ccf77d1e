"""Reading loss tables: CSV, JSON lines, Parquet, study directories; each cell checked."""

from hptransfer.tables.columns import parse_columns
from hptransfer.tables.frame import to_frame
from hptransfer.tables.read import read_source, read_study, read_table
from hptransfer.tables.source import StudyTable
from hptransfer.tables.where import parse_where

__all__ = [
    "StudyTable",
    "parse_columns",
    "parse_where",
    "read_source",
    "read_study",
    "read_table",
    "to_frame",
]
