"""A watch on an optimizer's groups: the ratios between learning rates stay the rule's."""

from typing import Any

from torch import nn
from torch.optim import Optimizer

from hptransfer.adopt._param_groups import RULE_LR
from hptransfer.adopt._parameters import named_tensors
from hptransfer.errors import ConfigError

TOLERANCE = 1e-6  # relative; schedulers compute in float64, some in float32


class Guard:
    """What ``guard`` returns: checks before every optimizer step, until removed."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._handle = optimizer.register_step_pre_hook(self._before_step)

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.check()

    def check(self) -> None:
        """Raise if the ratios between the groups' learning rates are not the rule's.

        Raises
        ------
        ConfigError
            If they are not; the message names two groups, their ratio, and the rule's.
        """
        groups = self._optimizer.param_groups
        factors = [float(group["lr"]) / group[RULE_LR] for group in groups]
        low, high = factors.index(min(factors)), factors.index(max(factors))
        if factors[high] - factors[low] > TOLERANCE * abs(factors[high]):
            raise _changed(*(groups[k] for k in sorted((low, high))))

    def remove(self) -> None:
        """Stop watching."""
        self._handle.remove()


def guard(optimizer: Optimizer, *, model: nn.Module | None = None) -> Guard:
    """Watch that schedulers leave the ratios between the groups' learning rates as they are.

    A scheduler must multiply every group's learning rate by one factor. Some overwrite instead:
    ``OneCycleLR`` with one ``max_lr``, ``CosineAnnealingLR`` with an ``eta_min`` above 0,
    ``CyclicLR``. The ratios are compared with the rule's at once, and before each
    ``optimizer.step()``, so that no step is taken with changed ones.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Made from the groups of ``param_groups``, before or after schedulers are made.
    model : torch.nn.Module, optional
        Where given, the optimizer must hold every parameter of it that is trained.

    Returns
    -------
    Guard
        ``check()`` compares at any time, ``remove()`` ends the watch.

    Raises
    ------
    ConfigError
        If a group is not one of ``param_groups``, ratios are changed already, or the optimizer
        lacks a parameter of the model.
    """
    if model is not None:
        _check_complete(optimizer, model)
    for index, group in enumerate(optimizer.param_groups):
        if RULE_LR not in group:
            raise ConfigError(
                f"guard: group {index} ({group.get('name', 'no name')}) has no {RULE_LR!r}; make "
                "the optimizer from the groups that param_groups returns"
            )
    watch = Guard(optimizer)
    try:
        watch.check()
    except ConfigError:
        watch.remove()
        raise
    return watch


def _check_complete(optimizer: Optimizer, model: nn.Module) -> None:
    held = {id(each) for group in optimizer.param_groups for each in group["params"]}
    missing = [
        name for name, each in named_tensors(model) if each.requires_grad and id(each) not in held
    ]
    if missing:
        raise ConfigError(
            f"guard: {missing[0]!r} ({len(missing)} in all) is trained and in no group of the "
            "optimizer; pass it all the groups that param_groups returns"
        )


def _changed(one: dict[str, Any], other: dict[str, Any]) -> ConfigError:
    lrs = " and ".join(f"{float(group['lr']):.6g}" for group in (one, other))
    rule = " and ".join(f"{group[RULE_LR]:.6g}" for group in (one, other))
    return ConfigError(
        f"guard: groups {one['name']!r} and {other['name']!r} have lr {lrs}, where the rule gave "
        f"{rule}: a scheduler has overwritten them instead of multiplying all by one factor "
        "(OneCycleLR takes max_lr as a list, one for each group; a cosine must go to eta_min = 0, "
        "or be a LambdaLR)"
    )
