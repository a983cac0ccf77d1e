"""Export param groups as the configuration that other frameworks take: torchtitan, optax."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from hptransfer._messages import check_name
from hptransfer.adopt._param_groups import (
    DECAY_SEMANTICS_KEY,
    RULE_DECAY,
    RULE_LR,
    RULE_OPTIMIZER,
    ParamGroups,
)
from hptransfer.adopt._parameters import WRAPPED, named_tensors
from hptransfer.errors import ConfigError

FRAMEWORKS = ("torchtitan", "optax")

#: What stands between two parts of a parameter's name: a dot, and what wrappers put in.
_DOT = r"\.(?:(?:" + "|".join(WRAPPED) + r")\.)*"

_TITAN = {"adamw": "AdamW", "adam": "Adam", "muon": "DistMuon"}


@dataclass(frozen=True, kw_only=True)
class OptaxExport:
    """Groups as labels and the numbers of each label's transform.

    Attributes
    ----------
    labels : dict of str to str
        The label of each parameter, by its name in the PyTorch model.
    transforms : dict of str to dict
        By label: ``optimizer`` (adamw, adam, lion or sgd), ``learning_rate``, ``weight_decay`` and,
        for Adam's family, ``eps``.
    """

    labels: Mapping[str, str]
    transforms: Mapping[str, Mapping[str, Any]]

    @property
    def tree(self) -> dict[str, Any]:
        """The labels as nested dictionaries, one level for each part of a name."""
        tree: dict[str, Any] = {}
        for name, label in self.labels.items():
            *path, leaf = name.split(".")
            node = tree
            for part in path:
                node = node.setdefault(part, {})
            node[leaf] = label
        return tree

    def make(
        self, schedule: Callable[[Any], Any] | None = None, labels: Any = None, **options: Any
    ) -> Any:
        """Make the optax transformation.

        Parameters
        ----------
        schedule : callable, optional
            From the step to a factor on every learning rate.
        labels : tree or callable, optional
            Labels for parameters that stand in a tree of another shape; by default ``tree``.
        **options
            For every label's optimizer, such as ``b1`` and ``b2``.

        Returns
        -------
        optax.GradientTransformation
            ``optax.multi_transform`` of the labels' transforms.

        Raises
        ------
        ConfigError
            If optax is not installed, or has no optimizer with these numbers' meaning.
        """
        try:
            import optax
        except ImportError as error:
            raise ConfigError("export: optax is not installed; pip install optax") from error

        def rate(lr: float) -> Any:
            return lr if schedule is None else lambda step: lr * schedule(step)

        def transform(numbers: Mapping[str, Any]) -> Any:
            lr, decay = rate(numbers["learning_rate"]), numbers["weight_decay"]
            kind = numbers["optimizer"]
            if kind == "adamw":
                return optax.adamw(lr, eps=numbers["eps"], weight_decay=decay, **options)
            if kind == "adam":
                return optax.adam(lr, eps=numbers["eps"], **options)
            if kind == "lion":
                return optax.lion(lr, weight_decay=decay, **options)
            return optax.chain(optax.add_decayed_weights(decay), optax.sgd(lr, **options))

        return optax.multi_transform(
            {label: transform(numbers) for label, numbers in self.transforms.items()},
            self.tree if labels is None else labels,
        )


def export(groups: Sequence[Mapping[str, Any]], *, to: str, model: nn.Module | None = None) -> Any:
    """Export groups as the configuration that another framework takes, with the same numbers.

    Parameters
    ----------
    groups : ParamGroups or sequence of dict
        What ``param_groups`` returns.
    to : str
        ``torchtitan``: keywords of its ``ParamGroupConfig``, in order, with a regular expression
        for each group (the first that matches a parameter's name takes it). ``optax``: a label for
        each parameter and the numbers of each label.
    model : torch.nn.Module, optional
        Where the names come from if ``groups`` is no longer what ``param_groups`` returned.

    Returns
    -------
    list of dict, or OptaxExport
        Plain data.

    Raises
    ------
    ConfigError
        If the framework is not known, has no such optimizer, or a parameter has no name.

    Examples
    --------
    >>> from torch import nn
    >>> from hptransfer.adopt import infer_roles, param_groups
    >>> def make(width):
    ...     return nn.Sequential(nn.Embedding(10, width), nn.Linear(width, width, bias=False),
    ...                          nn.Linear(width, 10, bias=False))
    >>> roles = infer_roles(make, base_width=64, width=256)
    >>> groups = param_groups(make(256), roles=roles, parameterization="mup", lr=0.5)
    >>> for each in export(groups, to="optax").transforms.items():
    ...     print(each)
    ('embedding', {'optimizer': 'adamw', 'learning_rate': 0.5, 'weight_decay': 0.0, 'eps': 1e-08})
    ('hidden+readout', {'optimizer': 'adamw', 'learning_rate': 0.125, 'weight_decay': 0.0, 'eps': 1e-08})
    >>> export(groups, to="torchtitan")[0]["optimizer_kwargs"]
    {'lr': 0.5, 'weight_decay': 0.0, 'eps': 1e-08}
    """  # noqa: E501
    framework = check_name("to", to, FRAMEWORKS)
    names = _find_names(groups, model)
    for group in groups:
        if group.get(DECAY_SEMANTICS_KEY, "lr") != "lr" and group.get(RULE_DECAY):
            raise ConfigError(
                f"export: {framework}'s optimizers shrink a tensor by lr · weight_decay; make the "
                "groups with decay_semantics='lr'"
            )
    if framework == "optax":
        return _to_optax(groups, names)
    return _to_torchtitan(groups, names)


def _find_names(groups: Sequence[Mapping[str, Any]], model: nn.Module | None) -> list[list[str]]:
    if model is not None:
        by_id = {id(parameter): name for name, parameter in named_tensors(model)}
        missing = [g for g in groups if any(id(p) not in by_id for p in g["params"])]
        if missing:
            raise ConfigError(
                f"export: group {missing[0].get('name', 'no name')!r} holds a tensor that is no "
                "parameter of the model"
            )
        return [[by_id[id(p)] for p in group["params"]] for group in groups]
    if isinstance(groups, ParamGroups) and len(groups.names) == len(groups):
        return groups.names
    raise ConfigError(
        "export: expected the list that param_groups returns, which knows the parameters' names; "
        "give model= with another one"
    )


def _numbers(group: Mapping[str, Any]) -> dict[str, float]:
    numbers = {"lr": group[RULE_LR], "weight_decay": group[RULE_DECAY]}
    return numbers | ({"eps": group["eps"]} if "eps" in group else {})


def _to_optax(groups: Sequence[Mapping[str, Any]], names: Sequence[Sequence[str]]) -> OptaxExport:
    labels: dict[str, str] = {}
    transforms: dict[str, dict[str, Any]] = {}
    for group, members in zip(groups, names, strict=True):
        kind = group[RULE_OPTIMIZER]
        if kind not in ("adamw", "adam", "lion", "sgd"):
            raise ConfigError(
                f"export: optax has no {kind!r} with the meaning that these groups count on; make "
                "them for 'adamw', 'adam', 'lion' or 'sgd'"
            )
        numbers = _numbers(group)
        transforms[group["name"]] = {
            "optimizer": kind,
            "learning_rate": numbers.pop("lr"),
            **numbers,
        }
        labels |= dict.fromkeys(members, group["name"])
    return OptaxExport(labels=labels, transforms=transforms)


def _to_torchtitan(
    groups: Sequence[Mapping[str, Any]], names: Sequence[Sequence[str]]
) -> list[dict[str, Any]]:
    everything = {name for members in names for name in members}
    made = []
    for group, members in zip(groups, names, strict=True):
        kind = group[RULE_OPTIMIZER]
        if kind not in _TITAN:
            raise ConfigError(
                f"export: torchtitan has no optimizer {kind!r}; make the groups for "
                f"{', '.join(map(repr, _TITAN))}"
            )
        numbers: dict[str, Any] = _numbers(group)
        if "adjust_lr_fn" in group:
            numbers["adjust_lr_fn"] = group["adjust_lr_fn"]
        made.append(
            {
                "pattern": _make_pattern(members, everything - set(members)),
                "optimizer_name": _TITAN[kind],
                "optimizer_kwargs": numbers,
            }
        )
    return made


def _make_pattern(members: Sequence[str], others: set[str]) -> str:
    """Return a regular expression that finds these names and none of the others."""
    parts: dict[str, None] = {}
    for name in members:
        loose = _DOT.join(r"\d+" if part.isdigit() else re.escape(part) for part in name.split("."))
        exact = _DOT.join(re.escape(part) for part in name.split("."))
        catches = any(re.fullmatch(loose, other) for other in others)
        parts[exact if catches else loose] = None
    prefix = r"^(?:(?:" + "|".join(WRAPPED) + r")\.)*"
    return f"{prefix}(?:{'|'.join(parts)})$"
