"""Which column of a file is which quantity of a loss table: by name, by synonym, or as told."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hptransfer.errors import ConfigError, DataError
from hptransfer.tables.cell_values import STATES, is_empty, to_numbers
from hptransfer.tables.notes import TableNote, note
from hptransfer.tables.raw_table import RawTable, encode
from hptransfer.tables.wording import clean, name_some, suggest

REQUIRED = ("width", "lr", "loss")
OPTIONAL = (
    "parameterization", "seed", "weight_decay", "params", "tokens", "batch", "context", "state",
    "init_loss", "flops",
)  # fmt: skip
CANONICAL = REQUIRED + OPTIONAL

#: Columns that separate fits unasked.
GROUPS = ("parameterization", "weight_decay")

#: What a learning rate may be written as: itself, or its logarithm to a base.
LOG_BASES = {"log2_lr": 2.0, "log10_lr": 10.0, "ln_lr": float(np.e)}
RATES = ("lr", "base_lr", *LOG_BASES)

#: Every name that a column of ours can have.
KNOWN = tuple(dict.fromkeys(CANONICAL + RATES))

#: Names by which trackers, trainers and papers call our columns, likeliest first.
SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "width": (
        "n_embd", "d_model", "hidden_size", "dim", "embed_dim", "embedding_dim", "emb_dim",
        "hidden_dim", "model_dim", "n_hidden", "hidden_units", "model_width",
    ),
    "lr": ("learning_rate", "peak_lr", "max_lr", "lr_max", "lr_peak", "peak_learning_rate"),
    "log2_lr": ("log2_learning_rate", "log2lr", "lr_log2"),
    "log10_lr": ("log10_learning_rate", "log10lr", "lr_log10", "lg_lr"),
    "ln_lr": ("ln_learning_rate", "loge_lr", "lr_ln"),
    "loss": (
        "val_loss", "eval_loss", "valid_loss", "validation_loss", "dev_loss", "test_loss",
        "heldout_loss", "final_loss", "final_val_loss", "val_ce", "val_nll", "nll",
        "objective_value", "objective", "value", "values_0", "mean_loss", "val_bpb", "bpb",
        "bits_per_byte", "val_ppl", "val_perplexity", "perplexity", "ppl", "train_loss",
        "training_loss",
    ),
    "seed": ("run_seed", "random_seed", "rng_seed", "manual_seed"),
    "parameterization": ("parametrization", "parameterisation"),
    "state": ("status",),
}  # fmt: skip

# What trackers put before the name of a setting; before that of a metric nothing is taken off.
_SETTING = re.compile(
    r"^(?:(?:config|param(?:eter)?s?|hparams?|hyperparameters?|user_attrs?|args|model|optim(?:izer)?|"
    r"train_loop_config|init_args|value)[_./]+)+"
)
_METRIC = re.compile(r"^(?:summary|metrics?|ray_tune)_")
# Rows whose cells tell of which kind a column is.
_SAMPLE = 2000


@dataclass(frozen=True)
class ChosenColumns:
    """The file's names of our columns and of those that separate fits, and what to say of them."""

    names: Mapping[str, str]
    rate: str
    groups: Mapping[str, str]
    notes: tuple[TableNote, ...]


def normalize(name: str) -> str:
    """Return a column's name without its tracker's prefix, in lower case and with ``_`` only.

    Examples
    --------
    >>> [normalize(name) for name in ("config.model.n_embd", "eval/loss", "Run seed", "train/lr")]
    ['n_embd', 'eval_loss', 'run_seed', 'train_lr']
    """
    bare = _SETTING.sub("", name.lower()) if len(name) < 200 else ""
    return re.sub(r"[^a-z0-9]+", "_", bare).strip("_")


