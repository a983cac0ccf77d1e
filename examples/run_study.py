"""Plan, run and read a study from Python, as the commands do.

    python examples/run_study.py [DIRECTORY]

It trains 8 trials of a tiny GPT on this repository's documents, in some seconds on two cores;
their text lies beside the directory. Running it again trains nothing: what is stored counts.
"""

import sys
from pathlib import Path

from hptransfer import fit_table, read_table
from hptransfer.study import (
    Event,
    RoundEvent,
    RunError,
    RunOutcome,
    StudyPlan,
    StudyStatus,
    TrialCheck,
    parse_study,
    plan_study,
    read_status,
    run_study,
    verify_table,
)

DOCUMENTS = Path(__file__).resolve().parents[1] / "docs"
STUDY = {
    "name": "from-python",
    "data": {"text": "files:documents.txt", "vocab_size": 300},
    "model": {"num_layers": 1, "head_size": 8, "context": 16},
    "sweep": {
        "parameterization": ["sp+embd"],
        "width": [16, 32],
        "base_width": 16,
        "log2_lr": [-8, -6],
        "seed": [0, 1],
    },
    "train": {"batch": 4, "steps": 20, "eval_tokens": 256, "precision": "fp32"},
}


def tell(event: Event | RoundEvent) -> None:
    """Print what happens to groups of stacked trials, and to whole rounds of them."""
    if isinstance(event, RoundEvent):
        print(f"{event.kind}: {event.work.num_trials} trials to train")
    elif event.is_last:
        print(f"{event.group}: {event.kind}, {event.completed} completed")


def main(directory: Path) -> tuple[StudyPlan, RunOutcome, StudyStatus, tuple[TrialCheck, ...]]:
    """Return the plan, the outcome, what is stored then, and two trials trained again."""
    pages = [page.read_text("utf-8") for page in sorted(DOCUMENTS.glob("*.md"))]
    (directory.parent / "documents.txt").write_text("\n\n".join(pages), encoding="utf-8")
    config = parse_study(STUDY, root=directory.parent)
    plan = plan_study(config, workers=2)
    print(f"{plan.trials} trials, {plan.flops:.1e} FLOPs")
    try:
        outcome = run_study(config, directory, workers=2, on_event=tell)
    except RunError as error:  # what the other groups finished is stored
        sys.exit(f"run_study.py: {error}")
    status = read_status(directory)
    for cell in status.cells:
        print(f"width {cell.width}: {cell.completed} of {config.name}, best {cell.best_loss:.2f}")
    for fit in fit_table(read_table(directory)):
        for basin in fit.basins:
            print(f"lr* at width {basin.width:g}: {basin.lr}")
    checks = verify_table(config, directory, count=2)
    return plan, outcome, status, checks


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "from-python"))
