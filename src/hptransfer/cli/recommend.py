"""Print the learning rate to use at a width, what it costs, its risk, and what to run next.

What next: the further trials (seeds, learning rates, widths) that would narrow the learning rate's
interval most for their compute; without an answer, the points that one needs.
"""

import argparse
import json
import math
import re
import shlex
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hptransfer._atomic import atomic_write
from hptransfer.cli._answers import describe_advice, describe_rates
from hptransfer.cli._arguments import (
    READING,
    SOURCES,
    VERBOSE,
    check_output,
    choose_reading,
    find_results,
    positive_number,
)
from hptransfer.cli._print import tell, tell_reading
from hptransfer.errors import ConfigError
from hptransfer.report.answer import warn_of_learning
from hptransfer.report.words import describe_missing, tell_doubts
from hptransfer.stats import LossTable, Reason, Recommendation, fit_axes, fit_table
from hptransfer.stats.loss_table import Floats
from hptransfer.stats.priors import PRIORS, read_priors
from hptransfer.tables import read_source

#: Columns of a group that a study file's points have.
_POINT_KEYS = ("parameterization", "weight_decay")
#: Where points go that a minimum lacks, in steps of the swept rates from the best one.
_OFFSETS: Mapping[str, tuple[float, ...]] = {
    "right": (1, 2), "left": (-1, -2), "lower": (-1, -2), "sides": (-1, 1), "near": (-0.5, 0.5),
    "widths": (-2, -1, 0, 1, 2),
}  # fmt: skip


