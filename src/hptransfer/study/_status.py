"""What a study directory holds and what is missing, by width and parameterization."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from hptransfer._trial_state import TrialState
from hptransfer.study._plan import join_points, read_rounds
from hptransfer.study._trial import list_trials
from hptransfer.study.store import TABLE_COLUMNS, read_trials
from hptransfer.study.study_settings import read_config, read_settings


@dataclass(frozen=True, kw_only=True)
class CellStatus:
    """Trials of one width and parameterization, by state.

    Attributes
    ----------
    width : int
        D.
    parameterization : str
        Canonical name.
    completed, diverged, pending : int
        Trials in each state.
    best_loss : float or None
        Lowest held-out loss in nats; None where no trial is completed.
    """

    width: int
    parameterization: str
    completed: int
    diverged: int
    pending: int
    best_loss: float | None


@dataclass(frozen=True, kw_only=True)
class StudyStatus:
    """What a study directory holds.

    Attributes
    ----------
    study : str
        The study's name.
    cells : tuple of CellStatus
        By width and parameterization, in the study's order.
    unigram_entropy : float or None
        Of the held-out text, in nats per token; None in a directory that does not record it.
    damaged : tuple of (Path, str)
        Results files that could not be read, and why.
    foreign : tuple of (Path, str)
        Other Parquet files in the folder of results, and why they do not count.
    num_unchecked : int
        Results files of an older version, which carry no digest.
    round : int or None
        Number of the last round of an adaptive study; None for a grid.
    search : tuple of str
        How far the search of each parameterization and width is; empty for a grid.
    devices : tuple of str
        What its rounds were planned for; empty where nothing is planned yet.
    """

    study: str
    cells: tuple[CellStatus, ...]
    unigram_entropy: float | None
    damaged: tuple[tuple[Path, str], ...]
    foreign: tuple[tuple[Path, str], ...] = ()
    num_unchecked: int = 0
    round: int | None = None
    search: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()

    @property
    def num_trials(self) -> int:
        """Trials of the study that are known: all of a grid, those placed of a search."""
        return sum(cell.completed + cell.diverged + cell.pending for cell in self.cells)

    @property
    def num_pending(self) -> int:
        """Trials that are not stored yet."""
        return sum(cell.pending for cell in self.cells)


def read_status(directory: Path | str) -> StudyStatus:
    """Count the trials of a study directory by state.

    Raises
    ------
    StoreError
        If the directory is no study's, or its settings or plan are damaged.
    """
    directory = Path(directory)
    settings, config = read_settings(directory), read_config(directory)
    stored = read_trials(directory, TABLE_COLUMNS)
    ids, states, losses = (stored.rows.column(name).to_pylist() for name in ("id", "state", "loss"))
    found = dict(zip(ids, zip(states, losses, strict=True), strict=True))
    counts: dict[tuple[int, str], Counter[str]] = {}
    best: dict[tuple[int, str], float] = {}
    rounds = read_rounds(directory)
    for trial in list_trials(config, join_points(rounds)):
        key = (trial.width, trial.parameterization)
        state, loss = found.get(trial.id, (TrialState.PENDING, None))
        counts.setdefault(key, Counter())[state] += 1
        if loss is not None:
            best[key] = min(loss, best.get(key, loss))
    search: tuple[str, ...] = ()
    if config.sweep.is_adaptive:
        # Statistics are imported where they are needed: the status of a grid does without.
        from hptransfer.study.adaptive import search_study

        found_searches = search_study(config, stored.rows)
        search = tuple(each.describe(width) for each in found_searches for width in each.widths)
    return StudyStatus(
        study=config.name,
        cells=tuple(
            CellStatus(
                width=width,
                parameterization=name,
                completed=count[TrialState.COMPLETED],
                diverged=count[TrialState.DIVERGED],
                pending=count[TrialState.PENDING],
                best_loss=best.get((width, name)),
            )
            for (width, name), count in counts.items()
        ),
        unigram_entropy=settings["data"].get("unigram_entropy"),
        damaged=stored.damaged,
        foreign=stored.foreign,
        num_unchecked=stored.num_unchecked,
        round=max(0, len(rounds) - 1) if config.sweep.is_adaptive else None,
        search=search,
        devices=tuple(dict.fromkeys(each.devices for each in rounds)),
    )
