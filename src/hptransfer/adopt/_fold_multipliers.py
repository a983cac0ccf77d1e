"""Fold the multipliers that a rule wants into tensors where that is exact; else name them.

A tensor W behind a multiplier s is the tensor V = sW without one (abc-equivalence): the rule's
multipliers go into the tensor's init, learning rate, ε and weight decay. Where they cannot, the
rule names the number and the place, and refuses until ``applied`` says that the model does it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from hptransfer._messages import check_name
from hptransfer.adopt._parameters import KEY_WORDS, split_words
from hptransfer.adopt.role_table import AttentionHeads, ParameterRole, RoleTable
from hptransfer.errors import ConfigError
from hptransfer.scaling import MATRIX_ROLES, ROLES, Parameterization, RoleNumbers

ALL_MULTIPLIERS = "multipliers"
ATTENTION = "attention_scale"
RESIDUAL = "residual_multiplier"
READOUT = "readout_multiplier"

APPLICABLE: tuple[str, ...] = (
    ATTENTION,
    RESIDUAL,
    ALL_MULTIPLIERS,
    *(f"{role}_multiplier" for role in ROLES),
)
"""What ``applied`` may hold; ``multipliers`` means every role's."""


def check_applied(applied: Iterable[str]) -> frozenset[str]:
    """Return what the caller says the model does itself, or raise ConfigError for other words."""
    words = [applied] if isinstance(applied, str) else applied
    return frozenset(check_name("applied", word, APPLICABLE) for word in words)


_GIVEN = "<given>"
_DO_IT = f"which no group can set; do it in the model and say {_GIVEN}"


@dataclass(frozen=True)
class Unfolded:
    """A multiplier that no group can set.

    Attributes
    ----------
    text : str
        The number, its place and the ways out, with a place for how ``applied`` is given.
    word : str
        What ``applied`` must hold where the model does it; "" where that would not help.
    """

    text: str
    word: str = ""

    def say(self, apply: Callable[[str], str] | None = None) -> str:
        """Return the line; ``apply`` words how ``applied`` is given, by default in Python."""
        given = f'applied={{"{self.word}"}}' if apply is None else apply(self.word)
        return self.text.replace(_GIVEN, given)


class UnfoldedMultiplierError(ConfigError):
    """Say a multiplier that no group can set, and that the model is not said to do itself.

    Attributes
    ----------
    problem : Unfolded
        The multiplier: ``problem.word`` is what ``applied`` must hold.

    Examples
    --------
    >>> from torch import nn
    >>> from hptransfer.adopt import infer_roles, param_groups
    >>> def make(width):
    ...     model = nn.Sequential(nn.Embedding(10, width), nn.Linear(width, width),
    ...                           nn.Linear(width, 10, bias=False))
    ...     model[2].weight = model[0].weight
    ...     return model
    >>> roles = infer_roles(make, base_width=64, width=256)
    >>> try:
    ...     param_groups(make(256), roles=roles, parameterization="mup", lr=0.5)
    ... except UnfoldedMultiplierError as error:
    ...     print(error.problem.word)
    readout_multiplier
    """

    def __init__(self, problem: Unfolded) -> None:
        self.problem = problem
        super().__init__(problem.say())


def _module_of(entry: ParameterRole) -> str:
    """Return the path of the module that holds the parameter: its bias has the same."""
    return entry.name.rpartition(".")[0]


def _scale(heads: AttentionHeads, rule: Parameterization) -> float:
    base = 1 if rule.absolute else heads.base_head_size
    return float(base**-0.5 * (heads.head_size / base) ** rule.attention)


def _heads_of(entry: ParameterRole, heads: Sequence[AttentionHeads]) -> AttentionHeads | None:
    """Return the attention module that an entry stands in: the innermost, or the model's."""
    inside = [each for each in heads if not each.module or entry.name.startswith(f"{each.module}.")]
    if inside:
        return max(inside, key=lambda each: len(each.module))
    alike = len({(each.head_size, each.base_head_size) for each in heads}) == 1
    return heads[0] if alike else None


def _why_not_query(entry: ParameterRole, entries: RoleTable, head_size: int) -> str:
    """Return why a projection cannot absorb the attention scale exactly; "" if it can."""
    if entry.role == "bias":
        return ""
    if entry.role != "hidden":
        return f"it is {entry.role}, not hidden"
    module = _module_of(entry)
    around, _, own = module.rpartition(".")
    siblings = {
        _module_of(each).rpartition(".")[2]: each
        for each in entries
        if _module_of(each).rpartition(".")[0] == around
    }
    has_keys = any(KEY_WORDS & set(split_words(name)) for name in siblings if name != own)
    if KEY_WORDS & set(split_words(own)) or (entry.fan_out > entry.fan_in and not has_keys):
        return "it seems to hold queries, keys and values in one"
    for each in siblings.values():
        if each.role == "norm" and each.shape[-1] in (entry.fan_out, head_size):
            return f"{each.name!r} normalises what it puts out"
    return ""


