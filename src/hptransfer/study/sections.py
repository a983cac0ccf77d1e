"""The sections of a study file: what each key may be, with its default.

Legend: D width, H head size, N heads, T context, V vocabulary.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from hptransfer._sections import (
    Count,
    Fraction,
    Grid,
    NonNegative,
    Positive,
    Section,
    as_grid,
    check_distinct,
    fault,
)
from hptransfer.errors import ConfigError
from hptransfer.scaling import (
    DEFAULT_AXIS,
    DEFAULT_EPS,
    DEFAULT_WEIGHT_DECAY_MODE,
    Axis,
    WeightDecayMode,
    parse_parameterization,
)

ADAPTIVE = "adaptive"
"""What ``sweep.lr`` says where learning rates are placed in rounds."""

ROUNDING = 1e-9  # slack for sums of fractions typed in decimal


def _canonical_parameterization(name: str) -> str:
    try:
        return parse_parameterization(name).name
    except ConfigError as error:
        expected = "a parameterization"
        raise fault(expected, name, note=str(error).removeprefix("parameterization: ")) from None


def _check_text(text: str) -> str:
    if text != "wiki" and not text.removeprefix("files:").strip():
        raise fault("'wiki' or 'files:GLOB'", text)
    if text != "wiki" and not text.startswith("files:"):
        raise fault("'wiki' or 'files:GLOB'", text)
    return text


class DataConfig(Section):
    """``[data]``: the text and its tokens."""

    text: Annotated[str, AfterValidator(_check_text)]
    """``wiki``, or ``files:GLOB`` with the glob relative to the study file's folder."""

    vocab_size: Annotated[int, Field(ge=257, lt=2**31)] = 4096
    """V, entries of the byte-level BPE: its 256 bytes, a document end, and merges."""


class ModelConfig(Section):
    """``[model]``: the shape that stays the same at every width."""

    arch: Literal["gpt"] = "gpt"
    """``gpt``: the decoder-only model of Kalra & Barkeshli 2026."""

    num_layers: Annotated[int, Field(gt=0, le=10_000)]
    """Blocks."""

    head_size: Count | None = None
    """H, fixed: the number of heads D/H grows. Exactly one of this and ``num_heads``."""

    num_heads: Count | None = None
    """N, fixed: the head size D/N grows."""

    base_head_size: Count | None = None
    """H_base of µP's attention scale √H_base/H; by default the head size at ``base_width``."""

    context: Count
    """T, tokens in a sequence."""

    @model_validator(mode="after")
    def _check_heads(self) -> "ModelConfig":
        if self.head_size is None and self.num_heads is None:
            raise fault("this or model.num_heads", None, key="model.head_size")
        if self.head_size is not None and self.num_heads is not None:
            both = f"head_size = {self.head_size} and num_heads = {self.num_heads}"
            raise fault("one of head_size and num_heads", both, key="model.head_size")
        return self

    def head_size_at(self, width: int) -> int:
        """Return H at a width that the heads divide."""
        return self.head_size or width // (self.num_heads or 1)

    def num_heads_at(self, width: int) -> int:
        """Return N at a width that the heads divide."""
        return width // self.head_size_at(width)


class SweepConfig(Section):
    """``[sweep]``: the grid of trials, and the axis that its learning rates are on."""

    input_keys: ClassVar[tuple[str, ...]] = ("log2_lr",)

    parameterization: Grid[Annotated[str, AfterValidator(_canonical_parameterization)]]
    """Names of the rules, such as ``sp+embd``; stored in canonical spelling."""

    width: Grid[Annotated[int, Field(gt=0, le=1_000_000)]]
    """D, model widths."""

    base_width: Count
    """The width at which all rules agree; by default the smallest width."""

    lr: Annotated[tuple[Positive, ...], BeforeValidator(as_grid), AfterValidator(check_distinct)]
    """Learning rates (``base_lr``) on ``axis``; a file may give ``log2_lr`` in place of it.

    Empty where the file says ``"adaptive"``: the search places them, as ``[adaptive]`` says.
    """

    weight_decay: Grid[NonNegative] = (0.0,)
    """λ of the weight decay."""

    weight_decay_mode: WeightDecayMode = DEFAULT_WEIGHT_DECAY_MODE
    """``constant``, ``coupled`` or ``independent``: how λ becomes a tensor's weight decay."""

    axis: Axis = DEFAULT_AXIS
    """``hidden-aligned`` or ``global``: what ``lr`` means."""

    seed: Grid[Annotated[int, Field(ge=0, lt=2**31)]] = (0, 1)
    """Seeds of the initial draws and of the data order."""

    @property
    def is_adaptive(self) -> bool:
        """Whether learning rates are placed in rounds."""
        return not self.lr

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, section: object) -> object:
        """Turn ``log2_lr`` into ``lr`` and fill in ``base_width``."""
        if not isinstance(section, Mapping):
            return section
        filled = dict(section)
        if filled.get("lr") in ([], ()):
            raise fault("at least one value", [], key="sweep.lr")
        if "log2_lr" in filled:
            if "lr" in filled:
                raise fault("one of lr and log2_lr", "both", key="sweep.lr")
            filled["lr"] = _powers_of_two(filled.pop("log2_lr"))
        elif filled.get("lr") == ADAPTIVE:
            filled["lr"] = ()
        elif "lr" not in filled and set(filled) <= {*cls.model_fields}:
            # Said only when nothing else is amiss: a misspelled key explains it better.
            raise fault("this or sweep.log2_lr", None, key="sweep.lr")
        if "base_width" not in filled and "width" in filled:
            widths = [w for w in _listed(filled["width"]) if isinstance(w, int)]
            filled["base_width"] = min(widths, default=1)
        return filled


def _listed(value: object) -> tuple[Any, ...]:
    grid = as_grid(value)
    assert isinstance(grid, tuple)
    return grid


def _powers_of_two(exponents: object) -> tuple[float, ...]:
    key = "sweep.log2_lr"
    grid = _listed(exponents)
    if not grid:
        raise fault("at least one value", exponents, key=key)
    for exponent in grid:
        if isinstance(exponent, bool) or not isinstance(exponent, int | float):
            raise fault("a number", exponent, key=key)
        if not -500 <= exponent <= 500:
            raise fault("a number from -500 to 500", exponent, key=key)
    return tuple(2.0**exponent for exponent in grid)


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

    eval_tokens: Count = 65_536
    """Most held-out tokens that a loss is measured on."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the matrix products; ``auto`` is what is faster on the device at that width."""

    @model_validator(mode="after")
    def _check_lengths(self) -> "TrainConfig":
        if self.steps is None and self.tokens_per_param is None:
            raise fault("this or train.tokens_per_param", None, key="train.steps")
        if self.steps is not None and self.tokens_per_param is not None:
            raise fault("one of steps and tokens_per_param", "both", key="train.steps")
        if self.warmup + self.decay > 1 + ROUNDING:
            expected = f"at most 1 - warmup = {1 - self.warmup:g}"
            raise fault(expected, self.decay, key="train.decay")
        return self
