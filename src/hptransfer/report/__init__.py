"""From result objects to words, figures and one self-contained HTML page."""

from hptransfer.report.coordinates import draw_coordinates, read_coordinates
from hptransfer.report.page import write_report
from hptransfer.report.source import ReportSource, analyse
from hptransfer.report.summary import summarise

__all__ = [
    "ReportSource",
    "analyse",
    "draw_coordinates",
    "read_coordinates",
    "summarise",
    "write_report",
]
