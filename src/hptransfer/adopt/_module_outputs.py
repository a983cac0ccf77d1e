"""Record what modules put out in one run of a model, with attention logits and products."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from hptransfer.adopt._parameters import PARAMETRIZATIONS
from hptransfer.adopt._user_model import canonical_name

LOGITS = "attention logits"
"""The kind of what goes into an attention's softmax."""

PRODUCT = "product"
"""The kind of a product with a weight that another module holds, as where readouts are tied so."""

ModuleFilter = Callable[[str, nn.Module], bool]
"""Tells by path and module whether to look at it."""

_MASKED = -1e4  # logits below it are a mask's

_MULTIPLIES = frozenset({"mul", "multiply", "imul", "rmul"})
_DIVIDES = frozenset({"div", "divide", "true_divide", "truediv", "itruediv", "idiv"})
_PRODUCTS = {
    "linear": ("input", "weight"),
    "matmul": ("input", "other"),
    "mm": ("input", "mat2"),
}
_WITH_STATES = (nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)
_PASSES_ON = frozenset(
    {"float", "half", "bfloat16", "double", "to", "type", "contiguous", "clone", "view", "reshape",
     "flatten", "transpose", "permute", "squeeze", "unsqueeze", "getitem"}
)  # fmt: skip


def holds_or_is_leaf(name: str, module: nn.Module) -> bool:
    """Tell whether a module has no modules in it, or parameters of its own beside them.

    The default choice of what to look at; the whole model is not, as its output is the readout's.
    """
    own = any(True for _ in module.parameters(recurse=False))
    inner = {child for child, _ in module.named_children()} - {PARAMETRIZATIONS}
    return not inner or (own and name != "")


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules by path, without what ``torch.compile`` adds to it.

    What makes a parametrized weight is left out: it puts out no activation.
    """
    return {
        canonical_name(path): module
        for path, module in model.named_modules()
        if PARAMETRIZATIONS not in path.split(".")
    }


@dataclass(kw_only=True)
class Outputs:
    """Hold what ran, by path.

    ``tensors`` are the floating-point tensors that a module put out, in order; attention logits
    stand under the innermost module that made them and `` [attention logits]``, products with a
    weight outside the module that holds it under that one and `` [product]``. ``own``, of modules
    whose earlier parameters were given, is the output less what it would have been with them. Both
    are taken behind the multiplier that the model or its loss puts on the output, such as Granite's
    ``logits_scaling`` and Cohere's ``logit_scale``, and look-up tables' behind theirs, such as √D.
    ``factors`` holds those multipliers, by module and the number of its output. ``left`` are the
    modules that put out more than the first tensor, which alone is kept, other than torch's own.
    """

    tensors: dict[str, list[Tensor]] = field(default_factory=dict)
    own: dict[str, list[Tensor]] = field(default_factory=dict)
    factors: dict[tuple[str, int], float] = field(default_factory=dict)
    left: dict[str, None] = field(default_factory=dict)


def record(
    model: nn.Module,
    run: Callable[[], object],
    modules: ModuleFilter = holds_or_is_leaf,
    before: Mapping[str, Mapping[str, Tensor]] | None = None,
    factors: Mapping[tuple[str, int], float] | None = None,
) -> Outputs:
    """Record what the chosen modules put out while ``run`` runs the model.

    The model is in evaluation mode meanwhile and no gradients are taken, so that dropout does not
    pass for learning. A module that is called several times gives all its outputs. ``before`` holds
    earlier values of some modules' parameters, by path and name, for ``Outputs.own``. ``factors``
    are those of an earlier look, to be used in place of this one's: a multiplier that is learned
    would pass for a change of what it multiplies.
    """
    outputs, earlier = Outputs(), before or {}
    known = named_modules(model)
    stack: list[str] = []
    inside = False

    def keep_product(
        path: str, holders: Collection[str], product: Tensor, other: Tensor | None
    ) -> None:
        if not inside and (not stack or stack[-1] not in holders):
            name = f"{path} [{PRODUCT}]"
            kept = outputs.tensors.setdefault(name, [])
            watch.follow(product, name, len(kept))
            kept.append(product.detach().clone())
            if other is not None:
                outputs.own.setdefault(name, []).append(kept[-1] - other)

    watch = _Watch(known, earlier, keep_product)

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
            first = _leave_states(output)
            beside = () if first is output or isinstance(module, _WITH_STATES) else output[1:]
            if any(True for _ in _tensors(beside)):
                outputs.left[name] = None
            output = first
            # Cloned: a later in-place activation would write over it.
            found = [each.detach().clone() for each in _tensors(output)]
            kept = outputs.tensors.setdefault(name, [])
            if name in earlier or isinstance(module, nn.Embedding):
                for k, each in enumerate(_tensors(output), start=len(kept)):
                    watch.follow(each, name, k)
            if name in earlier and not isinstance(module, nn.Embedding):
                inside = True
                try:
                    then = functional_call(module, dict(earlier[name]), args, kwargs)
                finally:
                    inside = False
                pairs = zip(found, _tensors(_leave_states(then)), strict=True)
                outputs.own.setdefault(name, []).extend(a - b for a, b in pairs)
            kept.extend(found)

        return hook

    def keep_logits(logits: Tensor) -> None:
        name = f"{stack[-1] if stack else ''} [{LOGITS}]".strip()
        outputs.tensors.setdefault(name, []).append(logits.detach().clone())

    chosen = {name: module for name, module in known.items() if modules(name, module)}
    handles = [m.register_forward_pre_hook(enter(n)) for n, m in known.items()]
    handles += [m.register_forward_hook(keep(n), with_kwargs=True) for n, m in chosen.items()]
    handles += [m.register_forward_hook(leave) for m in known.values()]
    try:
        with ExitStack() as context:
            context.enter_context(torch.no_grad())
            context.enter_context(torch.compiler.set_stance("force_eager"))  # hooks are to run
            context.enter_context(_evaluation(model))
            context.enter_context(_watch_softmax(keep_logits))
            context.enter_context(watch)
            run()
    finally:
        for handle in handles:
            handle.remove()
    outputs.tensors = {name: tensors for name, tensors in outputs.tensors.items() if tensors}
    outputs.factors = watch.factors if factors is None else dict(factors)
    for (name, k), factor in outputs.factors.items():
        for kept in (outputs.tensors.get(name, []), outputs.own.get(name, [])):
            if k < len(kept):
                kept[k] = kept[k] * factor
    return outputs


class _Watch(TorchFunctionMode):
    """Follow single numbers that are multiplied onto outputs, and see products with weights.

    ``factors`` holds the numbers by module and the number of its output; they are followed through
    casts and views. Of a product of an activation with a weight, or with its first rows, ``keep``
    is told a module that holds the weight, all that do, the product, and what it would be with the
    weight's earlier value where that is known.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        earlier: Mapping[str, Mapping[str, Tensor]],
        keep: Callable[[str, Collection[str], Tensor, Tensor | None], None],
    ) -> None:
        super().__init__()
        self.factors: dict[tuple[str, int], float] = {}
        self._keep, self._earlier = keep, earlier
        self._weights: dict[int, dict[str, str]] = {}  # names by the paths of all that hold it
        for path, module in modules.items():
            for name, p in module.named_parameters(recurse=False):
                if p.dim() == 2:
                    self._weights.setdefault(id(p), {})[path] = name
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
        if name in _PRODUCTS or name == "einsum":
            self._see_product(*_bind(name, func, args, kwargs or {}), result)
        known = [each for each in operands if id(each) in self._followed]
        if len(known) != 1 or not isinstance(result, Tensor):
            return result
        _, key, factor = self._followed[id(known[0])]
        if name in _MULTIPLIES or (name in _DIVIDES and operands[0] is known[0]):
            other = next((each for each in operands if each is not known[0]), None)
            if (number := _read_number(other)) is None:
                return result
            factor = factor * number if name in _MULTIPLIES else factor / number
            self.factors[key] = factor
        elif name not in _PASSES_ON:
            return result
        self._followed[id(result)] = result, key, factor
        return result

    def _see_product(
        self, operands: list[Any], multiply: Callable[..., Tensor], product: Tensor
    ) -> None:
        found = [k for k, each in enumerate(operands) if id(_whole(each)) in self._weights]
        if len(operands) != 2 or len(found) != 1:  # two weights are a penalty's, such as W @ W.T
            return
        (k,) = found
        each, base = operands[k], _whole(operands[k])
        is_turned = not _is_top(each, base)
        if is_turned and not (each.dim() == 2 and _is_top(each.t(), base)):
            return
        holders = self._weights[id(base)]
        path = next((p for p in reversed(holders) if p in self._earlier), [*holders][-1])
        other = self._earlier.get(path, {}).get(holders[path])
        if other is not None:
            view = other[: each.shape[is_turned]]
            view = view.t() if is_turned else view
            other = multiply(*operands[:k], view, *operands[k + 1 :])
        self._keep(path, holders, product, other)


