"""Record what a model's modules put out, what goes into attention's softmax, and their RMS."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from hptransfer.adopt._coord_check_result import LOGITS

ModuleFilter = Callable[[str, nn.Module], bool]
"""Tells by path and module whether to look at it."""

_MASKED = -1e4  # logits below it are a mask's

_MULTIPLIES = frozenset({"mul", "multiply", "imul", "rmul"})
_DIVIDES = frozenset({"div", "divide", "true_divide", "truediv", "itruediv", "idiv"})
_PASSES_ON = frozenset(
    {"float", "half", "bfloat16", "double", "to", "type", "contiguous", "clone", "view", "reshape",
     "flatten", "transpose", "permute", "squeeze", "unsqueeze", "getitem"}
)  # fmt: skip


@dataclass(kw_only=True)
class Outputs:
    """What ran, by path.

    Attributes
    ----------
    tensors : dict of str to list of Tensor
        Every floating-point tensor that the module put out, in order. Attention logits stand under
        the path of the innermost module that made them and `` [attention logits]``.
    own : dict of str to list of Tensor
        Of modules whose earlier parameters were given: the output less what it would have been
        with them.

    Both are taken behind the multiplier that the model or its loss puts on the outputs of those
    modules, as Granite's ``logits_scaling`` and Cohere's ``logit_scale`` are.
    """

    tensors: dict[str, list[Tensor]] = field(default_factory=dict)
    own: dict[str, list[Tensor]] = field(default_factory=dict)


def holds_or_is_leaf(name: str, module: nn.Module) -> bool:
    """Tell whether a module has no modules in it, or parameters of its own beside them.

    The default choice of what to look at; the whole model is not, as its output is the readout's.
    """
    own = any(True for _ in module.parameters(recurse=False))
    return not any(module.children()) or (own and name != "")


def record(
    model: nn.Module,
    run: Callable[[], object],
    modules: ModuleFilter = holds_or_is_leaf,
    before: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> Outputs:
    """Record what the chosen modules put out while ``run`` runs the model.

    The model is in evaluation mode meanwhile and no gradients are taken, so that dropout does not
    pass for learning. A module that is called several times gives all its outputs.

    Parameters
    ----------
    model : torch.nn.Module
        What ``run`` calls.
    run : callable
        Runs the model once.
    modules : callable
        From (path, module) to whether it is looked at.
    before : mapping, optional
        Earlier values of some modules' parameters, by path and name: for ``Outputs.own``.
    """
    outputs = Outputs()
    earlier = before or {}
    multipliers = _FollowMultipliers()
    stack: list[str] = []
    inside = False

    def enter(name: str) -> Callable[..., None]:
        return lambda module, args: stack.append(name)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if stack:
            stack.pop()

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            nonlocal inside
            if inside:
                return
            if isinstance(module, nn.MultiheadAttention):
                output = output[0]  # beside it stand the attention weights
            # Cloned: a later in-place activation would write over it.
            found = [each.detach().clone() for each in _tensors(output)]
            kept = outputs.tensors.setdefault(name, [])
            if name in earlier:
                for k, each in enumerate(_tensors(output), start=len(kept)):
                    multipliers.follow(each, name, k)
            kept.extend(found)
            if name in earlier:
                inside = True
                try:
                    then = functional_call(module, dict(earlier[name]), args, kwargs)
                finally:
                    inside = False
                pairs = zip(found, _tensors(then), strict=True)
                outputs.own.setdefault(name, []).extend(a - b for a, b in pairs)

        return hook

    def keep_logits(logits: Tensor) -> None:
        name = f"{stack[-1] if stack else ''} [{LOGITS}]".strip()
        outputs.tensors.setdefault(name, []).append(logits.detach().clone())

    chosen = {name: module for name, module in model.named_modules() if modules(name, module)}
    handles = [m.register_forward_pre_hook(enter(name)) for name, m in model.named_modules()]
    handles += [m.register_forward_hook(keep(n), with_kwargs=True) for n, m in chosen.items()]
    handles += [m.register_forward_hook(leave) for m in model.modules()]
    try:
        with ExitStack() as context:
            context.enter_context(torch.no_grad())
            context.enter_context(_evaluation(model))
            context.enter_context(_watch_softmax(keep_logits))
            if earlier:
                context.enter_context(multipliers)
            run()
    finally:
        for handle in handles:
            handle.remove()
    outputs.tensors = {name: tensors for name, tensors in outputs.tensors.items() if tensors}
    for (name, k), factor in multipliers.factors.items():
        for kept in (outputs.tensors[name], outputs.own.get(name, [])):
            if k < len(kept):
                kept[k] = kept[k] * factor
    return outputs


class _FollowMultipliers(TorchFunctionMode):
    """Follow single numbers that are multiplied onto modules' outputs, through casts and views.

    Attributes
    ----------
    factors : dict of (str, int) to float
        By module and the number of its output, where there is one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.factors: dict[tuple[str, int], float] = {}
        # The tensors are held, so that no id comes twice.
        self._followed: dict[int, tuple[Tensor, tuple[str, int], float]] = {}

    def follow(self, tensor: Tensor, name: str, k: int) -> None:
        """Follow output ``k`` of a module."""
        self._followed[id(tensor)] = tensor, (name, k), 1.0

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        operands = list(args[:2])  # in-place operations change what is followed
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "").strip("_")
        known = [each for each in operands if id(each) in self._followed]
        if len(known) != 1 or not isinstance(result, Tensor):
            return result
        _, key, factor = self._followed[id(known[0])]
        if name in _MULTIPLIES or (name in _DIVIDES and operands[0] is known[0]):
            other = next((each for each in operands if each is not known[0]), None)
            number = _read_number(other)
            if number is None:
                return result
            factor = factor * number if name in _MULTIPLIES else factor / number
            self.factors[key] = factor
        elif name not in _PASSES_ON:
            return result
        self._followed[id(result)] = result, key, factor
        return result


