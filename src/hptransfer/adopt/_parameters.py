"""Read a model's parameters: names, shapes, how modules use them, and the heads of attention."""

import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.spectral_norm import SpectralNorm

from hptransfer.adopt._user_model import canonical_name
from hptransfer.adopt.role_table import RoleOverride
from hptransfer.errors import ConfigError
from hptransfer.scaling import MATRIX_ROLES

Use = Literal["table", "matrix", "gain", "bias", "unknown"]
"""``table``: looked up or added; ``matrix``: multiplied with the input; ``unknown``: a parameter
of a module that this does not know."""

PARAMETRIZATIONS = "parametrizations"
"""Where ``torch.nn.utils.parametrize`` puts a parametrized weight's own tensors."""

_NORMS: tuple[type[nn.Module], ...] = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, _NormBase)
_GAIN_NAMES = frozenset({"weight", "gain", "gamma", "scale", "g"})
_BIAS_NAMES = frozenset({"bias", "beta", "b"})
EMBEDDING_WORDS = frozenset(
    {"token", "tokens", "cls", "pos", "position", "positions", "positional", "embed", "embedding",
     "embeddings"}
)  # fmt: skip
LEARNED_INPUT_WORDS = EMBEDDING_WORDS.union(
    ("latent", "prompt", "query", "register", "slot", "table", "wpe", "wte")
)
_POSITION_WORDS = frozenset(
    {"pos", "position", "positions", "positional", "wpe", "rel", "relative", "type", "segment"}
)
QUERY_WORDS = frozenset({"q", "query", "queries", "wq"})
_FUSED_WORDS = frozenset({"qkv", "wqkv"})
KEY_WORDS = _FUSED_WORDS | {"k", "v", "kv", "key", "keys", "value", "values", "wk", "wv"}
ATTENTION_WORDS = QUERY_WORDS | KEY_WORDS
_ITERATIONS = 30  # of a spectral norm's power method
_SIZING = frozenset({"_SpectralNorm", "_Orthogonal"})
ROUTER_WORDS = frozenset({"router", "gate", "gating", "routing", "centroid", "centroids"})
OUTPUT_WORDS = frozenset(
    {"proj", "projection", "head", "out", "output", "o", "hy", "classifier", "linear"}
)
KERNEL_WORDS = frozenset({"kernel", "filter", "conv"})

_HEAD_SIZES = (
    "head_dim", "head_size", "d_kv", "key_value_proj_dim", "attention_head_size", "d_head"
)  # fmt: skip
_HEAD_COUNTS = (
    "num_heads", "num_attention_heads", "n_head", "n_heads", "heads", "nhead", "num_head"
)  # fmt: skip

_HUMP = r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])"


def split_words(name: str) -> list[str]:
    """Return the words of a name: ``LMHead.q_proj`` has lm, head, q and proj."""
    return re.findall(r"[a-z]+", re.sub(_HUMP, " ", name).lower())


# How modules use their parameters


