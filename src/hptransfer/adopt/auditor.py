"""The audit: a user's groups and initial weights at two widths, against the rules."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from hptransfer.adopt.audit import Audit, Finding
from hptransfer.adopt.compare import Comparison
from hptransfer.adopt.runs import Run, complete, warn_of_runs
from hptransfer.adopt.today import (
    Factory,
    MakeToday,
    Today,
    build,
    find_init_width,
    find_tables,
    is_tied,
    read_today,
)
from hptransfer.adopt.verdicts import find_nearest, judge_embedding, warn
from hptransfer.errors import ConfigError
from hptransfer.scaling import Parameterization, parse_rule
from hptransfer.scaling.checks import check_count

DEFAULT_RULE = "mup"


def audit(
    factory: Factory,
    *,
    base_width: int,
    width: int,
    optimizer: MakeToday | None = None,
    parameterization: str | Parameterization = DEFAULT_RULE,
    roles: Mapping[str, str] | None = None,
    proxy: Run | None = None,
    target: Run | None = None,
    model_name: str = "factory",
    optimizer_name: str = "",
) -> Audit:
    """Return what a model and its optimizer do today, per role, against a rule.

    Parameters
    ----------
    factory : callable
        From a width to the model, with its initial weights.
    base_width, width : int
        The proxy's and the target's.
    optimizer : callable, optional
        From a model, or from (width, model), to what trains it: an optimizer, several, or param
        groups. By default ``torch.optim.AdamW(model.parameters())``.
    parameterization : str or Parameterization
        The rule whose numbers stand beside today's.
    roles : mapping of str to str, optional
        As for ``infer_roles``.
    proxy, target : Run, optional
        What is known of the two runs.
    model_name, optimizer_name : str
        How the result calls them.

    Raises
    ------
    ConfigError
        If a name or number is wrong, the user's functions fail, a parameter is in no group, or a
        role cannot be told.
    """
    base_width, width = check_count("base_width", base_width), check_count("width", width)
    if width <= base_width:
        raise ConfigError(f"width: expected more than base_width {base_width}, found {width}")
    rule = parse_rule(parameterization)
    base, wide = (read_today(factory, each, optimizer) for each in (base_width, width))
    models = tuple(build(factory, each, meta=True) for each in (base_width, width))
    told = proxy or Run(), target or Run()
    runs = [complete(run, _describe(model)) for run, model in zip(told, models, strict=True)]
    sizes = base.num_parameters, wide.num_parameters
    warnings = [*_warn_of_frozen(wide), *warn_of_runs(*runs, num_parameters=sizes)]
    init_width = find_init_width(factory, base_width, width)
    parts: dict[str, Any] = {}
    if is_tied(models[0]) == is_tied(models[1]):
        comparison = Comparison.make(
            factory,
            base=base,
            wide=wide,
            init_width=init_width,
            roles={**_tell_readouts(*models), **(roles or {})},
            rule=rule,
        )
        warnings += warn(comparison)
        parts = {
            "roles": comparison.roles,
            "nearest": find_nearest(comparison),
            "embedding": judge_embedding(comparison),
        }
    return Audit(
        model=model_name,
        optimizer=optimizer_name or "torch.optim.AdamW(model.parameters())",
        optimizer_class=wide.optimizer,
        width=width,
        base_width=base_width,
        init_width=init_width,
        parameterization=rule.name,
        warnings=tuple(Finding(kind=kind, message=message) for kind, message in warnings),
        **parts,
    )


def _describe(model: nn.Module) -> dict[str, Any]:
    """Return what the model itself shows of a run: its largest table is the vocabulary."""
    rows = [num_rows for _, num_rows in find_tables(model)]
    return {"tied": is_tied(model)} | ({"vocab_size": max(rows)} if rows else {})


def _tell_readouts(base: nn.Module, wide: nn.Module) -> dict[str, str]:
    """Return the roles of readouts whose outputs follow a vocabulary that is another one.

    Both of their dimensions differ then, as a hidden matrix's do.
    """
    rows = {
        (one, other)
        for (_, one), (_, other) in zip(find_tables(base), find_tables(wide), strict=False)
        if one != other
    }
    pairs = zip(base.named_modules(), wide.named_modules(), strict=False)
    return {
        f"{name}.weight": "readout"
        for (name, one), (_, other) in pairs
        if isinstance(one, nn.Linear)
        and isinstance(other, nn.Linear)
        and (one.out_features, other.out_features) in rows
    }


def _warn_of_frozen(wide: Today) -> Iterator[tuple[str, str]]:
    if wide.frozen:
        yield (
            "frozen",
            f"{wide.frozen[0]!r} ({len(wide.frozen)} in all) is frozen: no rule holds for it",
        )
