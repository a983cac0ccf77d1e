"""The sweeps of docs/real-tables.md as loss tables, one for each sweep over sizes."""

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hptransfer.stats import Axis, LossTable
from hptransfer.tables import read_table

Row = dict[str, str]
#: Batch size at which steplaw's cells are compared when it is held fixed.
FIXED_BATCH = 256


@dataclass(frozen=True, kw_only=True)
class Group:
    """One sweep over sizes: its table, a name, what sizes are, its rule, and its losses by size.

    `held` are the parameters and the batch in tokens where a sweep over tokens holds them.
    """

    table: str
    name: str
    size: str = "width"
    parameterization: str = ""
    losses: LossTable
    widths: dict[float, float]
    held: tuple[float, float] | None = None


def read_rows(path: Path) -> list[Row]:
    """Read a CSV file as dictionaries of strings."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def group_of(
    table: str,
    name: str,
    rows: Sequence[Row],
    *,
    size: str = "width",
    log2_lr: str = "log2_lr",
    axis: Axis = "as given",
) -> Group:
    """Build a group from rows with columns `size`, width, `log2_lr`, loss, perhaps state, seed."""
    diverged = np.array([row.get("state") == "diverged" for row in rows])
    loss = np.array([float(row["loss"] or "nan") for row in rows])
    return Group(
        table=table,
        name=name,
        size=size,
        parameterization=rows[0].get("parameterization", ""),
        losses=LossTable(
            width=np.array([float(row[size]) for row in rows]),
            lr=2.0 ** np.array([float(row[log2_lr]) for row in rows]),
            loss=np.where(diverged, np.nan, loss),
            # Most of these tables have one loss per cell: one seed, or a mean already taken.
            seed=np.array(
                [int(s) if (s := row.get("seed") or "").isdigit() else 0 for row in rows]
            ),
            axis=axis,
            source=table,
        ),
        widths={float(row[size]): float(row["width"]) for row in rows},
    )


def names_in(rows: Sequence[Row], column: str) -> list[str]:
    """Values of a column in order of first appearance."""
    return list(dict.fromkeys(row[column] for row in rows))


def load_modula(rows: list[Row]) -> Iterator[Group]:
    """Width sweeps at depth 3, and depth sweeps at width 128 with size = depth."""
    for scaled in ("width", "depth"):
        for name in names_in(rows, "parameterization"):
            chosen = [r for r in rows if r["scaled"] == scaled and r["parameterization"] == name]
            yield group_of("modula", f"{name}, {scaled}", chosen, size=scaled)


def load_nanogpt(rows: list[Row]) -> Iterator[Group]:
    """Two data sets by SP and µP, less the two cells whose points hide behind others."""
    hidden = {("openwebtext", "muP", "256"), ("shakespeare_char", "muP", "512")}
    kept = [r for r in rows if (r["dataset"], r["parameterization"], r["width"]) not in hidden]
    for data in names_in(kept, "dataset"):
        for name in names_in(kept, "parameterization"):
            chosen = [r for r in kept if r["dataset"] == data and r["parameterization"] == name]
            yield group_of("nanogpt-mup", f"{name}, {data}", chosen)


def load_mlp(rows: list[Row]) -> Iterator[Group]:
    """µP and SP."""
    for name in names_in(rows, "parameterization"):
        yield group_of("mup-mlp", name, [r for r in rows if r["parameterization"] == name])


def best_batches(rows: Sequence[Row]) -> list[Row]:
    """Rows at the batch size of the lowest loss of each (size, budget)."""
    cells: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        cells.setdefault((row["params_N"], row["tokens_D"]), []).append(row)
    out = []
    for cell in cells.values():
        batch = min(cell, key=lambda r: float(r["loss"]))["batch"]
        out += [r for r in cell if r["batch"] == batch]
    return out


def load_h100(rows: list[Row]) -> Iterator[Group]:
    """Our own sweep of the embedding's learning rate, by parameterization."""
    for name in names_in(rows, "parameterization"):
        chosen = [r for r in rows if r["parameterization"] == name]
        yield group_of("h100", name, chosen, axis="hidden-aligned")


