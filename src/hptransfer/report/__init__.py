"""Put results in words, figures and one self-contained HTML page."""

from hptransfer.report._page import ReportSource, analyse, read_coordinates, write_report
from hptransfer.report.answer import Answer, make_answer

__all__ = [
    "Answer",
    "ReportSource",
    "analyse",
    "make_answer",
    "read_coordinates",
    "write_report",
]