OPTIONS = (
    SOURCES,
    ("--width", "N", positive_number, ..., "the target width"),
    ("--tokens", "T", positive_number, None,
     "training tokens of the target: column tokens is then an axis beside width"),
    ("--batch", "B", positive_number, None,
     "batch of the target, as column batch counts it (tokens, or sequences with a column "
     "context): an axis too"),
    ("--form", "F", str, None,
     "the form of lr* against width that answers alone: same, constant, power, converging or "
     "drift; by default all are averaged"),
    ("--scatter", "S", float, None,
     "standard deviation of ln lr* from width to width about the law; by default found; 0: no "
     "scatter, and basins of one shape unless the points contradict it (over --tokens or --batch "
     "no scatter alone), while the average of forms still lets the law bend: add --form for one "
     "law held exactly"),
    ("--write-next", "FILE", Path, None,
     "write the trials that would make it surer as [[points]] of a study file: a new one, or "
     "the end of the study's own"),
    [
        ("--priors", "FILE", Path, None, "priors by kind of sweep, in place of ours"),
        ("--no-prior", None, bool, None, "use no prior of how lr* moves"),
    ],
    *READING, VERBOSE,
)  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Print one recommendation for each group; 3 if a file of the source was damaged."""
    asked = {"tokens": args.tokens, "batch": args.batch}
    axes = [name for name, value in asked.items() if value is not None]
    if axes and args.form is not None:
        raise ConfigError(f"--form: expected it left out with --{axes[0]}, found {args.form}")
    if args.write_next is not None and axes:
        raise ConfigError(
            f"--write-next: expected it left out with --{axes[0]}: further trials are proposed for "
            "widths alone"
        )
    if args.write_next is not None and args.pool:
        raise ConfigError(
            f"--write-next: expected it left out with --pool {args.pool[0]}: a trial has one value "
            f"of it; to choose one, --where {args.pool[0]}=VALUE in its place"
        )
    check_output("--write-next", args.write_next)
    sources = [find_results(source) for source in args.sources]
    study = read_source(sources, **choose_reading(args, axes))
    tell_reading(study.table.source, study.notes, study.damaged)
    table = study.table
    priors = read_priors(args.priors) if args.priors else None if args.no_prior else PRIORS
    warning = ""
    if axes:
        # The batch is asked for as the table counts it; the law counts tokens.
        batch = None if args.batch is None else args.batch * table.batch_unit
        advice = fit_axes(table).recommend(
            width=args.width, tokens=args.tokens, batch=batch, scatter=args.scatter, priors=priors
        )
    else:
        fits = fit_table(table, scatter=args.scatter)
        warning = warn_of_learning(fits, study.settings)
        advice = fits.recommend(
            width=args.width, form=args.form, scatter=args.scatter, priors=priors
        )
    found = tell_doubts(advice)
    if args.write_next is not None:
        said = _write_next(args.write_next, args.sources, table, study.settings, found)
        print(f"hptransfer: {said}", file=sys.stderr)
    missing = describe_missing(table, study.settings)
    document: dict[str, Any] = {"schema": 1, "recommendations": found}
    document |= {"incomplete": missing} if missing else {}
    document |= {"warning": warning} if warning else {}
    place = "".join(f", {name} {asked[name]:g}" for name in axes)
    if "batch" in axes and table.batch_unit != 1.0:
        place += f" (× {table.batch_unit:g} tokens)"
    text = describe_rates(
        table, found, place=place, missing=missing, warning=warning, verbose=args.verbose
    )
    if args.verbose:
        text += f"\n{describe_advice(found)}"
    return tell(args, document, text, damaged=bool(study.damaged))


def _write_next(
    path: Path,
    sources: Sequence[str],
    table: LossTable,
    settings: Mapping[str, Any],
    items: Sequence[Recommendation],
) -> str:
    """Write what each recommendation would run next as ``[[points]]``; return what was done.

    A study's points go into a study file that ``run`` trains into the study's own directory: to
    the end of `path` where it is that file, else into a new one with the study's settings.
    """
    from hptransfer.study.config import ADAPTIVE, parse_study

    config = settings.get("config", {})
    if config.get("sweep", {}).get("base_lr") == ADAPTIVE:
        raise ConfigError(
            f"--write-next: {sources[0]}: an adaptive study places its own trials; for more of "
            "them, a lower regret and more max_points in [adaptive], and hptransfer run it again"
        )
    if len(odd := table.width[table.width % 1 != 0]):
        raise ConfigError(
            f"--write-next: expected whole widths, as a study file has, found {odd[0]:g}"
        )
    # What a study file does not tell apart is one value of all its trials.
    rest = {name for item in items for name in item.group} - set(_POINT_KEYS)
    fixed = {name: list(dict.fromkeys(str(i.group[name]) for i in items)) for name in sorted(rest)}
    if mixed := [name for name, values in fixed.items() if len(values) > 1]:
        name, value = mixed[0], fixed[mixed[0]][0]
        raise ConfigError(
            f"--write-next: expected one {name}, since [[points]] do not tell {name} apart, found "
            f"{', '.join(fixed[name])}; write those of one with --where {name}={value}"
        )
    points = [point for item in items for point in _list_points(table, config, item)]
    text = path.read_text("utf-8", errors="replace") if path.exists() else ""
    if not text and settings:
        text = _write_toml({key: value for key, value in config.items() if key != "points"})
        text += "".join(map(_write_point, config.get("points", ())))
    try:
        before = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"--write-next: {path}: expected a study file; {error}") from None
    fresh = [point for point in points if point not in before.get("points", ())]
    if not fresh:
        left = f"{path} is left as it is" if path.exists() else "nothing is written"
        return f"no further trials would make it surer; {left}"
    lines = "".join(map(_write_point, fresh))
    if not before.keys() - {"points"}:
        of = "".join(f" Of {name} {values[0]}." for name, values in fixed.items())
        lines = f"# For the end of a study file: `hptransfer run` trains them.{of}\n{lines}"
    else:
        after = parse_study(tomllib.loads(text + lines), source=str(path))
        if settings and after.identity() != settings["identity"]:
            raise ConfigError(
                f"--write-next: {path}: expected the study file of {sources[0]}, found another "
                "study's; name a new file, and it is written whole"
            )
    with atomic_write(path, replace=True) as tmp:
        tmp.write_text(text + lines, encoding="utf-8")
    num = sum(math.prod(len(point[key]) for key in ("log2_lr", "lr", "seeds") if key in point)
              for point in fresh)  # fmt: skip
    command = ["hptransfer", "run", str(path), "-o", str(find_results(sources[0]))]
    onwards = f"; next: {shlex.join(command)}" if settings else ""
    return f"{num} trials in {path}{onwards}"


def _list_points(
    table: LossTable, config: Mapping[str, Any], item: Recommendation
) -> Iterator[dict[str, Any]]:
    """Yield the trials of a recommendation's ``next`` as the sections of a study file."""
    if item.next is None:
        return
    own = np.full(len(table), True)
    for key, value in item.group.items():
        own &= table.groups[key] == value
    widths, rates, losses = (each[own] for each in (table.width, table.lr, table.loss))
    known = table.seed[own]
    model, seeds = config.get("model", {}), config.get("sweep", {}).get("seed", [0, 1])
    unit = model.get("head_size") or model.get("num_heads") or 1
    asked = [
        (step.width, lr, num)
        for step in item.next.steps
        for lr, num in zip(step.lrs, step.trials, strict=True)
    ]
    asked += [
        (width, lr, len(seeds))
        for reason in item.next.missing
        for width, lr in _place(reason, widths, rates, losses)
    ]
    counts: Counter[tuple[int, float]] = Counter()
    for width, lr, num in asked:
        whole = max(unit, unit * round(width / unit))  # a width that the heads divide
        near = rates[(widths == whole) & (abs(rates / lr - 1) < 1e-6)]
        counts[whole, float(near[0]) if len(near) else 2.0 ** round(math.log2(lr), 3)] += num
    wanted: dict[tuple[int, tuple[int, ...]], list[float]] = {}
    for (whole, rate), num in sorted(counts.items()):
        used = {*known[(widths == whole) & (rates == rate)].tolist()}
        free = [s for s in dict.fromkeys([*seeds, *range(len(used) + num)]) if s not in used]
        if num:
            wanted.setdefault((whole, tuple(free[:num])), []).append(rate)
    group = {k: [v] for k, v in item.group.items() if k in _POINT_KEYS}
    for (whole, fresh), lrs in sorted(wanted.items()):
        yield {"width": [whole], **group, **_write_rates(lrs), "seeds": list(fresh)}


