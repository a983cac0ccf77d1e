"""Print a parameterization's numbers at a width, one row for each role a tensor can have.

PARAMETERIZATION is sp, mup, or either with switches: sp+embd is SP with the embedding's learning
rate of µP, mup-ln is µP without its norm learning rate. Switches are embd, ln, attn and last.
Beyond that lattice: everett-full, everett-none, hayou-liu, completep, u-mup, or a TOML file.
Hidden numbers are for fan_in = width; hidden_residual is the two projections of a block onto the
residual stream.
"""

import argparse
from inspect import signature

from hptransfer import scaling
from hptransfer.cli._print import align, tell, wrap

#: The defaults are those of ``scaling.resolve``.
OPTIONS = (
    ("parameterization", "PARAMETERIZATION", str, ...,
     "such as sp, sp+embd, mup-ln, mup, completep or rule.toml"),
    ("--width", None, int, ..., "width to resolve at"),
    ("--base-width", None, int, ..., "width at which all rules agree"),
    ("--lr", "BASE_LR", float, scaling.DEFAULT_BASE_LR,
     "base_lr, the tuned learning rate on the axis (default %(default)g)"),
    ("--weight-decay", "LAMBDA", float, scaling.DEFAULT_WEIGHT_DECAY,
     "λ, which the mode turns into each role's weight decay (default %(default)g)"),
    ("--weight-decay-mode", "MODE", str, scaling.DEFAULT_WEIGHT_DECAY_MODE,
     f"{', '.join(scaling.WEIGHT_DECAY_MODES)} (default %(default)s)"),
    ("--axis", None, str, scaling.DEFAULT_AXIS,
     f"what --lr means: {' or '.join(scaling.AXES)} (default %(default)s)"),
    ("--head-size", None, int, None,
     "head size, the same at every width (default: the largest power of two up to 64 that divides "
     "both widths)"),
    ("--num-heads", None, int, None,
     "number of heads, the same at every width, in place of --head-size"),
    ("--base-head-size", None, int, None,
     "H_base of the attention scale √H_base/H (default: the head size at the base width)"),
    ("--num-layers", None, int, scaling.DEFAULT_NUM_LAYERS,
     "blocks, which set the init of hidden_residual (default %(default)d)"),
    ("--base-num-layers", None, int, None,
     "blocks of the base model, for rules that scale depth (default: --num-layers)"),
    ("--optimizer", None, str, scaling.DEFAULT_OPTIMIZER,
     f"{', '.join(scaling.OPTIMIZERS)} (default %(default)s)"),
)  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Resolve and print; return 0.

    Raises
    ------
    ConfigError
        If a name or number is wrong, or the rule says nothing for the optimizer.
    """
    name = args.parameterization
    known = signature(scaling.resolve).parameters
    numbers = {key: value for key, value in vars(args).items() if key in known}
    if name.endswith(".toml"):
        numbers["parameterization"] = scaling.load_rule(name)
    resolved = scaling.resolve(**numbers, base_lr=args.lr)
    return tell(args, resolved.to_dict(), _describe(resolved, weight_decay=args.weight_decay))


def _describe(resolved: scaling.Resolved, *, weight_decay: float) -> str:
    """Return the roles as a table, the settings above it, attention below."""
    head = ("role", "lr", "init std", "weight decay", "multiplier", "eps")
    rows = [
        (role, *(f"{number:.5g}" for number in (
            each.lr, each.init_std, each.weight_decay, each.multiplier, each.eps)))
        for role, each in resolved.roles.items()
    ]  # fmt: skip
    residual = resolved.roles["hidden_residual"].residual_multiplier
    multiplied = [f"residual branches are multiplied by {residual:.5g}"] * (residual != 1.0)
    return "\n".join([
        wrap(
            f"{resolved.parameterization} at width {resolved.width}, base width "
            f"{resolved.base_width} (m = {resolved.width_mult:g})"
        ),
        wrap(
            f"base lr {resolved.base_lr:g} on the {resolved.axis} axis; weight decay "
            f"{weight_decay:g}, {resolved.weight_decay_mode} mode; {resolved.num_layers} layers"
        ),
        align(head, rows),
        f"attention scale {resolved.attention_scale:.5g} (head size {resolved.head_size}, "
        f"base head size {resolved.base_head_size})",
        *multiplied,
        "init std of norm and bias: gains start at 1, biases at 0",
    ])  # fmt: skip
