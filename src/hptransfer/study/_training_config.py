"""Sections of a study file on what a trial trains: data, model, length, optimizer, probes.

Legend: D width, H head size, N heads, T context, V vocabulary.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from hptransfer._sections import Count, Fraction, Grid, Positive, Section, fault
from hptransfer.scaling import DEFAULT_EPS

OptimizerName = Literal["adamw", "lion", "sgd", "muon"]
DEFAULT_MOMENTUM: Mapping[str, float] = MappingProxyType({"sgd": 0.9, "muon": 0.95})

_ROUNDING = 1e-9  # slack for sums of fractions typed in decimal


def _check_text(text: str) -> str:
    """Return what a study's text may be called; anything else is a fault."""
    kind, _, glob = text.partition(":")
    if text != "wiki" and not (kind == "files" and glob.strip()):
        raise fault("'wiki' or 'files:GLOB'", text)
    return text


def _check_function(spec: str) -> str:
    where, _, name = spec.rpartition(":")
    if not where or not name:
        raise fault("'FILE.py:NAME' or 'package.module:NAME'", spec)
    return spec


Function = Annotated[str, AfterValidator(_check_function)]
"""A function of the user's own: ``FILE.py:NAME``, the file absolute or relative to the study
file's folder, or ``package.module:NAME``."""


def _check_one(section: Section, name: str, one: str, other: str) -> None:
    """Check that a section has exactly one of two keys."""
    given = [getattr(section, key) is not None for key in (one, other)]
    if not any(given):
        raise fault(f"this or {name}.{other}", None, key=f"{name}.{one}")
    if all(given):
        raise fault(f"one of {one} and {other}", "both", key=f"{name}.{one}")


class DataConfig(Section):
    """``[data]``: the text and its tokens, or batches of the user's own."""

    text: Annotated[str, AfterValidator(_check_text)] | None = None
    """``wiki``, or ``files:GLOB`` with the glob relative to the study file's folder."""

    batches: Function | None = None
    """Function of (seed, step, split) that returns a dict of arrays of one batch; for a factory's
    model. ``split`` is ``train`` or ``val``; equal arguments must give equal arrays."""

    vocab_size: Annotated[int, Field(ge=257, lt=2**31)] = 4096
    """V, entries of the byte-level BPE: its 256 bytes, a document end, and merges."""

    @model_validator(mode="after")
    def _check_source(self) -> "DataConfig":
        _check_one(self, "data", "text", "batches")
        return self


_KEYS_OF_OTHERS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "gpt": ("a factory beside it", ("options", "init", "loss", "roles", "applied", "query")),
    "factory": ("nothing beside a factory, whose own modules say it", ("head_size", "num_heads")),
}
"""For each kind of model what is expected in place of the keys that other kinds have."""


