"""From a table of losses to a learning rate and one HTML page, from Python.

    python examples/table_to_report.py [TABLE] [REPORT] [CHECK.json ...]

What ``hptransfer report`` does: any file that `read_source` reads is fitted once, and the page is
written from that fit. Coordinate checks (``hptransfer coordinate-check … --json``) follow it.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from hptransfer import analyse, read_source, write_report
from hptransfer.report import Answer, ReportSource, read_coordinates

RECORDED = Path(__file__).resolve().parents[1] / "studies" / "recorded" / "wiki-plain.csv"


def main(
    table: Path | str = RECORDED,
    report: Path | str = "report.html",
    checks: Sequence[Path | str] = (),
) -> ReportSource:
    """Print what to type for a model twice as wide as the widest, and write the page."""
    loaded = read_source(table)
    source = analyse(loaded, width=2 * float(loaded.table.width.max()))
    answer: Answer = source.answer
    print(answer.facts)
    for row in answer.rates:
        rates = ", ".join(f"{tensors} {rate}".strip() for tensors, rate in row.rates)
        print(f"{row.name}: {rates} ({row.verdict})")
    write_report([source], report, coordinates=[read_coordinates(path) for path in checks])
    return source


if __name__ == "__main__":
    main(*sys.argv[1:3], checks=sys.argv[3:])
