"""Make ordinary ``torch.optim`` param groups, one for each distinct setting that a rule gives."""

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.utils.weak import WeakTensorKeyDictionary

from hptransfer._messages import check_name
from hptransfer.adopt._parameters import find_parametrized, is_fused_name
from hptransfer.adopt._tensor_rules import (
    Options,
    TensorNumbers,
    gradient_exponent,
    resolve_tensors,
    scales_eps,
)
from hptransfer.adopt._user_model import (
    WRAPPED,
    check_table,
    match_model,
    named_tensors,
    shorten_names,
)
from hptransfer.adopt.role_table import ParameterRole, RoleTable
from hptransfer.errors import ConfigError
from hptransfer.scaling import DEFAULT_EPS, Parameterization, parse_optimizer, parse_rule

RULE_LR = "rule_lr"
"""The key of a group that holds the learning rate that the rule gave; ``guard`` reads it."""

RULE_DECAY = "rule_weight_decay"
"""The key of a group that holds the weight decay that the rule gave."""

RULE_OPTIMIZER = "rule_optimizer"
"""The key of a group that names the optimizer that the rule's numbers are for."""

DECAY_SEMANTICS_KEY = "decay_semantics"
"""The key of a group that says what its weight decay is for; see `Options`."""

TUNED_LR = "tuned_lr"
"""The key of a group that holds η, the learning rate that ``param_groups`` was given."""

_DIGITS = 12  # significant digits at which two settings are the same one

_MUON_SCALE = {"muon": "original", "muon-matched": "match_rms_adamw"}

_FAR = 8.0  # width ratio from which an ε that does not fall holds updates back

_Member = tuple[TensorNumbers, nn.Parameter]

_GIVEN: Any = WeakTensorKeyDictionary()
"""By parameter, the learning rates and decays that param_groups gave in this process."""

_LOG = logging.getLogger("hptransfer")
_LOGGED: set[str] = set()


