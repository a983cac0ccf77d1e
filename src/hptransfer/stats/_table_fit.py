"""Fit every group of a loss table, compare the groups, and answer questions from the same fits.

What is not identified is given the data that would help.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from importlib import import_module
from typing import Any, TypeVar, overload

from hptransfer.errors import ConfigError
from hptransfer.stats._advice import (
    advise,
    falls_flat,
    find_missing,
    find_point,
    narrow_interval,
    repeat_trials,
)
from hptransfer.stats._group_fit import (
    DEFAULT_RESAMPLES,
    DEFAULT_SEED,
    GroupFit,
    check_positive,
    check_scatter,
    fit_groups,
    gather_groups,
)
from hptransfer.stats._metrics import (
    Flops,
    flops_by_width,
    judge_rows,
    list_bounds,
    price_compute,
    price_loss,
)
from hptransfer.stats._stability import measure_widths
from hptransfer.stats.estimate import (
    THRESHOLDS,
    BasinFit,
    Estimate,
    half_width,
    join_columns,
    judge,
    refuse,
)
from hptransfer.stats.joint_model import WIDTHS_FOR_JOINT, WIDTHS_FOR_OUT
from hptransfer.stats.loss_table import (
    DEFAULT_WINDOW,
    LossTable,
    check_reference,
    label_group,
    list_settings,
    split_table,
)
from hptransfer.stats.priors import PRIORS, Prior
from hptransfer.stats.reasons import Reason, Reasons
from hptransfer.stats.results import (
    ComputeRegret,
    FastTransfer,
    Form,
    Recommendation,
    Sensitivity,
    TransferFit,
)

#: The reference that nobody names, in capital letters or not.
_DEFAULT_REFERENCE = "sp"


def fit_table(
    table: LossTable,
    *,
    by: Sequence[str] | None = None,
    reference: str | None = None,
    form: Form = "converging",
    scatter: float | None = None,
    window: float = DEFAULT_WINDOW,
    num_resamples: int = DEFAULT_RESAMPLES,
    seed: int = DEFAULT_SEED,
) -> "TableFit":
    """Fit every group of a loss table and compare each with the reference of its setting.

    Parameters
    ----------
    table : LossTable
        Trials.
    by : sequence of str, optional
        Group columns to split on; by default all of the table's.
    reference : str, optional
        Value of the compared column (``parameterization``, else the first of `by`) that R refers
        to. By default ``sp`` where the setting (the same values of all other columns) has it, else
        its first group.
    form : Form
        Form of the optimum against width.
    scatter : float, optional
        Standard deviation of ln lr* from size to size about its law; by default found. With 0 all
        laws of width are taken to hold exactly, and the basins' shape where points allow it.
    window : float
        Points with a mean loss up to this multiple of their width's best count for E.
    num_resamples, seed : int
        Number and seed of the resamples behind the 90 % intervals; those of E and E_out have
        200 draws of their own.

    Returns
    -------
    TableFit
        A sequence of one `TransferFit` for each group, in order of first appearance, that
        answers further questions without fitting again.

    Raises
    ------
    FitError
        Nothing to fit, an unknown column or reference, or a negative `scatter`.

    Examples
    --------
    >>> import numpy as np
    >>> width, lr = (a.ravel() for a in np.meshgrid([64.0, 128, 256], 2.0 ** np.arange(-9, -3)))
    >>> loss = 3 + 4 / width**0.5 + 0.1 * (np.log(lr) + 4.2) ** 2
    >>> fits = fit_table(LossTable.from_columns(width=width, lr=lr, loss=loss))
    >>> [round(basin.lr.value, 4) for basin in fits[0].basins]
    [0.015, 0.015, 0.015]
    """
    check_scatter(scatter)
    groups = split_table(table, by)
    check_reference(table, groups, reference)
    data = gather_groups(table, groups, window=window, num_resamples=num_resamples, seed=seed)
    fits = fit_groups(data, form=form, scatter=scatter)
    return TableFit(table=table, groups=fits, reference=reference)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TableFit(Sequence[TransferFit]):
    """The fits of all groups of a table: a sequence of `TransferFit` that answers questions.

    What the fits rest on is kept, so that `recommend`, `regret`, `fast_transfer` and
    `sensitivity` fit nothing again. `fit_table` makes one.

    Attributes
    ----------
    table : LossTable
        The trials.
    groups : tuple of GroupFit
        Each group fitted alone, with its data and resamples.
    reference : str or None
        The reference that was asked for.
    """

    table: LossTable
    groups: tuple[GroupFit, ...]
    reference: str | None = None

    def settings(self) -> list[list[int]]:
        """Return the places of the groups of each setting: alike but in the compared column."""
        return list_settings([fit.data.group for fit in self.groups])

    def __len__(self) -> int:
        return len(self.groups)

    @overload
    def __getitem__(self, index: int) -> TransferFit: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[TransferFit, ...]: ...
    def __getitem__(self, index: int | slice) -> TransferFit | tuple[TransferFit, ...]:
        return self._results[index]

    def __str__(self) -> str:
        return "\n".join(map(str, self))

    def _repr_html_(self) -> str:
        return "".join(fit._repr_html_() for fit in self)

    def __repr__(self) -> str:
        return f"<TableFit of {len(self)} groups of {self.table.source}>"

    @cached_property
    def _results(self) -> tuple[TransferFit, ...]:
        found = dict[int, TransferFit]()
        flops, _ = flops_by_width(self.table)
        for members in self.settings():
            labels = [label_group(self.groups[k].data.group) for k in members]
            fits = [self.groups[k] for k in members]
            chosen, why = _choose_reference(labels, self.reference)
            for k, fit in zip(members, fits, strict=True):
                result = fit.result
                if chosen is None:
                    result = replace(result, metrics={**result.metrics, "R_inf": refuse(*why)})
                else:
                    result = _compare(fit, fits[chosen], labels[chosen])
                result = replace(
                    result,
                    sensitivity=measure_widths(self.table, fit),
                    fast=fit.fast,
                    extra={
                        n: price_loss(fit.minima, n, e, flops)[0] for n, e in result.regrets.items()
                    },
                )
                found[k] = _explain(result, fit)
        return tuple(found[k] for k in range(len(self)))

    def recommend(
        self,
        *,
        width: float,
        form: str | None = None,
        scatter: float | None = None,
        priors: Mapping[str, Prior] | None = PRIORS,
        flops: Flops | None = None,
    ) -> list[Recommendation]:
        """Recommend a learning rate at a target width, for every group.

        Parameters
        ----------
        width : float
            Target width.
        form : str, optional
            The form of the optimum that answers alone: ``same``, ``constant``, ``power``,
            ``converging`` or ``drift``; by default all are averaged.
        scatter : float, optional
            Standard deviation of ln lr* from size to size about the law; by default found. With
            0 nothing scatters and basins have one shape where points allow it; the average of
            forms still lets the law bend, and a `form` holds one law exactly. The groups are then
            fitted again, unless they were fitted with 0.
        priors : mapping of str to Prior, or None
            Priors by kind of sweep; None for none.
        flops : callable, optional
            From widths (W,) to training FLOPs of a trial (W,), up to a factor, for the cost of
            the trials to run next and for regret as compute; `flops_of` makes one. By default
            the table's own, or width².

        Returns
        -------
        list of Recommendation
            One for each group; ``unusable`` with the reason where the table cannot say.

        Raises
        ------
        FitError
            `width` or `scatter` is out of range, or the form needs more widths.
        """
        check_positive("width", width)
        check_scatter(scatter)
        spent, basis = flops_by_width(self.table) if flops is None else (flops, "the FLOPs given")
        groups = self.groups
        if scatter == 0.0 and groups[0].scatter != 0.0:
            data, form_of_fit = [fit.data for fit in groups], groups[0].result.form
            groups = fit_groups(data, form=form_of_fit, scatter=0.0)
        found = [
            advise(
                fit, width, self.table,
                form=form, scatter=scatter, priors=priors, flops=spent, basis=basis,
            )
            for fit in groups
        ]  # fmt: skip
        return [
            replace(
                answer.heed(self.table.doubts),
                compute=price_compute(fit.minima, width, answer.regret, answer.group, spent),
                fast=fit.fast,
            )
            for fit, answer in zip(groups, found, strict=True)
        ]

    def gap(self, one: int, other: int, *, width: float) -> Estimate:
        """Estimate L* of one group less that of another at a width, paired by seed, in nats.

        Parameters
        ----------
        one, other : int
            The groups' places in the table fit.
        width : float
            A width at which both have a basin.

        Returns
        -------
        Estimate
            Without an interval where no noise is known; with no value where a group's minimum
            at the width is not bracketed.
        """
        mine, theirs = self.groups[one], self.groups[other]
        if width not in mine.usable or width not in theirs.usable:
            return refuse(Reason("side_missing"))
        return _find_gap(mine, theirs, width)

    def regret(self, *, width: float, flops: Flops | None = None) -> list[ComputeRegret]:
        """Price `recommend`'s three choices at a width as training compute that buys nothing.

        Parameters
        ----------
        width, flops
            As `recommend` takes them.

        Raises
        ------
        FitError
            `width` is not a positive number.
        """
        found = self.recommend(width=width, flops=flops)
        return [answer.compute for answer in found if answer.compute is not None]

    def fast_transfer(self) -> list[FastTransfer]:
        """Test β > α/2 for every group (Ghosh et al. 2025, arXiv 2512.22768)."""
        return [fit.fast for fit in self.groups]

    def sensitivity(self) -> list[Sensitivity]:
        """Return the learning-rate sensitivity of every group, width by width."""
        return [each for fit in self for each in fit.sensitivity]

    def to_columns(self) -> Mapping[str, list[object]]:
        """Return all fits as columns of equal length, a row for each estimate."""
        return join_columns([fit.to_columns() for fit in self])

    def to_frame(self) -> Any:
        """Return all fits as a pandas data frame, a row for each estimate.

        Raises
        ------
        ConfigError
            pandas is not installed.
        """
        try:
            pandas = import_module("pandas")
        except ImportError:
            raise ConfigError(
                "to_frame: expected pandas: pip install pandas, or take to_columns()"
            ) from None
        return pandas.DataFrame(self.to_columns())

    def to_dict(self) -> dict[str, Any]:
        """Return the fits in the shape that ``fit --json`` documents."""
        return {"schema": 1, "fits": [fit.to_dict() for fit in self]}


def _choose_reference(labels: Sequence[str], name: str | None) -> tuple[int | None, Reasons]:
    """Return the reference's place among a setting's groups, or None and why there is none."""
    if len(labels) < 2:
        return None, (Reason("no_reference"),)
    if name is not None:
        missing = Reason("no_reference", missing=name)
        return (labels.index(name), ()) if name in labels else (None, (missing,))
    for spelled in (labels, [label.strip().lower() for label in labels]):
        if _DEFAULT_REFERENCE in spelled:
            return spelled.index(_DEFAULT_REFERENCE), ()
    return 0, ()


def _compare(fit: GroupFit, reference: GroupFit, name: str) -> TransferFit:
    """Fill R(∞) and the gaps R(n) = L*(n) − L*_ref(n), paired by resample."""
    result, zero = fit.result, Estimate(value=0.0, low=0.0, high=0.0)
    shared = [width for width in fit.usable if width in reference.usable]
    if fit is reference:
        gaps, r_inf, notes = dict.fromkeys(shared, zero), zero, result.notes
    else:
        gaps = {width: _find_gap(fit, reference, width) for width in shared}
        r_inf, notes = _compare_limits(fit, reference), result.notes
        seeds, theirs = ({s for s, _ in f.data.cells.seeds} for f in (fit, reference))
        if seeds != theirs:
            notes = (*notes, f"seeds differ from those of {name}: gaps are not fully paired")
    metrics = {**result.metrics, "R_inf": r_inf}
    return replace(result, metrics=metrics, gaps=gaps, reference=name, notes=notes)


def _compare_limits(fit: GroupFit, reference: GroupFit) -> Estimate:
    """Estimate R(∞), the difference of two L∞, identified where both are free of bounds."""
    if fit.laws is None:
        return refuse(*fit.result.exponents["loss_inf"].reasons)
    if reference.laws is None:
        return refuse(Reason("of_reference", of=reference.result.exponents["loss_inf"].reasons))
    both = (fit.laws, reference.laws)
    problem, theirs = (list_bounds(laws, "loss_inf", "A", "alpha") for laws in both)
    if theirs:
        problem = (*problem, Reason("of_reference", of=theirs))
    num = min(len(laws.gamma) for laws in both)
    rows = fit.laws.best.limit[:num] - reference.laws.best.limit[:num]
    return judge_rows(rows, "R_inf", problem=problem)


def _find_gap(one: GroupFit, other: GroupFit, width: float) -> Estimate:
    """Estimate L* of one group less that of another at a width where both have a minimum."""
    (mine, drawn), (theirs, moved) = one.losses_at(width), other.losses_at(width)
    both = None if drawn is None or moved is None else drawn - moved
    return judge(mine - theirs, both, "R_inf")


_Name = TypeVar("_Name")


def _help_each(
    found: Mapping[_Name, Estimate], find: Callable[[_Name, Estimate], Reason | None]
) -> dict[_Name, Estimate]:
    """Give each estimate that is not identified the remedy that is found for it."""
    return {
        name: each if each.status == "identified" else each.with_remedy(find(name, each))
        for name, each in found.items()
    }


def _explain(result: TransferFit, fit: GroupFit) -> TransferFit:
    """Give each estimate of a group that is not identified the data that would help."""
    metric, price = partial(_help_metric, fit), partial(_help_price, fit)
    return replace(
        result,
        basins=tuple(_help_basin(fit, basin) for basin in result.basins),
        exponents=_help_each(result.exponents, metric),
        metrics=_help_each(result.metrics, metric),
        gaps=_help_each(result.gaps, price),
        regrets=_help_each(result.regrets, price),
    )


#: Kinds of a basin's estimates, by name.
_KINDS = {"lr": "log_lr", "loss": "loss", "curvature": "curvature"}


def _help_basin(fit: GroupFit, basin: BasinFit) -> BasinFit:
    """Give a basin's estimates their remedies."""
    point = find_point(basin, fit.data.cells)

    def remedy(name: str, estimate: Estimate) -> Reason:
        limit = THRESHOLDS[_KINDS[name]]
        if name == "curvature":
            limit *= basin.curvature.value or 1.0
        bounded = any(reason.kind == "bounded_by_divergence" for reason in estimate.reasons)
        if basin.width not in fit.usable or bounded:
            return point
        if _first_kind(estimate) == "no_noise":
            return Reason("seed")
        half = half_width(estimate, log=name == "lr")
        wide = half is not None and half > limit
        return repeat_trials(half or math.inf, limit, basin.width) if wide else point

    found: dict[str, Any] = _help_each({name: getattr(basin, name) for name in _KINDS}, remedy)
    return replace(basin, **found)


