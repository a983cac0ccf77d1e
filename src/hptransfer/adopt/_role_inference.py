"""Find each parameter's role from a model at two widths, built without memory."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from hptransfer.adopt._own_init import OwnInit, measure_own_init
from hptransfer.adopt._parameters import (
    ATTENTION_WORDS,
    KERNEL_WORDS,
    LEARNED_INPUT_WORDS,
    OUTPUT_WORDS,
    ROUTER_WORDS,
    Found,
    Layout,
    expert_layout,
    find_head_sizes,
    find_token_table,
    list_parameters,
    split_words,
)
from hptransfer.adopt._user_model import Factory, build_model, count_parameters, name_pattern
from hptransfer.adopt.role_table import (
    AttentionHeads,
    ParameterRole,
    RoleOverride,
    RoleTable,
    TableRole,
    read_role_overrides,
)
from hptransfer.errors import ConfigError
from hptransfer.scaling._resolve import check_count

_ASK_LIMIT = 20_000_000
"""Parameters of a base model up to which its initial values help to propose a role."""

_SAME_RATIO = 1.1  # shapes are rounded to whole heads and to multiples


class UnclearRolesError(ConfigError):
    """Ask for roles that must be given; ``suggestions`` is the mapping to paste as ``roles=``.

    Attributes
    ----------
    suggestions : dict of str to str
        A likely role by name or pattern.
    reasons : dict of str to str
        Why it is likely, by the same keys.

    Examples
    --------
    >>> from torch import nn
    >>> class Mixture(nn.Module):
    ...     def __init__(self, width):
    ...         super().__init__()
    ...         self.table, self.router = nn.Embedding(10, width), nn.Linear(width, 4, bias=False)
    ...         self.up, self.head = nn.Linear(width, width), nn.Linear(width, 10)
    >>> try:
    ...     infer_roles(Mixture, base_width=64, width=256)
    ... except UnclearRolesError as error:
    ...     table = infer_roles(Mixture, base_width=64, width=256, roles=error.suggestions)
    >>> table["router.weight"].role
    'readout'
    """

    def __init__(
        self, where: str, suggestions: Mapping[str, str], reasons: Mapping[str, str], names: int
    ) -> None:
        self.suggestions, self.reasons = dict(suggestions), dict(reasons)
        self.where, self.names = where, names
        pasted = ", ".join(f'"{key}": "{role}"' for key, role in self.suggestions.items())
        super().__init__(self.word(f"say it: roles={{{pasted}}}"))

    def word(self, how: str) -> str:
        """Return the message, with another way to say the roles."""
        more = f", and of {self.names - 1} more" if self.names > 1 else ""
        why = "; ".join(f"{key!r} {reason}" for key, reason in self.reasons.items())
        return (
            f"roles: cannot tell the role of {self.where}{more}; {how} "
            f"({RoleOverride.choices()}). Likely, as {why}"
        )


def infer_roles(
    factory: Factory,
    *,
    base_width: int,
    width: int,
    roles: Mapping[str, str] | None = None,
) -> RoleTable:
    """Find the role of every parameter of the model that ``factory(width)`` builds.

    The models are built on the meta device, so they take no memory. Which dimensions grow is seen
    from the two shapes; the rest from the type of the module that holds the parameter.

    Parameters
    ----------
    factory : callable
        ``factory(width)`` returns the model at a width. The vocabulary must not depend on it; the
        number of layers may, for rules that speak of depth.
    base_width, width : int
        The width at which all rules agree, and the model's. They may be equal: a model at
        2 · base_width then shows what grows.
    roles : mapping of str to str, optional
        Roles by name or by pattern (``"layers.*.out.weight": "hidden_residual"``).
        ``"hidden:transposed"`` also says that a matrix is stored as (fan_in, fan_out).

    Returns
    -------
    RoleTable
        Plain data, one entry for each parameter in the model's order.

    Raises
    ------
    ConfigError
        If roles cannot be told (``UnclearRolesError``: the message is a mapping to paste, for all
        of them at once), the two models do not have the same parameters, no shape grows as the
        widths do, one shared parameter is given two roles, or ``roles`` names no parameter.

    Examples
    --------
    >>> from torch import nn
    >>> def make(width):
    ...     return nn.Sequential(nn.Embedding(10, width), nn.Linear(width, width),
    ...                          nn.Linear(width, 10, bias=False))
    >>> for each in infer_roles(make, base_width=64, width=256):
    ...     print(each.name, each.role, each.fan_in)
    0.weight embedding 10
    1.weight hidden 256
    1.bias bias 1
    2.weight readout 256
    """
    base_width = check_count("base_width", base_width)
    width = check_count("width", width)
    model, base_model = build_model(factory, width), build_model(factory, base_width)
    found = list_parameters(model)
    depth, base = _match(found, list_parameters(base_model), widths=(width, base_width))
    grown, wide = found, width
    if width == base_width:
        wide = 2 * base_width
        _, grown = _match(
            base, list_parameters(build_model(factory, wide)), widths=(base_width, wide)
        )
    _check_growth(grown, base, widths=(wide, base_width))
    told = read_role_overrides([each.names for each in found], roles or {})
    vocabulary = find_token_table(model)
    stream = width if vocabulary is None else vocabulary.embedding_dim
    tensors = [_Tensor(*each, stream) for each in zip(found, base, grown, told, strict=True)]
    _choose_roles(tensors, vocabulary)
    if any(each.role is None for each in tensors):
        own = _look_at_own_init(factory, base_width, base_model)
        raise _ask(tensors, own, widths=(base_width, wide))
    heads = _pair_heads(find_head_sizes(model, width), find_head_sizes(base_model, base_width))
    sizes = {(each.head_size, each.base_head_size) for each in heads}
    one_size = next(iter(sizes)) if len(sizes) == 1 else (None, None)
    return RoleTable(
        width=width,
        base_width=base_width,
        parameters=tuple(each.make_entry() for each in tensors),
        head_size=one_size[0],
        base_head_size=one_size[1],
        heads=heads,
        num_layers=depth[0] if depth else None,
        base_num_layers=depth[1] if depth else None,
        factory=factory,
    )


def _look_at_own_init(
    factory: Factory, base_width: int, base_model: nn.Module
) -> Mapping[str, OwnInit]:
    """Return the base model's own initial values where that is cheap, else nothing."""
    if count_parameters(base_model) > _ASK_LIMIT:
        return {}
    try:
        return measure_own_init(factory, base_width).parameters
    except ConfigError:
        return {}


