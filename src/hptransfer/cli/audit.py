"""Read what your own model and optimizer do today, and say what the rules would change."""

import argparse
from typing import TYPE_CHECKING

from hptransfer.cli._own_model import MODEL_OPTIONS, command_words, read_roles, say_applied
from hptransfer.cli._print import align, tell, wrap

if TYPE_CHECKING:
    from hptransfer.adopt import Audit


OPTIONS = (
    *MODEL_OPTIONS,
    ("--width", "N", int, ..., "the target's width"),
    ("--optimizer", "MODULE:FUNCTION", str, None,
     "a function from the model, or from width and model, to what trains it (default: "
     "torch.optim.AdamW(model.parameters()))"),
)  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Print the audit; return 0 whatever it finds.

    Raises
    ------
    ConfigError
        If a name or number is wrong or the user's functions fail.
    """
    roles = read_roles(args.role)

    from hptransfer._user_code import load_function
    from hptransfer.adopt import audit

    with command_words():
        result = audit(
            load_function("MODULE:FACTORY", args.factory),
            base_width=args.base_width,
            width=args.width,
            optimizer=load_function("--optimizer", args.optimizer) if args.optimizer else None,
            parameterization=args.parameterization,
            roles=roles,
            applied=args.applied,
            model_name=args.factory,
            optimizer_name=args.optimizer or "",
            say_applied=say_applied,
        )
    return tell(args, result.to_dict(), _describe(result))


def _describe(result: "Audit") -> str:
    """Return the roles as a table, then the verdict, the fix and the warnings."""
    from hptransfer.adopt import say_factor

    lines = [wrap(
        f"{result.model} trained by {result.optimizer}, from base width {result.base_width} to "
        f"width {result.width} (m = {result.width_mult:g})"
    )]  # fmt: skip
    if result.roles:
        rule = result.parameterization
        # The shrink of a step is most often the same at both widths.
        moved = any(each.shrink != each.base_shrink for each in result.roles.values())
        head = ["role", "tensors", "lr", "lr over hidden's", f"{rule}'s", "init std",
                "as width grows", f"{rule}'s", "shrink per step"]  # fmt: skip
        head += ["at base"] * moved
        rows = [
            (
                role, str(each.num_tensors), f"{each.lr:.4g}", say_factor(each.lr_factor),
                say_factor(each.rule_lr_factor),
                "" if each.init_std is None else f"{each.init_std:.4g}",
                say_factor(each.init_factor), say_factor(each.rule_init_factor),
                f"{each.shrink:.3g}", f"{each.base_shrink:.3g}",
            )[: len(head)]
            for role, each in result.roles.items()
        ]  # fmt: skip
        lines += [align(head, rows), wrap(_say_columns(result))]
    else:
        lines.append(wrap("no comparison: the model is another one at the base width"))
    if result.nearest is not None:
        near = result.nearest
        axis = {"own": ""}.get(near.axis, f", on the {near.axis} axis")
        lr = "no rule's" if near.lr is None else f"{near.lr}'s{axis}"
        init = "no rule's" if near.init is None else f"{near.init}'s"
        if result.init_width is None:
            init = "not looked at"
        lines.append(wrap(f"today's learning rates are {lr}; today's initial weights are {init}"))
    if result.embedding is not None:
        lines.append(wrap(f"verdict: {result.embedding.verdict}"))
        lines += [wrap(f"fix: {result.embedding.fix}")] if result.embedding.fix else []
    lines += [wrap(f"warning: {warning.message}") for warning in result.warnings]
    return "\n".join(lines)


def _say_columns(result: "Audit") -> str:
    looked = (result.init_base_width, result.init_width)
    where = ""
    if None not in looked and looked != (result.base_width, result.width):
        where = f" (initial weights: from {looked[0]} to {looked[1]})"
    return (
        f"×, ÷: from width {result.base_width} to {result.width}{where}; shrink per step is "
        "lr · weight_decay"
    )