def _read_number(value: object) -> float | None:
    """Return a number, or that of a tensor of one; None for anything else, and for 0."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = float(value)
    return float(value) if isinstance(value, int | float) and value else None


def rms(tensors: list[Tensor], before: list[Tensor] | None = None) -> float:
    """Return the root mean square of all entries, or of their change since ``before``.

    Returns
    -------
    float
        NaN where the shapes are no longer the same ones, or there are no entries.
    """
    total, count = 0.0, 0
    if before is not None and not same_shapes(tensors, before):
        return math.nan
    for k, tensor in enumerate(tensors):
        wide = tensor.double()
        if before is not None:
            wide = wide - before[k].double()
        total += float(wide.square().sum())
        count += wide.numel()
    return math.sqrt(total / count) if count else math.nan


def same_shapes(tensors: list[Tensor], before: list[Tensor]) -> bool:
    """Tell whether two lists of tensors have the same shapes."""
    return [t.shape for t in tensors] == [t.shape for t in before]


def _tensors(output: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors in a module's output, however it is nested."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for item in output.values():
            yield from _tensors(item)
    elif isinstance(output, list | tuple):
        for item in output:
            yield from _tensors(item)


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Put every module into evaluation mode, and each back into its own afterwards.

    torch's fused encoder layers, which call no module, are off meanwhile.
    """
    before = [(module, module.training) for module in model.modules()]
    fast = torch.backends.mha.get_fastpath_enabled()
    model.eval()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, training in before:
            module.training = training


@contextmanager
def _watch_softmax(keep: Callable[[Tensor], None]) -> Iterator[None]:
    """Call ``keep`` with the logits of every attention, fused or written out, while it lasts."""
    fused, inside = F.scaled_dot_product_attention, False

    def attend(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        nonlocal inside
        scale = args[3] if len(args) > 3 else kwargs.get("scale")
        keep(_logits(query, key, scale))
        outer, inside = inside, True
        try:
            result: Tensor = fused(query, key, value, *args, **kwargs)
        finally:
            inside = outer
        return result

    def watch(softmax: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def watched(values: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            nonlocal inside
            if not inside and _is_attention(values, args, kwargs):
                keep(torch.where(values > _MASKED, values, torch.zeros_like(values)))
            outer, inside = inside, True
            try:
                return softmax(values, *args, **kwargs)
            finally:
                inside = outer

        return watched

    places: list[tuple[Any, str, Any]] = [
        (F, "scaled_dot_product_attention", attend),
        (F, "softmax", watch(F.softmax)),
        (torch, "softmax", watch(torch.softmax)),
        (Tensor, "softmax", watch(Tensor.softmax)),
    ]
    originals = [(place, name, getattr(place, name)) for place, name, _ in places]
    for place, name, function in places:
        setattr(place, name, function)
    try:
        yield
    finally:
        for place, name, function in originals:
            setattr(place, name, function)


def _is_attention(values: Tensor, args: Any, kwargs: Any) -> bool:
    """Tell whether a softmax is attention's: over the last dimension of (…, T, T')."""
    dim = kwargs.get("dim", args[0] if args else -1)
    last = dim in (-1, values.dim() - 1)
    square = values.dim() == 3 and values.shape[-1] == values.shape[-2]
    return last and values.is_floating_point() and (values.dim() >= 4 or square)


def _logits(query: Tensor, key: Tensor, scale: float | None) -> Tensor:
    """Return what the fused attention takes the softmax of, without its mask."""
    if key.dim() > 3 and key.shape[-3] != query.shape[-3]:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    return factor * (query @ key.transpose(-2, -1))