def _pair_heads(here: Mapping[str, int], base: Mapping[str, int]) -> tuple[AttentionHeads, ...]:
    """Return each module's head sizes; a layer that the base lacks has that of its likes."""
    alike = {name_pattern(path): size for path, size in base.items()}
    return tuple(
        AttentionHeads(
            module=path, head_size=size, base_head_size=base.get(path, alike[name_pattern(path)])
        )
        for path, size in here.items()
        if name_pattern(path) in alike
    )


def _check_growth(
    grown: Sequence[Found], base: Sequence[Found], *, widths: tuple[int, int]
) -> None:
    """Raise if no shape grows, or none by the ratio of the widths: they are no widths then."""
    ratios = Counter(
        a / b
        for one, other in zip(grown, base, strict=True)
        for a, b in zip(one.shape, other.shape, strict=True)
        if a != b
    )
    wide, base_width = widths
    if not ratios:
        raise ConfigError(
            f"factory: expected shapes that change with width, found the same at widths "
            f"{base_width} and {wide}"
        )
    m = wide / base_width
    if all(abs(math.log(ratio / m)) > math.log(_SAME_RATIO) for ratio in ratios):
        common = ratios.most_common(1)[0][0]
        raise ConfigError(
            f"factory: from {base_width} to {wide} ({m:g} times) shapes grow {common:g} times: the "
            "factory's number is no width; give infer_roles a function of the width itself, and "
            "its widths"
        )


