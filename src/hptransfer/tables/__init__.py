"""Reading loss tables: CSV, Parquet and study directories, checked row by row."""

from hptransfer.tables.columns import parse_columns
from hptransfer.tables.read import read_source, read_study, read_table
from hptransfer.tables.source import StudyTable

__all__ = ["StudyTable", "parse_columns", "read_source", "read_study", "read_table"]
