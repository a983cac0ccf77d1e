"""Train a random handful of a table's trials again, and hold the results against what it says."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from hptransfer._messages import describe_error
from hptransfer._version import __version__
from hptransfer.errors import ConfigError, DataError
from hptransfer.study._executor import hash_own_code, make_rows, open_data, start_group
from hptransfer.study._own_model import OwnBatches, naming_user_code
from hptransfer.study._plan import (
    ONE_BY_ONE,
    PRECISIONS,
    Plan,
    Precision,
    StackedGroup,
    name_group,
    read_groups,
)
from hptransfer.study._trial import Trial, list_trials
from hptransfer.study.config import StudyConfig
from hptransfer.study.store import Row, read_trials
from hptransfer.train._device import describe_device, find_device
from hptransfer.train._tokens import TokenData

DEFAULT_COUNT = 3
#: Standard deviations over seeds that a loss may differ by where bits need not be equal.
DEVIATIONS = 3.0
#: Losses this far above the best of their rule and width, in nats, say nothing of seed noise.
NOISE_WINDOW = 0.2
_NEEDED = (
    "id", "identity", "parameterization", "width", "base_lr", "weight_decay", "seed", "state",
    "loss", "precision", "threads", "device", "package_version", "torch_version", "data_hash",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrialCheck:
    """A trial of a table, trained again.

    Attributes
    ----------
    id, parameterization, width, log2_lr, weight_decay, seed
        The trial.
    recorded, found : float or None
        Held-out loss of the table and of this run; None for one that diverged.
    tolerance : float
        Nats that they may differ by; 0 where the bits have to be equal, those of the loss and of
        every stored point of the loss curve.
    agrees : bool
        Whether they do not differ by more.
    """

    id: str
    parameterization: str
    width: int
    log2_lr: float
    weight_decay: float
    seed: int
    recorded: float | None
    found: float | None
    tolerance: float
    agrees: bool


def verify_table(
    config: StudyConfig,
    source: Path | str,
    *,
    count: int = DEFAULT_COUNT,
    seed: int = 0,
    max_width: int | None = None,
    noise: float | None = None,
    on_check: Callable[[TrialCheck], None] = lambda check: None,
    on_other_code: Callable[[int], None] = lambda count: None,
) -> tuple[TrialCheck, ...]:
    """Train random trials of a study's table again, and compare.

    Where processor or GPU, thread count and versions are those of the table, losses and loss
    curves must be equal to the bit. A trial is then trained as it was: with the group that the
    plan stacked it with, in the plan's precision and step mode. The built-in GPT's uncompiled
    steps on a CPU have the same bits alone, so that it trains alone there. Elsewhere, and where
    the table does not hold the plan (`studies/publish.py` adds it, a directory has it), a trial
    trains alone, and its loss must lie within three standard deviations over seeds, pooled over
    the table's trials of that width near their optimum, and of its own cell where that is larger;
    a trial must have diverged where the table says so.

    Parameters
    ----------
    config : StudyConfig
        The study.
    source : Path or str
        Its published table (Parquet, with the columns of results files), or its directory.
    count : int
        Trials to train; all there are, if they are fewer.
    seed : int
        Of the choice.
    max_width : int, optional
        Widest width to choose from.
    noise : float, optional
        Standard deviation over seeds in nats, for a table of one seed.
    on_check : callable
        Called with each trial as it is done.
    on_other_code : callable
        Called with the number of trials that other code of the user's own has trained, if there
        are any: none of them is chosen.

    Returns
    -------
    tuple of TrialCheck

    Raises
    ------
    DataError
        If the table is no study's, or another study's, or was made from other text, or by other
        code all of it.
    StoreError
        If trials that the plan merged are no longer one run.
    ConfigError
        If nothing is left to choose from, the noise is not known, or the seed is below 0.
    ModuleError
        If a user's own model raises.

    Examples
    --------
    >>> from hptransfer.study import load_study
    >>> checks = verify_table(load_study("tiny.toml"), "tiny", count=3)  # doctest: +SKIP
    >>> all(check.agrees for check in checks)  # doctest: +SKIP
    True
    """
    source = Path(source)
    if seed < 0:
        raise ConfigError(f"--seed: expected 0 or more, found {seed}")
    rows = _read_rows(source)
    identity = config.identity()
    if set(rows.column("identity").to_pylist()) != {identity}:
        raise DataError(
            f"{source}: expected trials of study {config.name!r} (identity {identity[:12]}…), "
            f"found those of {rows.column('identity')[0].as_py()[:12]}…; name its study file"
        )
    data = open_data(config)
    if set(rows.column("data_hash").to_pylist()) != {data.data_hash}:
        raise DataError(
            f"{source}: expected the text of its trials, sha256 "
            f"{rows.column('data_hash')[0].as_py()[:12]}…, found text with {data.data_hash[:12]}…"
        )
    trials = rows.to_pylist()
    narrow = [row for row in trials if max_width is None or row["width"] <= max_width]
    if not narrow:
        raise ConfigError(f"--max-width: expected a width of {source}, found {max_width}")
    eligible = _keep_own_code(config, source, narrow)
    if num_others := len(narrow) - len(eligible):
        on_other_code(num_others)
    chosen = np.random.default_rng(seed).permutation(len(eligible))[:count]
    verifier = _Verifier(config=config, data=data, rows=trials, plan=_read_plan(source, rows))
    checks = []
    for row in (eligible[place] for place in sorted(chosen)):
        trial = _trial_of(row)
        if trial.id != row["id"]:
            raise DataError(f"{source}: trial {row['id']}: expected id {trial.id} by its content")
        exact = verifier.find_exact(row)
        tolerance = 0.0 if exact else DEVIATIONS * _measure_noise(trials, row, noise)
        again = verifier.train(row, exact)
        check = TrialCheck(
            id=trial.id,
            parameterization=trial.parameterization,
            width=trial.width,
            log2_lr=math.log2(trial.base_lr),
            weight_decay=trial.weight_decay,
            seed=trial.seed,
            recorded=row["loss"],
            found=again["loss"],
            tolerance=tolerance,
            agrees=_agree(row, again, tolerance),
        )
        checks.append(check)
        on_check(check)
    return tuple(checks)


def _keep_own_code(
    config: StudyConfig, source: Path, rows: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return the rows that the user's code as it is now has trained; at least one."""
    code = hash_own_code(config)
    kept = [row for row in rows if row.get("code_hash") in (None, code)]
    if not kept:
        raise DataError(
            f"{source}: trial {rows[0]['id']}: expected the code that trained it, sha256 "
            f"{rows[0]['code_hash'][:12]}…, found other, {(code or 'none')[:12]}…"
        )
    return kept


