"""Plan studies for a GPU that is not here, and compile there what their plans need.

    python studies/gpu_plan.py plan STUDY.toml -o DIR --stack WIDTH:K[:MODE] ...
    python studies/gpu_plan.py compile DIR...

Where minutes count, a plan that was made beforehand saves those of measuring: `hptransfer run
STUDY.toml -o DIR` on the GPU goes on from it. `plan` makes or completes the plan of a study
directory for one H100, in bf16, cheapest groups first, so that a run that is cut short lacks the
dearest; groups that an earlier plan holds stay as they are. `compile` compiles each distinct step
of unfinished groups once, side by side, into the cache that training reads.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from hptransfer.study._executor import make_shape
from hptransfer.study._local_engine import describe_machine
from hptransfer.study._plan import (
    Machine,
    Plan,
    Speed,
    StackedGroup,
    make_groups,
    memory_budget,
)
from hptransfer.study._runner import describe_data, open_checked_data
from hptransfer.study._trial import estimate_memory, list_trials, merge_by_width, num_params
from hptransfer.study.config import StudyConfig, load_study
from hptransfer.study.store import group_path
from hptransfer.study.study_settings import open_study, read_config
from hptransfer.train._calibrate import CompileJob, StepTerms, compile_ahead
from hptransfer.train._program import is_compiled

H100 = Machine(
    device="cuda",
    name="NVIDIA H100 80GB HBM3",
    memory=84_366_524_416,
    workers=1,
    threads=16,
    devices=("NVIDIA H100 80GB HBM3",),
)
MODE = "compiled+captured"
#: Seconds of a compiled step there per token, token and width, and token and width², and of AdamW
#: per parameter: fitted to steps measured at widths 64 to 1024 and a batch of 32 x 128 tokens.
PER_TOKEN, PER_WIDTH, PER_SQUARE, PER_PARAM = 2.8e-8, 2.6e-10, 3.8e-13, 1.1e-11


def plan_study(path: Path, directory: Path, stacks: Mapping[int, tuple[int, str]]) -> None:
    """Make a study directory with a plan, or complete one's, cheapest groups first."""
    config = load_study(path)
    open_study(directory, config, data=describe_data(config, open_checked_data(config)))
    known = Plan.read(directory).groups
    for old in (directory / "plan").glob("round-*.json"):
        old.unlink()
    planned = {trial for group in known for trial in group.trial_ids}
    trials = [trial for trial in list_trials(config) if trial.id not in planned]
    widths = {trial.width for trial in trials}
    speeds = {
        width: Speed(
            precision="bf16", seconds=estimate_seconds(config, width), mode=stacks[width][1],
            num_stacked=stacks[width][0],
        )
        for width in widths
    }  # fmt: skip
    fresh = make_groups(config, merge_by_width(config, trials), machine=H100, speeds=speeds)
    groups = sorted([*known, *fresh], key=lambda group: group.seconds)
    Plan.read(directory).add_round(groups, machine=H100)
    for group in groups:
        done = " (done)" if group_path(directory, group.name).exists() else ""
        size = group.stacked or len(group.runs)
        print(f"{directory}: {group.name} {size} {group.mode} {group.seconds:.0f} s{done}")


def estimate_seconds(config: StudyConfig, width: int) -> float:
    """Return seconds of a run's compiled step at a width."""
    per_token = PER_TOKEN + PER_WIDTH * width + PER_SQUARE * width**2
    tokens = config.train.batch * config.model.context
    return per_token * tokens + PER_PARAM * num_params(config, width)


def compile_studies(directories: Sequence[Path]) -> None:
    """Compile the steps of unfinished groups, each once."""
    machine = describe_machine(workers=1)
    jobs: dict[str, CompileJob] = {}
    for directory in directories:
        config = read_config(directory)
        for group in Plan.read(directory).groups:
            if is_compiled(group.mode) and not group_path(directory, group.name).exists():
                job = make_job(config, group)
                jobs[json.dumps(job.key)] = job
    compile_ahead(list(jobs.values()), memory=memory_budget(machine))
    print(f"compiled {len(jobs)} steps")


def make_job(config: StudyConfig, group: StackedGroup) -> CompileJob:
    """Return what is to be compiled for a group."""
    size = group.stacked or len(group.runs)
    return CompileJob(
        terms=StepTerms(
            shape=make_shape(config, group.width), batch=config.train.batch, device=group.device,
            threads=group.threads,
        ),
        num_stacked=size, precision=group.precision,
        memory=size * estimate_memory(config, group.width, device=group.device),
    )  # fmt: skip


def parse_stack(text: str) -> tuple[int, tuple[int, str]]:
    """Return the width, and K and the mode, of WIDTH:K[:MODE]."""
    width, size, *mode = text.split(":")
    return int(width), (int(size), mode[0] if mode else MODE)


def main() -> None:
    """Plan or compile."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    plan = commands.add_parser("plan")
    plan.add_argument("study", type=Path)
    plan.add_argument("-o", "--output", type=Path, required=True)
    plan.add_argument("--stack", type=parse_stack, nargs="*", default=[], metavar="WIDTH:K[:MODE]")
    compile_ = commands.add_parser("compile")
    compile_.add_argument("directory", type=Path, nargs="+")
    args = parser.parse_args()
    if args.command == "plan":
        plan_study(args.study, args.output, dict(args.stack))
    else:
        compile_studies(args.directory)


if __name__ == "__main__":
    main()
