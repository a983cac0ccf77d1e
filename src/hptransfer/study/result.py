"""One row of the results: a trial, how it ended, and where its numbers come from."""

from dataclasses import dataclass, fields
from typing import Any

import pyarrow as pa

SCHEMA_VERSION = 1

TABLE_COLUMNS = (
    "id", "identity", "parameterization", "width", "base_lr", "log2_lr", "weight_decay", "seed",
    "state", "loss", "init_loss", "tokens", "flops",
)  # fmt: skip
"""Columns that a loss table takes, and those that say whose they are. The others, loss curves above
all, make up most of a file."""

TIMING_COLUMNS = ("seconds",)
"""Columns that two bit-equal runs may differ in."""


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """A finished trial.

    ``parameterization, width, base_lr, log2_lr, weight_decay, seed, state, loss`` are columns
    that stay in every version.

    Attributes
    ----------
    id, identity : str
        The trial's content hash, and the study's.
    state : str
        ``completed`` or ``diverged``.
    loss : float or None
        Held-out loss after the last step, in nats per token; None where the trial diverged.
    init_loss : float
        Training loss of the first step, before any update, in nats per token.
    diverged_step : int or None
        0-based step at which the trial had diverged.
    loss_curve, curve_steps : list
        Training losses in nats, and the 0-based steps that they are of; a non-finite loss is
        left out.
    num_params, tokens, flops : int
        Learned scalars, training tokens, training FLOPs.
    seconds : float
        Wall time of the group over its stacked runs.
    group : str
        The plan's group, also the file's name.
    num_stacked : int
        K, runs in the program.
    trained_as : str
        Id of the trial whose run this row shares: its own, or one with equal numbers.
    """

    id: str
    identity: str
    parameterization: str
    width: int
    base_lr: float
    log2_lr: float
    weight_decay: float
    seed: int
    state: str
    loss: float | None
    init_loss: float
    diverged_step: int | None
    base_width: int
    axis: str
    weight_decay_mode: str
    arch: str
    num_layers: int
    head_size: int
    base_head_size: int
    context: int
    text: str
    vocab_size: int
    batch: int
    steps: int
    warmup: float
    decay: float
    beta1: float
    beta2: float
    eps: float
    eval_tokens: int
    num_params: int
    tokens: int
    flops: int
    loss_curve: list[float]
    curve_steps: list[int]
    seconds: float
    group: str
    num_stacked: int
    trained_as: str
    precision: str
    device: str
    threads: int
    package_version: str
    torch_version: str
    data_hash: str
    schema_version: int = SCHEMA_VERSION


_ARROW_TYPES: dict[Any, pa.DataType] = {
    str: pa.string(),
    int: pa.int64(),
    float: pa.float64(),
    float | None: pa.float64(),
    int | None: pa.int64(),
    list[float]: pa.list_(pa.float32()),
    list[int]: pa.list_(pa.int32()),
}

ARROW_SCHEMA: pa.Schema = pa.schema(
    [(field.name, _ARROW_TYPES[field.type]) for field in fields(TrialResult)]
)
"""The results files' columns, in order."""