def _match(
    found: Sequence[Found], other: Sequence[Found], *, widths: tuple[int, int]
) -> tuple[tuple[int, int] | None, list[Found]]:
    """Return ``other``'s parameters in the order of ``found``, and both depths if they differ.

    A layer that ``other`` lacks is paired with one of its likes, by pattern.
    """
    by_name = {name: each for each in other for name in each.names}
    alike = {name_pattern(name): each for name, each in by_name.items()}
    names = dict.fromkeys(name for each in found for name in each.names)
    depth = None
    if set(names) != set(by_name):
        depth = _compare_depth(set(names), set(by_name))
        if depth is None:
            here, there = widths
            only = [name for name in names if name not in by_name]
            if not only:
                here, there = there, here
                only = [name for name in by_name if name not in names]
            raise ConfigError(
                f"factory: {only[0]!r} ({len(only)} in all) is a parameter at width {here} and "
                f"not at width {there}; depth may differ, in all lists of layers by one ratio, and "
                "nothing else"
            )
    pairs = [by_name.get(each.name, alike[name_pattern(each.name)]) for each in found]
    for each, pair in zip(found, pairs, strict=True):
        if depth is None and pair.names != each.names:
            tied = max(each.names, pair.names, key=len)
            here, there = widths if tied is each.names else widths[::-1]
            raise ConfigError(
                f"factory: {' = '.join(tied)} is one tied parameter at width {here} and several at "
                f"width {there}; tie at both widths, or at neither"
            )
        if len(pair.shape) != len(each.shape):
            raise ConfigError(
                f"factory: {each.name!r} has shape {each.shape} at width {widths[0]} and "
                f"{pair.shape} at width {widths[1]}; both must be built alike"
            )
    return depth, pairs


def _compare_depth(one: set[str], other: set[str]) -> tuple[int, int] | None:
    """Return the numbers of layers if two models differ in those alone, else None."""
    if {name_pattern(name) for name in one} != {name_pattern(name) for name in other}:
        return None
    counts = []
    for names in (one, other):
        layers: dict[str, set[str]] = {}
        for name in names:
            for match in re.finditer(r"(?:^|\.)(\d+)(?=\.)", name):
                layers.setdefault(name_pattern(name[: match.start()]), set()).add(match[1])
        counts.append({prefix: len(indices) for prefix, indices in layers.items()})
    changed = {
        (counts[0][prefix], counts[1][prefix])
        for prefix in counts[0]
        if counts[0][prefix] != counts[1].get(prefix)
    }
    if len({a / b for a, b in changed}) != 1:
        return None
    return max(changed)


@dataclass(eq=False)
class _Tensor:
    """One parameter at the width, at the base width, and where it shows what grows.

    ``stream`` is the size of the residual stream; ``role`` is None until it is known.
    """

    found: Found
    base: Found
    grown: Found
    told: RoleOverride | None
    stream: int
    role: TableRole | None = None

    @cached_property
    def infinite(self) -> tuple[int, ...]:
        """The dimensions that grow."""
        sizes = enumerate(zip(self.grown.shape, self.base.shape, strict=True))
        return tuple(i for i, (wide, narrow) in sizes if wide != narrow)

    @cached_property
    def layout(self) -> Layout:
        """How it is stored and used."""
        return self.found.find_layout(self.infinite, width=self.stream, told=self.told)

    @property
    def grows(self) -> tuple[bool, bool]:
        """Whether fan-in and fan-out grow."""
        infinite = set(self.infinite)
        return bool(infinite & set(self.layout.inn)), bool(infinite & set(self.layout.out))

    @property
    def is_router(self) -> bool:
        """Whether its module is named as one."""
        return self.found.holder.path.rpartition(".")[2] in ROUTER_WORDS

    def find_role(self, *, is_output: bool) -> TableRole | None:
        """Return the role that use and growth show; None where they do not tell."""
        if self.layout.use in ("gain", "bias"):
            return "norm" if self.layout.use == "gain" else "bias"
        if self.layout.use == "table":
            return "tied" if self.found.is_tied_table else "embedding"
        fan_in_grows, fan_out_grows = self.grows
        if not fan_in_grows:
            return "embedding"
        if fan_out_grows:
            return "hidden"
        if is_output:
            return "readout"
        return "hidden" if self.found.is_attention_projection else None

    def make_entry(self) -> ParameterRole:
        """Return the parameter's line of the role table."""
        assert self.role is not None
        fan_in, fan_out = self.layout.fans(self.found.shape)
        base_fan_in, base_fan_out = self.layout.fans(self.base.shape)
        return ParameterRole(
            name=self.found.name,
            role=self.role,
            shape=self.found.shape,
            base_shape=self.base.shape,
            fan_in=fan_in,
            fan_out=fan_out,
            base_fan_in=base_fan_in,
            base_fan_out=base_fan_out,
            infinite=self.infinite,
            is_table=self.layout.use == "table",
            transposed=self.layout.transposed,
            tied=self.found.names[1:],
        )