def load_steplaw_batches(rows: list[Row]) -> Iterator[Group]:
    """Sizes at equal tokens per parameter and one batch, and budgets at one size and batch."""
    cells: dict[tuple[str, str, int], list[Row]] = {}
    for row in rows:
        ratio = str(round(float(row["tokens_D"]) / float(row["params_N"])))
        cells.setdefault(("params_N", ratio, int(row["batch"])), []).append(row)
        cells.setdefault(("tokens_D", row["params_N"], int(row["batch"])), []).append(row)
    for (size, held, batch), members in cells.items():
        if len(names_in(members, size)) >= 3:
            said = f"{held} tokens/param" if size == "params_N" else f"{float(held) / 1e6:.0f} M"
            name = f"{said}, batch {batch}"
            group = group_of("steplaw", name, members, size=size, log2_lr="log2_lr_nominal")
            if size == "tokens_D":
                in_tokens = batch * float(members[0]["seq_len"])
                group = replace(group, held=(float(held), in_tokens))
            yield group


def load_steplaw_tokens(rows: list[Row]) -> Iterator[Group]:
    """Sizes by parameter count and their token budgets, at fixed and at best batch."""
    fixed = [r for r in rows if int(r["batch"]) == FIXED_BATCH]
    for label, chosen in ((f"batch {FIXED_BATCH}", fixed), ("best batch", best_batches(rows))):
        group = group_of(
            "steplaw", f"token axis, {label}", chosen, size="params_N", log2_lr="log2_lr_nominal"
        )
        tokens = np.array([float(r["tokens_D"]) for r in chosen])
        yield replace(group, losses=replace(group.losses, tokens=tokens))


def load_steplaw(rows: list[Row]) -> Iterator[Group]:
    """Sizes by parameter count at equal tokens per parameter, at fixed and at best batch."""
    budgets: dict[int, list[Row]] = {}
    for row in rows:
        budgets.setdefault(round(float(row["tokens_D"]) / float(row["params_N"])), []).append(row)
    for budget, members in sorted(budgets.items()):
        sizes = names_in(members, "params_N")
        if len(sizes) < 4:
            continue
        fixed = [r for r in members if int(r["batch"]) == FIXED_BATCH]
        best = best_batches(members)
        for label, chosen in ((f"batch {FIXED_BATCH}", fixed), ("best batch", best)):
            name = f"{budget} tokens/param, {label}"
            yield group_of("steplaw", name, chosen, size="params_N", log2_lr="log2_lr_nominal")


LOADERS: dict[str, Callable[[list[Row]], Iterator[Group]]] = {
    "modula_owt_digitized.csv": load_modula,
    "nanogpt_mup_digitized.csv": load_nanogpt,
    "mup_mlp_sgd.csv": load_mlp,
    "steplaw_dense.csv": load_steplaw,
}


#: Sweeps of one axis at a time, with all others held, for leaving out the larger sizes.
SWEEP_LOADERS: dict[str, Callable[[list[Row]], Iterator[Group]]] = {
    "modula_owt_digitized.csv": load_modula,
    "nanogpt_mup_digitized.csv": load_nanogpt,
    "mup_mlp_sgd.csv": load_mlp,
    "steplaw_dense.csv": load_steplaw_batches,
    "h100_embedding.csv": load_h100,
}

#: Sweeps over sizes and token budgets at once.
TOKEN_LOADERS: dict[str, Callable[[list[Row]], Iterator[Group]]] = {
    "steplaw_dense.csv": load_steplaw_tokens,
}


def select(table: LossTable, keep: NDArray[np.bool_]) -> LossTable:
    """Rows of a table, without its group columns."""
    return LossTable(
        width=table.width[keep],
        lr=table.lr[keep],
        loss=table.loss[keep],
        seed=table.seed[keep],
        axis=table.axis,
        source=table.source,
        tokens=None if table.tokens is None else table.tokens[keep],
        budget=None if table.budget is None else table.budget[keep],
    )


def load_study(path: Path) -> Iterator[Group]:
    """Every parameterization and weight decay of a study directory."""
    table = read_table(path)
    labels = np.array(
        [", ".join(map(str, key)) for key in zip(*table.groups.values(), strict=True)]
    )
    for label in dict.fromkeys(labels.tolist()):
        losses = select(table, labels == label)
        yield Group(
            table="study",
            name=label,
            parameterization=label.partition(",")[0],
            losses=losses,
            widths={w: w for w in set(losses.width)},
        )