class ParamGroups(list[dict[str, Any]]):
    """The groups that ``param_groups`` returns: a list of dicts, and what is to be said of them.

    ``print`` shows one line for each group.

    Attributes
    ----------
    names : list of list of str
        Names of each group's parameters.
    notes : tuple of str
        What one should know of the groups: which optimizer takes how many parameters, an ε that
        holds updates back. They are logged as warnings too.

    Examples
    --------
    >>> from torch import nn
    >>> from hptransfer.adopt import infer_roles
    >>> def make(width):
    ...     return nn.Sequential(nn.Embedding(10, width), nn.Linear(width, width, bias=False),
    ...                          nn.Linear(width, 10, bias=False))
    >>> roles = infer_roles(make, base_width=64, width=256)
    >>> groups = param_groups(make(256), roles=roles, parameterization="mup", lr=0.5)
    >>> groups.names
    [['0.weight'], ['1.weight', '2.weight']]
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        names: Iterable[list[str]] = (),
        notes: Iterable[str] = (),
    ) -> None:
        super().__init__(groups)
        self.names = list(names)
        self.notes = tuple(notes)

    def __str__(self) -> str:
        lines = [
            f"{group['name']}: lr {group['lr']:g}, wd {group['weight_decay']:g}, "
            + (f"eps {group['eps']:g}, " if "eps" in group else "")
            + f"{len(group['params'])} tensors, "
            + f"{sum(p.numel() for p in group['params']):,} parameters"
            + (f", by {group['optimizer']}" if "optimizer" in group else "")
            for group in self
        ]
        return "\n".join([*lines, *self.notes])


def param_groups(
    model: nn.Module,
    *,
    roles: RoleTable | None = None,
    parameterization: str | Parameterization,
    lr: float,
    skip_frozen: bool = False,
    partial: bool = False,
    **options: Any,
) -> ParamGroups:
    """Make param groups for ``torch.optim`` that carry a rule's numbers.

    Parameters
    ----------
    model : torch.nn.Module
        The model that is trained, bare or wrapped (``torch.compile``, DDP, FSDP).
    roles : RoleTable
        Its parameters' roles, from ``infer_roles``.
    parameterization : str or Parameterization
        A rule's name (the lattice from ``sp`` to ``mup``, ``everett-full``, ``everett-none``,
        ``hayou-liu``, ``completep``, ``u-mup``), or a rule of one's own.
    lr : float
        The tuned learning rate on ``axis``.
    skip_frozen : bool
        Leave out parameters with ``requires_grad=False``, which otherwise are an error.
    partial : bool
        Take a model that holds a part of the table's parameters, as a pipeline stage does, or
        shards of them, as a tensor-parallel rank with plain tensors does.
    **options
        ``weight_decay``, ``weight_decay_mode``, ``decay_semantics``, ``optimizer``, ``muon_lr``,
        ``eps``, ``scale_eps``, ``axis``, ``num_layers``, ``base_num_layers``, ``head_size``,
        ``base_head_size``, ``query`` and ``applied``: docs/adopt.md says what each does.

    Returns
    -------
    ParamGroups
        A list of dicts with ``params``, ``name``, ``lr``, ``weight_decay``, ``rule_lr``,
        ``rule_weight_decay`` and ``rule_optimizer`` (what ``guard`` compares with), ``tuned_lr``
        and, where the optimizer is of Adam's family, ``eps``. With Muon each group also has
        ``optimizer``, ``muon`` or ``adamw``: to which of the two it belongs. Make the optimizer
        as ``AdamW(groups, lr=lr)``, so that schedulers that read its default see the right one.

    Raises
    ------
    ConfigError
        If the table does not cover the model, a parameter is frozen, the rule says nothing for the
        optimizer, or a multiplier can neither be absorbed nor is applied.

    Examples
    --------
    >>> from torch import nn, optim
    >>> from hptransfer.adopt import infer_roles
    >>> def make(width):
    ...     return nn.Sequential(nn.Embedding(10, width), nn.Linear(width, width),
    ...                          nn.Linear(width, 10, bias=False))
    >>> roles = infer_roles(make, base_width=64, width=256)
    >>> groups = param_groups(make(256), roles=roles, parameterization="mup", lr=0.5,
    ...                       weight_decay=0.25)
    >>> print(groups)
    embedding: lr 0.5, wd 0.25, eps 1e-08, 1 tensors, 2,560 parameters
    hidden+readout: lr 0.125, wd 1, eps 1e-08, 2 tensors, 68,096 parameters
    bias: lr 0.5, wd 0, eps 1e-08, 1 tensors, 256 parameters
    >>> optimizer = optim.AdamW(groups, lr=0.5)
    """
    table = check_table(roles)
    settings = Options(parameterization=parameterization, lr=lr, **options)
    found = match_model(model, table, partial=partial, shards=partial)
    members: dict[tuple[object, ...], list[_Member]] = {}
    for numbers in resolve_tensors(table, settings):
        if numbers.entry.name not in found:
            continue
        name, parameter = found[numbers.entry.name]
        if not parameter.requires_grad:
            if skip_frozen:
                continue
            raise ConfigError(
                f"param_groups: {name!r} is frozen (requires_grad=False); unfreeze it, or leave "
                "frozen parameters out with skip_frozen=True"
            )
        if numbers.optimizer == "muon" and parameter.is_complex():
            raise ConfigError(
                f"param_groups: {name!r} is complex, which Muon does not take; "
                "use another optimizer, such as adamw"
            )
        key = tuple(
            float(f"{value:.{_DIGITS - 1}e}") if isinstance(value, float) else value
            for value in _group(numbers, settings).values()
        )
        members.setdefault(key, []).append((numbers, parameter))
    made, names = [], _names(list(members.values()))
    for name, each in zip(names, members.values(), strict=True):
        params = [parameter for _, parameter in each]
        made.append(_group(each[0][0], settings) | {"params": params, "name": name})
        for parameter in params:
            given = _GIVEN.setdefault(parameter, set())
            given.add((made[-1][RULE_LR], made[-1][RULE_DECAY]))
    taken = [member for each in members.values() for member in each]
    notes = [
        *_note_muon(taken, settings),
        *_note_eps(table, made, settings),
        *_note_sized(model, taken),
    ]
    for note in notes:
        if note not in _LOGGED:
            _LOGGED.add(note)
            _LOG.warning("%s", note)
    return ParamGroups(made, [[n.entry.name for n, _ in each] for each in members.values()], notes)


def _group(numbers: TensorNumbers, settings: Options) -> dict[str, Any]:
    group: dict[str, Any] = {
        "lr": numbers.lr,
        "weight_decay": numbers.weight_decay,
        RULE_LR: numbers.lr,
        RULE_DECAY: numbers.weight_decay,
        RULE_OPTIMIZER: numbers.optimizer,
        DECAY_SEMANTICS_KEY: settings.decay_semantics,
        TUNED_LR: float(settings.lr),
    }
    is_muon = settings.optimizer in _MUON_SCALE
    if numbers.optimizer == "muon":
        group["adjust_lr_fn"] = _MUON_SCALE[settings.optimizer]
        if settings.muon_lr is not None:
            group[TUNED_LR] = float(settings.muon_lr)
    elif parse_optimizer(settings.optimizer).has_eps:
        group["eps"] = numbers.eps
    return group | ({"optimizer": numbers.optimizer} if is_muon else {})


def _names(members: Sequence[Sequence[_Member]]) -> list[str]:
    """Name each group by its roles, and by its tensors' fan-in ratio where that is not enough."""
    roles = ["+".join(dict.fromkeys(n.entry.role for n, _ in group)) for group in members]
    names: list[str] = []
    for name, group in zip(roles, members, strict=True):
        entry = group[0][0].entry
        if roles.count(name) > 1:
            name += f" fan_in x{entry.fan_in / entry.base_fan_in:g}"
        if name in names:
            name += f" ({entry.name})"
        names.append(name)
    return names


