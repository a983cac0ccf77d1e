"""Hold the losses of trials as plain arrays: the table that every fit starts from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hptransfer.errors import DataError

#: From a group, a width and a rate on the table's axis to the rate of each role; None if unknown.
Rates = Callable[[Mapping[str, object], float, float], Mapping[str, float] | None]
Axis = Literal["hidden-aligned", "global", "as given", "multiplier"]


class Doubt(Protocol):
    """One reason for which an answer from a table is risky at best: its kind, and its numbers."""

    @property
    def kind(self) -> str:
        """What was seen, such as ``varies``: a column that a fit mixes."""

    @property
    def values(self) -> Mapping[str, Any]:
        """Names and numbers of it; ``groups`` are those it concerns, all where there is none."""


@dataclass(frozen=True, kw_only=True)
class LossTable:
    """Final losses of trials, one row each; all arrays have shape (rows,).

    Attributes
    ----------
    width : ndarray of float
        Model width.
    lr : ndarray of float
        The learning rate on the swept axis (``base_lr``), positive.
    loss : ndarray of float
        Held-out loss in nats; NaN where the trial diverged. Never a stand-in value.
    seed : ndarray of int
        Seed; zeros when the table has none.
    groups : mapping of str to ndarray of object
        Columns that separate fits, such as ``parameterization`` and ``weight_decay``.
    axis : Axis
        Name of the learning-rate axis.
    source : str
        Where the table came from, for messages.
    tokens : ndarray of float, optional
        Training tokens of each trial, where they are an axis of their own: `fit_axes` takes
        such a table, and fits across widths alone refuse it.
    budget : ndarray of float or None
        Training tokens of each trial where they are no axis; NaN where unknown, None where all of
        it is. One that grows with the width moves the optimum too.
    init_loss : ndarray of float or None
        Loss at initialisation in nats; NaN where unknown, None where all of it is.
    flops : ndarray of float or None
        Training FLOPs of each trial; NaN where unknown, None where all of it is.
    rates : callable or None
        From the values that name a group, a width and a rate on the axis to the learning rate
        of each role, as a study's settings say; None for a table read as given.
    base_width : float or None
        Width at which all parameterizations agree; None where there is none.
    batch : ndarray of float or None
        Batch in tokens of each trial, where it is an axis of its own.
    batch_unit : float
        Tokens in one unit of the batch as its source counts it: 1, or a sequence's tokens.
    size : str
        What stands for the width: the name of its column.
    doubts : tuple of Doubt
        What its reader saw that makes an answer risky at best.
    """

    width: NDArray[np.float64]
    lr: NDArray[np.float64]
    loss: NDArray[np.float64]
    seed: NDArray[np.int64]
    groups: Mapping[str, NDArray[np.object_]] = field(default_factory=dict)
    axis: Axis = "as given"
    source: str = "table"
    tokens: NDArray[np.float64] | None = None
    budget: NDArray[np.float64] | None = None
    init_loss: NDArray[np.float64] | None = None
    flops: NDArray[np.float64] | None = None
    rates: Rates | None = None
    base_width: float | None = None
    batch: NDArray[np.float64] | None = None
    batch_unit: float = 1.0
    size: str = "width"
    doubts: tuple[Doubt, ...] = ()

    @classmethod
    def from_columns(
        cls,
        *,
        width: ArrayLike,
        lr: ArrayLike,
        loss: ArrayLike,
        seed: ArrayLike | None = None,
        axis: Axis = "as given",
        source: str = "table",
        **groups: Sequence[object],
    ) -> "LossTable":
        """Make a loss table from columns, one entry for each trial.

        Parameters
        ----------
        width, lr, loss : array, shape (rows,)
            Model width, learning rate, and held-out loss in nats: NaN or None where the trial
            diverged.
        seed : array of int, optional
            Seeds; by default all 0, so that equal widths and learning rates are repeats.
        axis, source : str
            As the attributes.
        **groups : sequence
            Columns that separate fits, such as ``parameterization=["sp", "mup", …]``.

        Raises
        ------
        DataError
            The columns are not of one length.

        Examples
        --------
        >>> table = LossTable.from_columns(width=[8, 8], lr=[0.1, 0.2], loss=[3.0, None])
        >>> len(table), table.seed.tolist()
        (2, [0, 0])
        """
        losses = np.array(loss, dtype=np.float64)
        columns: dict[str, Any] = {
            "width": np.asarray(width, dtype=np.float64),
            "lr": np.asarray(lr, dtype=np.float64),
            "seed": np.asarray(np.zeros(losses.shape) if seed is None else seed, dtype=np.int64),
        }
        named = {name: _as_objects(values) for name, values in groups.items()}
        for name, column in {**columns, **named}.items():
            if column.shape != losses.shape or losses.ndim != 1:
                raise DataError(
                    f"{source}: column {name}: expected {losses.size} entries in one dimension, "
                    f"as loss has, found shape {column.shape}"
                )
        return cls(**columns, loss=losses, groups=named, axis=axis, source=source)

    def __len__(self) -> int:
        return len(self.loss)

    def budget_growth(self, rows: NDArray[np.int64]) -> float:
        """Return d ln(training tokens)/d ln(width) over some rows; 0 where that is unknown."""
        if self.budget is None:
            return 0.0
        # A diverged trial may have stopped early: its tokens are no budget.
        rows = rows[np.isfinite(self.loss[rows]) & (self.budget[rows] > 0)]
        widths = np.unique(self.width[rows])
        if len(widths) < 2:
            return 0.0
        each = [np.median(self.budget[rows[self.width[rows] == width]]) for width in widths]
        return float(np.polyfit(np.log(widths), np.log(each), 1)[0])

    def losses_at_init(self) -> NDArray[np.float64]:
        """Loss at initialisation of each trial in nats, shape (rows,); NaN where unknown."""
        return np.full(len(self), np.nan) if self.init_loss is None else self.init_loss


def _as_objects(values: Sequence[object]) -> NDArray[np.object_]:
    column = np.empty(len(values), dtype=object)
    column[:] = list(values)
    return column