def choose_columns(
    raw: RawTable,
    columns: Mapping[str, str],
    *,
    by: Sequence[str] = (),
    pool: Sequence[str] = (),
    complete: bool = True,
) -> ChosenColumns:
    """Return which of a table's columns are ours: those named, else by name, else by synonym.

    A name in other letters (``State``) is ours where nothing else has that name. An optional
    column without any entry is as good as absent.

    Parameters
    ----------
    raw : RawTable
        The table.
    columns : mapping of str to str
        Our names to the file's, as the user gave them.
    by, pool : sequence of str
        Columns that separate fits beside those of `GROUPS`, and those of `GROUPS` that do not.
    complete : bool
        Whether to refuse a table that lacks a required column, instead of leaving it out.

    Raises
    ------
    DataError
        If a named or a required column is missing; the likeliest names are given.
    """
    have = list(raw.columns)
    for ours, theirs in columns.items():
        if theirs not in raw.columns:
            raise DataError(
                f"{raw.source}: no column {theirs!r} (wanted as {ours})"
                f"{suggest(theirs, have)}; found {name_some(have)}"
            )
    found, taken, guessed = dict(columns), set(columns.values()), False
    normal = {name: normalize(name) for name in have}
    for ours in (*CANONICAL,):
        rates = RATES if ours == "lr" else (ours,)
        if any(name in found for name in rates):
            continue
        fits = sorted(
            (
                (score, place, rate, name)
                for place, name in enumerate(have)
                if name not in taken
                for rate in rates
                if (score := _score(rate, name, normal[name], rates.index(rate)))
                and _suits(raw, ours, name, exact=score[0] < 2)
            )
        )
        # Two names that differ in letter case only are neither.
        if not fits or (len(fits) > 1 and fits[0][0] == fits[1][0] and fits[0][0][0] == 1):
            continue
        choice = fits[0]
        found[choice[2]] = choice[3]
        taken.add(choice[3])
        guessed |= choice[0][0] > 1
    missing = [
        ours
        for ours in REQUIRED
        if not any(n in found for n in (RATES if ours == "lr" else (ours,)))
    ]
    if missing and complete:
        raise _explain_missing(raw, missing[0], found)
    rate = next((name for name in RATES if name in found), "lr")
    notes: list[TableNote] = []
    if not missing:
        if not set(RATES) & set(columns):
            found, rate, notes = _compare_rates(raw, found, rate, normal)
        if guessed:
            said = ",".join(f"{o}={theirs}" for o, theirs in found.items() if o != theirs.lower())
            notes.insert(0, note("columns", columns=shlex.quote(said)))
    groups = _choose_groups(raw, found, rate, by, pool)
    pooled = {name: theirs for name, theirs in found.items() if name in {*GROUPS} - {*groups}}
    names = {name: theirs for name, theirs in found.items() if name not in pooled}
    return ChosenColumns(names, rate, groups, tuple(notes))


def _choose_groups(
    raw: RawTable, names: Mapping[str, str], rate: str, by: Sequence[str], pool: Sequence[str]
) -> dict[str, str]:
    """Return the file's names of the columns that separate fits, under ours where there is one."""
    ours = {theirs: name for name, theirs in names.items()}
    core = {names.get(name) for name in ("width", rate, "loss", "seed")}
    known = [ours.get(name, name) for name in raw.columns if name not in core]
    pooled = {ours.get(name, name) for name in map(clean, pool)}
    asked = [ours.get(name, name) for name in map(clean, by)]
    for option, columns, allowed in (("by", asked, {*known, *GROUPS}), ("pool", pooled, {*GROUPS})):
        for name in columns:
            if name not in allowed:
                raise ConfigError(
                    f"{raw.source}: --{option}: no column {name!r} to group by"
                    f"{suggest(name, sorted(allowed))}; found {name_some(known) or 'none'}"
                )
    both = [name for name in GROUPS if name in names and name not in pooled]
    wanted = [*both, *(name for name in asked if name in known)]
    return {name: names.get(name, name) for name in wanted}


def _score(ours: str, name: str, normal: str, rank: int) -> tuple[int, int] | None:
    """Return how well a name fits a column of ours, the lower the better; None where not."""
    if name == ours:
        return 0, rank
    if name.lower() == ours:
        return 1, rank
    if normal == ours:
        return 2, rank
    synonyms = SYNONYMS.get(ours, ())
    if ours == "loss":
        normal = _METRIC.sub("", normal)
    return (3, 10 * rank + synonyms.index(normal)) if normal in synonyms else None