def _read_rows(source: Path) -> pa.Table:
    try:
        rows = read_trials(source).rows if source.is_dir() else pq.read_table(source)
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{source}: expected a study's table in Parquet: {reason}") from error
    missing = [name for name in _NEEDED if name not in rows.column_names]
    if missing or not len(rows):
        lack = f"no column {missing[0]!r}" if missing else "no trials"
        raise DataError(f"{source}: expected a table of a study's results files, found {lack}")
    return rows


def _read_plan(source: Path, rows: pa.Table) -> dict[str, StackedGroup]:
    """Return the groups of the plan by name: a directory's own, or those a table was given."""
    if source.is_dir():
        return Plan.read(source).by_name
    try:
        about = json.loads((rows.schema.metadata or {}).get(b"hptransfer", b"{}"))
        return {group.name: group for group in read_groups(about.get("groups", []))}
    except (ValueError, AttributeError) as error:
        raise DataError(
            f"{source}: expected the plan's groups in the metadata 'hptransfer', found damage "
            f"({describe_error(error)})"
        ) from error


def _trial_of(row: Mapping[str, Any]) -> Trial:
    names = ("parameterization", "width", "base_lr", "weight_decay", "seed", "identity")
    return Trial(**{name: row[name] for name in names})


def _measure_noise(
    trials: Sequence[dict[str, Any]], row: dict[str, Any], given: float | None
) -> float:
    """Return the standard deviation of a trial's loss over seeds."""
    if given is not None:
        return given
    cells: dict[tuple[tuple[str, float], float], list[float]] = {}
    for each in trials:
        if each["width"] == row["width"] and each["loss"] is not None:
            cells.setdefault(_cell(each), []).append(each["loss"])
    means = {cell: float(np.mean(losses)) for cell, losses in cells.items()}
    best: dict[Any, float] = {}
    for (rule, _), mean in means.items():
        best[rule] = min(mean, best.get(rule, math.inf))
    spread = {cell: np.var(losses, ddof=1) for cell, losses in cells.items() if len(losses) > 1}
    near = [spread[cell] for cell in spread if means[cell] <= best[cell[0]] + NOISE_WINDOW]
    if not near:
        raise ConfigError(
            f"--noise: expected the standard deviation over seeds in nats, since the table has no "
            f"two seeds of one cell at width {row['width']}"
        )
    return math.sqrt(max(np.mean(near), spread.get(_cell(row), 0.0)))


