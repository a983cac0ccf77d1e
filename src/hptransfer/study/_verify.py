"""Train a random handful of a table's trials again, and hold the results against what it says."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from hptransfer._version import __version__
from hptransfer.errors import ConfigError, DataError
from hptransfer.study._executor import make_rows, make_training, open_data
from hptransfer.study._plan import ONE_BY_ONE, PRECISIONS, Precision, StackedGroup, name_group
from hptransfer.study._trial import Trial
from hptransfer.study.config import StudyConfig
from hptransfer.study.store import TrialResult, read_trials
from hptransfer.train._device import describe_device, find_device, set_determinism

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
) -> tuple[TrialCheck, ...]:
    """Train random trials of a study's table again, one by one, and compare.

    On a CPU, where processor, thread count and versions are those of the table, losses and loss
    curves of the built-in GPT must be equal to the bit. Elsewhere, and for a model of one's own,
    whose bits may depend on what it was stacked with, a loss must lie within three standard
    deviations over seeds, pooled over the table's trials of that width near their optimum, and of
    its own cell where that is larger; a trial must have diverged where the table says so.

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

    Returns
    -------
    tuple of TrialCheck

    Raises
    ------
    DataError
        If the table is no study's, or another study's, or was made from other text.
    ConfigError
        If nothing is left to choose from, or the noise is not known.

    Examples
    --------
    >>> from hptransfer.study import load_study
    >>> checks = verify_table(load_study("tiny.toml"), "tiny", count=3)  # doctest: +SKIP
    >>> all(check.agrees for check in checks)  # doctest: +SKIP
    True
    """
    source = Path(source)
    rows = _read_rows(source)
    identity = config.identity()
    if set(rows.column("identity").to_pylist()) != {identity}:
        raise DataError(
            f"{source}: expected trials of study {config.name!r} (identity {identity[:12]}…), "
            f"found those of {rows.column('identity')[0].as_py()[:12]}…; name its study file"
        )
    tokens = open_data(config)
    if set(rows.column("data_hash").to_pylist()) != {tokens.data_hash}:
        raise DataError(
            f"{source}: expected the text of its trials, sha256 "
            f"{rows.column('data_hash')[0].as_py()[:12]}…, found text with "
            f"{tokens.data_hash[:12]}…"
        )
    trials = rows.to_pylist()
    eligible = [row for row in trials if max_width is None or row["width"] <= max_width]
    if not eligible:
        raise ConfigError(f"--max-width: expected a width of {source}, found {max_width}")
    chosen = np.random.default_rng(seed).permutation(len(eligible))[:count]
    checks = []
    for place in sorted(chosen):
        row = eligible[place]
        trial = Trial(
            parameterization=row["parameterization"],
            width=row["width"],
            base_lr=row["base_lr"],
            weight_decay=row["weight_decay"],
            seed=row["seed"],
            identity=identity,
        )
        if trial.id != row["id"]:
            raise DataError(f"{source}: trial {row['id']}: expected id {trial.id} by its content")
        device = find_device()
        exact = device == "cpu" and config.own_model is None and _has_provenance(row, device)
        tolerance = 0.0 if exact else DEVIATIONS * _measure_noise(trials, row, noise)
        again = _train_again(config, trial, row, device)
        check = TrialCheck(
            id=trial.id,
            parameterization=trial.parameterization,
            width=trial.width,
            log2_lr=math.log2(trial.base_lr),
            weight_decay=trial.weight_decay,
            seed=trial.seed,
            recorded=row["loss"],
            found=again.loss,
            tolerance=tolerance,
            agrees=_agree(row, again, tolerance),
        )
        checks.append(check)
        on_check(check)
    return tuple(checks)


def _read_rows(source: Path) -> pa.Table:
    if source.is_dir():
        return read_trials(source).rows
    try:
        rows = pq.read_table(source)
    except (OSError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{source}: expected a study's table in Parquet: {reason}") from error
    missing = [name for name in _NEEDED if name not in rows.column_names]
    if missing or not len(rows):
        lack = f"no column {missing[0]!r}" if missing else "no trials"
        raise DataError(f"{source}: expected a table of a study's results files, found {lack}")
    return rows


def _has_provenance(row: dict[str, Any], device: str) -> bool:
    """Return whether a trial ran on what runs here: bits are then equal."""
    here = (describe_device(device), torch.__version__, __version__)
    return (row["device"], row["torch_version"], row["package_version"]) == here


def _measure_noise(
    trials: Sequence[dict[str, Any]], row: dict[str, Any], given: float | None
) -> float:
    """Return the standard deviation of a trial's loss over seeds."""
    if given is not None:
        return given
    cells: dict[tuple[Any, ...], list[float]] = {}
    for each in trials:
        if each["width"] == row["width"] and each["loss"] is not None:
            cells.setdefault(_cell(each), []).append(each["loss"])
    best: dict[tuple[Any, ...], float] = {}
    for cell, losses in cells.items():
        best[cell[:2]] = min(best.get(cell[:2], math.inf), float(np.mean(losses)))
    near = [
        np.var(losses, ddof=1)
        for cell, losses in cells.items()
        if len(losses) > 1 and np.mean(losses) <= best[cell[:2]] + NOISE_WINDOW
    ]
    if not near:
        raise ConfigError(
            f"--noise: expected the standard deviation over seeds in nats, since the table has no "
            f"two seeds of one cell at width {row['width']}"
        )
    own = cells.get(_cell(row), [])
    spread = float(np.var(own, ddof=1)) if len(own) > 1 else 0.0
    return math.sqrt(max(float(np.mean(near)), spread))


def _cell(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["parameterization"], row["weight_decay"], row["base_lr"]


def _train_again(
    config: StudyConfig, trial: Trial, row: dict[str, Any], device: str
) -> TrialResult:
    """Train one trial alone, in the precision and on the threads that its row names."""
    if row["precision"] not in PRECISIONS:
        raise DataError(f"trial {trial.id}: expected a known precision, found {row['precision']!r}")
    runs = ((trial.id,),)
    group = StackedGroup(
        name=name_group(trial.width, runs),
        width=trial.width,
        runs=runs,
        precision=cast(Precision, row["precision"]),
        device=device,
        threads=row["threads"] if row["device"] == describe_device(device) else 1,
        seconds=0.0,
        mode="eager" if config.own_model is None else ONE_BY_ONE,
    )
    set_determinism(threads=group.threads)
    tokens = open_data(config)
    training = make_training(config, group, [trial], tokens)
    while not training.done:
        training.advance()
    (again,) = make_rows(
        config, group, [(trial,)], training.finish(), seconds=0.0, data_hash=tokens.data_hash
    )
    return again


def _agree(row: dict[str, Any], again: TrialResult, tolerance: float) -> bool:
    if row["state"] != again.state:
        return False
    if tolerance == 0.0:
        curves = (row.get("loss_curve"), row.get("curve_steps"))
        same_curve = curves in ((None, None), (_as_stored(again.loss_curve), again.curve_steps))
        return row["loss"] == again.loss and same_curve
    return again.loss is None or abs(row["loss"] - again.loss) <= tolerance


def _as_stored(values: Sequence[float]) -> list[float]:
    """Return numbers as they come back from a file of single precision."""
    return [float(value) for value in np.asarray(values, dtype=np.float32)]
