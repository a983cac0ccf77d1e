"""The results rows of a trained group, from its runs' results."""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from hptransfer._version import __version__
from hptransfer.study.config import StudyConfig, num_params, num_steps, num_tokens
from hptransfer.study.cost import num_flops
from hptransfer.study.plan import Group
from hptransfer.study.result import TrialResult
from hptransfer.study.trial import Trial, resolve_trial
from hptransfer.train.device import describe_device
from hptransfer.train.trainer import RunResult

#: Points that a stored loss curve keeps at most.
MAX_CURVE_POINTS = 256


def make_row(
    config: StudyConfig,
    trial: Trial,
    group: Group,
    result: RunResult,
    *,
    trained_as: str,
    seconds: float,
    data_hash: str,
) -> TrialResult:
    """Return a trial's row: `result` is that of the run of trial `trained_as`, which it shares."""
    width = trial.width
    resolved = resolve_trial(config, trial)
    steps = _thin(result.curve)
    return TrialResult(
        id=trial.id,
        identity=trial.identity,
        parameterization=trial.parameterization,
        width=width,
        base_lr=trial.base_lr,
        log2_lr=math.log2(trial.base_lr),
        weight_decay=trial.weight_decay,
        seed=trial.seed,
        state=result.state,
        loss=result.loss,
        init_loss=float(result.curve[0]),
        diverged_step=result.diverged_step,
        base_width=config.sweep.base_width,
        axis=config.sweep.axis,
        weight_decay_mode=config.sweep.weight_decay_mode,
        arch=config.model.arch,
        num_layers=config.model.num_layers,
        head_size=resolved.head_size,
        base_head_size=resolved.base_head_size,
        context=config.model.context,
        text=config.data.text,
        vocab_size=config.data.vocab_size,
        batch=config.train.batch,
        steps=num_steps(config, width),
        warmup=config.train.warmup,
        decay=config.train.decay,
        beta1=config.train.beta1,
        beta2=config.train.beta2,
        eps=config.train.eps,
        eval_tokens=config.train.eval_tokens,
        num_params=num_params(config, width),
        tokens=num_tokens(config, width),
        flops=num_flops(config, width),
        loss_curve=result.curve[steps].tolist(),
        curve_steps=steps.tolist(),
        seconds=seconds,
        group=group.name,
        num_stacked=len(group.runs),
        trained_as=trained_as,
        precision=group.precision,
        device=describe_device(group.device),
        threads=group.threads,
        package_version=__version__,
        torch_version=torch.__version__,
        data_hash=data_hash,
    )


def _thin(curve: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return the steps that a stored curve keeps: finite, evenly spread, both ends among them."""
    finite = np.flatnonzero(np.isfinite(curve))
    count = min(len(finite), MAX_CURVE_POINTS)
    return finite[np.unique(np.linspace(0, len(finite) - 1, count).round().astype(np.int64))]
