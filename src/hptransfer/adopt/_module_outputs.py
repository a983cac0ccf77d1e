"""Record what modules put out in one run of a model, with attention logits and products."""

from collections.abc import Callable, Iterator, Mapping, Sequence
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

_UNIT = 0.01  # from a length of 1, in half precision too

_MASKED = -1e4  # logits below it are a mask's

_MULTIPLIES = frozenset({"mul", "multiply", "imul", "rmul"})
_DIVIDES = frozenset({"div", "divide", "true_divide", "truediv", "itruediv", "idiv"})
_PRODUCTS = frozenset({"linear", "matmul", "mm"})
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
    ``factors`` holds those multipliers, by module and the number of its output. ``units`` holds
    the root of the size of what is all vectors of length 1. ``left`` are the modules that put out
    more than the first tensor, which alone is kept, other than torch's own.
    """

    tensors: dict[str, list[Tensor]] = field(default_factory=dict)
    own: dict[str, list[Tensor]] = field(default_factory=dict)
    factors: dict[tuple[str, int], float] = field(default_factory=dict)
    units: dict[str, float] = field(default_factory=dict)
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
    known = named_modules(model)
    watch = _Watch(known, before or {})
    handles = []
    for name, module in known.items():
        handles.append(module.register_forward_pre_hook(partial(watch.enter, name)))
        if modules(name, module):
            keep = partial(watch.keep, name)
            handles.append(module.register_forward_hook(keep, with_kwargs=True))
        handles.append(module.register_forward_hook(watch.leave))
    try:
        with ExitStack() as context:
            context.enter_context(torch.no_grad())
            context.enter_context(torch.compiler.set_stance("force_eager"))  # hooks are to run
            context.enter_context(_evaluation(model))
            context.enter_context(_watch_softmax(watch.keep_logits))
            context.enter_context(watch)
            run()
    finally:
        for handle in handles:
            handle.remove()
    outputs = watch.outputs
    outputs.tensors = {name: tensors for name, tensors in outputs.tensors.items() if tensors}
    if factors is not None:
        outputs.factors = dict(factors)
    for (name, k), factor in outputs.factors.items():
        for kept in (outputs.tensors.get(name, []), outputs.own.get(name, [])):
            if k < len(kept):
                kept[k] = kept[k] * factor
    outputs.units = {
        name: kept[0].shape[-1] ** 0.5
        for name, kept in outputs.tensors.items()
        if len({each.shape[-1:] for each in kept}) == 1 and all(map(_is_unit, kept))
    }
    return outputs


def _is_unit(tensor: Tensor) -> bool:
    """Tell whether an output's vectors have a length of 1, so that entries fall as width^−1/2."""
    if not tensor.dim() or tensor.shape[-1] == 1 or not tensor.numel():
        return False
    return bool(((tensor.float().norm(dim=-1) - 1.0).abs() < _UNIT).all())


