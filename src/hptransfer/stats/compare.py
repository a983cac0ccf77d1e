"""Fit every group of a table, and compare each with a reference of the same setting."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace

from hptransfer.errors import FitError
from hptransfer.stats.basins import DEFAULT_RESAMPLES, DEFAULT_SEED, draw
from hptransfer.stats.cells import DEFAULT_WINDOW, Cells, Group, build_cells, split_groups
from hptransfer.stats.compute import judge_fast, price_widths
from hptransfer.stats.estimate import Estimate
from hptransfer.stats.flops import flops_by_width
from hptransfer.stats.judge import refuse
from hptransfer.stats.measure import measure_noise
from hptransfer.stats.metrics import NO_REFERENCE, pair_difference, say_bounds
from hptransfer.stats.results import Form, TransferFit
from hptransfer.stats.sensitivity import measure_widths
from hptransfer.stats.share import doubt, share_parameter
from hptransfer.stats.shared import Share
from hptransfer.stats.table import LossTable
from hptransfer.stats.transfer import GroupFit, fit_group

#: Columns that a table is split on by default, where it has them.
DEFAULT_BY = ("parameterization", "weight_decay")
#: The column whose values are compared with each other, where a table is split on it.
COMPARED = "parameterization"


@dataclass(frozen=True, kw_only=True)
class Split:
    """A table split into groups, and which column compares them.

    Attributes
    ----------
    groups : tuple of Group
        In order of first appearance.
    columns : tuple of str
        Columns split on.
    compared : str
        The column whose values R compares; "" without columns.
    """

    groups: tuple[Group, ...]
    columns: tuple[str, ...]
    compared: str

    def setting(self, group: Group) -> tuple[tuple[str, object], ...]:
        """The group's values of all columns but the compared one."""
        return tuple(pair for pair in group.key if pair[0] != self.compared)

    def label(self, group: Group) -> str:
        """The group's value of the compared column."""
        return str(dict(group.key).get(self.compared, ""))


def split_table(table: LossTable, by: Sequence[str] = DEFAULT_BY) -> Split:
    """Split a table on the columns of `by`; the default ones need not exist.

    Raises
    ------
    FitError
        The table is empty, a column is unknown, or one not split on varies within a width.
    """
    if len(table) == 0:
        raise FitError(f"{table.source}: expected at least one trial, found none")
    for name in by:
        if name not in table.groups and tuple(by) != DEFAULT_BY:
            near = difflib.get_close_matches(name, list(table.groups), n=1, cutoff=0.4)
            known = ", ".join(table.groups) or "none"
            hint = f"; did you mean {near[0]}?" if near else ""
            raise FitError(
                f"{table.source}: no column {name} to split on: expected one of {known}{hint}"
            )
    columns = tuple(dict.fromkeys(name for name in by if name in table.groups))
    compared = COMPARED if COMPARED in columns else (columns[0] if columns else "")
    return Split(groups=tuple(split_groups(table, columns)), columns=columns, compared=compared)


def check_reference(table: LossTable, split: Split, reference: str | None) -> None:
    """Raise `FitError` where `reference` is no value of the compared column."""
    labels = list(dict.fromkeys(split.label(group) for group in split.groups))
    if reference is None or reference in labels:
        return
    near = difflib.get_close_matches(reference, labels, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]}?" if near else ""
    found = ", ".join(labels) if split.compared else "no group column"
    raise FitError(f"{table.source}: no reference {reference}: found {found}{hint}")


def fit_groups(
    table: LossTable,
    split: Split,
    *,
    form: Form = "converging",
    window: float = DEFAULT_WINDOW,
    num_resamples: int = DEFAULT_RESAMPLES,
    seed: int = DEFAULT_SEED,
) -> list[GroupFit]:
    """Fit each group; groups of one setting share the noise that their seeds share."""
    cells = [build_cells(table, group.rows) for group in split.groups]
    fits: dict[int, GroupFit] = {}
    for members in _settings(split):
        noises = measure_noise([cells[k] for k in members], window=window)
        for k, noise in zip(members, noises, strict=True):
            draws = draw(cells[k], noise, num_resamples=num_resamples, seed=seed, stream=k)
            fits[k] = fit_group(
                cells[k],
                noise,
                draws,
                group=dict(split.groups[k].key),
                axis=table.axis,
                form=form,
                window=window,
                seed=seed,
            )
            found = measure_widths(
                table,
                split.groups[k].rows,
                table.losses_at_init(),
                cells[k],
                noise,
                draws,
                fits[k].basins,
                group=fits[k].result.group,
                seed=seed,
            )
            fits[k] = replace(fits[k], result=replace(fits[k].result, sensitivity=found))
    return [fits[k] for k in range(len(cells))]


def _settings(split: Split) -> list[list[int]]:
    found: dict[tuple[tuple[str, object], ...], list[int]] = {}
    for k, group in enumerate(split.groups):
        found.setdefault(split.setting(group), []).append(k)
    return list(found.values())


