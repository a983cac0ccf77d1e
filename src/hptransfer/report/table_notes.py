"""Put in words what was seen in a table, and what of it makes an answer doubtful."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from hptransfer.stats.loss_table import Doubt
from hptransfer.stats.results import Recommendation

_SENTENCES = {
    "columns": "read as with --columns {columns}; name other columns in the same way",
    "other_rate": "column {other!r} is a learning rate too, and {used!r} is read; "
    "to choose, --columns lr=NAME",
    "final_rate": "column {other!r} is {ratio:.3g} times {used!r} in every row, as where a "
    "schedule ended; {used!r} is read",
    "multiplier": "{column!r} holds multiples of a rate that is not in it: the answer is one too",
    "params": "{column!r} counts parameters, not width: the answer holds for that size",
    "logarithms": "{column!r} is read as logarithms of the learning rate to base {base}",
    "unit": "{column!r} is read as {unit}, and made nats per token",
    "byte_unit": "{column!r} is read as bits per byte, and made nats per byte; verdicts are in "
    "nats per token, so say how long one is with --unit bits-per-byte:BYTES",
    "names": "{what} read from the names in {column!r}, such as {example!r}",
    "wide": "widths are columns: {count} of them, {blank} blank cell(s) left out as not run",
    "chart": "one column a run: the last value of {metric!r} of each of {count} runs is read",
    "history": "{rows} rows are evaluations of {count} runs: the last by {column!r} of each is "
    "read",
    "partial": "{count} of {rows} runs end at {column} {least:g}, before the {most:g} of others at "
    "their width; leave them out with --where {column}={most:g}",
    "stops": "{count} of {rows} runs log {column!r} for the last time before their other metrics, "
    "as where NaN is not logged ({examples}); if they diverged, --diverged stopped",
    "left_out": "{count} {state} trial(s) left out{placed}",
    "blank": "{count} finished trial(s) have no loss and count as diverged{placed}; to leave them "
    "out, --diverged none",
    "repeated": "{count} repeated row(s) left out",
    "kept": "{count} further row(s) of a trial left out by --keep {rule}",
    "joined": "{count} learning rates that agree within 1e-6 are read as {into}",
    "varies": "not the same at one width, and not used: {columns}; the fit mixes their values: fit "
    "them apart with --by {first}, or choose one with --where {first}=VALUE",
    "with_width": "changes with width: {columns}; the answer holds where they change likewise",
    "outlier": "{place}: loss {loss:g} is {off:.2g} nats off the curve of its width; if the run "
    "failed, leave it out",
    "spelling": "groups {one!r} and {other!r} of {column!r} differ in spelling only; if they are "
    "one, --map {column}:{other}={one}",
    "training_loss": "{column!r} is a training loss: name a held-out one with --columns loss=NAME",
    "tracker": "{what}; a metric is its last value",
    "no_settings": "{count} run(s) without settings left out",
    "foreign": "groups/{file} holds no results of this study ({reason}) and is left alone",
    "unchecked": "{count} results file(s) of an older version carry no digest: unchecked",
}


def describe_note(note: Doubt) -> str:
    """Return a note as one line, with what to type where something can be done."""
    values = dict(note.values)
    if "above" in values:
        values["placed"] = _describe_sides(values)
    return _SENTENCES[note.kind].format(**values)


def _describe_sides(values: Mapping[str, Any]) -> str:
    """Return where trials without a loss lie, and how to count those left out as diverged."""
    above, below, count = values["above"], values["below"], values["count"]
    sides = {"above": above, "below": below}
    told = [f"{'all' if n == count else n} {side}" for side, n in sides.items() if n]
    where = f", {' and '.join(told)} the best learning rate of their width" if told else ""
    if values["state"] in ("blank", "pending", "unmeasured"):
        return where
    return f"{where}; if they diverged, --diverged {values['state']}"


def tell_doubts(advice: Sequence[Recommendation]) -> list[Recommendation]:
    """Return recommendations whose reasons say first what is in doubt about their table."""
    told = []
    for item in advice:
        doubts = [describe_note(doubt).partition("; ")[0] for doubt in item.doubts]
        told.append(replace(item, because="; ".join([*doubts, item.because])))
    return told