class _Watch(TorchFunctionMode):
    """Keep what modules put out, as hooks of theirs, and what stands between modules.

    Single numbers that are multiplied onto outputs are followed through casts and views. A product
    of an activation with a weight, or with its first rows, is kept where no module that holds the
    weight is running; what is computed of weights alone, such as a penalty's, is no activation.
    """

    def __init__(
        self, modules: Mapping[str, nn.Module], earlier: Mapping[str, Mapping[str, Tensor]]
    ) -> None:
        super().__init__()
        self.outputs = Outputs()
        self._earlier = earlier
        self._running: list[str] = []
        self._is_again = False  # a module runs a second time, with earlier values
        self._weights: dict[int, dict[str, str]] = {}  # names by the paths of all that hold it
        for path, module in modules.items():
            for name, p in module.named_parameters(recurse=False):
                self._weights.setdefault(id(p), {})[path] = name
        # The tensors are held, so that no id comes twice.
        self._followed: dict[int, tuple[Tensor, tuple[str, int], float]] = {}
        self._of_weights: dict[int, Tensor] = {}

    def _keep(self, name: str, tensor: Tensor, *, follow: bool = False) -> Tensor:
        # Cloned: a later in-place activation would write over it.
        kept = self.outputs.tensors.setdefault(name, [])
        if follow:
            self._followed[id(tensor)] = tensor, (name, len(kept)), 1.0
        kept.append(tensor.detach().clone())
        return kept[-1]

    def enter(self, name: str, module: nn.Module, args: Any) -> None:
        """Note that a module starts to run."""
        self._running.append(name)

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        """Note that a module has run."""
        if self._running:
            self._running.pop()

    def keep(self, name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Keep a module's output, and what its own earlier parameters change of it."""
        if self._is_again:
            return
        first = _leave_states(output)
        beside = () if first is output or isinstance(module, _WITH_STATES) else output[1:]
        if _find_floats(beside):
            self.outputs.left[name] = None
        is_table, is_known = isinstance(module, nn.Embedding), name in self._earlier
        self.outputs.tensors.setdefault(name, [])
        kept = [self._keep(name, each, follow=is_known or is_table) for each in _find_floats(first)]
        if is_known and not is_table:
            self._is_again = True
            try:
                then = functional_call(module, dict(self._earlier[name]), args, kwargs)
            finally:
                self._is_again = False
            pairs = zip(kept, _find_floats(_leave_states(then)), strict=True)
            self.outputs.own.setdefault(name, []).extend(a - b for a, b in pairs)

    def keep_logits(self, logits: Tensor) -> None:
        """Keep the logits of an attention under the innermost module that runs."""
        self._keep(f"{self._running[-1] if self._running else ''} [{LOGITS}]".strip(), logits)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        operands = list(args[:2])  # in-place operations change what is followed
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        full_name = getattr(func, "__name__", "")
        name = full_name.strip("_")
        if name in _PRODUCTS or (name == "einsum" and _is_product(args[0])):
            kwargs.pop("out", None)
            self._see_product(func, args, kwargs, result)
        self._note_weights(full_name, [*args, *kwargs.values()], result)
        known = [each for each in operands if id(each) in self._followed]
        if len(known) != 1 or not isinstance(result, Tensor):
            return result
        _, key, factor = self._followed[id(known[0])]
        if name in _MULTIPLIES or (name in _DIVIDES and operands[0] is known[0]):
            other = next((each for each in operands if each is not known[0]), None)
            if (number := _read_number(other)) is None:
                return result
            factor = factor * number if name in _MULTIPLIES else factor / number
            self.outputs.factors[key] = factor
        elif name not in _PASSES_ON:
            return result
        self._followed[id(result)] = result, key, factor
        return result

    def _note_weights(self, name: str, values: Sequence[Any], result: Any) -> None:
        """Note whether what an operation made, or wrote into, is made of weights alone."""
        is_in_place = name.startswith("__i") or (name.endswith("_") and not name.endswith("__"))
        made = values[0] if name == "__setitem__" else result
        if not isinstance(made, Tensor):
            return
        if self._is_of_weights(values):
            self._of_weights[id(made)] = made
        elif is_in_place or name == "__setitem__":
            for each in (made, _whole(made)):
                self._of_weights.pop(id(each), None)

    def _is_of_weights(self, values: object) -> bool:
        """Tell whether tensors are weights or made of weights alone, beside single numbers."""
        tensors = [each for each in _flatten(values) if each.dim()]
        return bool(tensors) and all(
            id(each) in self._of_weights or id(_whole(each)) in self._weights for each in tensors
        )

    def _see_product(
        self, func: Callable[..., Tensor], args: Any, kwargs: dict[str, Any], product: Tensor
    ) -> None:
        terms = {key: value for key, value in kwargs.items() if key != "bias"}
        operands = list(_flatten([args, terms]))[:2]
        if len(operands) != 2 or self._is_again or self._is_of_weights(operands):
            return
        weight = next((each for each in operands if id(_whole(each)) in self._weights), None)
        if weight is None:
            return
        base = _whole(weight)
        holders = self._weights[id(base)]
        is_turned = not _is_top(weight, base)
        if is_turned and not (weight.dim() == 2 and _is_top(weight.t(), base)):
            return
        if self._running and self._running[-1] in holders:
            return
        path = next((p for p in reversed(holders) if p in self._earlier), [*holders][-1])
        kept = self._keep(f"{path} [{PRODUCT}]", product, follow=True)
        other = self._earlier.get(path, {}).get(holders[path])
        if other is not None:
            view = other[: weight.shape[is_turned]]
            view = view.t() if is_turned else view
            given = _replace(list(args), weight, view)
            then = func(*given, **{key: _replace(v, weight, view) for key, v in kwargs.items()})
            self.outputs.own.setdefault(f"{path} [{PRODUCT}]", []).append(kept - then)


def _flatten(value: object) -> Iterator[Tensor]:
    """Yield the tensors of what a module puts out or an operation takes, however it is nested."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _flatten(each)


def _find_floats(output: object) -> list[Tensor]:
    """Return the floating-point tensors of a module's output."""
    return [each for each in _flatten(output) if each.is_floating_point()]


def _replace(value: Any, old: Tensor, new: Tensor) -> Any:
    """Return an operation's argument with another tensor in place of one."""
    if isinstance(value, list | tuple):
        return [_replace(each, old, new) for each in value]
    return new if value is old else value


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
            outer, inside = inside, True
            try:
                if not outer and (logits := find(*args, **kwargs)) is not None:
                    keep(logits)
                return function(*args, **kwargs)
            finally:
                inside = outer

        return watched

    places: list[tuple[Any, str, Any]] = [(F, "scaled_dot_product_attention", _fused_logits)]
    places += [(place, "softmax", _softmax_logits) for place in (F, torch, Tensor)]
    originals = [getattr(place, name) for place, name, _ in places]
    for (place, name, find), function in zip(places, originals, strict=True):
        setattr(place, name, watch(function, find))
    try:
        yield
    finally:
        for (place, name, _), function in zip(places, originals, strict=True):
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
