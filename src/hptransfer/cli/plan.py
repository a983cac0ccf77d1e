"""Print what a study will train, what it will take and what it could tell, before it is run.

Speed is measured once per machine and shape, in seconds; nothing is written to a study directory.
The standard errors are Cramér-Rao bounds: no estimate from this grid does better. They assume
stated values, or those of an earlier study or table (--like).
"""

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hptransfer.cli._arguments import check_workers, find_study_file
from hptransfer.cli._print import align, print_json, say_measuring, wrap
from hptransfer.errors import ConfigError
from hptransfer.study import StudyConfig, StudyPlan, load_study, plan_study

if TYPE_CHECKING:
    from hptransfer.stats.results import TransferModel

_QUANTITIES = {
    "x_star": "ln(lr*) at 4x the widest",
    "kappa": "κ",
    "R_inf": "R(∞), nats",
    "loss_inf": "L∞, nats",
    "alpha": "α",
    "beta": "β",
    "gamma": "γ",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("study", type=Path, metavar="STUDY.toml", help="the study file")
    parser.add_argument("--workers", type=int, metavar="N", help="groups trained at a time")
    parser.add_argument(
        "--like", type=Path, metavar="DIR|TABLE",
        help="an earlier study or table, whose fits and noise the standard errors assume",
    )  # fmt: skip
    parser.add_argument(
        "--noise", type=float, metavar="NATS", help="standard deviation of one trial's loss"
    )
    parser.add_argument(
        "--tflops", type=float, metavar="X",
        help="plan for --workers devices (default: one) of X TFLOP/s each in place of this "
        "machine: measures nothing, reads no text",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Plan the study and print it."""
    check_workers(args.workers, most=None if args.tflops is None else 1_000_000)
    if args.noise is not None and not 0 < args.noise < math.inf:
        raise ConfigError(f"--noise: expected nats above 0, found {args.noise:g}")
    if args.tflops is not None and not 0 < args.tflops < math.inf:
        raise ConfigError(f"--tflops: expected a number above 0, found {args.tflops:g}")
    config = load_study(find_study_file(args.study))
    notice = say_measuring()
    try:
        plan = plan_study(config, workers=args.workers, tflops=args.tflops)
    finally:
        notice.cancel()
    expected = [] if plan.bound or not config.sweep.base_lr else _expect(config, args)
    if args.json:
        print_json(_make_document(plan, expected))
    else:
        _print_plan(plan, expected)
    return 0


def _make_document(plan: StudyPlan, expected: list[dict[str, Any]]) -> dict[str, Any]:
    document: dict[str, Any] = {
        "schema": 1,
        "study": plan.study,
        "device": plan.machine.name,
        "devices": list(plan.machine.devices),
        "workers": plan.machine.workers,
        "threads": plan.machine.threads,
        "widths": [vars(each) for each in plan.widths],
        "trials": plan.trials,
        "runs": plan.runs,
        "flops": plan.flops,
        "memory_bytes": plan.memory_bytes,
        "seconds": plan.seconds,
        "expected": expected,
        "equal": [list(names) for names in plan.equal],
        "notes": list(plan.notes),
    }
    if plan.bound is not None:
        document["adaptive"] = vars(plan.bound)
    return document


def _expect(config: StudyConfig, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the standard errors to expect, for stated values or for each group of --like."""
    from hptransfer.stats.power_analysis import STATED, expect_errors, state_model

    x = [math.log(lr) for lr in config.sweep.base_lr]
    widths = list(config.sweep.width)
    if args.like is None:
        truths = [("stated values", state_model(widths, x), STATED["noise"])]
    else:
        truths = _read_truths(args.like)
    found = []
    for name, model, noise in truths:
        sigma = args.noise or noise
        errors = expect_errors(
            model, widths=widths, x=x, noise=sigma, num_seeds=len(config.sweep.seed)
        )
        found.append(
            {"like": name, "noise": sigma, "quantities": [each.to_dict() for each in errors]}
        )
    return found


def _read_truths(path: Path) -> "list[tuple[str, TransferModel, float]]":
    """Return the fitted model and the noise of a trial for each group of an earlier source."""
    from hptransfer.report.words import name_groups
    from hptransfer.stats import fit_table
    from hptransfer.tables import read_table

    table = read_table(path)
    num_seeds = len(set(table.seed.tolist()))
    fits = fit_table(table, by=tuple(table.groups))
    truths = [
        (name, fit.model, math.sqrt(fit.noise_floor * num_seeds))
        for name, fit in zip(name_groups([fit.group for fit in fits]), fits, strict=True)
        if fit.model is not None and fit.noise_floor
    ]
    if not truths:
        raise ConfigError(
            f"--like: expected a source with fits across widths and two seeds or more, found {path}"
        )
    return truths


def _print_plan(plan: StudyPlan, expected: list[dict[str, Any]]) -> None:
    print(f"plan of {plan.study}")
    head = ("width", "parameters", "trials", "runs", "groups × stacked", "precision", "steps",
            "tokens per run", "epochs", "TFLOP", "memory", "minutes")  # fmt: skip
    rows = [
        (
            f"{each.width}",
            f"{each.params:,}",
            f"{each.trials}",
            f"{each.runs}",
            f"{each.groups} × {each.stacked}",
            each.precision,
            f"{each.steps:,}",
            f"{each.tokens_per_run:,}",
            "–" if each.epochs_per_run is None else f"{each.epochs_per_run:.2g}",
            f"{each.flops / 1e12:.3g}",
            f"{each.memory_bytes / 2**20:,.0f} MiB",
            f"{each.seconds / 60:.1f}",
        )
        for each in plan.widths
    ]
    print(align(head, rows))
    for names in plan.equal:
        print(wrap(f"equal numbers at some width, trained once: {', '.join(names)}"))
    for note in plan.notes:
        print(wrap(note))
    modes: dict[str, list[str]] = {}
    for each in plan.widths:
        modes.setdefault(each.mode, []).append(str(each.width))
    if modes.keys() != {"eager"}:
        ways = (f"{mode} at {', '.join(widths)}" for mode, widths in modes.items())
        print(wrap(f"steps by width: {'; '.join(ways)}"))
    print(wrap(
        f"{plan.trials} trials in {plan.runs} runs, {plan.flops / 1e12:.3g} TFLOP, up to "
        f"{plan.memory_bytes / 2**30:.1f} GiB, about {plan.seconds / 60:.1f} minutes "
        f"on {plan.machine.describe()} (workers: {plan.machine.workers}, "
        f"threads of each: {plan.machine.threads})"
    ))  # fmt: skip
    if plan.bound is not None:
        print(wrap(
            f"this is the first round; later ones follow from the losses: at most "
            f"{plan.bound.most_trials} trials and {plan.bound.most_flops / 1e12:.3g} TFLOP in all"
        ))  # fmt: skip
        return
    if not expected:
        return
    print("what this grid could tell: standard errors, at best")
    found = [{each["name"]: each for each in truth["quantities"]} for truth in expected]
    print(align(
        ("quantity", *(f"{truth['like']}, noise {truth['noise']:.2g}" for truth in expected)),
        [(words, *(_say(quantities[name]) for quantities in found))
         for name, words in _QUANTITIES.items()],
    ))  # fmt: skip


def _say(expectation: dict[str, Any]) -> str:
    error = expectation["standard_error"]
    shown = "no bound" if error is None else f"{error:.2g}"
    status = expectation["status"]
    return shown if status == "identified" else f"{shown} ({status})"
