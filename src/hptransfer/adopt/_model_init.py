"""Set initial weights by a rule, and keep what the model's author set on purpose."""

import contextlib
import hashlib
import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hptransfer._messages import check_name
from hptransfer.adopt._own_init import OwnInit, OwnInits, find_init_scales, measure_own_init
from hptransfer.adopt._parameters import find_parametrized
from hptransfer.adopt._tensor_rules import Options, TensorNumbers, resolve_tensors
from hptransfer.adopt._user_model import (
    MAX_PARAMETERS,
    Factory,
    build_model,
    check_table,
    count_parameters,
    find_buffers,
    match_model,
    name_pattern,
    named_tensors,
    real_values,
    seeded,
    shorten_names,
)
from hptransfer.adopt.role_table import ParameterRole, RoleTable
from hptransfer.errors import ConfigError
from hptransfer.scaling import DECAYED_ROLES, MATRIX_ROLES, Parameterization

_OTHER_STD = 0.2  # relative; a small tensor's std is no exact one
_FAR = 16.0  # times the model's own std, from which a matrix's is said

_LOG = logging.getLogger("hptransfer")

#: By role, what its tensors are called, what a rule sets them to, and what is no author's own.
_CONSTANTS: Mapping[str, tuple[str, float, tuple[float, ...]]] = {
    "norm": ("gains", 1.0, (0.0, 1.0)),
    "bias": ("biases", 0.0, (0.0,)),
    "other": ("other", 1.0, ()),
}

#: What init_ does to a parameter, in the order of the report, and how a line of it begins.
_KINDS = {
    "drawn": "drew",
    "rescaled": "rescaled the model's own",
    "set": "set",
    "kept": "kept as told",
    "frozen": "kept frozen",
    "zeros": "kept at 0, as the model starts them",
    "constants": "kept the model's own constants",
    "values": "kept the model's own values",
    "restored": "wrote the model's own values, which memory did not hold",
    "depth": "scaled by depth, as the model's own init",
    "unset": "drew what the model's constructor leaves unset",
    "padding": "set padding rows to 0",
    "copies": "copied what was drawn to frozen copies, as the model's own are",
    "gains": "set to the norms of what was drawn",
    "far": "WARNING: the model's own matrices are of another size (keep= or base_std= keeps it)",
    "behind": "WARNING: drew what makes these weights, which have another std than the rule's, "
    "namely",
    "buffers": "WARNING: recompute buffers that do not hold what the constructor writes",
}


@dataclass(frozen=True, kw_only=True)
class InitChange:
    """One kind of thing that ``init_`` did.

    Attributes
    ----------
    kind : str
        ``drawn``, ``rescaled``, ``set``, ``kept``, ``frozen``, ``zeros``, ``constants``,
        ``values``, ``restored``, ``depth``, ``unset``, ``padding``, ``copies``, ``gains``, ``far``
        (an own std 16 times the rule's, or a 16th), ``behind`` (weights behind a parametrization,
        such as a spectral norm) or ``buffers``.
    names : tuple of str
        Parameters (or buffers).
    detail : str
        Numbers, in words; may be empty.
    """

    kind: str
    names: tuple[str, ...]
    detail: str = ""

    def __str__(self) -> str:
        detail = f" {self.detail}" if self.detail else ""
        return f"init_: {_KINDS[self.kind]}{detail}: {shorten_names(self.names)}"


@dataclass(frozen=True, kw_only=True)
class InitReport:
    """Hold what ``init_`` did to a model; ``print`` shows one line for each kind of change.

    Attributes
    ----------
    changes : tuple of InitChange
        One for each kind.

    Examples
    --------
    >>> from torch import nn
    >>> from hptransfer.adopt import infer_roles
    >>> def make(width):
    ...     return nn.Sequential(nn.Embedding(10, width), nn.Linear(width, width, bias=False),
    ...                          nn.Linear(width, 10, bias=False))
    >>> roles = infer_roles(make, base_width=64, width=256)
    >>> report = init_(make(256), roles=roles, parameterization="mup", verbose=False)
    >>> report.find("drawn"), report.find("frozen")
    (('0.weight', '1.weight', '2.weight'), ())
    """

    changes: tuple[InitChange, ...]

    def find(self, kind: str) -> tuple[str, ...]:
        """Return the names under a kind; empty where there are none."""
        return tuple(n for change in self.changes if change.kind == kind for n in change.names)

    def __str__(self) -> str:
        return "\n".join(map(str, self.changes))


