"""Parameters, steps, tokens, FLOPs and memory of a trial, from the study file alone.

Legend: D width, N heads, T context, V vocabulary.
"""

import math

from hptransfer.errors import ConfigError
from hptransfer.study.config import StudyConfig

BYTES_PER_PARAM = 24  # weights, gradient, two moments, a low-precision copy, the update's scratch
BYTES_PER_ACTIVATION = 4
#: Steps of a trial at most, as many as `train.steps` may name.
MAX_STEPS = 2**31 - 1
#: What a step leaves for each run: its loss, twice.
BYTES_PER_STEP = 16
#: Of a step on a GPU in bf16: per parameter, per token, layer and D, and per token and V.
GPU_BYTES_PER_PARAM, GPU_BYTES_PER_BLOCK, GPU_BYTES_PER_LOGIT = 16, 40, 3


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
    per_param = num_params(config, width) / (config.train.batch * config.model.context)
    if config.train.tokens_per_param * per_param > MAX_STEPS:
        raise ConfigError(
            f"train.tokens_per_param: expected at most {MAX_STEPS / per_param:.6g} (2^31 steps at "
            f"width {width}), found {config.train.tokens_per_param:g}"
        )
    tokens = config.train.tokens_per_param * num_params(config, width)
    return math.ceil(tokens / (config.train.batch * config.model.context))


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
    all logits. Its numbers are fitted to peaks measured at widths 64, 256 and 1024.
    """
    if config.own_model is not None:
        return int(config.own_model.measure_memory(width))
    if device != "cpu":
        per_token = _num_layers(config) * GPU_BYTES_PER_BLOCK * width
        per_token += GPU_BYTES_PER_LOGIT * config.data.vocab_size
        rows = config.train.batch * config.model.context
        return num_params(config, width) * GPU_BYTES_PER_PARAM + rows * per_token
    heads, T = config.model.num_heads_at(width), config.model.context
    per_token = _num_layers(config) * (24 * width + 2 * heads * T) + 8 * width
    activations = config.train.batch * T * per_token * BYTES_PER_ACTIVATION
    return num_params(config, width) * BYTES_PER_PARAM + activations