def _choose_roles(tensors: Sequence[_Tensor], vocabulary: nn.Embedding | None) -> None:
    """Choose each tensor's role, and leave None where it must be asked."""
    outputs = _find_outputs(tensors, vocabulary)
    for each in tensors:
        if each.layout.use != "unknown":
            is_output = each in outputs
            each.role = each.told.role if each.told else each.find_role(is_output=is_output)
    readouts = {each.found.holder.path for each in tensors if each.role == "readout"}
    table = _find_untied_table(tensors, vocabulary)
    for each in tensors:
        is_gain = each.found.holder.is_gain and each.found.holder.path in readouts
        if each is table or (is_gain and not each.told):
            each.role = None


def _find_outputs(tensors: Sequence[_Tensor], vocabulary: nn.Embedding | None) -> list[_Tensor]:
    """Return which matrices, of those whose fan-in alone grows, are the model's outputs.

    They have the vocabulary's outputs; or they come after the last matrix that is none, or are the
    only one, outside any list of layers.
    """
    matrices = [each for each in tensors if each.layout.use == "matrix"]
    only_in = [each for each in matrices if each.grows == (True, False)]
    heads = [t for t in only_in if not t.found.is_attention_projection and not t.is_router]
    rows = None if vocabulary is None else vocabulary.num_embeddings
    words = [each for each in heads if each.layout.fans(each.found.shape)[1] == rows]
    free = [each for each in heads if not each.found.holder.in_list]
    last = max((k for k, each in enumerate(matrices) if each not in only_in), default=-1)
    tail = [each for each in matrices[last + 1 :] if each in free]
    if not tail and not words and len(free) == len(only_in) == 1:
        tail = free
    return words + tail


def _find_untied_table(
    tensors: Sequence[_Tensor], vocabulary: nn.Embedding | None
) -> _Tensor | None:
    """Return the vocabulary's table of a model with matrices and no readout, if none is told.

    Its logits may be products with the table itself.
    """
    roles = {each.role for each in tensors}
    asked = [each for each in tensors if each.role is None]
    if {"readout", "tied"} & roles or "hidden" not in roles:
        return None
    for each in asked:
        is_known = each.layout.use != "unknown"
        if {"proj", "projection"} & each.found.words:
            return None
        if is_known and _propose(each, tensors, None)[0] == "readout":
            return None
    tables = (each for each in tensors if each.found.holder.module is vocabulary)
    return next((each for each in tables if each.role == "embedding" and not each.told), None)


# Asking


def _ask(
    tensors: Sequence[_Tensor], own: Mapping[str, OwnInit], *, widths: tuple[int, int]
) -> UnclearRolesError:
    """Return the error that asks about all tensors without a role at once."""
    unclear = [each for each in tensors if each.role is None]
    likely = {each: _propose(each, tensors, own.get(each.base.name)) for each in unclear}
    suggestions, reasons = {}, {}
    for each, (role, why) in likely.items():
        key = name_pattern(each.found.name)
        alike = [other for other in tensors if name_pattern(other.found.name) == key]
        if len(alike) == 1 or any(likely.get(other, ("",))[0] != role for other in alike):
            key = each.found.name
        suggestions[key], reasons[key] = role, why
    first = unclear[0]
    owner = type(first.found.holder.module).__name__
    return UnclearRolesError(
        f"{first.found.name!r}, shape {first.base.shape} at width {widths[0]} and "
        f"{first.grown.shape} at width {widths[1]}, in a {owner}",
        suggestions,
        reasons,
        len(unclear),
    )