@dataclass(frozen=True)
class Folder:
    """Folds a rule's multipliers into a table's tensors, and keeps those that none absorbs.

    Attributes
    ----------
    table : RoleTable
        The model's parameters.
    rule : Parameterization
        For the optimizer in use.
    applied : frozenset of str
        What the model does itself.
    problems : list of Unfolded
        Multipliers that are neither absorbed nor applied.
    """

    table: RoleTable
    rule: Parameterization
    applied: frozenset[str]
    problems: list[Unfolded] = field(default_factory=list)

    def fold(
        self,
        numbers: Sequence[RoleNumbers],
        query: str | Iterable[str],
        heads: Sequence[AttentionHeads],
    ) -> list[float]:
        """Return the multiplier s that each tensor of the table absorbs.

        Parameters
        ----------
        numbers : sequence of RoleNumbers
            The rule's numbers, one for each parameter.
        query : str or iterable of str
            Names or patterns of the query projections, which may absorb the attention scale.
        heads : sequence of AttentionHeads
            Head sizes, by module; the module "" stands for the whole model.

        Raises
        ------
        ConfigError
            If ``query`` names no parameter.
        """
        own = [self._fold_role(*each) for each in zip(self.table, numbers, strict=True)]
        residual = self._fold_residual(numbers)
        attention = self._fold_attention(query, heads)
        modules = [_module_of(entry) for entry in self.table]
        return [
            factor * residual.get(module, 1.0) * attention.get(module, 1.0)
            for factor, module in zip(own, modules, strict=True)
        ]

    def _add(self, text: str, word: str = "") -> None:
        self.problems.append(Unfolded(f"{self.rule.name}: {text}", word))

    def _fold_role(self, entry: ParameterRole, numbers: RoleNumbers) -> float:
        """Return what a tensor absorbs of its role's multiplier."""
        if entry.role == "tied" and entry.infinite:  # one of fixed size is a table like any other
            self._check_tied(entry)
        if (
            numbers.multiplier == 1.0
            or {ALL_MULTIPLIERS, f"{entry.rule_role}_multiplier"} & self.applied
        ):
            return 1.0
        if entry.rule_role in MATRIX_ROLES or (
            entry.rule_role == "embedding" and entry.role != "tied"
        ):
            return numbers.multiplier
        self._add(
            f"the output of {entry.name!r} ({entry.role}) is multiplied by "
            f"{numbers.multiplier:.6g}, {_DO_IT}",
            f"{entry.rule_role}_multiplier",
        )
        return 1.0

    def _check_tied(self, entry: ParameterRole) -> None:
        if self.rule.tied_readout is None:
            also = f" ({entry.tied[0]!r})" if entry.tied else ""
            self._add(
                f"{entry.name!r} is embedding and readout at once{also}, for which "
                "the rule says nothing; untie them, or use mup or completep"
            )
            return
        multiplier = (entry.fan_out / entry.base_fan_out) ** self.rule.tied_readout
        if multiplier != 1.0 and not {ALL_MULTIPLIERS, READOUT} & self.applied:
            self._add(
                f"logits of the tied table {entry.name!r} are multiplied by "
                f"{multiplier:.6g}, {_DO_IT}",
                READOUT,
            )

    def _fold_residual(self, numbers: Sequence[RoleNumbers]) -> Mapping[str, float]:
        """Return, by module, the residual multiplier that its weight and bias absorb."""
        if self.rule.residual_depth == 0.0 or RESIDUAL in self.applied:
            return {}
        factors = {
            _module_of(entry): each.residual_multiplier
            for entry, each in zip(self.table, numbers, strict=True)
            if entry.role == "hidden_residual"
        }
        if not factors:
            self._add(
                f"residual branches are multiplied by (num_layers / base_num_layers)"
                f"^{self.rule.residual_depth:g}; tell the projections onto the residual stream "
                f'(roles={{"…": "hidden_residual"}}), or do it in the model and say {_GIVEN}',
                RESIDUAL,
            )
        return factors

    def _fold_attention(
        self, query: str | Iterable[str], heads: Sequence[AttentionHeads]
    ) -> Mapping[str, float]:
        """Return, by module, what the query projections absorb of the attention logit scale."""
        if ATTENTION in self.applied:
            return {}
        if self.rule.absolute and not heads:
            self._add(
                f"attention logits are multiplied by H^{self.rule.attention:g}, and no "
                f"module states the head size H; give head_size, or say "
                f"{_GIVEN} where the model does it or has no attention",
                ATTENTION,
            )
            return {}
        odd = {
            each: scale
            for each in heads
            if abs((scale := _scale(each, self.rule)) * each.head_size**0.5 - 1.0) >= 1e-12
        }
        if not odd:
            return {}
        factors: dict[str, float] = {}
        covered: set[AttentionHeads] = set()
        for entry in self.table.match("query", query):
            own = _heads_of(entry, heads)
            if own is None or own not in odd:
                continue
            if why := _why_not_query(entry, self.table, own.head_size):
                self.problems.append(
                    Unfolded(
                        f"query: {entry.name!r} cannot absorb {self.rule.name}'s attention scale "
                        f"{odd[own]:.6g}: {why}; do it in the model and say {_GIVEN}",
                        ATTENTION,
                    )
                )
            covered.add(own)
            factors[_module_of(entry)] = odd[own] * own.head_size**0.5
        if left := [each for each in odd if each not in covered]:
            first, size = left[0], left[0].head_size
            differ = len({(each.head_size, each.base_head_size) for each in heads}) > 1
            where = f" in {first.module!r}" * differ
            sizes = f"{first.base_head_size} → {size}"
            differing = f" (head sizes differ between modules: {sizes} here)" * differ
            self._add(
                f"attention logits{where} are multiplied by {odd[first]:.6g} at head size {size}, "
                f"not by 1/√{size} = {size**-0.5:.6g}{differing}, {_DO_IT}, or name the query "
                'projections that absorb it (query="*.q_proj.weight")',
                ATTENTION,
            )
        return factors
