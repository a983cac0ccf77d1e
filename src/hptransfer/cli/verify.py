"""Train a random handful of a published table's trials again, and compare.

With the table's processor or GPU and versions, trials train as the plan stacked and stepped them,
and losses and loss curves must be equal to the bit; elsewhere each loss must lie within three
standard deviations over seeds. Exit code 1 if one does not.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hptransfer.cli._arguments import find_study_file, positive_count, positive_number
from hptransfer.cli._print import tell, wrap
from hptransfer.study import load_study

if TYPE_CHECKING:
    from hptransfer.study import TrialCheck


OPTIONS = (
    ("study", "STUDY.toml", Path, ..., "the study file"),
    ("table", "TABLE|DIR", Path, ..., "its published Parquet table, or its directory"),
    ("--count", "N", positive_count, 3, "trials to train (default: %(default)s)"),
    ("--seed", None, int, 0, "of the random choice (default: %(default)s)"),
    ("--max-width", "N", int, None, "choose among widths up to this one"),
    ("--noise", "NATS", positive_number, None,
     "standard deviation over seeds (default: from the table's seeds)"),
)  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Verify the table; 1 if a trial differs."""
    from hptransfer.study import verify_table

    def show(check: "TrialCheck") -> None:
        if not args.json:
            print(wrap(_describe(check)), flush=True)

    by_others: list[int] = []
    config = load_study(find_study_file(args.study))
    checks = verify_table(
        config, args.table, count=args.count, seed=args.seed, max_width=args.max_width,
        noise=args.noise, on_check=show, on_other_code=by_others.append,
    )  # fmt: skip
    for count in by_others:
        note = f"hptransfer: note: {count} trials by other code than this are left out"
        print(note, file=sys.stderr)
    agreeing = sum(check.agrees for check in checks)
    document = {
        "schema": 1,
        "study": config.name,
        "trials": checks,
        "by_other_code": sum(by_others),
    }
    tell(args, document, f"{agreeing} of {len(checks)} trials agree")
    return 0 if agreeing == len(checks) else 1


def _describe(check: "TrialCheck") -> str:
    losses = ["diverged" if x is None else f"{x:.6f}" for x in (check.recorded, check.found)]
    if check.tolerance == 0:
        verdict = "equal bits" if check.agrees else "bits differ"
    else:
        verdict = f"{'within' if check.agrees else 'differs by over'} {check.tolerance:.4f}"
    return (
        f"{check.id} {check.parameterization} width {check.width} log2_lr {check.log2_lr:g} "
        f"seed {check.seed}: {losses[0]}, again {losses[1]}: {verdict}"
    )