def _write_rates(lrs: Sequence[float]) -> dict[str, list[float]]:
    """Return learning rates by their base-2 logarithms, where those give them exactly."""
    exponents = [round(math.log2(lr), 6) for lr in lrs]
    if all(2.0**k == lr for k, lr in zip(exponents, lrs, strict=True)):
        return {"log2_lr": exponents}
    return {"lr": list(lrs)}


def _place(
    reason: Reason, widths: Floats, rates: Floats, losses: Floats
) -> Iterator[tuple[float, float]]:
    """Yield width and learning rate of the points that a minimum or a law lacks."""
    numbers = reason.numbers
    gaps = np.diff(np.unique(np.log(rates)))
    step = min(float(np.median(gaps)) if len(gaps) else math.log(2.0), math.log(4.0))
    width, x = float(numbers.get("width") or widths.max()), float(numbers.get("x", math.nan))
    if reason.kind == "between":
        yield width, math.exp(0.5 * (x + numbers["end"]))
        return
    if reason.kind == "widths":
        there = np.where((widths == width) & np.isfinite(losses), losses, np.inf)
        x, width = math.log(rates[np.argmin(there)]), 2.0 * width
    for each in range(numbers.get("num", 1)):
        for offset in _OFFSETS.get(reason.kind, ()):
            yield width * 2.0**each, math.exp(x + offset * step)


def _write_point(point: Mapping[str, Any]) -> str:
    return f"\n[[points]]\n{_write_toml(point)}"


def _write_toml(document: Mapping[str, Any], section: str = "") -> str:
    """Return a document of plain values, lists and sections as TOML."""
    flat = {key: value for key, value in document.items() if not isinstance(value, Mapping)}
    head = f"\n[{section}]\n" if section and (flat or not document) else ""
    text = head + "".join(f"{_quote(key)} = {_to_toml(value)}\n" for key, value in flat.items())
    for key, value in document.items():
        if isinstance(value, Mapping):
            text += _write_toml(value, f"{section}.{_quote(key)}".lstrip("."))
    return text


def _quote(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _to_toml(key)


def _to_toml(value: Any) -> str:
    """Return a plain value as JSON has it, unescaped: TOML knows no pairs of escapes."""
    return json.dumps(value, ensure_ascii=False)
