"""What a study directory holds and what is missing, by width and parameterization."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from hptransfer._documents import require_regular
from hptransfer._trial_state import TrialState
from hptransfer.study._plan import Plan
from hptransfer.study._trial import list_trials, num_steps
from hptransfer.study.config import StudyConfig
from hptransfer.study.store import TABLE_COLUMNS, checkpoint_path, group_path, read_trials
from hptransfer.study.study_settings import read_config

if TYPE_CHECKING:
    from hptransfer.study.adaptive import Progress


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
class GroupStatus:
    """A group under way, or interrupted: what its checkpoint says.

    Attributes
    ----------
    name : str
        The group's.
    width : int
        D.
    runs : int
        Stacked training runs.
    step, steps : int
        Steps taken when it was saved, and steps in all.
    seconds : float
        Time since it was saved.
    """

    name: str
    width: int
    runs: int
    step: int
    steps: int
    seconds: float


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
    codes : mapping of str to int
        Trials by the hash of the user's own code, "" where it is not recorded.
    num_resumed : int
        Trials whose group another version or device began.
    round : int or None
        Number of the last round of an adaptive study; None for a grid.
    search : tuple of str
        How far the search of each parameterization and width is; empty for a grid.
    devices : tuple of str
        What its rounds were planned for; empty where nothing is planned yet.
    under_way : tuple of GroupStatus
        Groups that have a checkpoint and no results.
    is_done : bool
        Whether nothing is missing, and no search would place more.
    """

    study: str
    cells: tuple[CellStatus, ...]
    unigram_entropy: float | None
    damaged: tuple[tuple[Path, str], ...]
    foreign: tuple[tuple[Path, str], ...] = ()
    num_unchecked: int = 0
    codes: Mapping[str, int] = field(default_factory=dict)
    num_resumed: int = 0
    round: int | None = None
    search: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    under_way: tuple[GroupStatus, ...] = ()
    is_done: bool = False

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
    config, plan = read_config(directory), Plan.read(directory)
    stored = read_trials(directory, {*TABLE_COLUMNS, "code_hash", "resumed_from"})
    ids, states, losses = (stored.rows.column(name).to_pylist() for name in ("id", "state", "loss"))
    found = dict(zip(ids, zip(states, losses, strict=True), strict=True))
    counts: dict[tuple[int, str], Counter[str]] = {}
    best: dict[tuple[int, str], float] = {}
    for trial in list_trials(config, plan.points):
        key = (trial.width, trial.parameterization)
        state, loss = found.get(trial.id, (TrialState.PENDING, None))
        counts.setdefault(key, Counter())[state] += 1
        if loss is not None:
            best[key] = min(loss, best.get(key, loss))
    searches: Sequence[Progress] = ()
    if config.sweep.is_adaptive:
        # Statistics are imported where they are needed: the status of a grid does without.
        from hptransfer.study.adaptive import search_study

        searches = search_study(config, stored)
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
        unigram_entropy=stored.settings["data"].get("unigram_entropy"),
        damaged=stored.damaged,
        foreign=stored.foreign,
        num_unchecked=stored.num_unchecked,
        codes=Counter(code or "" for code in stored.rows.column("code_hash").to_pylist()),
        num_resumed=len(stored.rows) - stored.rows.column("resumed_from").null_count,
        round=max(0, len(plan.rounds) - 1) if config.sweep.is_adaptive else None,
        search=tuple(each.describe(width) for each in searches for width in each.widths),
        devices=tuple(dict.fromkeys(each.machine.describe() for each in plan.rounds)),
        under_way=tuple(_find_under_way(config, plan)),
        is_done=not any(each.points for each in searches)
        and not any(count[TrialState.PENDING] for count in counts.values()),
    )


def _find_under_way(config: StudyConfig, plan: Plan) -> Iterator[GroupStatus]:
    """Yield the groups that have a checkpoint and no results, by name."""
    now = time.time()
    parts = (part for group in plan.groups for part in plan.list_parts(group))
    for part in sorted(parts, key=lambda part: part.name):
        path = checkpoint_path(plan.directory, part.name)
        if group_path(plan.directory, part.name).exists() or (saved := _read_step(path)) is None:
            continue
        yield GroupStatus(
            name=part.name,
            width=part.width,
            runs=len(part.runs),
            step=saved[0],
            steps=num_steps(config, part.width),
            seconds=max(0.0, now - saved[1]),
        )


def _read_step(path: Path) -> tuple[int, float] | None:
    """Return the step of a checkpoint and when it was saved; None without one that reads."""
    try:
        require_regular(path)
        with safe_open(path, framework="numpy") as file:
            return int(file.metadata()["step"]), path.stat().st_mtime
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return None
