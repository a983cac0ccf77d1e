"""A trial: one training run, one point of a study's grid, and what it takes.

Parameters, steps, tokens, FLOPs and memory follow from the study file alone.
Legend: D width, N heads, T context, V vocabulary.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from json.encoder import encode_basestring_ascii

from hptransfer.errors import ConfigError, StoreError
from hptransfer.scaling import Resolved, resolve
from hptransfer.study.config import PointsConfig, StudyConfig, SweepConfig

#: Hex digits of a trial's id: 64 bits, no clash among any number that one can train.
_ID_DIGITS = 16
#: Resolved settings that a process keeps; trials that differ in their seed alone share one.
_MAX_RESOLVED = 4096


@dataclass(frozen=True, kw_only=True)
class Point:
    """A trial less its seed: what an adaptive search places.

    Attributes
    ----------
    parameterization : str
        Canonical name.
    width : int
        D.
    weight_decay : float
        λ.
    base_lr : float
        Learning rate on the study's axis.
    """

    parameterization: str
    width: int
    weight_decay: float
    base_lr: float


@dataclass(frozen=True, kw_only=True)
class Trial(Point):
    """One point of the grid of one study.

    Attributes
    ----------
    seed : int
        Seed of the initial draws and of the data order.
    identity : str
        ``StudyConfig.identity`` of the study.
    """

    seed: int
    identity: str

    @cached_property
    def id(self) -> str:
        """Hash of the content: 16 hex digits of the sha256 of its canonical JSON."""
        # `canonical_json` of the fields, written out: a large study has 100,000 of these.
        content = (
            f'{{"base_lr":{_write_number(self.base_lr)}'
            f',"identity":{encode_basestring_ascii(self.identity)}'
            f',"parameterization":{encode_basestring_ascii(self.parameterization)}'
            f',"seed":{_write_number(self.seed)}'
            f',"weight_decay":{_write_number(self.weight_decay)}'
            f',"width":{_write_number(self.width)}}}'
        )
        return hashlib.sha256(content.encode()).hexdigest()[:_ID_DIGITS]


def _write_number(value: float) -> str:
    """Return a number as JSON writes it."""
    return float.__repr__(value) if isinstance(value, float) else int.__repr__(value)


def list_trials(config: StudyConfig, points: Iterable[Point] = ()) -> tuple[Trial, ...]:
    """Return the trials of the grid: by width, then parameterization, decay, lr, seed.

    Each grid is taken in the study file's order; those of its ``[[points]]`` that the grid lacks
    follow. In an adaptive study the trials are those of `points`, in the order that they were
    placed in, by seed.
    """
    sweep, identity = config.sweep, config.identity()
    if sweep.is_adaptive:
        return tuple(
            Trial(**vars(point), seed=seed, identity=identity)
            for point in points
            for seed in sweep.seed
        )
    grids: tuple[SweepConfig | PointsConfig, ...] = (sweep, *config.points)
    trials = tuple(
        Trial(
            parameterization=parameterization,
            width=width,
            base_lr=base_lr,
            weight_decay=weight_decay,
            seed=seed,
            identity=identity,
        )
        for grid in grids
        for width in grid.width
        for parameterization in grid.parameterization or sweep.parameterization
        for weight_decay in grid.weight_decay or sweep.weight_decay
        for base_lr in grid.base_lr
        for seed in grid.seed or sweep.seed
    )
    return tuple(dict.fromkeys(trials)) if config.points else trials


def resolve_trial(config: StudyConfig, trial: Trial) -> Resolved:
    """Return the numbers that a trial of the GPT trains with, found once per process.

    Raises
    ------
    ConfigError
        If a number is no finite float at this width.
    """
    name = trial.parameterization
    is_own = name in (config.rules or ())  # a table, which no cache takes for a key
    return (resolve if is_own else _resolve)(
        config.find_rule(name) if is_own else name,
        width=trial.width,
        base_width=config.sweep.base_width,
        base_lr=trial.base_lr,
        weight_decay=trial.weight_decay,
        weight_decay_mode=config.sweep.weight_decay_mode,
        axis=config.sweep.axis,
        head_size=config.model.head_size,
        num_heads=config.model.num_heads,
        base_head_size=config.model.base_head_size,
        num_layers=config.model.num_layers or 1,
        eps=config.train.eps,
    )


def _numbers_key(config: StudyConfig, trial: Trial) -> tuple[float, ...]:
    """Return all numbers that a trial trains with, rounded: equal ones are one training run."""
    if config.own_model is not None:
        key: tuple[float, ...] = config.own_model.numbers_key(trial)
        return key
    return resolve_trial(config, trial).key()


_resolve = lru_cache(maxsize=_MAX_RESOLVED)(resolve)


def merge_by_width(
    config: StudyConfig, trials: Iterable[Trial]
) -> dict[int, list[tuple[str, ...]]]:
    """Return the ids of the trials of each width, in tuples that are one training run each."""
    by_width: dict[int, list[Trial]] = {}
    for trial in trials:
        by_width.setdefault(trial.width, []).append(trial)
    return {
        width: [tuple(trial.id for trial in run) for run in merge_equal(config, by_width[width])]
        for width in sorted(by_width)
    }


def merge_equal(config: StudyConfig, trials: Iterable[Trial]) -> list[tuple[Trial, ...]]:
    """Return the trials in tuples that are one training run each, in order of first sight.

    At m = 1, for one, all rules of the lattice give equal numbers: one run serves them all.
    """
    # Trials that differ in their seed alone have the same numbers, which are costly to find.
    numbers: dict[tuple[float, ...], int] = {}
    known: dict[tuple[str, int, float, float], int] = {}
    runs: dict[tuple[int, int], list[Trial]] = {}
    for trial in trials:
        cell = (trial.parameterization, trial.width, trial.base_lr, trial.weight_decay)
        if cell not in known:
            key = _numbers_key(config, trial)
            known[cell] = numbers.setdefault(key, len(numbers))
        runs.setdefault((known[cell], trial.seed), []).append(trial)
    return [tuple(run) for run in runs.values()]


def require_equal(config: StudyConfig, group: str, runs: Iterable[Sequence[Trial]]) -> None:
    """Refuse planned runs whose trials a user's own model, as it is now, trains differently.

    Raises
    ------
    StoreError
        If the trials of a run no longer have equal numbers.
    """
    if (own := config.own_model) is None:
        return
    if any(len({own.numbers_key(trial) for trial in run}) > 1 for run in runs if len(run) > 1):
        raise StoreError(
            f"{group}: its trials no longer train with equal numbers under the new code; choose "
            "another directory"
        )


BYTES_PER_PARAM = 24  # weights, gradient, two moments, a low-precision copy, the update's scratch
BYTES_PER_ACTIVATION = 4
#: Steps of a trial at most, as many as `train.steps` may name.
MAX_STEPS = 2**31 - 1
#: What a step leaves for each run: its loss, twice.
BYTES_PER_STEP = 16
#: Of a step on a GPU in bf16: per parameter for good (value, moments, copy) and its gradient; per
#: token, layer and D; per token and V. Blocks that the allocator reserves for what a step makes
#: leave gaps, fitted to what was reserved at widths 128, 256 and 1024.
GPU_BYTES_KEPT, GPU_BYTES_PER_GRAD, GPU_BYTES_PER_BLOCK, GPU_BYTES_PER_LOGIT = 14, 2, 40, 3
GPU_GAPS = 1.4


def num_params(config: StudyConfig, width: int) -> int:
    """Return the parameters at a width; the GPT's are (V+T)·D + layers·(12·D² + 2·D) + D + V·D.

    Token and position tables, per block four attention and two feed-forward matrices and two
    norm gains, the last norm's gain, and the untied readout.
    """
    if config.own_model is not None:
        return int(config.own_model.num_params(width))
    D, T_, V = width, config.model.context, config.data.vocab_size
    return (V + T_) * D + _num_layers(config) * (12 * D**2 + 2 * D) + D + V * D


def _num_layers(config: StudyConfig) -> int:
    assert config.model.num_layers is not None, "checked for the GPT"
    return config.model.num_layers


def num_steps(config: StudyConfig, width: int) -> int:
    """Return the optimizer steps of a trial at a width, rounded up to a whole step.

    Raises
    ------
    ConfigError
        If ``train.tokens_per_param`` makes more than `MAX_STEPS` of them.
    """
    if config.train.steps is not None:
        return config.train.steps
    assert config.train.tokens_per_param is not None, "one of the two is checked"
    params, rows = num_params(config, width), config.train.batch * config.model.context
    if (steps := config.train.tokens_per_param * params / rows) > MAX_STEPS:
        raise ConfigError(
            f"train.tokens_per_param: expected at most {MAX_STEPS * rows / params:.6g} (2^31 steps "
            f"at width {width}), found {config.train.tokens_per_param:g}"
        )
    return math.ceil(steps)


def num_tokens(config: StudyConfig, width: int) -> int:
    """Return the training tokens of a trial at a width: steps · B · T.

    Examples
    --------
    >>> from hptransfer.study import load_study
    >>> num_tokens(load_study("studies/embedding.toml"), 256)
    819200
    """
    return num_steps(config, width) * config.train.batch * config.model.context


def flops_per_token(config: StudyConfig, width: int) -> int:
    """Return training FLOPs per token: 6 per matrix weight, plus the attention products.

    Embedding look-ups multiply nothing and do not count; attention costs 12·layers·D·T
    (Chowdhery et al. 2204.02311, appendix B), not halved for causality. Of a user's own model the
    weights alone are counted.
    """
    if config.own_model is not None:
        return int(config.own_model.flops_per_token(width))
    layers = _num_layers(config)
    matrices = layers * 12 * width**2 + width * config.data.vocab_size
    return 6 * matrices + 12 * layers * width * config.model.context


def num_flops(config: StudyConfig, width: int) -> int:
    """Return the training FLOPs of one trial."""
    return flops_per_token(config, width) * num_tokens(config, width)


def estimate_memory(config: StudyConfig, width: int, *, device: str = "cpu") -> int:
    """Return the bytes that one trial of a stacked group takes while it trains.

    An estimate from above: what the backward pass keeps of each block (about 24·D and 2·N·T
    numbers per token), the ends of the residual stream, and `BYTES_PER_PARAM` per parameter.
    A GPU's kernels keep no attention weights, and most numbers in 16 bits; a compiled step holds
    all logits.
    """
    if config.own_model is not None:
        return int(config.own_model.measure_memory(width))
    if device != "cpu":
        per_token = _num_layers(config) * GPU_BYTES_PER_BLOCK * width
        per_token += GPU_BYTES_PER_LOGIT * config.data.vocab_size
        rows = config.train.batch * config.model.context
        made = num_params(config, width) * GPU_BYTES_PER_GRAD + rows * per_token
        return num_params(config, width) * GPU_BYTES_KEPT + int(GPU_GAPS * made)
    heads, T = config.model.num_heads_at(width), config.model.context
    per_token = _num_layers(config) * (24 * width + 2 * heads * T) + 8 * width
    activations = config.train.batch * T * per_token * BYTES_PER_ACTIVATION
    return num_params(config, width) * BYTES_PER_PARAM + activations