@torch.no_grad()
def init_(
    model: nn.Module,
    *,
    roles: RoleTable | None = None,
    parameterization: str | Parameterization,
    seed: int = 0,
    mode: str = "draw",
    keep: str | Iterable[str] = (),
    reset: str | Iterable[str] = (),
    base_std: float | Mapping[str, float] | None = None,
    factory: Factory | None = None,
    partial: bool = False,
    verbose: bool = True,
    own_inits: OwnInits | None = None,
    **options: Any,
) -> InitReport:
    """Set the model's weights in place to what a rule starts from, and say what was done.

    The factory's own model is built on the CPU at the base width, twice. What is neither plain
    noise nor the plain constant of its role is the author's and stays: frozen tensors, deliberate
    zeros, layer scales, gate biases, state-space decays, temperatures. Scalings with depth that the
    model's own init shows stay too. Memory as ``to_empty`` leaves it decides nothing.

    Tables and matrices are normal with the rule's std, gains 1 and biases 0. The draws of a tensor
    depend on ``seed``, its name and its shape only, not on the rule, the device or what the model
    held before.

    Parameters
    ----------
    model : torch.nn.Module
        Bare or wrapped, on any device but meta.
    roles : RoleTable
        Its parameters' roles, from ``infer_roles``.
    parameterization : str or Parameterization
        As for ``param_groups``.
    seed : int
        Fixes the draws.
    mode : str
        ``draw``, or ``rescale``: multiply the model's own initial weights by
        [σ_rule(n)/σ_rule(n₀)] · [σ_own(n₀)/σ_own(n)], with σ their stds at the width n and the
        base width n₀, as the package ``mup`` does; all else stays.
    keep, reset : str or iterable of str
        Names or patterns of parameters to leave as they are; to set as the rule says, whatever the
        model's author wrote.
    base_std : float or mapping, optional
        Init std at the base width, for all or by role, parameter name or pattern, such as
        ``{"hidden": 0.02}``; by default 1 for tables (1/√base_width for tied ones, so that the
        first loss is near ln V) and 1/√fan_in for matrices, with projections onto the residual
        stream over √(2·num_layers). A tied table whose own std is smaller keeps that.
    factory : callable, optional
        The model's factory; by default that of the role table.
    partial : bool
        As for ``param_groups``, for whole parameters.
    verbose : bool
        Whether to print the report.
    own_inits : OwnInits, optional
        What the factory's own model starts from, where that was measured before.
    **options
        As for ``param_groups``; those that set no init are ignored.

    Returns
    -------
    InitReport
        Names by kind of change.

    Raises
    ------
    ConfigError
        As ``param_groups``; or if a parameter is on the meta device, the table has no factory, the
        projections onto the residual stream are told and ``num_layers`` is not, or memory lacks
        values that are the author's own and cannot be made again.

    Examples
    --------
    >>> from torch import nn
    >>> from hptransfer.adopt import infer_roles
    >>> def make(width):
    ...     return nn.Sequential(nn.Embedding(10, width), nn.Linear(width, width),
    ...                          nn.Linear(width, 10, bias=False))
    >>> roles = infer_roles(make, base_width=64, width=256)
    >>> report = init_(make(256), roles=roles, parameterization="mup", seed=0)
    init_: drew (embedding std 1, hidden 0.0625, readout 0.0312): *.weight (3)
    init_: set biases to 0: 1.bias
    """
    table = check_table(roles)
    check_name("mode", mode, ("draw", "rescale"))
    factory = factory or table.factory
    if factory is None:
        raise ConfigError(
            "init_: this role table knows no factory (it was read from JSON), and the model's own "
            "initial values are looked at; give factory=make_model"
        )
    found = match_model(model, table, partial=partial)
    if meta := [name for name, parameter in found.values() if parameter.is_meta]:
        raise ConfigError(
            f"init_: {meta[0]!r} is on the meta device; model.to_empty(device=…) first"
        )
    settings = Options(parameterization=parameterization, **options)
    own = own_inits or measure_own_init(factory, table.base_width)
    scales = find_init_scales(table, own)
    numbers = resolve_tensors(
        table, settings, base_std=base_std, init_scales={n: s for n, (s, _) in scales.items()}
    )
    _check_residual(numbers, settings, base_std, mode)
    base_stds = _find_base_stds(table, settings)
    writer = _Writer(
        table=table,
        own=own,
        factory=factory,
        seed=seed,
        keep={entry.name for entry in table.match("keep", keep)},
        reset={entry.name for entry in table.match("reset", reset)},
        depth={}
        if _is_told(base_std, "hidden")
        else {n: why for n, (_, why) in scales.items() if why},
        padding={
            id(module.weight): module.padding_idx
            for module in model.modules()
            if isinstance(module, nn.Embedding) and module.padding_idx is not None
        },
    )
    for each in numbers:
        if each.entry.name in found:
            _, parameter = found[each.entry.name]
            rescaled = base_stds[each.entry.name] if mode == "rescale" else None
            writer.write(each, parameter, rescaled)
    if base_std is None:
        writer.note_far(base_stds)
    writer.copy({name: parameter for name, (_, parameter) in found.items()})
    writer.settle_parametrizations(model)
    writer.check_buffers(model)
    report = writer.report()
    if verbose:
        print(report)
    for change in report.changes:
        if change.kind in ("behind", "buffers") and not verbose:
            _LOG.warning("%s", change)
    return report


