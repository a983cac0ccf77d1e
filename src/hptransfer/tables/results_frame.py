"""Results as one data frame."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from hptransfer.stats.results import COLUMNS, TidyResult

if TYPE_CHECKING:
    import pyarrow as pa

_NUMBERS = ("width", "value", "low", "high")


def to_frame(results: TidyResult | Iterable[TidyResult]) -> "pa.Table":
    """Return results as a PyArrow table, one row for each estimate.

    Parameters
    ----------
    results : result or iterable of results
        What `fit_table`, the methods of its result and `fit_basin` return, mixed as one likes.

    Returns
    -------
    pyarrow.Table
        The columns of the results' groups, as text, then ``width``, ``quantity``, ``unit``,
        ``value``, ``low``, ``high``, ``status`` and ``reason``; null where a result has none.
        ``.to_pandas()`` and ``polars.from_arrow`` take it from there.
    """
    import pyarrow as pa

    parts = [r.to_columns() for r in ([results] if isinstance(results, TidyResult) else results)]
    groups = list(dict.fromkeys(name for part in parts for name in part if name not in COLUMNS))
    columns: dict[str, list[object]] = {name: [] for name in (*groups, *COLUMNS)}
    for part in parts:
        for name, column in columns.items():
            column += part.get(name, [None] * len(part["quantity"]))
    return pa.table(
        {
            name: pa.array(
                [None if v is None else str(v) for v in column] if name in groups else column,
                pa.float64() if name in _NUMBERS else pa.string(),
            )
            for name, column in columns.items()
        }
    )
