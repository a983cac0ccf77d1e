"""Our own studies and searches: their trials, their rates by role, and what was probed."""

import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hptransfer.errors import ConfigError, DataError
from hptransfer.scaling import AXES, build_rule, resolve
from hptransfer.stats._stability import ProbedTrial
from hptransfer.stats.loss_table import LossTable
from hptransfer.tables._columns import GROUPS
from hptransfer.tables._raw_table import RawTable, make_raw

if TYPE_CHECKING:
    from hptransfer.study.store import ReadTrials

# The journal in a search's folder, and how each journal begins.
_JOURNAL, _START = "search.jsonl", b'{"event": "search"'
# A study of more trials is shown without their curves, which are most of its bytes.
_MOST_CURVES = 5000
_ABOUT = (*GROUPS, "width", "base_lr", "seed")
_CURVE = ("loss_curve", "curve_steps")
_PROBED = (
    "state", "steps", "warmup", "spikes", "spike_size", "probe_steps", "probe_names",
    "probe_values",
)  # fmt: skip


def is_study(path: Path) -> bool:
    """Tell whether a path is a study's directory."""
    return (path / "study.json").is_file()


def read_study(path: Path) -> RawTable | None:
    """Return the finished trials of a study's directory, every value of them; None for others."""
    if not is_study(path):
        return None
    from hptransfer.study.store import SCALAR_COLUMNS, read_trials

    return list_trials(read_trials(path, SCALAR_COLUMNS), SCALAR_COLUMNS)


def list_trials(stored: "ReadTrials", columns: Collection[str]) -> RawTable:
    """Return columns of what is read of a study as rows, with what is to be said of its files.

    Raises
    ------
    DataError
        If no trial is there; the first file that is damaged is named.
    """
    damaged = [f"{file}: damaged: {cause}" for file, cause in stored.damaged]
    if not len(stored.rows):
        reason = "".join(f"; {line}" for line in damaged[:1])
        raise DataError(f"{stored.directory}: the study holds no finished trial yet{reason}")
    about = {"settings": stored.settings, "damaged": damaged}
    named = {name: cells for name, cells in stored.arrays.items() if name in columns}
    raw = _make_ours(stored.directory, named, "trial row", **about)
    for file, why in stored.foreign:
        raw.tell("foreign", file=file.name, reason=why)
    if stored.num_unchecked:
        raw.tell("unchecked", count=stored.num_unchecked)
    return raw


def read_journal(path: Path) -> RawTable | None:
    """Return the losses that a search was told, from its folder or its journal; None for others."""
    journal = path / _JOURNAL if path.is_dir() else path
    if journal.suffix != ".jsonl" or not journal.is_file():
        return None
    with journal.open("rb") as file:
        if file.read(len(_START)) != _START:
            return None
    from hptransfer.search import read_search

    state = read_search(journal)
    told = state.table()
    if not len(told):
        raise DataError(f"{path}: the search holds no finished trial yet")
    cells: dict[str, Any] = {name: getattr(told, name) for name in ("width", "lr", "loss", "seed")}
    cells |= told.groups
    return _make_ours(path, cells, "trial", damaged=state.damaged, by=[*told.groups])


def _make_ours(path: Path, arrays: Mapping[str, Any], row: str, **about: Any) -> RawTable:
    columns = [(name, pa.array(cells, from_pandas=True)) for name, cells in arrays.items()]
    return make_raw(path, columns, lambda number: f"{row} {number + 1}", is_ours=True, **about)


def _find_rates(
    settings: Mapping[str, Any],
    rules: Mapping[str, Mapping[str, Any]],
    group: Mapping[str, object],
    width: float,
    lr: float,
) -> dict[str, float] | None:
    """Return the learning rate of each role at a width; None where no rule is known."""
    name = str(group.get("parameterization", ""))
    try:
        rule = build_rule({**rules[name], "name": name}, source=name) if name in rules else name
        found = resolve(rule, width=round(width), base_lr=lr, head_size=1, **settings)
    except ConfigError:
        return None
    return {role: numbers.lr for role, numbers in found.roles.items()}


def attach_rates(table: LossTable, settings: Mapping[str, Any]) -> LossTable:
    """Return a study's loss table with its way from rates on the axis to rates per role.

    Parameters
    ----------
    table : LossTable
        The study's losses.
    settings : mapping
        Contents of its ``study.json``.

    Returns
    -------
    LossTable
        The table as it is where the settings name no axis and base width.

    Examples
    --------
    >>> table = LossTable.from_columns(width=[64], lr=[0.04], loss=[3.5])
    >>> settings = {"axis": "hidden-aligned", "config": {"sweep": {"base_width": 32}}}
    >>> attach_rates(table, settings).rates({"parameterization": "sp+embd"}, 512, 0.04)["hidden"]
    0.0025
    """
    found = make_rates(settings)
    return replace(table, **found) if found else table


