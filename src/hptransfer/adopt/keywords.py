"""The keyword arguments that ``param_groups`` and ``init_`` share."""

from collections.abc import Iterable
from typing import TypedDict


class RuleKeywords(TypedDict, total=False):
    """Fields of ``resolve.Options`` that have a default there, with the same meaning."""

    weight_decay: float
    weight_decay_mode: str
    optimizer: str
    muon_lr: float | None
    eps: float
    axis: str
    num_layers: int | None
    base_num_layers: int | None
    head_size: int | None
    base_head_size: int | None
    query: str | Iterable[str]
    applied: Iterable[str]