def _note_muon(members: Sequence[_Member], settings: Options) -> list[str]:
    """Say how many parameters each of two optimizers takes, and what Muon takes whole or not."""
    if settings.optimizer not in _MUON_SCALE:
        return []
    sizes = {numbers.entry: parameter.numel() for numbers, parameter in members}

    def share(of: Iterable[ParameterRole]) -> str:
        return f"{100 * sum(sizes[e] for e in of) / (sum(sizes.values()) or 1):.3g} %"

    taken = {n.entry: None for n, _ in members if n.optimizer == "muon"}
    left = [e for e in sizes if e.role in ("hidden", "hidden_residual") and e not in taken]
    kinds = {
        "hold stacks of matrices, which torch's Muon does not take: AdamW trains them; a Muon that "
        "orthogonalises each one, or one parameter for each expert, would": [
            e for e in left if len(e.shape) > 2
        ],
        "have one dimension that does not grow: AdamW trains them": [
            e for e in left if len(e.shape) == 2 and len(e.infinite) < 2
        ],
        "hold queries, keys and values in one, which Muon orthogonalises as one matrix of all "
        "heads; one parameter for each would have them apart": [
            e for e in taken if is_fused_name(e.name)
        ],
    }
    return [
        f"param_groups: Muon takes {share(taken)} of the parameters and AdamW "
        f"{share(e for e in sizes if e not in taken)}",
        *(
            f"param_groups: {shorten_names([e.name for e in entries])} ({share(entries)} of the "
            f"parameters) {what}"
            for what, entries in kinds.items()
            if entries
        ),
    ]


def _note_eps(table: RoleTable, groups: Sequence[dict[str, Any]], settings: Options) -> list[str]:
    """Say where Adam's ε stays while the gradients fall with width."""
    rule, m = parse_rule(settings.parameterization), table.width_mult
    falls = gradient_exponent(rule) <= -1.0 and not rule.absolute
    stays = any(group.get("eps") == settings.eps for group in groups)
    if not (falls and stays and settings.scale_eps is None and m >= _FAR):
        return []
    if settings.eps < DEFAULT_EPS or scales_eps(rule):
        return []
    return [
        f"param_groups: under {rule.name} the gradients of tables and hidden matrices fall {m:g} "
        f"times and eps stays {settings.eps:g}, which holds rare rows back; divide eps by m "
        "there (scale_eps), or take a smaller one"
    ]


