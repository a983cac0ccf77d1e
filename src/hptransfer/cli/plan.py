"""Print what a study will train, what it will take and what it could tell, before it is run.

Speed is measured once per machine and shape, in seconds; nothing is written to a study directory.
The standard errors are Cramér-Rao bounds: no estimate from this grid does better. They assume
stated values, or those of an earlier study or table (--like).
"""

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hptransfer.cli._arguments import (
    WORKERS,
    check_workers,
    find_results,
    find_study_file,
    positive_number,
)
from hptransfer.cli._print import align, say_measuring, tell, wrap
from hptransfer.errors import ConfigError
from hptransfer.study import StudyConfig, StudyPlan, load_study, plan_study

if TYPE_CHECKING:
    from hptransfer.stats.joint_model import Expectation

_QUANTITIES = {
    "x_star": "ln(lr*) at 4x the widest",
    "kappa": "κ",
    "R_inf": "R(∞), nats",
    "loss_inf": "L∞, nats",
    "alpha": "α",
    "beta": "β",
    "gamma": "γ",
}


OPTIONS = (
    ("study", "STUDY.toml", Path, ..., "the study file"),
    WORKERS,
    ("--like", "DIR|TABLE", Path, None,
     "an earlier study or table, whose fits and noise the standard errors assume"),
    ("--noise", "NATS", positive_number, None, "standard deviation of one trial's loss"),
    ("--tflops", "X", positive_number, None,
     "plan for --workers devices (default: one) of X TFLOP/s each in place of this machine: "
     "measures nothing, reads no text"),
)  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Plan the study and print it."""
    if args.tflops is None:
        check_workers(args.workers)
    config = load_study(find_study_file(args.study))
    expected = [] if config.sweep.is_adaptive or not config.sweep.base_lr else _expect(config, args)
    with say_measuring():
        plan = plan_study(config, workers=args.workers, tflops=args.tflops)
    return tell(args, _make_document(plan, expected), _describe_plan(plan, expected))


def _make_document(plan: StudyPlan, expected: list[dict[str, Any]]) -> dict[str, Any]:
    machine = {name: getattr(plan.machine, name) for name in ("devices", "workers", "threads")}
    own = ["widths", "trials", "runs", "flops", "memory_bytes", "seconds", "equal", "notes"]
    return {
        "schema": 1,
        "study": plan.study,
        "device": plan.machine.name,
        **machine,
        **{name: getattr(plan, name) for name in own},
        "expected": expected,
        **({} if plan.bound is None else {"adaptive": plan.bound}),
    }


def _expect(config: StudyConfig, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the standard errors to expect, for stated values or for each group of --like."""
    from hptransfer.stats.joint_model import STATED, expect_errors, state_model

    x = [math.log(lr) for lr in config.sweep.base_lr]
    widths = list(config.sweep.width)
    if args.like is None:
        truths = [("stated values", state_model(widths, x), STATED["noise"])]
    else:
        truths = _read_truths(args.like)
    grid: Any = {"widths": widths, "x": x, "num_seeds": len(config.sweep.seed)}
    noisy = [(name, model, args.noise or noise) for name, model, noise in truths]
    return [
        {"like": name, "noise": noise, "quantities": expect_errors(model, noise=noise, **grid)}
        for name, model, noise in noisy
    ]


def _read_truths(path: Path) -> list[tuple[str, Any, float]]:
    """Return the fitted model and the noise of a trial for each group of an earlier source."""
    from hptransfer.report.words import with_names
    from hptransfer.stats import fit_table
    from hptransfer.tables import read_table

    table = read_table(find_results(path))
    num_seeds = len(set(table.seed.tolist()))
    fits = fit_table(table)
    truths = [
        (name, fit.model, math.sqrt(fit.noise_floor * num_seeds))
        for name, fit in with_names(fits)
        if fit.model is not None and fit.noise_floor
    ]
    if not truths:
        raise ConfigError(
            f"--like: expected a source with fits across widths and two seeds or more, found {path}"
        )
    return truths


def _describe_plan(plan: StudyPlan, expected: list[dict[str, Any]]) -> str:
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
    lines = [f"plan of {plan.study}", align(head, rows)]
    equal = (f"equal numbers at some width, trained once: {', '.join(n)}" for n in plan.equal)
    lines += map(wrap, (*equal, *plan.notes))
    modes: dict[str, list[str]] = {}
    for each in plan.widths:
        modes.setdefault(each.mode, []).append(str(each.width))
    if modes.keys() != {"eager"}:
        ways = (f"{mode} at {', '.join(widths)}" for mode, widths in modes.items())
        lines.append(wrap(f"steps by width: {'; '.join(ways)}"))
    size, seconds = plan.memory_bytes / 2**20, plan.seconds
    memory = f"{size / 1024:.1f} GiB" if size >= 1024 else f"{size:.0f} MiB"
    time = f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.0f} seconds"
    lines.append(wrap(
        f"{plan.trials} trials in {plan.runs} runs, {plan.flops / 1e12:.3g} TFLOP, up to "
        f"{memory}, about {time} on {plan.machine.describe()} (workers: {plan.machine.workers}, "
        f"threads of each: {plan.machine.threads})"
    ))  # fmt: skip
    if plan.bound is not None:
        lines.append(wrap(
            f"this is the first round; later ones follow from the losses: at most "
            f"{plan.bound.most_trials} trials and {plan.bound.most_flops / 1e12:.3g} TFLOP in all"
        ))  # fmt: skip
    if expected:
        lines.append("what this grid could tell: standard errors, at best")
        found = [{each.name: each for each in truth["quantities"]} for truth in expected]
        lines.append(align(
            ("quantity", *(f"{truth['like']}, noise {truth['noise']:.2g}" for truth in expected)),
            [(words, *(_say(quantities[name]) for quantities in found))
             for name, words in _QUANTITIES.items()],
        ))  # fmt: skip
    return "\n".join(lines)


def _say(expectation: "Expectation") -> str:
    error, status = expectation.standard_error, expectation.status
    shown = f"{error:.2g}" if math.isfinite(error) else "no bound"
    return shown if status == "identified" else f"{shown} ({status})"