def _help_metric(fit: GroupFit, name: str, estimate: Estimate) -> Reason | None:
    """Return what would identify an exponent or a metric; None where nothing more is needed."""
    first, half, num = _first_kind(estimate), half_width(estimate), len(fit.usable)
    if first == "no_reference":
        return Reason("reference")
    if num < WIDTHS_FOR_JOINT:
        return Reason("missing", parts=find_missing(fit))
    if first == "no_drift":
        drift = fit.result.drift
        if drift is None or drift.status == "identified" or (half := half_width(drift)) is None:
            return None
        return repeat_trials(half, THRESHOLDS["log_lr"])
    if falls_flat(estimate):
        return Reason("flat")
    if name == "E_out" and num < WIDTHS_FOR_OUT:
        return Reason("widths", num=WIDTHS_FOR_OUT - num, width=fit.usable[-1])
    if first == "no_noise":
        return Reason("seed")
    if name in ("E", "E_out"):
        return Reason("points")
    return narrow_interval(fit, name, half)


def _help_price(fit: GroupFit, width: float, estimate: Estimate) -> Reason | None:
    """Return the data that would identify a gap or a price at a width; None if none would."""
    half = half_width(estimate)
    if half is not None:
        return repeat_trials(half, THRESHOLDS["regret"], width)
    if _first_kind(estimate) == "no_noise":
        return Reason("seed")
    if _first_kind(estimate) == "outside_measured":
        source = next(b for b in fit.result.basins if b.width in fit.result.regrets)
        return Reason("at", x=source.coefficients[0], width=width)
    return None


def _first_kind(estimate: Estimate) -> str:
    return estimate.reasons[0].kind if estimate.reasons else ""
