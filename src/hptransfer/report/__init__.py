"""Put results in words, figures and one self-contained HTML page."""

from hptransfer.report.answer import Answer, make_answer
from hptransfer.report.coordinates import draw_coordinates, read_coordinates
from hptransfer.report.page import ReportSource, analyse, write_report

__all__ = [
    "Answer",
    "ReportSource",
    "analyse",
    "draw_coordinates",
    "make_answer",
    "read_coordinates",
    "write_report",
]
