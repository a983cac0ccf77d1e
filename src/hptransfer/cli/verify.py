"""Train a random handful of a published table's trials again, and compare.

With the table's processor or GPU and versions, trials train as the plan stacked and stepped them,
and losses and loss curves must be equal to the bit; elsewhere each loss must lie within three
standard deviations over seeds. Exit code 1 if one does not.
"""

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from hptransfer.cli._print import print_json, wrap
from hptransfer.errors import ConfigError
from hptransfer.study import load_study

if TYPE_CHECKING:
    from hptransfer.study import TrialCheck


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("study", type=Path, metavar="STUDY.toml", help="the study file")
    parser.add_argument(
        "table",
        type=Path,
        metavar="TABLE|DIR",
        help="its published Parquet table, or its directory",
    )
    parser.add_argument(
        "--count", type=int, default=3, metavar="N", help="trials to train (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of the random choice (default: %(default)s)"
    )
    parser.add_argument("--max-width", type=int, metavar="N", help="choose among these widths only")
    parser.add_argument(
        "--noise", type=float, metavar="NATS",
        help="standard deviation over seeds (default: from the table's seeds)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Verify the table; 1 if a trial differs."""
    if args.count < 1:
        raise ConfigError(f"--count: expected 1 or more, found {args.count}")
    if args.noise is not None and not 0 < args.noise < math.inf:
        raise ConfigError(f"--noise: expected nats above 0, found {args.noise:g}")
    config = load_study(args.study)

    from hptransfer.study import verify_table

    def show(check: "TrialCheck") -> None:
        if not args.json:
            print(wrap(_describe(check)), flush=True)

    checks = verify_table(
        config,
        args.table,
        count=args.count,
        seed=args.seed,
        max_width=args.max_width,
        noise=args.noise,
        on_check=show,
    )
    agreeing = sum(check.agrees for check in checks)
    if args.json:
        document = {"schema": 1, "study": config.name, "trials": [vars(check) for check in checks]}
        print_json(document)
    else:
        print(f"{agreeing} of {len(checks)} trials agree")
    return 0 if agreeing == len(checks) else 1


def _describe(check: "TrialCheck") -> str:
    losses = ["diverged" if x is None else f"{x:.6f}" for x in (check.recorded, check.found)]
    if check.agrees:
        verdict = "equal bits" if check.tolerance == 0 else f"within {check.tolerance:.4f}"
    else:
        verdict = (
            "bits differ" if check.tolerance == 0 else f"differs by over {check.tolerance:.4f}"
        )
    return (
        f"{check.id} {check.parameterization} width {check.width} log2_lr {check.log2_lr:g} "
        f"seed {check.seed}: {losses[0]}, again {losses[1]}: {verdict}"
    )