@dataclass(frozen=True)
class Layout:
    """How a parameter is used.

    Attributes
    ----------
    use : Use
        Whether it is looked up, multiplied with, a gain, a bias, or not known.
    out, inn : tuple of int
        Dimensions of a matrix or table that are outputs, and that an output sums over.
    transposed : bool
        Whether the inputs come first.
    """

    use: Use
    out: tuple[int, ...] = ()
    inn: tuple[int, ...] = ()
    transposed: bool = False

    def fans(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return (fan_in, fan_out) of a tensor of this shape."""
        return (
            math.prod(shape[i] for i in self.inn),
            math.prod(shape[i] for i in self.out),
        )


def matrix_layout(ndim: int, *, transposed: bool = False) -> Layout:
    """Return the layout of a matrix, or of a stack of them along leading dimensions."""
    first, last = (ndim - 2,), (ndim - 1,)
    if transposed:
        return Layout("matrix", out=last, inn=first, transposed=True)
    return Layout("matrix", out=first, inn=last)


def _whole_layout(use: Use, shape: Sequence[int]) -> Layout:
    """Return the layout of a gain or a bias, each of whose numbers is an output's own."""
    return Layout(use, out=tuple(range(len(shape))))


def is_norm(module: nn.Module) -> bool:
    """Tell whether a module is a norm: one of torch's, or a class that has norm in its name."""
    return isinstance(module, _NORMS) or "norm" in type(module).__name__.lower()


def is_vector(shape: Sequence[int]) -> bool:
    """Tell whether a shape is a vector's or scalar's: all dimensions but the last are 1."""
    return all(size == 1 for size in shape[:-1])


def find_layout(module: nn.Module, leaf: str, shape: tuple[int, ...]) -> Layout:
    """Return how ``module`` uses its parameter ``leaf``, of that shape."""
    ndim = len(shape)
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return Layout("table", out=(1,), inn=(0,))
    if isinstance(module, _ConvNd) and leaf == "weight":
        kernel = tuple(range(2, ndim))
        if isinstance(module, _ConvTransposeNd):
            return Layout("matrix", out=(1,), inn=(0, *kernel), transposed=True)
        return Layout("matrix", out=(0,), inn=(1, *kernel))
    if isinstance(module, nn.Linear) and leaf == "weight":
        return matrix_layout(ndim)
    if isinstance(module, nn.Bilinear) and leaf == "weight":
        return Layout("matrix", out=(0,), inn=(1, 2))
    if isinstance(module, nn.MultiheadAttention | nn.RNNBase | nn.RNNCellBase) and ndim == 2:
        return matrix_layout(ndim)
    if type(module).__name__ == "Conv1D" and ndim == 2 and hasattr(module, "nf"):
        return matrix_layout(ndim, transposed=True)  # Hugging Face's: weight of (nx, nf)
    if not is_vector(shape):
        return _stacked_bias(module, leaf, shape)
    if leaf in _BIAS_NAMES or leaf.endswith("_bias") or leaf.startswith("bias_"):
        return _whole_layout("bias", shape)
    if is_norm(module) or leaf in _GAIN_NAMES:
        return _whole_layout("gain", shape)
    if EMBEDDING_WORDS & set(split_words(leaf)):
        return Layout("table", out=(ndim - 1,), inn=tuple(range(ndim - 1)))
    return Layout("unknown")


def _stacked_bias(module: nn.Module, leaf: str, shape: tuple[int, ...]) -> Layout:
    """Return the layout of a stack of experts' biases: (E, F) beside a sibling (E, F, D)."""
    sibling = module._parameters.get(leaf.removesuffix("_bias")) if leaf.endswith("_bias") else None
    stack: tuple[int, ...] = () if sibling is None else tuple(sibling.shape)
    is_bias = len(stack) == len(shape) + 1 and stack[0] == shape[0] and shape[-1] in stack[1:]
    return _whole_layout("bias", shape) if is_bias else Layout("unknown")


@dataclass(frozen=True, kw_only=True)
class Holder:
    """A module that holds the parameter, under one of its names.

    Of a parametrized tensor, such as weight norm's, it is the module that uses the tensor, and
    ``leaf`` is the tensor's own name; ``is_gain`` says that the parameter is weight norm's gain.
    ``beside`` are the modules around it, and those of its key in the containers beside its own.
    """

    module: nn.Module
    leaf: str
    path: str
    parent: nn.Module | None
    layout: Layout
    is_gain: bool
    beside: tuple[nn.Module, ...]

    @property
    def in_list(self) -> bool:
        """Whether it stands in a list of layers."""
        inside = isinstance(self.parent, nn.ModuleList)
        return inside or any(part.isdigit() for part in self.path.split(".")[:-1])


@dataclass(frozen=True, kw_only=True)
class Found:
    """One parameter; a shared one stands once, with all its names and holders.

    Attributes
    ----------
    names : tuple of str
        The first is the one of ``named_parameters``.
    shape : tuple of int
        Its shape.
    holders : tuple of Holder
        One for each name.
    siblings : tuple of tuple of int
        Shapes of the parameters that its module holds itself, in order; what a stack of experts or
        a low-rank factor is read against.
    place : int
        Its own place among them; their number where it is itself parametrized.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    holders: tuple[Holder, ...]
    siblings: tuple[tuple[int, ...], ...]
    place: int

    @property
    def name(self) -> str:
        """The first name."""
        return self.names[0]

    @property
    def holder(self) -> Holder:
        """Where it stands under its first name."""
        return self.holders[0]

    @property
    def is_attention_projection(self) -> bool:
        """Whether it makes queries, keys or values of attention.

        Its own module states heads, or the one around it does and it is named as one of them.
        """
        if states_heads(self.holder.module):
            return True
        words = set(split_words(self.holder.path.rpartition(".")[2]))
        around = self.holder.parent is not None and states_heads(self.holder.parent)
        return around and bool(words & ATTENTION_WORDS)

    @property
    def words(self) -> set[str]:
        """The words of its name and of its module's class, also without a plural's s."""
        words = split_words(f"{self.name} {type(self.holder.module).__name__}")
        return {*words, *(word.removesuffix("s") for word in words)}

    @property
    def is_tied_table(self) -> bool:
        """Whether one holder looks it up and another multiplies with it."""
        return {"table", "matrix"} <= {each.layout.use for each in self.holders}

    @property
    def is_head_vector(self) -> bool:
        """Whether it is a vector for each head, such as those that graph attention sums with."""
        counts = {_stated(self.holder.module, key) for key in _HEAD_COUNTS}
        named = {"att", "attn", "attention"} & set(split_words(self.holder.leaf))
        return len(self.shape) == 3 and bool(named or self.shape[1] in counts)

    def find_low_rank(self, infinite: tuple[int, ...]) -> Literal["", "linear", "transposed"]:
        """Return how the parameter is stored as one of two low-rank factors side by side.

        Returns
        -------
        str
            ``linear``: (fan_out, fan_in), ``transposed``: the other way round; "" where no factor
            beside it has the same fixed dimension.
        """
        if len(self.shape) != 2 or len(infinite) != 1:
            return ""
        k = infinite[0]
        rank = self.shape[1 - k]
        holder = self.holder
        if not isinstance(holder.module, nn.Linear):
            is_parametrized = self.place == len(self.siblings)
            if is_parametrized or self.words & EMBEDDING_WORDS or rank >= self.shape[k]:
                return ""
            before, after = self.siblings[: self.place][::-1], self.siblings[self.place + 1 :]
            for side, is_first in ((after, True), (before, False)):
                next_one = next((s for s in side if len(s) == 2), ())
                if next_one and next_one[k] == rank != next_one[1 - k]:
                    return "linear" if is_first == (k == 1) else "transposed"
            return ""
        fans = [_linear_fans(each) for each in holder.beside]
        return "linear" if any(f and f[0] == rank != f[1] for f in fans) else ""

    def find_layout(
        self, infinite: tuple[int, ...], *, width: int, told: RoleOverride | None
    ) -> Layout:
        """Return how the parameter is stored and used.

        Parameters
        ----------
        infinite : tuple of int
            Dimensions that grow.
        width : int
            Size of the residual stream.
        told : RoleOverride or None
            What the user says of it; used where the module is not known.

        Raises
        ------
        ConfigError
            If what the user says cannot be: a vector told as a matrix, or a matrix told as stored
            in another way than its module does.
        """
        layouts = [each.layout for each in self.holders]
        known = next((each for each in layouts if each.use == "table"), layouts[0])
        if any(each != known for each in layouts) and not self.is_tied_table:
            known = Layout("unknown")
        if told is None:
            is_known = known.use != "unknown"
            return known if is_known else self._bare_layout(infinite, width=width)
        is_sum = told.role == "readout" and bool(infinite)  # x @ w: one output
        if told.role in MATRIX_ROLES and len(self.shape) < 2 and not is_sum:
            raise ConfigError(
                f"roles of {self.name!r}: {told.role!r} is a matrix, and this has shape "
                f"{self.shape}; a gain is 'norm', what no rule speaks of is 'other'"
            )
        if known.use != "unknown" and told.transposed and not known.transposed:
            raise ConfigError(
                f"roles of {self.name!r}: a {type(self.holder.module).__name__} stores it as "
                f"(fan_out, fan_in), found '{told.role}:transposed'"
            )
        if known.use == "unknown" or (known.use in ("gain", "bias") and len(self.shape) >= 2):
            return _told_layout(told, self.shape, infinite)
        return known

    def _bare_layout(self, infinite: tuple[int, ...], *, width: int) -> Layout:
        """Return the layout of a parameter that its own module multiplies or adds."""
        ndim = len(self.shape)
        is_added = (
            ndim >= 3
            and self.shape[0] == 1
            and not is_vector(self.shape)
            and not self.is_head_vector
        )
        if is_added and infinite == (ndim - 1,):
            # Broadcast over the batch: position tables, which are added.
            return Layout("table", out=(ndim - 1,), inn=tuple(range(ndim - 1)))
        if ndim in (2, 3) and infinite == (ndim - 2, ndim - 1):
            stacks = [shape for shape in self.siblings if len(shape) == 3]
            if ndim == 3 and len(stacks) > 1:
                return expert_layout(stacks, width)
            if self.shape[-1] == self.shape[-2]:
                return matrix_layout(ndim)
        return Layout("unknown")


def _told_layout(told: RoleOverride, shape: tuple[int, ...], infinite: tuple[int, ...]) -> Layout:
    ndim = len(shape)
    rest = tuple(i for i in range(ndim) if i not in infinite)
    if told.role in ("norm", "bias", "other"):
        return _whole_layout("bias" if told.role == "bias" else "gain", shape)
    if told.role in ("embedding", "tied"):
        return Layout("table", out=infinite, inn=rest)
    if told.role == "readout" and ndim == 1:
        return Layout("matrix", inn=(0,), transposed=True)
    if told.role == "readout" and len(infinite) == 1 and ndim == 2:
        return Layout("matrix", out=rest, inn=infinite, transposed=infinite == (0,))
    if len(infinite) == 2:
        inn, out = infinite if told.transposed else infinite[::-1]
        return Layout("matrix", out=(out,), inn=(inn,), transposed=told.transposed)
    return matrix_layout(ndim, transposed=told.transposed)


def expert_layout(stacks: Sequence[tuple[int, ...]], width: int) -> Layout:
    """Return the layout of a module's matrices, or stacks of experts', from all of their shapes.

    The first one (up, gate) reads the residual stream and the last (down) writes to it, so the
    dimension that is the width tells which way round all are stored.
    """
    ndim = len(stacks[0])
    for (rows, columns), inputs in ((stacks[0][-2:], 0), (stacks[-1][-2:], 1)):
        if (rows == width) != (columns == width):
            return matrix_layout(ndim, transposed=(rows, columns)[inputs] == width)
    return matrix_layout(ndim) if stacks[0][-2] == stacks[0][-1] else Layout("unknown")


def list_parameters(model: nn.Module) -> list[Found]:
    """Return every parameter of a model in order, a shared one once."""
    modules = dict(model.named_modules(remove_duplicate=False))
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)

    def hold(name: str, shape: tuple[int, ...]) -> Holder:
        path, _, leaf = name.rpartition(".")
        path, leaf, is_gain = _find_made(modules[path], path, leaf)
        module = modules[path]
        layout = _whole_layout("gain", shape) if is_gain else find_layout(module, leaf, shape)
        return Holder(
            module=module,
            leaf=leaf,
            path=canonical_name(path),
            parent=modules[path.rpartition(".")[0]] if path else None,
            layout=layout,
            is_gain=is_gain,
            beside=tuple(_find_beside(modules, path)),
        )

    found = []
    for parameter, known in names.items():
        shape = tuple(parameter.shape)
        holders = tuple(hold(name, shape) for name in known)
        own = list(holders[0].module.parameters(recurse=False))
        found.append(
            Found(
                names=tuple(canonical_name(name) for name in known),
                shape=shape,
                holders=holders,
                siblings=tuple(tuple(each.shape) for each in own),
                place=next((k for k, each in enumerate(own) if each is parameter), len(own)),
            )
        )
    return found


def _find_beside(modules: dict[str, nn.Module], path: str) -> Iterator[nn.Module]:
    """Yield the modules beside one, or of adapters by name (``lora_B.default``) its partners."""
    around, _, own = path.rpartition(".")
    if path:
        yield from (each for key, each in modules[around].named_children() if key != own)
    if isinstance(modules[around], nn.ModuleDict):
        outer = modules[around.rpartition(".")[0]]
        after = itertools.dropwhile(lambda each: each is not modules[around], outer.children())
        yield from (each[own] for each in after if isinstance(each, nn.ModuleDict) and own in each)


def _find_made(module: nn.Module, path: str, leaf: str) -> tuple[str, str, bool]:
    """Return the path and name of the tensor that a parameter makes, and whether as its gain.

    Of ``torch.nn.utils.parametrizations``, of the older ``weight_norm`` and ``spectral_norm``, and
    of ``torch.nn.utils.prune``; any other parameter makes itself.
    """
    if isinstance(module, ParametrizationList) and (
        hasattr(module, "original") or _is_normed(module)
    ):
        around, _, tensor = f".{path}".rpartition(f".{PARAMETRIZATIONS}.")
        return around[1:], tensor, leaf == "original0"
    tensor, _, part = leaf.rpartition("_")
    if part in ("g", "v") and {f"{tensor}_g", f"{tensor}_v"} <= set(module._parameters):
        return path, tensor, part == "g"
    if part == "orig" and {f"{tensor}_u", f"{tensor}_mask"} & set(module._buffers):
        return path, tensor, False
    return path, leaf, False


def _is_normed(module: nn.Module) -> bool:
    return isinstance(module, ParametrizationList) and type(module[0]).__name__ == "_WeightNorm"


class Parametrized(NamedTuple):
    """A weight that is made of a parameter: by weight norm, a spectral norm, or otherwise.

    Attributes
    ----------
    gain, direction : Parameter
        Weight norm's gain, or None, and the parameter behind the weight.
    make : callable
        Makes the weight, once what makes it has settled.
    is_sized : bool
        Whether that sets the weight's size, as a spectral norm does.
    """

    gain: nn.Parameter | None
    direction: nn.Parameter
    make: Callable[[], torch.Tensor]
    is_sized: bool = False


def find_parametrized(model: nn.Module) -> Iterator[Parametrized]:
    """Yield the weights that ``torch.nn.utils`` makes, of its parametrizations or older hooks."""
    for module in model.modules():
        if isinstance(module, ParametrizationList):
            own: Any = module
            if _is_normed(module):
                yield Parametrized(own.original0, own.original1, own)
            elif hasattr(module, "original"):
                is_sized = any(type(each).__name__ in _SIZING for each in own)
                yield Parametrized(None, own.original, partial(_settle, module, own), is_sized)
        for name, direction in module._parameters.items():
            gain = module._parameters.get(f"{name.removesuffix('_v')}_g")
            if name.endswith("_v") and gain is not None and direction is not None:
                dim = next((k for k, n in enumerate(gain.shape) if n != 1), -1)
                yield Parametrized(
                    gain, direction, partial(torch._weight_norm, direction, gain, dim)
                )
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm):
                make = partial(hook.compute_weight, module, do_power_iteration=True)
                original = module.get_parameter(f"{hook.name}_orig")
                yield Parametrized(None, original, partial(_settle, module, make), True)


def _settle(module: nn.Module, make: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Return the weight that is made once the iterations of what makes it have settled."""
    before = module.training
    module.train()
    for _ in range(_ITERATIONS):
        weight = make()
    module.train(before)
    return weight


def find_token_table(model: nn.Module) -> nn.Embedding | None:
    """Return the vocabulary's look-up table; None where there is no table.

    It is the largest whose rows some matrix puts out and whose name does not speak of positions,
    where there is such a one: a table of positions may be the larger.
    """
    fans = [_linear_fans(module) for module in model.modules()]
    outputs = {each[1] for each in fans if each is not None}
    tables = [
        (not _POSITION_WORDS & set(split_words(path)), m.num_embeddings in outputs, m)
        for path, m in model.named_modules()
        if isinstance(m, nn.Embedding)
    ]
    best = max(tables, key=lambda each: (*each[:2], each[2].num_embeddings), default=None)
    return None if best is None else best[2]


# Heads of attention


def states_heads(module: nn.Module) -> bool:
    """Tell whether a module states a head size or a number of heads."""
    return isinstance(module, nn.MultiheadAttention) or any(
        _stated(module, key) for key in (*_HEAD_SIZES, *_HEAD_COUNTS)
    )


def _stated(holder: object, key: str) -> int | None:
    number = getattr(holder, key, None)
    is_count = isinstance(number, int) and not isinstance(number, bool) and number > 0
    return number if is_count else None


def find_head_sizes(model: nn.Module, width: int) -> dict[str, int]:
    """Return the query head size of each attention module, by path.

    A module states it (``head_dim``, ``d_kv``, …), or states the number of heads, itself or in its
    ``config``, over which its query projection's outputs are shared.

    Parameters
    ----------
    model : torch.nn.Module
        On any device.
    width : int
        What a module's heads share where it has no query projection.

    Returns
    -------
    dict of str to int
        Empty where no module says a word of heads.
    """
    projecting: dict[str, int] = {}
    stating: dict[str, int] = {}
    for path, module in model.named_modules():
        outputs = _query_outputs(module)
        named = "attention" in type(module).__name__.lower()
        sources: list[object] = [module]
        if (outputs is not None or named) and (config := getattr(module, "config", None)):
            sources.append(config)
        size = next((n for s in sources for k in _HEAD_SIZES if (n := _stated(s, k))), None)
        count = next((n for s in sources for k in _HEAD_COUNTS if (n := _stated(s, k))), None)
        if size is None and count is not None:
            across = outputs or width
            size = across // count if across % count == 0 else None
        if size is not None:
            where = projecting if outputs is not None else stating
            where[canonical_name(path)] = size
    return projecting or stating


def _query_outputs(module: nn.Module) -> int | None:
    """Return how many outputs the queries of an attention module have; None if it has none."""
    if isinstance(module, nn.MultiheadAttention):
        return int(module.embed_dim)
    for name, child in module.named_children():
        words, fans = set(split_words(name)), _linear_fans(child)
        if fans is None:
            continue
        fan_in, fan_out = fans
        if _is_fused(words):
            return fan_out // 3 if fan_out == 3 * fan_in else fan_in
        if words & QUERY_WORDS and "a" not in words:
            return fan_out
    return None


def _is_fused(words: set[str]) -> bool:
    """Tell by a projection's words whether it makes queries, keys and values in one."""
    both = bool(words & QUERY_WORDS and words & KEY_WORDS)
    return both or bool(words & _FUSED_WORDS) or words >= {"c", "attn"}


def is_fused_name(name: str) -> bool:
    """Tell by a parameter's name whether it makes queries, keys and values in one."""
    path, _, leaf = name.rpartition(".")
    return leaf == "in_proj_weight" or _is_fused(set(split_words(path.rpartition(".")[2])))


def _linear_fans(module: nn.Module) -> tuple[int, int] | None:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.Tensor) or weight.dim() != 2 or is_norm(module):
        return None
    if isinstance(module, nn.Embedding):
        return None
    layout = find_layout(module, "weight", tuple(weight.shape))
    return layout.fans(tuple(weight.shape)) if layout.use == "matrix" else None