def _cell(row: dict[str, Any]) -> tuple[tuple[str, float], float]:
    """Return what all seeds of a trial share at one width: rule and weight decay, and rate."""
    return (row["parameterization"], row["weight_decay"]), row["base_lr"]


@dataclass(frozen=True, kw_only=True)
class _Verifier:
    """Trains trials of a study's rows again, as their plan says or alone.

    Parameters
    ----------
    config : StudyConfig
        The study.
    data : TokenData or OwnBatches
        What it trains on.
    rows : sequence of dict
        All rows of the table.
    plan : mapping of str to StackedGroup
        Groups by name.
    device : str
        Where to train.
    """

    config: StudyConfig
    data: TokenData | OwnBatches
    rows: Sequence[dict[str, Any]]
    plan: Mapping[str, StackedGroup]
    device: str = field(default_factory=find_device)
    _results: dict[str, dict[str, Row]] = field(default_factory=dict)

    @cached_property
    def _trials(self) -> dict[str, Trial]:
        """The study's trials, and those that an adaptive search placed, by id."""
        trials = [*list_trials(self.config), *map(_trial_of, self.rows)]
        return {trial.id: trial for trial in trials}

    def find_exact(self, row: dict[str, Any]) -> StackedGroup | None:
        """Return what gives a row's bits again here; None where nothing does.

        A trial that other versions or devices began, too, is not trained so again.
        """
        here = (describe_device(self.device), torch.__version__, __version__)
        made_by = (row["device"], row["torch_version"], row["package_version"])
        if made_by != here or row.get("resumed_from"):
            return None
        group = self.plan.get(row.get("group") or "")
        eager = group is None or group.mode == "eager"
        if self.device == "cpu" and self.config.own_model is None and eager:
            return self._make_alone(row)
        if group is None or not set(group.trial_ids) <= set(self._trials):
            return None
        same = (group.device, group.threads) == (self.device, row["threads"])
        return group if same else None

    def _make_alone(self, row: dict[str, Any]) -> StackedGroup:
        """Return a group of one row, in the precision and on the threads that it names."""
        if row["precision"] not in PRECISIONS:
            raise DataError(
                f"trial {row['id']}: expected a known precision, found {row['precision']!r}"
            )
        runs = ((row["id"],),)
        return StackedGroup(
            name=name_group(row["width"], runs),
            width=row["width"],
            runs=runs,
            precision=cast(Precision, row["precision"]),
            device=self.device,
            threads=row["threads"] if row["device"] == describe_device(self.device) else 1,
            seconds=0.0,
            mode="eager" if self.config.own_model is None else ONE_BY_ONE,
        )

    def train(self, row: dict[str, Any], exact: StackedGroup | None) -> Row:
        """Return a row's trial trained again, by `exact` or alone; a group is trained once."""
        group = exact or self._make_alone(row)
        if group.name not in self._results:
            what = f"trial {row['id']} (width {row['width']}): training it again"
            with naming_user_code(what, ours=True):
                runs, training = start_group(self.config, group, self._trials, self.data)
                while not training.done:
                    training.advance()
                ended = training.finish()
            rows = make_rows(
                self.config, group, runs, ended, seconds=0.0, data_hash=self.data.data_hash
            )
            self._results[group.name] = {each["id"]: each for each in rows}
        return self._results[group.name][row["id"]]


def _agree(row: Row, again: Row, tolerance: float) -> bool:
    if row["state"] != again["state"]:
        return False
    if tolerance == 0.0:
        curves = (row.get("loss_curve"), row.get("curve_steps"))
        same_curve = curves in ((None, None), (again["loss_curve"], again["curve_steps"]))
        return bool(row["loss"] == again["loss"] and same_curve)
    return again["loss"] is None or abs(row["loss"] - again["loss"]) <= tolerance
