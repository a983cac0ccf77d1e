"""Find each parameter's role from a model at two widths, built without memory."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from hptransfer._messages import check_count
from hptransfer.adopt._own_init import OwnInit, measure_own_init
from hptransfer.adopt._parameters import (
    ATTENTION_WORDS,
    EMBEDDING_WORDS,
    KERNEL_WORDS,
    OUTPUT_WORDS,
    ROUTER_WORDS,
    Found,
    Layout,
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
    infinite = [
        tuple(i for i, (a, b) in enumerate(zip(one.shape, other.shape, strict=True)) if a != b)
        for one, other in zip(grown, base, strict=True)
    ]
    _check_growth(grown, base, widths=(wide, base_width))
    told = read_role_overrides([each.names for each in found], roles or {})
    vocabulary = find_token_table(model)
    model_width = width if vocabulary is None else vocabulary.embedding_dim
    layouts = [
        each.find_layout(infinite[k], width=model_width, told=told[k])
        for k, each in enumerate(found)
    ]
    finder = _RoleFinder(
        found=found,
        layouts=layouts,
        infinite=infinite,
        vocabulary=vocabulary,
        told=told,
    )
    chosen = finder.find_all()
    if unclear := [k for k, role in enumerate(chosen) if role is None]:
        own = _look_at_own_init(factory, base_width, base_model)
        raise finder.ask(unclear, own, base=base, shapes=(grown, wide, base_width))
    heads = _pair_heads(find_head_sizes(model, width), find_head_sizes(base_model, base_width))
    sizes = {(each.head_size, each.base_head_size) for each in heads}
    one_size = next(iter(sizes)) if len(sizes) == 1 else (None, None)
    return RoleTable(
        width=width,
        base_width=base_width,
        parameters=tuple(
            _entry(each, base[k], role, layouts[k], infinite[k])
            for k, (each, role) in enumerate(zip(found, chosen, strict=True))
            if role is not None
        ),
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
    by_name = {each.name: each for each in other}
    alike = {name_pattern(each.name): each for each in other}
    depth = None
    if {each.name for each in found} != set(by_name):
        names = [{name for each in side for name in each.names} for side in (found, other)]
        depth = _compare_depth(*names)
        if depth is None:
            raise _other_parameters(found, other, names, widths)
    pairs = [by_name.get(each.name, alike[name_pattern(each.name)]) for each in found]
    for each, pair in zip(found, pairs, strict=True):
        same_names = depth or pair.names == each.names
        if same_names and len(pair.shape) == len(each.shape):
            continue
        if not same_names:
            is_here = len(each.names) > len(pair.names)
            raise _tied_at_one(each if is_here else pair, widths if is_here else widths[::-1])
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


def _other_parameters(
    found: Sequence[Found],
    other: Sequence[Found],
    names: Sequence[set[str]],
    widths: tuple[int, int],
) -> ConfigError:
    here, there = names
    for side, width, also in ((found, *widths), (other, *widths[::-1])):
        theirs = there if side is found else here
        only = [each.name for each in side if not set(each.names) & theirs]
        if only:
            return ConfigError(
                f"factory: {only[0]!r} ({len(only)} in all) is a parameter at width {width} and "
                f"not at width {also}; depth may differ, in all lists of layers by one ratio, and "
                "nothing else"
            )
    one = next(each for each in (*found, *other) if len(each.names) > 1)
    return _tied_at_one(one, widths if one in found else widths[::-1])


def _tied_at_one(tied: Found, widths: tuple[int, int]) -> ConfigError:
    return ConfigError(
        f"factory: {' = '.join(tied.names)} is one tied parameter at width {widths[0]} and several "
        f"at width {widths[1]}; tie at both widths, or at neither"
    )


@dataclass(frozen=True, kw_only=True)
class _RoleFinder:
    """Chooses roles from how parameters are used and grow, and asks about the rest."""

    found: Sequence[Found]
    layouts: Sequence[Layout]
    infinite: Sequence[tuple[int, ...]]
    vocabulary: nn.Embedding | None
    told: Sequence[RoleOverride | None]

    def find_all(self) -> list[TableRole | None]:
        """Return each parameter's role, None where it must be asked."""
        outputs = self._outputs()
        roles = [
            None
            if self.layouts[k].use == "unknown"
            else told.role
            if (told := self.told[k])
            else self._find(k, k in outputs)
            for k in range(len(self.found))
        ]
        holders = [each.holders[0] for each in self.found]
        readouts = {holders[k].path for k, role in enumerate(roles) if role == "readout"}
        asked = {self._untied_table(roles)} | {
            k
            for k, holder in enumerate(holders)
            if holder.is_gain and holder.path in readouts and not self.told[k]
        }
        return [None if k in asked else role for k, role in enumerate(roles)]

    def _grows(self, k: int) -> tuple[bool, bool]:
        """Return whether fan-in and fan-out grow."""
        layout, infinite = self.layouts[k], set(self.infinite[k])
        return bool(set(layout.inn) & infinite), bool(set(layout.out) & infinite)

    def _fan_out(self, k: int) -> int:
        return self.layouts[k].fans(self.found[k].shape)[1]

    def _is_router(self, k: int) -> bool:
        return bool(ROUTER_WORDS & set(self.found[k].holders[0].path.split(".")[-1:]))

    def _outputs(self) -> set[int]:
        """Return which matrices, of those whose fan-in alone grows, are the model's outputs.

        They have the vocabulary's outputs; or they come after the last matrix that is none, or
        are the only one, outside any list of layers.
        """
        matrices = [k for k, layout in enumerate(self.layouts) if layout.use == "matrix"]
        only_in = [k for k in matrices if self._grows(k) == (True, False)]
        inside = {k for k in only_in if self.found[k].is_attention_projection}
        rows = None if self.vocabulary is None else self.vocabulary.num_embeddings
        words = {
            k
            for k in only_in
            if self._fan_out(k) == rows and k not in inside and not self._is_router(k)
        }
        last = max((k for k in matrices if k not in only_in), default=-1)
        free = [k for k in only_in if not self.found[k].in_list and not self._is_router(k)]
        tail = {k for k in free if k > last and k not in inside}
        if not tail and not words and len(free) == len(only_in) == 1 and free[0] not in inside:
            tail = set(free)
        return words | tail

    def _find(self, k: int, is_output: bool) -> TableRole | None:
        found, layout = self.found[k], self.layouts[k]
        if layout.use in ("gain", "bias"):
            return "norm" if layout.use == "gain" else "bias"
        if layout.use == "table":
            return "tied" if found.is_tied_table else "embedding"
        fan_in_grows, fan_out_grows = self._grows(k)
        if not fan_in_grows:
            return "embedding"
        if fan_out_grows:
            return "hidden"
        if is_output:
            return "readout"
        return "hidden" if found.is_attention_projection else None

    def _untied_table(self, roles: Sequence[TableRole | None]) -> int | None:
        """Return the vocabulary's table of a model with matrices and no readout, if none is told.

        Its logits may be products with the table itself.
        """
        asked = [k for k, role in enumerate(roles) if role is None]
        if (
            {"readout", "tied"} & set(roles)
            or "hidden" not in roles
            or any("proj" in self.found[k].words for k in asked)
            or any(
                self.layouts[k].use != "unknown" and self._propose(k, None)[0] == "readout"
                for k in asked
            )
        ):
            return None
        tables = (k for k, each in enumerate(self.found) if each.owner is self.vocabulary)
        return next((k for k in tables if roles[k] == "embedding" and not self.told[k]), None)

    def ask(
        self,
        unclear: Sequence[int],
        own: Mapping[str, OwnInit],
        *,
        base: Sequence[Found],
        shapes: tuple[Sequence[Found], int, int],
    ) -> UnclearRolesError:
        """Return the error that asks about all unclear parameters at once."""
        likely = {k: self._propose(k, own.get(base[k].name)) for k in unclear}
        keys: dict[int, str] = {}
        for k in unclear:
            pattern = name_pattern(self.found[k].name)
            alike = [j for j, each in enumerate(self.found) if name_pattern(each.name) == pattern]
            same = all(j in likely and likely[j][0] == likely[k][0] for j in alike)
            keys[k] = pattern if same and len(alike) > 1 else self.found[k].name
        grown, wide, base_width = shapes
        k = unclear[0]
        return UnclearRolesError(
            f"{self.found[k].name!r}, shape {base[k].shape} at width {base_width} and "
            f"{grown[k].shape} at width {wide}, in a {type(self.found[k].owner).__name__}",
            {keys[k]: likely[k][0] for k in unclear},
            {keys[k]: likely[k][1] for k in unclear},
            len(unclear),
        )

    def _propose(self, k: int, own: OwnInit | None) -> tuple[str, str]:
        """Return a likely role, as it is told, and why: the first that fits."""
        found, layout, infinite = self.found[k], self.layouts[k], self.infinite[k]
        ndim, words, low_rank = len(found.shape), found.words, found.find_low_rank(infinite)
        rows, columns = (*found.shape, 0, 0)[:2]
        is_table, is_matrix = layout.use == "table", layout.use == "matrix"
        kind = None if own is None else own.kind
        is_own = kind == "structured" or (own and kind == "constant" and own.mean not in (0.0, 1.0))
        is_last = infinite == (ndim - 1,)
        is_first = len(infinite) == 1 and ndim == 2 and not is_last
        is_output = bool(words & OUTPUT_WORDS)
        is_flat = ndim < 2 or not infinite or sum(size != 1 for size in found.shape) <= 1
        stacks = [
            each.shape
            for j, each in enumerate(self.found)
            if each.owner is found.owner and self.infinite[j] == (1, 2)
        ]
        beside = ndim == 2 and any(s[0] == rows and columns in s[1:] for s in stacks)
        is_bias = is_first and "bias" in split_words(found.name.rpartition(".")[2])
        # (inputs, heads, size) of attention, or (outputs, inputs, size) of a kernel.
        is_turned = infinite == (0, 1) and bool(words & ATTENTION_WORDS) and rows > columns
        sums = "has inputs that grow and outputs that do not: "
        choices: tuple[tuple[object, str, str], ...] = (
            (is_table, "tied", "is looked up in a model without a readout: 'tied' if its logits "
             "are products with it, 'embedding' if it has none"),
            (found.holders[0].is_gain, "norm", "is weight norm's gain on a readout, of which no "
             "rule speaks: its logits grow with width beside the rule's; better none there"),
            (is_matrix and low_rank, "hidden", "is the first of two low-rank factors"),
            (is_matrix and words & ATTENTION_WORDS, "hidden",
             "is named as one of attention's projections"),
            (is_matrix and self._is_router(k), "readout", f"{sums}a router"),
            (is_matrix, "readout", f"{sums}a head or a router"),
            (is_flat, "other", "is a vector that no known module multiplies or adds"),
            (is_own, "other", "starts at values of its own"),
            (beside, "bias", "has a row for each matrix of a stack beside it"),
            (is_bias, "bias", "is named a bias"),
            (low_rank, "hidden" + ":transposed" * (low_rank == "transposed"),
             "is one of two low-rank factors"),
            (is_last and words & ROUTER_WORDS, "readout", f"{sums}a router"),
            (is_last and not words & EMBEDDING_WORDS and (is_output or (rows,) in found.siblings),
             "readout", "has inputs that grow, and a name or a bias as an output has"),
            (is_last, "embedding", "grows in its last dimension alone, as a table that is added"),
            (is_first and "linear" in words, "hidden",
             "has inputs of a fixed size; ':transposed' where x @ W uses it"),
            (is_first and (is_output or (kind == "noise" and not words & KERNEL_WORDS)),
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


def _entry(
    found: Found, base: Found, role: TableRole, layout: Layout, infinite: tuple[int, ...]
) -> ParameterRole:
    fan_in, fan_out = layout.fans(found.shape)
    base_fan_in, base_fan_out = layout.fans(base.shape)
    return ParameterRole(
        name=found.name,
        role=role,
        shape=found.shape,
        base_shape=base.shape,
        fan_in=fan_in,
        fan_out=fan_out,
        base_fan_in=base_fan_in,
        base_fan_out=base_fan_out,
        infinite=infinite,
        is_table=layout.use == "table",
        transposed=layout.transposed,
        tied=found.names[1:],
    )