def _whole(tensor: Any) -> Any:
    """Return the tensor of which another is a view."""
    return tensor._base if isinstance(tensor, Tensor) and tensor._base is not None else tensor


def _is_top(view: Tensor, base: Tensor) -> bool:
    """Tell whether a view is the whole tensor, or its first rows."""
    return (
        view.dim() == 2
        and view.stride() == base.stride()
        and view.shape[1] == base.shape[1]
        and view.storage_offset() == base.storage_offset()
    )


def _bind(
    name: str, func: Any, args: Any, kwargs: Mapping[str, Any]
) -> tuple[list[Any], Callable[..., Tensor]]:
    """Return what a product multiplies, and what multiplies others in the same way.

    An ``einsum`` has none where it is no product with a matrix.
    """
    if name == "einsum":
        equation, *given = args
        if len(given) == 1 and isinstance(given[0], list | tuple):
            given = list(given[0])
        return given if _is_product(equation) else [], partial(func, equation)
    keys = _PRODUCTS[name]
    bound = dict(zip(keys, args, strict=False)) | dict(kwargs)
    rest = {key: value for key, value in kwargs.items() if key not in keys and key != "out"}

    def multiply(one: Tensor, two: Tensor) -> Tensor:
        made: Tensor = func(one, two, *args[2:], **rest)
        return made

    return [bound.get(key) for key in keys], multiply


