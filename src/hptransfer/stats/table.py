"""The loss table: what every fit starts from, as plain arrays."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Axis = Literal["hidden-aligned", "global", "as given"]


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
        Training tokens of each trial, where they are an axis of their own: `fit_tokens` takes
        such a table, and fits across widths alone refuse it.
    init_loss : ndarray of float or None
        Loss at initialisation in nats; NaN where unknown, None where all of it is.
    flops : ndarray of float or None
        Training FLOPs of each trial; NaN where unknown, None where all of it is.
    """

    width: NDArray[np.float64]
    lr: NDArray[np.float64]
    loss: NDArray[np.float64]
    seed: NDArray[np.int64]
    groups: Mapping[str, NDArray[np.object_]] = field(default_factory=dict)
    axis: Axis = "as given"
    source: str = "table"
    tokens: NDArray[np.float64] | None = None
    init_loss: NDArray[np.float64] | None = None
    flops: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.loss)

    def losses_at_init(self) -> NDArray[np.float64]:
        """Loss at initialisation of each trial in nats, shape (rows,); NaN where unknown."""
        return np.full(len(self), np.nan) if self.init_loss is None else self.init_loss