def _propose(tensor: _Tensor, tensors: Sequence[_Tensor], own: OwnInit | None) -> tuple[str, str]:
    """Return a likely role, as it is told, and why: the first that fits."""
    found, layout, infinite = tensor.found, tensor.layout, tensor.infinite
    ndim, words, low_rank = len(found.shape), found.words, found.find_low_rank(infinite)
    rows, columns = (*found.shape, 0, 0)[:2]
    is_table, is_matrix = layout.use == "table", layout.use == "matrix"
    kind = None if own is None else own.kind
    is_own = kind == "structured" or (own and kind == "constant" and own.mean not in (0.0, 1.0))
    is_last = infinite == (ndim - 1,)
    is_first = len(infinite) == 1 and ndim == 2 and not is_last
    leaf = split_words(found.name.rpartition(".")[2])
    is_output = bool(words & OUTPUT_WORDS) or leaf == ["w"]
    is_flat = ndim < 2 or not infinite or sum(size != 1 for size in found.shape) <= 1
    siblings = [each for each in tensors if each.found.holder.module is found.holder.module]
    stacks = [each.found.shape for each in siblings if each.infinite == (1, 2)]
    beside = ndim == 2 and any(s[0] == rows and columns in s[1:] for s in stacks)
    is_bias = is_first and "bias" in leaf
    # (inputs, heads, size) of attention, or (outputs, inputs, size) of a kernel.
    is_turned = infinite == (0, 1) and bool(words & ATTENTION_WORDS) and rows > columns
    matrices = [t.found.shape for t in siblings if t.infinite == (0, 1) and len(t.base.shape) == 2]
    if found.shape in matrices and len(matrices) > 1:
        is_turned = expert_layout(matrices, tensor.stream).transposed
    starts_at_0 = own is not None and kind == "constant" and own.mean == 0.0
    is_b = (own is None or starts_at_0) and leaf[:1] == ["b"]  # b_in, b_Q, b1
    # Of heads (heads, size); B is a matrix's name, and so is b_proj.
    is_b_of_rows = is_b and found.holder.leaf[:1] == "b" and not OUTPUT_WORDS & set(leaf)
    is_multiplied = kind == "noise" or (starts_at_0 and rows * columns != tensor.stream)
    is_multiplied |= own is None and leaf[:1] == ["w"]  # W_U, of a model too large to look at
    named_b = "starts at 0 and is named a bias" if starts_at_0 else "is named a bias"
    following = found.siblings[found.place + 1 : found.place + 2]
    sums = "has inputs that grow and outputs that do not: "
    choices: tuple[tuple[object, str, str], ...] = (
        (is_table, "tied", "is looked up in a model without a readout: 'tied' if its logits "
         "are products with it, 'embedding' if it has none"),
        (found.holder.is_gain, "norm", "is weight norm's gain on a readout, of which no "
         "rule speaks: its logits grow with width beside the rule's; better none there"),
        (is_matrix and low_rank, "hidden", "is the first of two low-rank factors"),
        (is_matrix and words & ATTENTION_WORDS, "hidden",
         "is named as one of attention's projections"),
        (is_matrix and tensor.is_router, "readout", f"{sums}a router"),
        (is_matrix, "readout", f"{sums}a head or a router"),
        (is_b and is_flat, "bias", named_b),
        (is_flat, "other", "is a vector that no known module multiplies or adds"
         + " ('readout' where x @ w sums over it)" * (infinite == (0,))),
        (is_own, "other", "starts at values of its own"),
        (beside, "bias", "has a row for each matrix of a stack beside it"),
        (is_bias, "bias", "is named a bias"),
        (low_rank, "hidden" + ":transposed" * (low_rank == "transposed"),
         "is one of two low-rank factors"),
        (is_first and is_b_of_rows, "bias", named_b),
        (is_last and words & ROUTER_WORDS, "readout", f"{sums}a router"),
        (found.is_head_vector and is_last and rows == 1, "hidden",
         "is a vector for each head, whose entries it sums over"),
        (is_last and not words & LEARNED_INPUT_WORDS
         and (is_output or (rows,) in following or found.holder.leaf == "weight"),
         "readout", "has inputs that grow, and a name or a bias as an output has"),
        (is_last, "embedding", "grows in its last dimension alone, as a table that is added"),
        (is_first and "linear" in words, "hidden",
         "has inputs of a fixed size; ':transposed' where x @ W uses it"),
        (is_first and (is_output or (is_multiplied and not words & KERNEL_WORDS)),
         "readout", "grows in its first dimension alone, as x @ W to a fixed output"),
        (is_first, "other", "has a row of fixed length for each channel, of no known weight"),
        (infinite == (1,) and rows > 1, "readout:transposed",
         "grows in its second dimension alone, as inputs of a kernel or of x @ W"),
        (len(infinite) == 1, "hidden",
         "has inputs of a fixed size; ':transposed' where x @ W uses it"),
        (True, "hidden" + ":transposed" * is_turned,
         "has two dimensions that grow; ':transposed' where x @ W uses it"),
    )  # fmt: skip
    return next((role, why) for fits, role, why in choices if fits)
