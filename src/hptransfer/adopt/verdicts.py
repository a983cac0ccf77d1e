"""The words of an audit: the embedding's verdict, the nearest rule, and the warnings."""

import math
from collections.abc import Iterator, Mapping
from statistics import median

from hptransfer.adopt.audit import Embedding, Nearest, RoleAudit, say_factor
from hptransfer.adopt.compare import MUP, Comparison
from hptransfer.scaling import BEYOND_LATTICE, LATTICE, OPTIMIZERS, Parameterization

#: A factor this far from the rule's, on either side, is called another one.
CLEAR = 1.25

#: Two exponents of m this close are the same one.
SAME_EXPONENT = 0.1

#: Two learning rates or shrinks per step this close, relative, are the same one.
SAME = 0.01

_EMBEDDING = ("embedding", "tied")
_UNDECAYED = ("norm", "bias")


def judge_embedding(comparison: Comparison) -> Embedding | None:
    """Return whether the embedding layer is held back, by what factor, and what mends it."""
    members = comparison.members()
    present = [role for role in _EMBEDDING if role in members]
    if not present:
        return None
    entries = [entry for role in present for entry in members[role]]
    role = present[-1]
    wanted = comparison.lr_factors(comparison.rule_lr(MUP))[role]
    today = comparison.lr_factors(comparison.today_lr)[role]
    factor = wanted / today
    span = f"from width {comparison.base.width} to {comparison.wide.width}"
    beside = f"its learning rate over the hidden layers' goes {say_factor(today)} {span}"
    under = f"{say_factor(wanted)} under µP"
    if factor <= CLEAR:
        ahead = "ahead of µP" if factor < 1 / CLEAR else "not held back"
        return Embedding(
            held_back=False,
            factor=factor,
            verdict=f"the embedding layer is {ahead}: {beside}, {under}",
        )
    names = ", ".join(repr(entry.name) for entry in entries)
    lr = factor * median(comparison.wide.settings[entry.name][0] for entry in entries)
    return Embedding(
        held_back=True,
        factor=factor,
        verdict=f"the embedding layer is held back by a factor of {factor:.3g}: {beside}, {under}",
        fix=f"give {names} a group of their own with lr={lr:.4g} at width {comparison.wide.width}, "
        f"{factor:.3g} times today's",
    )


def find_nearest(comparison: Comparison) -> Nearest:
    """Return the rules that today's learning rates and initial weights go with width as."""
    lr, init = comparison.lr_factors(comparison.today_lr), comparison.init_factors(None)
    hidden = comparison.hidden_exponent(comparison.today_lr)
    by_lr: list[Parameterization] = []
    by_init: list[Parameterization] = []
    for rule in (LATTICE["sp"], MUP, *LATTICE.values(), *BEYOND_LATTICE.values()):
        if rule.absolute or comparison.usable(rule) is not rule:
            continue
        if _same(comparison.width_mult, lr, comparison.lr_factors(comparison.rule_lr(rule))):
            by_lr.append(rule)
        if _same(comparison.init_mult, init, comparison.init_factors(rule)):
            by_init.append(rule)
    both = [rule for rule in by_lr if rule in by_init]
    chosen = next(iter(both + by_lr), None)
    axis = "own"
    if chosen is not None:
        fall = hidden - comparison.hidden_exponent(comparison.rule_lr(chosen))
        if abs(fall) < SAME_EXPONENT:
            axis = "hidden-aligned"
        elif abs(fall - chosen.axis_exponent) < SAME_EXPONENT:
            axis = "global"
    first_init = next(iter(both + by_init), None)
    return Nearest(
        lr=chosen.name if chosen else None,
        init=first_init.name if first_init else None,
        axis=axis,
    )


def warn(comparison: Comparison) -> Iterator[tuple[str, str]]:
    """Yield (kind, message) of what is wrong beside the embedding."""
    roles = comparison.roles
    if comparison.wide.optimizer.lower() not in OPTIMIZERS:
        yield (
            "optimizer",
            f"no rule speaks of {comparison.wide.optimizer}: it is compared as if it were AdamW",
        )
    if comparison.usable(comparison.rule) is not comparison.rule:
        name = comparison.rule.name
        tied = "tied" in roles and comparison.rule.tied_readout is None
        yield (
            "tied" if tied else "rule",
            f"embedding and readout are one table, for which {name} says nothing: untie them, or "
            "use mup or completep and scale the logits; compared with mup here"
            if tied
            else f"{name} says nothing for {comparison.optimizer}; compared with mup here",
        )
    yield from _warn_of_base(comparison, roles)
    changed = [
        f"{role} ({each.base_shrink:.3g} at width {comparison.base.width}, {each.shrink:.3g} at "
        f"{comparison.wide.width})"
        for role, each in roles.items()
        if min(each.shrink, each.base_shrink) > 0 and not _near(each.shrink, each.base_shrink)
    ]
    if changed:
        yield (
            "weight_decay",
            f"weight decay's shrink per step changes with width: {', '.join(changed)}; keep "
            "lr·weight_decay (weight_decay_mode='constant')",
        )
    decayed = [role for role in _UNDECAYED if role in roles and roles[role].shrink > 0]
    if decayed:
        yield (
            "decayed",
            f"weight decay also shrinks {' and '.join(decayed)} tensors, which rules leave alone",
        )
    for role in ("hidden", "hidden_residual"):
        each = roles.get(role)
        if each is None or each.init_factor is None or each.rule_init_factor is None:
            continue
        if not _near(each.init_factor, each.rule_init_factor, CLEAR - 1):
            yield (
                "init",
                f"init std of {role} goes {say_factor(each.init_factor)} as width goes "
                f"{say_factor(comparison.init_mult)}; every rule lets it go as 1/√fan_in, "
                f"{say_factor(each.rule_init_factor)}",
            )


def _warn_of_base(
    comparison: Comparison, roles: Mapping[str, RoleAudit]
) -> Iterator[tuple[str, str]]:
    """Yield whether the groups differ at the base width, where every rule has them equal."""
    axis = comparison.axis_role()
    if comparison.optimizer.startswith("muon"):
        return  # its matrices have a learning rate of their own
    for role, each in roles.items():
        ratio = each.base_lr / roles[axis].base_lr
        if _near(ratio, 1.0):
            continue
        told = (
            f"at the base width {comparison.base.width} the learning rates of {role} and {axis} "
            f"differ ({each.base_lr:.4g} and {roles[axis].base_lr:.4g}), so nothing agrees there"
        )
        exponent = math.log(each.lr_factor) / math.log(comparison.width_mult)
        if abs(exponent) < SAME_EXPONENT:
            yield "base_width", f"{told}; their ratio is the same at every width"
        else:
            agree = comparison.base.width * ratio ** (-1 / exponent)
            yield "base_width", f"{told}; they agree at width {agree:.4g}"
        return


def _same(ratio: float, today: Mapping[str, float], rule: Mapping[str, float]) -> bool:
    """Tell whether the factors of the roles that both have are the same powers of a ratio."""
    return all(
        abs(math.log(today[role] / rule[role])) <= SAME_EXPONENT * math.log(ratio)
        for role in today.keys() & rule.keys()
    )


def _near(one: float, other: float, tolerance: float = SAME) -> bool:
    return abs(math.log(one / other)) <= math.log1p(tolerance)
