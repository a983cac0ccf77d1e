"""Synthetic studies whose groups, gaps and drifts a test chooses, fitted as a report fits them."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest

from hptransfer.report import ReportSource
from hptransfer.stats import LossTable, fit_table
from hptransfer.tables import attach_rates
from stats.synthetic import join_tables, make_table

SETTINGS = {
    "name": "tiny",
    "axis": "hidden-aligned",
    "config": {"sweep": {"base_width": 32}, "rounds": [{"n": 1}]},
    "data": {"text": "wiki", "unigram_entropy": 6.5, "bigram_entropy": 4.2},
    "versions": {"torch": "2.13.0"},
    "precision": "fp32",
}
WIDTHS = (64.0, 128.0, 256.0)
GROUPS: dict[str, dict[str, object]] = {"sp": {"loss_inf": 2.1}, "sp+embd": {}, "mup": {}}


def make_study(
    groups: Mapping[str, Mapping[str, object]] = GROUPS,
    *,
    settings: Mapping[str, object] = SETTINGS,
    target: float = 1024.0,
    title: str = "tiny",
    diverged: float = np.inf,
    **options: object,
) -> ReportSource:
    """Fit a table of named groups; losses at rates of `diverged` and above are none."""
    parts = [
        make_table(
            **{"widths": WIDTHS, "num_seeds": 2, "seed": k, **options, **own},
            groups={"parameterization": name},
        )
        for k, (name, own) in enumerate(groups.items())
    ]
    table = parts[0]
    for part in parts[1:]:
        table = join_tables(table, part)
    table = replace(table, loss=np.where(table.lr >= diverged, np.nan, table.loss))
    table = attach_rates(replace(table, axis="hidden-aligned"), settings)
    reference = "sp" if "sp" in groups else None
    fits = fit_table(table, reference=reference, num_resamples=60)
    return ReportSource(
        title=title,
        fits=fits,
        recommendations=fits.recommend(width=target),
        settings=settings,
    )


@pytest.fixture(scope="session")
def studies() -> Callable[..., ReportSource]:
    """Make a study, or return the one made before of the same options."""
    made: dict[str, ReportSource] = {}

    def get(**options: object) -> ReportSource:
        key = repr(sorted(options.items()))
        if key not in made:
            made[key] = make_study(**options)
        return made[key]

    return get


@pytest.fixture(scope="session")
def tiny(studies: Callable[..., ReportSource]) -> ReportSource:
    return studies()


@pytest.fixture(scope="session")
def lone_table() -> LossTable:
    return make_table(widths=WIDTHS, num_seeds=2)