def _is_told(base_std: float | Mapping[str, float] | None, role: str) -> bool:
    return isinstance(base_std, int | float) or role in (base_std or {})


def _check_residual(
    numbers: Sequence[TensorNumbers],
    settings: Options,
    base_std: float | Mapping[str, float] | None,
    mode: str,
) -> None:
    residual = [each.entry for each in numbers if each.entry.role == "hidden_residual"]
    told = settings.num_layers is not None or _is_told(base_std, "hidden_residual")
    if residual and not told and mode == "draw":
        raise ConfigError(
            f"init_: {residual[0].name!r} is a projection onto the residual stream, whose std goes "
            "as 1/√(2·num_layers); give num_layers, or base_std of hidden_residual"
        )


def _find_base_stds(table: RoleTable, settings: Options) -> dict[str, float]:
    """Return the rule's own std of each tensor at the base width."""
    entries = tuple(
        replace(each, shape=each.base_shape, fan_in=each.base_fan_in, fan_out=each.base_fan_out)
        for each in table
    )
    width, depth = table.base_width, table.base_num_layers
    narrow = RoleTable(
        width=width, base_width=width, parameters=entries, num_layers=depth, base_num_layers=depth
    )
    numbers = resolve_tensors(narrow, replace(settings, query=()), problems=[])
    return {each.entry.name: each.init_std for each in numbers}


class _Note(NamedTuple):
    """What was done to one tensor; ``detail`` is a role where there is a std."""

    kind: str
    name: str
    detail: str
    std: float | None


def _say_details(notes: Sequence[_Note]) -> str:
    """Return the details of notes of one kind: stds by role, or how often each text."""
    stds: dict[str, list[float]] = {}
    for each in notes:
        if each.std is not None:
            stds.setdefault(each.detail, []).append(each.std)
    texts: list[str] = []
    for role, values in stds.items():
        low, high = f"{min(values):.3g}", f"{max(values):.3g}"
        what = role if texts else f"{role} std"
        texts.append(f"{what} {low}" if low == high else f"{what} {low} to {high}")
    counts = Counter(each.detail for each in notes if each.detail and each.std is None)
    texts += [f"{text} ×{n}" if n > 1 else text for text, n in counts.items()]
    said = ", ".join(texts)
    return f"({said})" if said and notes[0].kind != "behind" else said


