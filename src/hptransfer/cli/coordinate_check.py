"""Train your own model a few steps at several widths and say which modules keep their size."""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hptransfer._atomic import atomic_write
from hptransfer._messages import describe_error
from hptransfer._user_code import load_function
from hptransfer.cli._arguments import check_output, positive_count, split_list
from hptransfer.cli._own_model import MODEL_OPTIONS, command_words, read_roles
from hptransfer.cli._print import tell, wrap
from hptransfer.errors import ConfigError, HptransferError

if TYPE_CHECKING:
    from hptransfer.adopt import CoordinateCheck

#: The check at the learning rate that is meant: more steps, and a warm-up.
LONG_STEPS, LONG_WARMUP = 40, 10


OPTIONS = (
    *MODEL_OPTIONS,
    ("--width", "N,…", split_list, None,
     "the widths that are trained, three or more (default: 1, 2, 4 and 8 times the base)"),
    ("--lr", None, float, 2.0**-9, "a small base_lr, the same at every width (default 2^-9)"),
    ("--steps", None, int, 4, "steps (default %(default)s)"),
    ("--recommended-lr", "LR", float, None,
     f"check at this learning rate too: {LONG_STEPS} steps, {LONG_WARMUP} of them warm-up"),
    ("--optimizer", "MODULE:FUNCTION", str, None,
     "check this instead of a rule: a function from width and model to an optimizer"),
    ("--batches", "MODULE:FUNCTION", str, None,
     "a function that returns a list of batches (default: token sequences)"),
    ("--loss", "MODULE:FUNCTION", str, None,
     "a function from model and batch to the loss (default: the output's loss, or the next "
     "token's)"),
    ("--num-layers", "N", int, None, "blocks, where a rule asks"),
    ("--seeds", "N", positive_count, 2, "seeds (default %(default)s)"),
    ("--plot", "FILE.html", Path, None, "draw the check here"),
    ("-o --output", "FILE.json", Path, None,
     "write the check here, for hptransfer report --coordinates"),
)  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Print the check; return 0 whatever it finds.

    Raises
    ------
    ConfigError
        If a name or number is wrong or the user's functions fail.
    """
    widths = _read_widths(args)
    check_output("--output", args.output)
    check_output("--plot", args.plot)
    try:
        with command_words():
            checks = _check(args, widths)
    except (HptransferError, OSError, MemoryError):
        raise
    except Exception as error:  # whatever a user's model, batches or loss raise
        raise ConfigError(
            f"{args.factory}: training it raised {describe_error(error)}; to say what it is fed, "
            "--batches MODULE:FUNCTION and --loss MODULE:FUNCTION"
        ) from error
    document = checks[0].to_dict()
    if len(checks) > 1:
        document["recommended_lr"] = checks[1].to_dict()
    if args.output is not None:
        text = json.dumps(document, ensure_ascii=False, allow_nan=False)
        with atomic_write(args.output) as tmp:
            tmp.write_text(text, encoding="utf-8")
    if args.plot is not None:
        from hptransfer.report import write_report

        write_report([], args.plot, coordinates=[each.to_dict() for each in checks])
    text = "\n\n".join("\n".join(map(wrap, str(each).splitlines())) for each in checks)
    return tell(args, document, text)


def _read_widths(args: argparse.Namespace) -> list[int]:
    if not all(each.isdecimal() and int(each) for each in args.width):
        raise ConfigError(
            f"--width: expected whole numbers such as 64,128,256, found {','.join(args.width)!r}"
        )
    return [int(each) for each in args.width] or [args.base_width * k for k in (1, 2, 4, 8)]


def _check(args: argparse.Namespace, widths: list[int]) -> "list[CoordinateCheck]":
    from hptransfer.adopt import coordinate_check, make_token_batches, rule_optimizer

    factory = load_function("MODULE:FACTORY", args.factory)
    own = load_function("--optimizer", args.optimizer) if args.optimizer else None
    loss: Any = load_function("--loss", args.loss) if args.loss else None
    if args.batches:
        batches: Any = load_function("--batches", args.batches)()
    else:
        batches, default_loss = make_token_batches(factory, min(widths))
        loss = loss or default_loss
    told: Any = {} if args.num_layers is None else {"num_layers": args.num_layers}
    rule = partial(
        rule_optimizer, factory, base_width=args.base_width, roles=read_roles(args.role),
        parameterization=args.parameterization, applied=args.applied, **told,
    )  # fmt: skip
    seeds = range(args.seeds)
    check = partial(coordinate_check, factory, widths, batches=batches, loss=loss, seeds=seeds)
    plans = [(args.lr, args.steps, 0)]
    if args.recommended_lr is not None:
        plans.append((args.recommended_lr, LONG_STEPS, LONG_WARMUP))
    name = args.optimizer or args.parameterization
    return [
        check(
            optimizer=own or rule(lr=lr),
            steps=steps,
            warmup=warmup,
            name=f"{name} at lr {lr:g}" if len(plans) > 1 else name,
        )
        for lr, steps, warmup in plans
    ]
