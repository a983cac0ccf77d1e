"""Initial weights by a rule: deterministic, and the same however often they are set."""

import hashlib
from collections.abc import Mapping
from typing import Unpack

import torch
from torch import Tensor, nn

from hptransfer.adopt.keywords import RuleKeywords
from hptransfer.adopt.names import match_model
from hptransfer.adopt.resolve import Options, TensorNumbers, resolve_tensors
from hptransfer.adopt.table import RoleTable
from hptransfer.errors import ConfigError
from hptransfer.scaling import DECAYED_ROLES, Parameterization


@torch.no_grad()
def init_(
    model: nn.Module,
    *,
    base: RoleTable,
    parameterization: str | Parameterization,
    seed: int,
    base_std: float | Mapping[str, float] | None = None,
    **options: Unpack[RuleKeywords],
) -> None:
    """Set the model's weights in place to what a rule starts from.

    Tables and matrices are normal with the rule's std, gains 1 (0 where all of them are 0, as in
    norms that add 1) and biases 0. The draws of a tensor depend on ``seed``, its name and its
    shape only, not on the rule, the device or what the model held before.

    Parameters
    ----------
    model : torch.nn.Module
        Bare or wrapped, on any device but meta.
    base : RoleTable
        Its roles, from ``infer_roles``.
    parameterization : str or Parameterization
        As for ``param_groups``.
    seed : int
        Fixes the draws.
    base_std : float or mapping, optional
        Init std at the base width, for all or by role, parameter name or pattern, such as
        ``{"hidden": 0.02}``; by default 1 for tables and 1/√fan_in for matrices, with projections
        onto the residual stream over √(2·num_layers).
    **options
        As for ``param_groups``; those that set no init are ignored.

    Raises
    ------
    ConfigError
        As ``param_groups``, or if a parameter is on the meta device, or projections onto the
        residual stream are told and ``num_layers`` is not.
    """
    settings = Options(parameterization=parameterization, **options)
    numbers = resolve_tensors(base, settings, base_std=base_std)
    found = match_model(model, base)
    residual = [each.entry for each in numbers if each.entry.role == "hidden_residual"]
    if residual and settings.num_layers is None and not _is_told(base_std):
        raise ConfigError(
            f"init_: {residual[0].name!r} is a projection onto the residual stream, whose std goes "
            "as 1/√(2·num_layers); give num_layers, or base_std of hidden_residual"
        )
    for each, (name, parameter) in zip(numbers, found, strict=True):
        if parameter.is_meta:
            raise ConfigError(
                f"init_: {name!r} is on the meta device; model.to_empty(device=…) first"
            )
        _copy(parameter, _values(each, parameter, seed=seed))
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.weight[module.padding_idx].zero_()


def _is_told(base_std: float | Mapping[str, float] | None) -> bool:
    return isinstance(base_std, int | float) or "hidden_residual" in (base_std or {})


def _values(numbers: TensorNumbers, parameter: Tensor, *, seed: int) -> Tensor:
    """Return the tensor's first values, on the CPU."""
    entry = numbers.entry
    dtype = parameter.dtype if parameter.dtype == torch.float64 else torch.float32
    if entry.rule_role not in DECAYED_ROLES:
        is_gain = entry.rule_role == "norm" and bool(parameter.any())
        return torch.full(entry.shape, float(is_gain), dtype=dtype)
    digest = hashlib.sha256(f"{seed}:{entry.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.randn(entry.shape, generator=generator, dtype=dtype) * numbers.init_std


def _copy(parameter: Tensor, values: Tensor) -> None:
    """Copy the whole tensor's values into it, or into the shard that it is."""
    if torch.distributed.is_available():
        from torch.distributed.tensor import DTensor, distribute_tensor

        if isinstance(parameter, DTensor):
            mesh = parameter.device_mesh
            values = distribute_tensor(values.to(mesh.device_type), mesh, parameter.placements)
    parameter.copy_(values)