def make_rates(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of a loss table that its study's settings say; none where they do not.

    Those are the way from rates on the axis to rates per role, and the base width.
    """
    config, axis = settings.get("config", {}), settings.get("axis")
    base_width = config.get("sweep", {}).get("base_width")
    if not (isinstance(axis, str) and isinstance(base_width, int)):
        return {}
    meant = {
        "axis": axis,
        "base_width": base_width,
        "optimizer": str(config.get("train", {}).get("optimizer", "adamw")),
        "num_layers": int(config.get("model", {}).get("num_layers") or 1),
    }
    rates = partial(_find_rates, meant, config.get("rules", {}))
    return {"rates": rates, "base_width": float(base_width)}


def find_settings(raw: RawTable) -> dict[str, Any]:
    """Return what a study's published table says of its rates; empty for any other table.

    Its columns ``axis`` and ``base_width`` hold one value each, a swept ``base_lr`` beside them;
    rows of several optimizers have rates by several rules.
    """
    names = ("axis", "base_width", "num_layers", "optimizer")
    values = {name: raw.encode(name)[1] if name in raw.columns else [None] for name in names}
    one: dict[str, Any] = {name: cells[0] for name, cells in values.items() if len(cells) == 1}
    is_known = one.get("axis") in AXES and isinstance(one.get("base_width"), int)
    if not is_known or "optimizer" not in one or "base_lr" not in raw.columns:
        return {}
    config = {
        "sweep": {"base_width": one["base_width"]},
        "model": {"num_layers": one.get("num_layers")},
        "train": {"optimizer": one["optimizer"] or "adamw"},
    }
    return {"axis": one["axis"], "config": config}


# --- Probes and curves


def read_probes(source: str | os.PathLike[str]) -> tuple[ProbedTrial, ...]:
    """Return the probed trials of a study directory or of a Parquet table made of one.

    Parameters
    ----------
    source : str or path
        Any source of a loss table.

    Returns
    -------
    tuple of ProbedTrial
        Empty for a source without probes, of whatever kind.

    Raises
    ------
    StoreError
        If a study's settings cannot be read.
    DataError
        If a table's probes do not fit together; the message names the trial.

    Examples
    --------
    >>> read_probes("losses.csv")
    ()
    """
    path, found = Path(source), []
    for number, row in enumerate(_read_rows(path, _PROBED)):
        if row["probe_values"] is None:
            continue
        steps, names = row["probe_steps"] or [], row["probe_names"] or []
        values = np.asarray(row["probe_values"], dtype=np.float64)
        if values.size != len(steps) * len(names):
            raise DataError(
                f"{path}: trial {number + 1}: expected {len(steps) * len(names)} probe_values, of "
                f"{len(names)} quantities at {len(steps)} steps, found {values.size}"
            )
        settled = np.asarray(steps) >= row["warmup"] * row["steps"]
        after = values.reshape(len(steps), len(names))[settled].T
        finite = [each[np.isfinite(each)] for each in after]
        medians = [float(np.median(each)) if len(each) else np.nan for each in finite]
        about = {**_name_trial(row), "spikes": row["spikes"], "spike_size": row["spike_size"]}
        named = dict(zip(names, medians, strict=True))
        found.append(ProbedTrial(**about, diverged=row["state"] == "diverged", medians=named))
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class LossCurve:
    """The training losses of one trial, thinned.

    Attributes
    ----------
    group : mapping of str to object
        Its parameterization and weight decay.
    width : int
        D.
    lr : float
        The learning rate on the swept axis.
    seed : int
        Its seed.
    steps : tuple of int
        Steps, ascending.
    losses : tuple of float
        The losses of their batches, in nats.

    Examples
    --------
    >>> LossCurve(group={}, width=64, lr=0.01, seed=0, steps=(0, 9), losses=(8.3, 4.1)).losses[-1]
    4.1
    """

    group: Mapping[str, object]
    width: int
    lr: float
    seed: int
    steps: tuple[int, ...]
    losses: tuple[float, ...]


def read_curves(source: str | os.PathLike[str]) -> tuple[LossCurve, ...]:
    """Return the loss curves of the trials of a study directory or its Parquet table.

    Parameters
    ----------
    source : str or path
        Any source of a loss table.

    Returns
    -------
    tuple of LossCurve
        Empty for a source without them, of whatever kind, and for more than 5,000 trials.

    Raises
    ------
    StoreError
        If a study's settings cannot be read.

    Examples
    --------
    >>> read_curves("losses.csv")
    ()
    """
    rows, found = _read_rows(Path(source), _CURVE), []
    for row in rows if len(rows) <= _MOST_CURVES else []:
        steps, losses = tuple(row["curve_steps"] or ()), tuple(row["loss_curve"] or ())
        if losses and len(losses) == len(steps):
            found.append(LossCurve(**_name_trial(row), steps=steps, losses=losses))
    return tuple(found)


def _name_trial(row: Mapping[str, Any]) -> dict[str, Any]:
    group = {name: row[name] for name in GROUPS}
    return {"group": group, "width": row["width"], "lr": row["base_lr"], "seed": row["seed"]}


def _read_rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return the trials of a study or its Parquet table; none where it lacks a column."""
    from hptransfer.study.store import read_trials

    columns = (*_ABOUT, *columns)
    found: list[dict[str, Any]] = []
    if is_study(path):
        found = read_trials(path, columns).rows.select(columns).to_pylist()
    elif path.suffix == ".parquet":
        with suppress(OSError, pa.ArrowException):  # whoever reads the losses says what is wrong
            if {*columns} <= {*pq.read_schema(path).names}:
                found = pq.read_table(path, columns=[*columns]).select(columns).to_pylist()
    return found