class ModelConfig(Section):
    """``[model]``: the shape that stays the same at every width."""

    arch: Literal["gpt", "factory"] = "gpt"
    """``gpt``: the decoder-only model of Kalra & Barkeshli 2026; ``factory`` where one is named."""

    factory: Function | None = None
    """Function of (width, **options) that returns a ``torch.nn.Module``."""

    options: dict[str, bool | int | float | str] | None = None
    """Keyword arguments of the factory, as ``[model.options]``."""

    init: Literal["rule", "own"] | None = None
    """Of a factory's model: ``rule`` draws what the rule says and keeps what is the author's own;
    ``own`` rescales the model's own initial weights as the rule says. By default ``rule``."""

    loss: Function | None = None
    """Function of (model, batch) that returns the mean loss; by default the cross-entropy of a
    causal language model."""

    roles: dict[str, str] | None = None
    """Roles of parameters by name or pattern, where a factory's model leaves them unclear."""

    applied: Grid[str] | None = None
    """Multipliers that a factory's model applies itself, such as ``attention_scale``."""

    query: Grid[str] | None = None
    """Names or patterns of a factory's query projections, which take the attention scale."""

    num_layers: Annotated[int, Field(gt=0, le=10_000)] | None = None
    """Blocks; of a factory's model only where the rule depends on depth."""

    head_size: Count | None = None
    """H, fixed: the number of heads D/H grows. Exactly one of this and ``num_heads``."""

    num_heads: Count | None = None
    """N, fixed: the head size D/N grows."""

    base_head_size: Count | None = None
    """H_base of µP's attention scale √H_base/H; by default the head size at ``base_width``."""

    context: Count = 1
    """T, tokens in a sequence."""

    @model_validator(mode="before")
    @classmethod
    def _name_arch(cls, section: object) -> object:
        if isinstance(section, Mapping) and section.get("factory") is not None:
            return {"arch": "factory", **section}
        return section

    @model_validator(mode="after")
    def _check_kind(self) -> "ModelConfig":
        if (self.arch == "factory") != (self.factory is not None):
            raise fault('arch = "factory" together with a factory', self.arch, key="model.arch")
        expected, keys = _KEYS_OF_OTHERS[self.arch]
        for key in keys:
            if (found := getattr(self, key)) is not None:
                raise fault(expected, found, key=f"model.{key}")
        if self.factory is None:
            for key in ("num_layers", "context"):
                if key not in self.model_fields_set or getattr(self, key) is None:
                    raise fault("a value", None, key=f"model.{key}")
            _check_one(self, "model", "head_size", "num_heads")
        return self

    def head_size_at(self, width: int) -> int:
        """Return H at a width that the heads divide."""
        return self.head_size or width // (self.num_heads or 1)

    def num_heads_at(self, width: int) -> int:
        """Return N at a width that the heads divide."""
        return width // self.head_size_at(width)


class TrainConfig(Section):
    """``[train]``: how long and how each trial is trained."""

    batch: Count
    """B, sequences in a step."""

    steps: Count | None = None
    """Optimizer steps at every width. Exactly one of this and ``tokens_per_param``."""

    tokens_per_param: Positive | None = None
    """Training tokens per parameter, so that wider models train longer."""

    warmup: Fraction = 0.2
    """Share of the steps with linear warmup from 0."""

    decay: Fraction = 0.2
    """Share of the steps with linear decay to 0, at the end."""

    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """AdamW's decay of the first moment."""

    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """AdamW's decay of the second moment."""

    eps: Positive = DEFAULT_EPS
    """AdamW's ε."""

    optimizer: OptimizerName | None = None
    """``adamw``, the default; or, for a factory's model, ``lion``, ``sgd`` or ``muon`` (on hidden
    matrices, with AdamW on the rest)."""

    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Of SGD (by default 0.9) and Muon (0.95); Lion takes ``beta1`` and ``beta2``."""

    eval_batches: Count | None = None
    """Held-out batches that a loss is measured on where batches are the user's own; 8 by default.
    """

    eval_tokens: Count = 65_536
    """Most held-out tokens that a loss is measured on."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the matrix products; ``auto`` is what is faster on the device at that width."""

    @property
    def betas(self) -> tuple[float, float]:
        """The two decay rates that the optimizer takes, or its momentum and what it ignores."""
        momentum = DEFAULT_MOMENTUM.get(self.optimizer or "adamw")
        if momentum is None:
            return self.beta1, self.beta2
        return momentum if self.momentum is None else self.momentum, self.beta2

    @model_validator(mode="after")
    def _check_lengths(self) -> "TrainConfig":
        _check_one(self, "train", "steps", "tokens_per_param")
        if self.warmup + self.decay > 1 + _ROUNDING:
            expected = f"at most 1 - warmup = {1 - self.warmup:g}"
            raise fault(expected, self.decay, key="train.decay")
        return self


class ProbesConfig(Section):
    """``[probes]``: measures of stability beside the training; none without the section."""

    every: Count = 500
    """Steps between two probes. One takes as long as five uncompiled steps, or twenty compiled."""