def _is_product(equation: object) -> bool:
    """Tell whether an einsum multiplies with a matrix, of which it sums over one dimension."""
    inputs, arrow, output = str(equation).replace(" ", "").partition("->")
    terms = inputs.split(",")
    if len(terms) != 2 or not arrow:
        return False
    for one, two in (terms, terms[::-1]):
        summed = set(one) & set(two) - set(output)
        if len(set(one)) == len(one) == 2 and len(summed) == 1:
            return set(one) - summed <= set(output) - set(two)
    return False


def _read_number(value: object) -> float | None:
    """Return a number, or that of a tensor of one; None for anything else, and for 0."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = float(value)
    return float(value) if isinstance(value, int | float) and value else None


def _leave_states(output: Any) -> Any:
    """Return a module's output without the attention weights or states that stand beside it."""
    is_first = isinstance(output, tuple) and output and isinstance(output[0], Tensor)
    return output[0] if is_first else output


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
    inside = False

    def watch(function: Callable[..., Tensor], find: Callable[..., Tensor | None]) -> Any:
        def watched(*args: Any, **kwargs: Any) -> Tensor:
            nonlocal inside
            if not inside and (logits := find(*args, **kwargs)) is not None:
                keep(logits)
            outer, inside = inside, True
            try:
                return function(*args, **kwargs)
            finally:
                inside = outer

        return watched

    places = [
        (F, "scaled_dot_product_attention", watch(F.scaled_dot_product_attention, _fused_logits)),
        *(
            (place, "softmax", watch(place.softmax, _softmax_logits))
            for place in (F, torch, Tensor)
        ),
    ]
    originals = [(place, name, getattr(place, name)) for place, name, _ in places]
    for place, name, function in places:
        setattr(place, name, function)
    try:
        yield
    finally:
        for place, name, function in originals:
            setattr(place, name, function)


def _softmax_logits(values: Tensor, *args: Any, **kwargs: Any) -> Tensor | None:
    """Return what an attention's softmax is taken of, what is masked as 0; None for another's.

    An attention's is over the last dimension of (…, T, T').
    """
    last = kwargs.get("dim", args[0] if args else -1) in (-1, values.dim() - 1)
    square = values.dim() == 3 and values.shape[-1] == values.shape[-2]
    if last and values.is_floating_point() and (values.dim() >= 4 or square):
        return torch.where(values > _MASKED, values, torch.zeros_like(values))
    return None


def _fused_logits(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Return what the fused attention takes the softmax of, without its mask."""
    scale = args[3] if len(args) > 3 else kwargs.get("scale")
    if key.dim() > 3 and key.shape[-3] != query.shape[-3]:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
    logits: Tensor = query @ key.transpose(-2, -1)
    return logits * float(query.shape[-1] ** -0.5 if scale is None else scale)