def _note_sized(model: nn.Module, members: Sequence[_Member]) -> list[str]:
    """Name matrices with one side that grows whose size a parametrization sets.

    Their weights are W/σ(W), and σ goes with width there; of a hidden matrix it does not.
    """
    sized = {id(each.direction) for each in find_parametrized(model) if each.is_sized}
    sides = ("readout", "embedding", "tied")
    names = [n.entry.name for n, p in members if id(p) in sized and n.entry.role in sides]
    if not names:
        return []
    return [
        "param_groups: a parametrization, such as a spectral norm, sets the size of the weights "
        f"of {shorten_names(names)}, so that their effective learning rates do not go with width "
        "as the rule's; better none on readouts and inputs"
    ]


def rules_given(parameters: Iterable[nn.Parameter]) -> set[tuple[float, float]]:
    """Return the (lr, weight decay) that param_groups gave to these parameters.

    Returns
    -------
    set
        Empty where the groups were made in another process, or for other tensors.
    """
    first = next(iter(parameters), None)
    return set() if first is None else set(_GIVEN.get(first, ()))


# For other frameworks

#: What stands between two parts of a parameter's name: a dot, and what wrappers put in.
_DOT = r"\.(?:(?:" + "|".join(WRAPPED) + r")\.)*"

#: By framework, what each calls the optimizers that it has with the groups' meaning.
_CALLED = {
    "torchtitan": {"adamw": "AdamW", "adam": "Adam", "muon": "DistMuon"},
    "optax": {name: name for name in ("adamw", "adam", "lion", "sgd")},
}


@dataclass(frozen=True, kw_only=True)
class OptaxExport:
    """Hold groups as optax takes them: labels, and the numbers of each label's transform.

    Attributes
    ----------
    labels : dict of str to str
        The label of each parameter, by its name in the PyTorch model.
    transforms : dict of str to dict
        By label: ``optimizer`` (adamw, adam, lion or sgd), ``learning_rate``, ``weight_decay`` and,
        for Adam's family, ``eps``.

    Examples
    --------
    >>> numbers = {"optimizer": "sgd", "learning_rate": 0.5, "weight_decay": 0.0}
    >>> OptaxExport(labels={"mlp.up.weight": "hidden"}, transforms={"hidden": numbers}).tree
    {'mlp': {'up': {'weight': 'hidden'}}}
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
            lr, kind = rate(numbers["learning_rate"]), numbers["optimizer"]
            taken = {"adamw": ("eps", "weight_decay"), "adam": ("eps",), "lion": ("weight_decay",)}
            own = {key: numbers[key] for key in taken.get(kind, ())}
            made = getattr(optax, kind)(lr, **own, **options)
            if kind == "sgd":
                return optax.chain(optax.add_decayed_weights(numbers["weight_decay"]), made)
            return made

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
    called = _CALLED[check_name("to", to, tuple(_CALLED))]
    names = _find_names(groups, model)
    for group in groups:
        if group.get(DECAY_SEMANTICS_KEY, "lr") != "lr" and group.get(RULE_DECAY):
            raise ConfigError(
                f"export: {to}'s optimizers shrink a tensor by lr · weight_decay; make the "
                "groups with decay_semantics='lr'"
            )
        if group[RULE_OPTIMIZER] not in called:
            raise ConfigError(
                f"export: {to} has no optimizer {group[RULE_OPTIMIZER]!r} with the meaning that "
                f"these groups count on; make them for {', '.join(map(repr, called))}"
            )
    if to == "optax":
        labels = {name: g["name"] for g, each in zip(groups, names, strict=True) for name in each}
        return OptaxExport(
            labels=labels,
            transforms={
                g["name"]: {"optimizer": called[g[RULE_OPTIMIZER]], **_numbers(g, "learning_rate")}
                for g in groups
            },
        )
    everything = {name for members in names for name in members}
    return [
        {
            "pattern": _make_pattern(members, everything - set(members)),
            "optimizer_name": called[group[RULE_OPTIMIZER]],
            "optimizer_kwargs": _numbers(group, "lr")
            | {key: group[key] for key in ("adjust_lr_fn",) if key in group},
        }
        for group, members in zip(groups, names, strict=True)
    ]


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


def _numbers(group: Mapping[str, Any], lr: str) -> dict[str, Any]:
    numbers = {lr: group[RULE_LR], "weight_decay": group[RULE_DECAY]}
    return numbers | ({"eps": group["eps"]} if "eps" in group else {})


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
