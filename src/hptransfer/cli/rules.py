"""Print a parameterization's numbers at a width, one row for each role a tensor can have.

PARAMETERIZATION is sp, mup, or either with switches: sp+embd is SP with the embedding's learning
rate of µP, mup-ln is µP without its norm learning rate. Switches are embd, ln, attn and last.
Beyond that lattice: everett-full, everett-none, hayou-liu, completep, u-mup, or a TOML file.
Hidden numbers are for fan_in = width; hidden_residual is the two projections of a block onto the
residual stream.
"""

import argparse

from hptransfer import scaling
from hptransfer.cli._print import align, print_json, wrap


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add this command's arguments; defaults are those of ``scaling.resolve``."""
    parser.add_argument(
        "parameterization",
        metavar="PARAMETERIZATION",
        help="such as sp, sp+embd, mup-ln, mup, completep or rule.toml",
    )
    parser.add_argument("--width", type=int, required=True, help="width to resolve at")
    parser.add_argument(
        "--base-width", type=int, required=True, help="width at which all rules agree"
    )
    parser.add_argument(
        "--lr",
        type=float,
        default=scaling.DEFAULT_BASE_LR,
        metavar="BASE_LR",
        help="base_lr, the tuned learning rate on the axis (default %(default)g)",
    )
    parser.add_argument(
        "--weight-decay",
        type=float,
        default=scaling.DEFAULT_WEIGHT_DECAY,
        metavar="LAMBDA",
        help="λ, which the mode turns into each role's weight decay (default %(default)g)",
    )
    parser.add_argument(
        "--weight-decay-mode",
        default=scaling.DEFAULT_WEIGHT_DECAY_MODE,
        metavar="MODE",
        help=f"{', '.join(scaling.WEIGHT_DECAY_MODES)} (default %(default)s)",
    )
    parser.add_argument(
        "--axis",
        default=scaling.DEFAULT_AXIS,
        help=f"what --lr means: {' or '.join(scaling.AXES)} (default %(default)s)",
    )
    parser.add_argument(
        "--head-size",
        type=int,
        help="head size, the same at every width (default: the largest power of two up to "
        "64 that divides both widths)",
    )
    parser.add_argument(
        "--num-heads",
        type=int,
        help="number of heads, the same at every width, in place of --head-size",
    )
    parser.add_argument(
        "--base-head-size",
        type=int,
        help="H_base of the attention scale √H_base/H (default: the head size at the base width)",
    )
    parser.add_argument(
        "--num-layers",
        type=int,
        default=scaling.DEFAULT_NUM_LAYERS,
        help="blocks, which set the init of hidden_residual (default %(default)d)",
    )
    parser.add_argument(
        "--base-num-layers",
        type=int,
        help="blocks of the base model, for rules that scale depth (default: --num-layers)",
    )
    parser.add_argument(
        "--optimizer",
        default=scaling.DEFAULT_OPTIMIZER,
        help=f"{', '.join(scaling.OPTIMIZERS)} (default %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Resolve and print; return 0.

    Raises
    ------
    ConfigError
        If a name or number is wrong, or the rule says nothing for the optimizer.
    """
    name = args.parameterization
    resolved = scaling.resolve(
        scaling.load_rule(name) if name.endswith(".toml") else name,
        width=args.width,
        base_width=args.base_width,
        base_lr=args.lr,
        weight_decay=args.weight_decay,
        weight_decay_mode=args.weight_decay_mode,
        axis=args.axis,
        head_size=args.head_size,
        num_heads=args.num_heads,
        base_head_size=args.base_head_size,
        num_layers=args.num_layers,
        base_num_layers=args.base_num_layers,
        optimizer=args.optimizer,
    )
    if args.json:
        print_json(resolved.to_dict())
    else:
        _print_table(resolved, weight_decay=args.weight_decay)
    return 0


def _print_table(resolved: scaling.Resolved, *, weight_decay: float) -> None:
    """Print the roles as a table on stdout, the settings above it, attention below."""
    print(wrap(
        f"{resolved.parameterization} at width {resolved.width}, base width "
        f"{resolved.base_width} (m = {resolved.width_mult:g})"
    ))  # fmt: skip
    print(wrap(
        f"base lr {resolved.base_lr:g} on the {resolved.axis} axis; weight decay "
        f"{weight_decay:g}, {resolved.weight_decay_mode} mode; {resolved.num_layers} layers"
    ))  # fmt: skip
    head = ("role", "lr", "init std", "weight decay", "multiplier", "eps")
    rows = [
        (role, *(f"{number:.5g}" for number in (
            each.lr, each.init_std, each.weight_decay, each.multiplier, each.eps)))
        for role, each in resolved.roles.items()
    ]  # fmt: skip
    print(align(head, rows))
    print(
        f"attention scale {resolved.attention_scale:.5g} (head size {resolved.head_size}, "
        f"base head size {resolved.base_head_size})"
    )
    residual = resolved.roles["hidden_residual"].residual_multiplier
    if residual != 1.0:
        print(f"residual branches are multiplied by {residual:.5g}")
    print("init std of norm and bias: gains start at 1, biases at 0")