def fit_table(
    table: LossTable,
    *,
    by: Sequence[str] = DEFAULT_BY,
    reference: str | None = None,
    form: Form = "converging",
    share: Share | None = None,
    window: float = DEFAULT_WINDOW,
    num_resamples: int = DEFAULT_RESAMPLES,
    seed: int = DEFAULT_SEED,
) -> list[TransferFit]:
    """Fit every group of a table and compare it with the reference of its setting.

    Parameters
    ----------
    table : LossTable
        Trials.
    by : sequence of str
        Group columns to split on. Those of the default need not exist; others must.
    reference : str, optional
        Value of the compared column (``parameterization``, else the first of `by`) that R refers
        to. By default the group with the lowest identified L∞ of the same setting, which is the
        same values of all other columns.
    share : Share, optional
        What the groups of a setting have in common by assumption: ``alpha``, which makes their
        L∞ and R(∞) more precise, or ``loss_inf``, which makes R(∞) 0 and α more precise. Each
        result says so, and whether the data contradict it.
    form, window, num_resamples, seed
        As for `fit_transfer`.

    Returns
    -------
    list of TransferFit
        In order of first appearance in the table.

    Raises
    ------
    FitError
        Nothing to fit, an unknown column, or an unknown reference.
    """
    split = split_table(table, by)
    check_reference(table, split, reference)
    fits = fit_groups(
        table, split, form=form, window=window, num_resamples=num_resamples, seed=seed
    )
    cells = [build_cells(table, group.rows) for group in split.groups]
    out: dict[int, TransferFit] = {}
    for members in _settings(split):
        if share is not None:
            labels = [split.label(split.groups[k]) for k in members]
            pooled = share_parameter([fits[k] for k in members], labels, share)
            for k, fit in zip(members, pooled, strict=True):
                fits[k] = fit
        chosen, why = _choose_reference(split, fits, members, reference)
        for k in members:
            if chosen is None:
                metrics = {**fits[k].result.metrics, "R_inf": refuse(why)}
                out[k] = replace(fits[k].result, metrics=metrics)
            else:
                out[k] = compare_fits(
                    fits[k],
                    fits[chosen],
                    cells[k],
                    cells[chosen],
                    split.label(split.groups[chosen]),
                )
    flops, _ = flops_by_width(table)
    return [
        fits[k].explained(
            replace(out[k], fast=judge_fast(fits[k]), extra=price_widths(fits[k], flops))
        )
        for k in range(len(fits))
    ]


def _choose_reference(
    split: Split, fits: list[GroupFit], members: list[int], name: str | None
) -> tuple[int | None, str]:
    """Return the reference's number among the groups, or None and why there is none."""
    if len(members) < 2:
        return None, NO_REFERENCE
    if name is not None:
        for k in members:
            if split.label(split.groups[k]) == name:
                return k, ""
        return None, f"{NO_REFERENCE}: {name} is missing in this setting"
    good = [k for k in members if fits[k].result.exponents["loss_inf"].status == "identified"]
    if not good:
        return None, f"{NO_REFERENCE}: no group's L∞ is identified"
    return min(good, key=lambda k: fits[k].result.exponents["loss_inf"].value or 0.0), ""


def compare_fits(
    fit: GroupFit, reference: GroupFit, cells: Cells, other: Cells, name: str
) -> TransferFit:
    """Fill R(∞) and the gaps R(n) = L*(n) − L*_ref(n), paired by resample."""
    own = fit is reference
    result = fit.result
    zero = Estimate(value=0.0, low=0.0, high=0.0)
    gaps: dict[float, Estimate] = {}
    for width in fit.basins.usable:
        if width not in reference.basins.usable:
            continue
        mine, theirs = (
            next(b for b in f.basins.basins if b.width == width) for f in (fit, reference)
        )
        samples = [f.basins.samples.get(width) for f in (fit, reference)]
        drawn = [None if s is None else s[:, 1] for s in samples]
        gaps[width] = (
            zero
            if own
            else pair_difference(
                mine.coefficients[1], drawn[0], theirs.coefficients[1], drawn[1], ""
            )
        )
    r_inf = zero
    if not own:
        r_inf = _degradation(fit, reference)
        if result.shared is not None:
            r_inf = (
                refuse("0 by assumption: L∞ is shared", 0.0)
                if result.shared.parameter == "loss_inf"
                else doubt(r_inf, result.shared)
            )
    metrics = {**result.metrics, "R_inf": r_inf}
    notes = result.notes
    if not own and not _same_seeds(cells, other):
        notes = (*notes, f"seeds differ from those of {name}: gaps are not fully paired")
    return replace(result, metrics=metrics, gaps=gaps, reference=name, notes=notes)


def _same_seeds(cells: Cells, other: Cells) -> bool:
    return {s for s, _ in cells.seeds} == {s for s, _ in other.seeds}


def _degradation(fit: GroupFit, reference: GroupFit) -> Estimate:
    """R(∞): the difference of two L∞, identified only where both are free of bounds."""
    for f, whose in ((fit, ""), (reference, "the reference's ")):
        if f.joint is None:
            return refuse(f"{whose}{f.result.exponents['loss_inf'].reason}")
    assert fit.joint is not None
    assert reference.joint is not None
    problems = []
    for f, whose in ((fit, ""), (reference, "the reference's ")):
        said = _bound_problem(f)
        if said:
            problems.append(whose + said)
    drawn = [None if f.samples is None else f.samples.loss_inf for f in (fit, reference)]
    return pair_difference(
        float(fit.joint.loss_inf[0]),
        drawn[0],
        float(reference.joint.loss_inf[0]),
        drawn[1],
        "; ".join(problems),
    )


def _bound_problem(fit: GroupFit) -> str:
    assert fit.joint is not None
    return say_bounds(fit.joint, fit.samples, "loss_inf", "A", "alpha")
