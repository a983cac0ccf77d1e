"""What a report is made of: a table, its fits, and what they recommend."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hptransfer.report.table_notes import cap_verdicts, describe_note
from hptransfer.stats.loss_table import LossTable
from hptransfer.stats.results import Recommendation, TransferFit
from hptransfer.tables import LoadedTable

# A report answers for this many times the widest width that was trained.
TARGET_RATIO = 4


@dataclass(frozen=True, kw_only=True)
class ReportSource:
    """One section of a report.

    Attributes
    ----------
    title : str
        Heading: the study's name or the table's path.
    table : LossTable
        The losses.
    fits : sequence of TransferFit
        One per group of the table.
    recommendations : sequence of Recommendation
        For `TARGET_RATIO` times the widest width.
    settings : mapping
        Contents of the study's ``study.json``; empty for a plain table.
    damaged, notes : tuple of str
        Files that could not be read; rows that were left out.
    """

    title: str
    table: LossTable
    fits: Sequence[TransferFit]
    recommendations: Sequence[Recommendation] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    damaged: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def analyse(study: LoadedTable, *, reference: str | None = None) -> ReportSource:
    """Fit a table and collect what a report says about it.

    Parameters
    ----------
    study : LoadedTable
        The table, grouped by all of its group columns.
    reference : str, optional
        The group that R is measured against.

    Raises
    ------
    FitError
        If the table holds nothing to fit.
    """
    # Imported here: SciPy is most of the start of a command that may only print its help.
    from hptransfer.stats import fit_table

    table = study.table
    fits = fit_table(table, reference=reference)
    target = TARGET_RATIO * float(table.width.max())
    return ReportSource(
        title=str(study.settings.get("name") or table.source),
        table=table,
        fits=fits,
        recommendations=cap_verdicts(fits.recommend(width=target), study.notes),
        settings=study.settings,
        damaged=study.damaged,
        notes=tuple(map(describe_note, study.notes)),
    )
