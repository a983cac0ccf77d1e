"""From a parameterization to what a coordinate check needs: initial weights and an optimizer."""

from collections.abc import Callable, Mapping
from typing import Any, Unpack

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from hptransfer.adopt._model_init import init_
from hptransfer.adopt._param_groups import param_groups
from hptransfer.adopt._role_inference import infer_roles
from hptransfer.adopt._tensor_rules import RuleKeywords
from hptransfer.scaling import Parameterization


def rule_optimizer(
    factory: Callable[[int], nn.Module],
    *,
    base_width: int,
    parameterization: str | Parameterization,
    lr: float,
    roles: Mapping[str, str] | None = None,
    base_std: float | Mapping[str, float] | None = None,
    make: Callable[[list[dict[str, Any]]], Optimizer] = AdamW,
    **options: Unpack[RuleKeywords],
) -> Callable[[int, nn.Module], Optimizer]:
    """Return the ``optimizer`` of a ``coordinate_check`` that puts a rule to use.

    What it returns finds the roles of the model at the width, sets the model's initial weights to
    the rule's (seeded by torch's own seed) and makes the optimizer from the rule's groups.

    Parameters
    ----------
    factory : callable
        From a width to a model, as for ``infer_roles``.
    base_width : int
        The width at which all rules agree.
    parameterization : str or Parameterization
        As for ``param_groups``.
    lr : float
        The learning rate η at every width.
    roles : mapping of str to str, optional
        As for ``infer_roles``.
    base_std : float or mapping, optional
        As for ``init_``.
    make : callable
        From the groups to an optimizer.
    **options
        As for ``param_groups``.
    """

    def optimizer(width: int, model: nn.Module) -> Optimizer:
        base = infer_roles(factory, base_width=base_width, width=width, roles=roles)
        init_(
            model,
            base=base,
            parameterization=parameterization,
            seed=torch.initial_seed(),
            base_std=base_std,
            **options,
        )
        groups = param_groups(model, base=base, parameterization=parameterization, lr=lr, **options)
        return make(groups)

    return optimizer