def _suits(raw: RawTable, ours: str, name: str, *, exact: bool) -> bool:
    """Tell whether a column's cells are of the kind; those of a required one's own name are."""
    cells = raw.columns[name]
    if ours in REQUIRED:
        return exact or bool(np.isfinite(to_numbers(cells[:_SAMPLE])).any())
    values = encode(cells[: None if exact else _SAMPLE])[1]
    if ours == "state" and not exact:
        return all(is_empty(v) or str(v).strip().lower() in STATES for v in values)
    return not all(v is None or (isinstance(v, str) and not v.strip()) for v in values)


def _compare_rates(
    raw: RawTable, found: dict[str, str], rate: str, normal: Mapping[str, str]
) -> tuple[dict[str, str], str, list[TableNote]]:
    """Return the rate that was swept, where a column of another one stands beside it."""
    used = found[rate]
    numbers = to_numbers(raw.columns[used])
    notes = []
    if rate in ("log10_lr", "ln_lr"):
        notes.append(note("logarithms", column=used, base=rate.removesuffix("_lr").strip("log")))
    for name, bare in normal.items():
        if rate != "lr" or name == used or bare not in ("lr", *SYNONYMS["lr"]):
            continue
        others = to_numbers(raw.columns[name])
        both = np.isfinite(numbers) & np.isfinite(others) & (numbers > 0) & (others > 0)
        ratio = others[both] / numbers[both]
        if not len(ratio) or np.allclose(ratio, 1, rtol=1e-5):
            continue
        fixed = np.allclose(ratio, ratio[0], rtol=1e-4)
        if fixed and ratio[0] > 1:  # the one that is used is where a schedule ended
            notes.append(note("final_rate", other=used, used=name, ratio=1 / float(ratio[0])))
            return {**found, rate: name}, rate, notes
        if fixed:
            notes.append(note("final_rate", other=name, used=used, ratio=float(ratio[0])))
        else:
            notes.append(note("other_rate", other=name, used=used))
    return found, rate, notes


def _explain_missing(raw: RawTable, ours: str, found: Mapping[str, str]) -> DataError:
    """Return the error of a required column that is not there, with the line that would name it."""
    have = list(raw.columns)
    numeric = [n for n in have if np.isfinite(to_numbers(raw.columns[n][:_SAMPLE])).any()]
    other = " (or base_lr, log2_lr, log10_lr or ln_lr)" if ours == "lr" else ""
    known = [f"{name}={theirs}" for name, theirs in found.items() if name != theirs.lower()]
    command = shlex.quote(",".join([f"{ours}=NAME", *known]))
    likely = [name for name in numeric if name not in found.values()]
    more = "; hptransfer columns FILE lists all" if len(have) > 12 else ""
    return DataError(
        f"{raw.source}: no column {ours!r}{other}{suggest(ours, likely)}; "
        f"found {name_some([*likely, *(n for n in have if n not in likely)])}{more}; "
        f"name it with --columns {command}"
    )


def describe_columns(raw: RawTable) -> list[dict[str, Any]]:
    """Return what each column of a table holds, and as which of ours it would be read.

    Returns
    -------
    list of dict
        Of each column ``name``, ``used_as`` ("" where it is not used), ``distinct``, ``empty``
        and ``examples``, the most frequent three.
    """
    ours = {theirs: name for name, theirs in choose_columns(raw, {}, complete=False).names.items()}
    rows: list[dict[str, Any]] = []
    for name, cells in raw.columns.items():
        codes, values = encode(cells)
        counts = np.bincount(codes, minlength=len(values))
        order = [int(k) for k in np.argsort(-counts, kind="stable") if not is_empty(values[k])]
        empty = sum(int(counts[k]) for k, value in enumerate(values) if is_empty(value))
        examples = [clean(str(values[k]))[:30] for k in order[:3]]
        rows.append(
            {"name": name, "used_as": ours.get(name, ""), "distinct": len(order), "empty": empty,
             "examples": examples}
        )  # fmt: skip
    return rows