@dataclass(kw_only=True)
class _Writer:
    """Writes initial values into a model's tensors and remembers what it did."""

    table: RoleTable
    own: OwnInits
    factory: Factory
    seed: int
    keep: set[str]
    reset: set[str]
    depth: Mapping[str, str]
    padding: Mapping[int, int]
    notes: list[_Note] = field(default_factory=list)
    _factors: dict[str, float] = field(default_factory=dict)
    _fresh: dict[str, Tensor] | None = None
    _twice: OwnInits | None = None

    def _note(self, kind: str, name: str, detail: str = "", std: float | None = None) -> None:
        self.notes.append(_Note(kind, name, detail, std))

    def report(self) -> InitReport:
        """Return what was done: one change for each kind, of what was set for each value."""
        changes: dict[tuple[str, str], list[_Note]] = {}
        for each in self.notes:
            key = each.kind, each.detail if each.kind == "set" else ""
            changes.setdefault(key, []).append(each)
        order = list(_KINDS)
        return InitReport(
            changes=tuple(
                InitChange(
                    kind=kind,
                    names=tuple(each.name for each in notes),
                    detail=value or _say_details(notes),
                )
                for (kind, value), notes in sorted(
                    changes.items(), key=lambda item: order.index(item[0][0])
                )
            )
        )

    # Deciding

    def _own(self, entry: ParameterRole) -> OwnInit | None:
        """Return the author's initial values of a parameter, or of its like in another layer."""
        for name in (entry.name, *entry.tied):
            if name in self.own.parameters:
                return self.own.parameters[name]
        pattern = name_pattern(entry.name)
        alike = [each for n, each in self.own.parameters.items() if name_pattern(n) == pattern]
        return alike[-1] if alike else None

    def write(
        self, numbers: TensorNumbers, parameter: nn.Parameter, rule_base: float | None
    ) -> None:
        """Write one tensor's initial values, or keep the author's.

        Given the rule's std at the base width, multiply the tensor's own values instead, so that
        their std goes with width as the rule's.
        """
        entry, own = numbers.entry, self._own(numbers.entry)
        rescale = rule_base is not None
        kept = ("norm", "other", "bias") if rescale else ("norm", "other")
        if entry.name in self.keep:
            self._note("kept", entry.name)
        elif not parameter.requires_grad:
            self._keep_values(entry, parameter, own, "frozen")
        elif entry.name in self.reset:
            self._follow(numbers, parameter, "drawn")
        elif own is None or own.kind == "unset":
            if rescale:
                raise ConfigError(
                    "init_: mode 'rescale' needs the model's own initial values, and its "
                    f"constructor leaves {entry.name!r} unset; use mode='draw', or "
                    f"reset={entry.name!r}"
                )
            self._follow(numbers, parameter, "unset" if own else "drawn")
        elif own.kind == "constant":
            self._write_constant(entry, parameter, own.mean, rescale=rescale)
        elif own.kind == "structured" or entry.rule_role in kept or own.is_near_0:
            self._keep_values(entry, parameter, own, "values")
        elif rule_base is None:
            self._follow(numbers, parameter, "drawn")
        else:
            values = real_values(_whole(parameter))
            here = float(values.std(correction=0))
            if not bool(torch.isfinite(values).all()) or here < 1e-12:
                raise ConfigError(
                    f"init_: mode 'rescale' multiplies the model's own initial values, and "
                    f"{entry.name!r} holds none (fresh from to_empty?); use mode='draw'"
                )
            factor = (numbers.init_std / rule_base if rule_base else 1.0) * own.std / here
            parameter.mul_(factor)
            self._factors[entry.name] = factor
            self._note("rescaled", entry.name, f"{entry.role} ×{factor:.3g}")

    def _write_constant(
        self, entry: ParameterRole, parameter: nn.Parameter, value: float, *, rescale: bool
    ) -> None:
        """Write the constant that the author's constructor writes."""
        what, _, plain = _CONSTANTS.get(entry.rule_role, ("", 0.0, ()))
        if value in plain:
            if not rescale:
                self._note("set", entry.name, f"{what} to {value:g}")
        else:
            value = self._constant_here(entry, parameter, value)
            kind, detail = ("constants", f"{value:.3g}") if value else ("zeros", "")
            self._note(kind, entry.name, detail)
        parameter.fill_(value)

    def _constant_here(self, entry: ParameterRole, parameter: nn.Parameter, value: float) -> float:
        """Return the author's constant at this width, where it goes with a power of width."""
        held = real_values(_whole(parameter))
        if value == 0.0 or bool((held == value).all()):
            return value
        try:
            twice = self._twice or measure_own_init(self.factory, 2 * self.own.width)
        except ConfigError:
            twice = self.own
        self._twice = twice
        wide = twice.parameters.get(entry.name)
        if wide is None or wide.kind != "constant" or wide.mean / value <= 0:
            return value
        power = math.log2(wide.mean / value)
        return float(value * (self.table.width / self.own.width) ** power)

    def _keep_values(
        self, entry: ParameterRole, parameter: nn.Parameter, own: OwnInit | None, kind: str
    ) -> None:
        """Keep what the tensor holds; where that is not the author's, write the author's again."""
        holds = own is None or own.kind == "unset"
        if own is not None and not holds:
            values = _whole(parameter)
            size = sum(math.prod(each.shape) for each in self.table)
            is_cheap = size <= MAX_PARAMETERS // 10
            if own.fixed and own.kind == "structured" and is_cheap:
                # The author's values at this width are known, and compared one by one.
                fresh = self._build(entry)[entry.name].detach().to(parameter.dtype)
                holds = torch.equal(fresh, values.cpu())
            else:
                holds = own.holds(values)
            # Weights that someone has loaded and frozen:
            is_plain = own.kind in ("noise", "constant")
            holds |= kind == "frozen" and is_plain and _is_loaded(parameter)
        if not holds:
            _copy(parameter, self._build(entry)[entry.name].detach())
            kind = "restored"
        self._note(kind, entry.name)

    def _build(self, entry: ParameterRole) -> dict[str, Tensor]:
        """Return the parameters of the author's own model at the width, built on the CPU."""
        if self._fresh is None:
            if count_parameters(build_model(self.factory, self.table.width)) > MAX_PARAMETERS:
                raise ConfigError(
                    f"init_: {entry.name!r} starts at values of the author's own, which this model "
                    "does not hold (fresh from to_empty?), and the model is too large to build on "
                    "the CPU; write them and say "
                    f"keep={entry.name!r}, or say reset={entry.name!r}"
                )
            with seeded(self.seed):
                model = build_model(self.factory, self.table.width, device="cpu")
            self._fresh = dict(named_tensors(model))
        return self._fresh

    def _follow(self, numbers: TensorNumbers, parameter: nn.Parameter, kind: str) -> None:
        """Write what the rule starts from."""
        entry = numbers.entry
        keeps = parameter.dtype == torch.float64 or parameter.is_complex()
        dtype = parameter.dtype if keeps else torch.float32
        if entry.rule_role in DECAYED_ROLES:
            values = _draw(entry, self.seed, dtype) * numbers.init_std
            self._note(kind, entry.name, entry.role, numbers.init_std)
            if entry.name in self.depth:
                self._note("depth", entry.name, self.depth[entry.name])
            if (row := self.padding.get(id(parameter))) is not None:  # at 0, as torch starts it
                values[row] = 0.0
                self._note("padding", entry.name)
        else:
            what, value, _ = _CONSTANTS[entry.rule_role]
            values = torch.full(entry.shape, value, dtype=dtype)
            self._note("set", entry.name, f"{what} to {value:g}")
        _copy(parameter, values)

    # The rest of the model

    def note_far(self, base_stds: Mapping[str, float]) -> None:
        """Report matrices that were drawn and whose own std at the base width is far from these."""
        drawn = {n.name for n in self.notes if n.kind == "drawn" and n.detail in MATRIX_ROLES}
        for entry in [each for each in self.table if each.name in drawn]:
            own, name = self._own(entry), entry.name
            ratio = own.std / base_stds[name] if own and own.kind == "noise" else 1.0
            if not 1 / _FAR < ratio < _FAR:
                self._note("far", name, f"×{ratio:.2g} the rule's")

    def copy(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Copy what was drawn to the frozen tensors that the author's model copies it to."""
        made = {each.name for each in self.notes if each.kind in ("drawn", "rescaled")}
        for name, of in self.own.copies.items():
            if name in parameters and of in made and name not in self.keep:
                _copy(parameters[name], _whole(parameters[of]))
                self.notes = [each for each in self.notes if each.name != name]
                self._note("copies", name)

    def settle_parametrizations(self, model: nn.Module) -> None:
        """Let weight norm's gains be the norms of what was drawn, so that the weights are that.

        Weights that have another std than the rule's all the same, as behind a spectral norm, are
        named.
        """
        names = {id(parameter): name for name, parameter in named_tensors(model)}
        stds = {each.name: each.std for each in self.notes if each.std}
        for gain, direction, make, _ in find_parametrized(model):
            name, own = names[id(direction)], names.get(id(gain), "")
            if gain is not None and gain.requires_grad and own not in self.keep:
                if name in stds:
                    over = [k for k, n in enumerate((*gain.shape, 1)[: gain.dim()]) if n == 1]
                    gain.copy_(direction.norm(dim=over or None, keepdim=gain.dim() > 0))
                elif name in self._factors:
                    gain.mul_(self._factors[name])
                else:
                    continue
                self.notes = [each for each in self.notes if each.name != own]
                self._note("gains", own)
            if name in stds:
                std = float(real_values(make()).std(correction=0))
                if abs(std / stds[name] - 1) > _OTHER_STD:
                    self._note("behind", name, f"{std:.3g}")

    def check_buffers(self, model: nn.Module) -> None:
        """Name buffers whose memory is not what the author's constructor writes."""
        held = {name: _whole(each) for name, each in find_buffers(model) if not each.is_meta}
        others = self.own.find_foreign(held)
        if others and self.table.width != self.own.width:
            # A few numbers that go with the width are told from garbage at that width alone.
            with contextlib.suppress(ConfigError):  # too large, and of no narrower width
                here = measure_own_init(self.factory, self.table.width)
                if here.width == self.table.width:
                    others = here.find_foreign({name: held[name] for name in others})
        for name in others:
            self._note("buffers", name)


def _is_loaded(parameter: Tensor) -> bool:
    values = real_values(_whole(parameter))
    return values.numel() > 1 and bool(torch.isfinite(values).all() and values.std() > 1e-12)


def _draw(entry: ParameterRole, seed: int, dtype: torch.dtype) -> Tensor:
    """Return standard normal values that depend on seed, name and shape alone, on the CPU."""
    drawn = torch.complex64 if dtype.is_complex else torch.float32  # for float64 too: other values
    digest = hashlib.sha256(f"{seed}:{entry.name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.randn(entry.shape, generator=generator, dtype=drawn).to(dtype)


def _whole(tensor: Tensor) -> Tensor:
    """Return a tensor's values, gathered where it is a shard."""
    gather = getattr(tensor, "full_tensor", None)
    values: Tensor = tensor.detach() if gather is None else gather().detach()
    return values


def _copy(parameter: Tensor, values: Tensor) -> None:
    """Copy the whole tensor's values into it, or into the shard that it is."""
    if torch.distributed.is_available():
        from torch.distributed.tensor import DTensor, distribute_tensor

        if isinstance(parameter, DTensor):
            mesh = parameter.device_mesh
            values = distribute_tensor(values.to(mesh.device_type), mesh, parameter.placements)
    parameter.copy_(values)
