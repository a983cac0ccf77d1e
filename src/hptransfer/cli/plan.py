"""Print what a study will train, what it will take and what it could tell, before it is run.

Speed is measured once per machine and shape, in seconds; nothing is written to a study directory.
The standard errors are Cramér-Rao bounds: no estimate from this grid does better. They assume
stated values, or those of an earlier study or table (--like).
"""

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hptransfer.errors import ConfigError

if TYPE_CHECKING:
    from hptransfer.stats.results import TransferModel
    from hptransfer.study.config import StudyConfig
    from hptransfer.study.trial import Trial

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
    parser.add_argument("--json", action="store_true", help="print one JSON document instead")


def run(args: argparse.Namespace) -> int:
    """Plan the study and print it."""
    from hptransfer.study.config import load_study, num_params, num_steps, num_tokens
    from hptransfer.study.cost import estimate_memory
    from hptransfer.study.machine import describe_machine
    from hptransfer.study.plan import sum_flops
    from hptransfer.study.runner import open_tokens, plan_groups
    from hptransfer.study.trial import list_trials

    config = load_study(args.study)
    tokens = open_tokens(config)
    machine = describe_machine(workers=args.workers)
    trials = _first_trials(config) if config.sweep.is_adaptive else list_trials(config)
    groups = plan_groups(config, trials, machine)
    rows: list[dict[str, Any]] = []
    for width in sorted({trial.width for trial in trials}):
        own = [group for group in groups if group.width == width]
        runs = sum(len(group.runs) for group in own)
        stacked = max(len(group.runs) for group in own)
        rows.append(
            {
                "width": width,
                "params": num_params(config, width),
                "trials": sum(len(group.trial_ids) for group in own),
                "runs": runs,
                "groups": len(own),
                "stacked": stacked,
                "precision": own[0].precision,
                "steps": num_steps(config, width),
                "tokens_per_run": num_tokens(config, width),
                "epochs_per_run": num_tokens(config, width) / len(tokens.train),
                "flops": sum_flops(config, own),
                "memory_bytes": estimate_memory(config, width) * stacked,
                "seconds": sum(group.seconds for group in own) / machine.workers,
            }
        )
    rule = {trial.id: trial.parameterization for trial in trials}
    same = {
        run[0]: tuple(dict.fromkeys(rule[trial] for trial in run))
        for group in groups
        for run in group.runs
    }
    # Groups come in an order of their own; names are said in that of the trials.
    equal = dict.fromkeys(same[trial.id] for trial in trials if trial.id in same)
    document = {
        "schema": 1,
        "study": config.name,
        "device": machine.name,
        "workers": machine.workers,
        "threads": machine.threads,
        "widths": rows,
        "trials": len(trials),
        "runs": sum(row["runs"] for row in rows),
        "flops": sum_flops(config, groups),
        "memory_bytes": machine.workers * max(row["memory_bytes"] for row in rows),
        "seconds": sum(row["seconds"] for row in rows),
        "expected": [] if config.sweep.is_adaptive else _expect(config, args),
        "equal": [list(names) for names in equal if len(names) > 1],
    }
    if config.sweep.is_adaptive:
        document["adaptive"] = _bound_search(config)
    if args.json:
        print(json.dumps(document, ensure_ascii=False, indent=2))
    else:
        _print_plan(document)
    return 0


def _first_trials(config: "StudyConfig") -> "tuple[Trial, ...]":
    """Return the trials of an adaptive study's first round: all that is sure before it is run."""
    from hptransfer.study.adaptive import search_study
    from hptransfer.study.trial import list_trials

    found = search_study(config, None)
    return list_trials(config, [point for each in found for point in each.points])


def _bound_search(config: "StudyConfig") -> dict[str, Any]:
    """Return the most that a search can take, each trial counted as a run of its own."""
    from hptransfer.study.adaptive import most_flops, most_trials

    return {
        "most_trials": sum(most_trials(config).values()),
        "most_flops": most_flops(config),
    }


def _expect(config: "StudyConfig", args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the standard errors to expect, for stated values or for each group of --like."""
    from hptransfer.stats.power import STATED, expect_errors, state_model

    x = [math.log(lr) for lr in config.sweep.lr]
    widths = list(config.sweep.width)
    if args.noise is not None and not 0 < args.noise < math.inf:
        raise ConfigError(f"--noise: expected nats above 0, found {args.noise:g}")
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


def _print_plan(document: dict[str, Any]) -> None:
    from rich.table import Table

    from hptransfer.cli._print import make_console

    console = make_console()
    table = Table(title=f"plan of {document['study']}", title_justify="left")
    headings = ("width", "parameters", "trials", "runs", "groups × stacked", "precision", "steps",
                "tokens per run", "epochs", "TFLOP", "memory", "minutes")  # fmt: skip
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "precision" else "right")
    for row in document["widths"]:
        table.add_row(
            f"{row['width']}",
            f"{row['params']:,}",
            f"{row['trials']}",
            f"{row['runs']}",
            f"{row['groups']} × {row['stacked']}",
            row["precision"],
            f"{row['steps']:,}",
            f"{row['tokens_per_run']:,}",
            f"{row['epochs_per_run']:.2g}",
            f"{row['flops'] / 1e12:.3g}",
            f"{row['memory_bytes'] / 2**20:,.0f} MiB",
            f"{row['seconds'] / 60:.1f}",
        )
    console.print(table)
    for names in document["equal"]:
        console.print(f"equal numbers at some width, trained once: {', '.join(names)}")
    console.print(
        f"{document['trials']} trials in {document['runs']} runs, "
        f"{document['flops'] / 1e12:.3g} TFLOP, up to "
        f"{document['memory_bytes'] / 2**30:.1f} GiB, about {document['seconds'] / 60:.1f} minutes "
        f"on {document['device']} (workers: {document['workers']}, "
        f"threads of each: {document['threads']})"
    )

    if "adaptive" in document:
        bound = document["adaptive"]
        console.print(
            f"this is the first round; later ones follow from the losses: at most "
            f"{bound['most_trials']} trials and {bound['most_flops'] / 1e12:.3g} TFLOP in all"
        )
        return
    table = Table(title="what this grid could tell: standard errors, at best", title_justify="left")
    table.add_column("quantity")
    for truth in document["expected"]:
        table.add_column(f"{truth['like']}, noise {truth['noise']:.2g}", overflow="fold")
    told = [{each["name"]: each for each in truth["quantities"]} for truth in document["expected"]]
    for name, words in _QUANTITIES.items():
        table.add_row(words, *(_say(quantities[name]) for quantities in told))
    console.print(table)


def _say(expectation: dict[str, Any]) -> str:
    error = expectation["standard_error"]
    shown = "no bound" if error is None else f"{error:.2g}"
    status = expectation["status"]
    return shown if status == "identified" else f"{shown} ({status})"
