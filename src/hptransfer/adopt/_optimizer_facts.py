"""Facts on optimizer classes: whose numbers they take, and what their weight decay means."""

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch.optim import Optimizer

DecayMeaning = Literal["lr", "relative", "independent", "gradient"]
"""What a step shrinks a tensor by: lr · wd, lr / initial lr · wd, wd, or (``gradient``) nothing,
as wd is added to a gradient that is then divided by its RMS."""

SAY_DECAY: Mapping[str, str] = MappingProxyType(
    {
        "lr": "lr · weight_decay",
        "relative": "lr / initial lr · weight_decay",
        "independent": "weight_decay, whatever the lr",
        "gradient": "nothing (weight_decay enters the gradient, which is divided by its RMS)",
    }
)

_DECAY: Mapping[str, DecayMeaning] = MappingProxyType(
    {
        "AdamW": "lr",
        "AdamW8bit": "lr",
        "PagedAdamW": "lr",
        "PagedAdamW8bit": "lr",
        "Muon": "lr",
        "Lion": "lr",
        "Adafactor": "lr",
        "SGD": "lr",
        "Adam": "gradient",
        "Adagrad": "gradient",
        "Adadelta": "gradient",
        "Adamax": "gradient",
        "RMSprop": "gradient",
        "DecoupledAdamW": "relative",
        "DecoupledSGDW": "relative",
        "DecoupledLionW": "relative",
    }
)

_FAMILY: Mapping[str, str] = MappingProxyType(
    {
        "AdamW": "adam",
        "Adam": "adam",
        "NAdam": "adam",
        "RAdam": "adam",
        "SGD": "sgd",
        "Lion": "lion",
        "Adafactor": "adafactor",
        "Muon": "muon",
        "RMSprop": "rmsprop",
        "Adagrad": "adagrad",
        "Adadelta": "adadelta",
        "Adamax": "adamax",
        "ASGD": "asgd",
        "Rprop": "rprop",
        "LBFGS": "lbfgs",
    }
)
_FAMILY_OF_RULE = {"adamw": "adam", "adam": "adam"}


def find_family(kind: type) -> str | None:
    """Return the family of an optimizer class by its name or an ancestor's; None if not known."""
    return next((_FAMILY[each.__name__] for each in kind.__mro__ if each.__name__ in _FAMILY), None)


def takes_numbers_of(optimizer: Optimizer, rule_optimizer: str) -> bool:
    """Tell whether groups for ``rule_optimizer`` may be an optimizer's; True where not known."""
    family = find_family(type(optimizer))
    return family is None or family == _FAMILY_OF_RULE.get(rule_optimizer, rule_optimizer)


def find_decay_meaning(optimizer: Optimizer) -> DecayMeaning | None:
    """Return what an optimizer's weight decay means.

    A class that is known, or that inherits its ``step`` from one, is looked up; any other takes two
    steps on two numbers without a gradient.

    Returns
    -------
    DecayMeaning or None
        None where it shrinks nothing, or cannot be tried.
    """
    kind = type(optimizer)
    decoupled = any(group.get("decoupled_weight_decay") for group in optimizer.param_groups)
    for each in kind.__mro__:
        if each.__name__ in ("NAdam", "RAdam"):
            return "lr" if decoupled else "gradient"
        if each.__name__ in _DECAY:
            if each.__name__ == "Adam" and decoupled:
                return "lr"
            return _DECAY[each.__name__]
        if "step" in vars(each):
            break
    return _try_decay(optimizer)


def _try_decay(optimizer: Optimizer) -> DecayMeaning | None:
    """Return what weight decay means by the shrinks of two steps, the second at half the lr."""
    lr, decay = 0.1, 0.5
    parameter = torch.nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    try:
        probe: Any = copy.copy(optimizer)
        settings = {k: v for k, v in optimizer.param_groups[0].items() if k != "params"}
        group = settings | {"params": [parameter], "weight_decay": decay, "initial_lr": lr}
        probe.param_groups, probe.state = [group], defaultdict(dict)
        probe._optimizer_step_pre_hooks = OrderedDict()
        probe._optimizer_step_post_hooks = OrderedDict()
        shrinks = []
        for rate in (lr, lr / 2):
            group["lr"] = rate
            before = parameter.detach().clone()
            parameter.grad = torch.zeros_like(parameter)
            type(optimizer).step(probe)
            shrinks.append(1.0 - parameter.detach() / before)
    except Exception:  # whatever another's optimizer raises
        return None
    one, two = (float(each.mean()) for each in shrinks)
    if one < 1e-6:
        return None
    if float((shrinks[0] - one).abs().max()) > 0.02 * one:
        return "gradient"
    half = abs(two / one - 0.5) < 0.05
    if abs(one / (lr * decay) - 1) < 0.05 and half:
        return "lr"
    if abs(one / decay - 1) < 0.05:
        return "relative" if half else "independent"
    return None
