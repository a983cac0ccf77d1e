"""Train what is missing of a study; a rerun of the same command resumes.

Finished groups of trials are stored as they come, and groups under way are saved at an interval
and on Ctrl-C or SIGTERM, so a crash or a power cut loses a minute's work. A study file whose grid
has grown trains what is new.
"""

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from hptransfer.cli._arguments import WORKERS, check_workers, find_study_file
from hptransfer.cli._print import tell
from hptransfer.errors import ConfigError
from hptransfer.study import DEFAULT_CHECKPOINT_SECONDS, ENGINES

if TYPE_CHECKING:
    from hptransfer.study import Shard


OPTIONS = (
    ("study", "STUDY.toml", Path, ..., "the study file"),
    ("-o --output", "DIR", str, None, "the study directory (default: the study's name, here)"),
    ("--engine", None, ENGINES, "local",
     "where groups train: here, or as tasks of a Ray cluster (default: %(default)s)"),
    WORKERS,
    ("--address", "HOST:PORT", str, None,
     "the Ray cluster's, or 'auto' (default: a Ray is started here for the run)"),
    ("--checkpoint", "SECONDS", float, DEFAULT_CHECKPOINT_SECONDS,
     "time between checkpoints of groups under way (default: %(default)g)"),
    ("--shard", "I/N", str, None, "train only share I of N, for job arrays on a shared folder"),
    ("--wait", None, bool, None,
     "wait for other shards where an adaptive study's round is theirs to finish"),
    ("--new-code", None, bool, None,
     "go on though the code of your own model has changed since the first run"),
)  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Train what is missing and say where it is."""
    from hptransfer.cli._progress import report_run
    from hptransfer.study import load_study, run_study

    if args.engine == "local":
        check_workers(args.workers)
    if not args.checkpoint >= 0:
        raise ConfigError(f"--checkpoint: expected 0 seconds or more, found {args.checkpoint:g}")
    if args.address is not None and args.engine != "ray":
        raise ConfigError(f"--address: expected --engine ray with it, found {args.engine}")
    config = load_study(find_study_file(args.study))
    directory = Path(config.name) if args.output is None else _parse_output(args.output)
    with report_run(config, shard=args.shard) as show:
        outcome = run_study(
            config,
            directory,
            on_event=show,
            workers=args.workers,
            engine=args.engine,
            address=args.address,
            checkpoint_interval=args.checkpoint,
            shard=_parse_shard(args.shard) if args.shard else None,
            wait=args.wait,
            new_code=args.new_code,
        )
    return tell(
        args,
        {"schema": 1, "study": config.name, **vars(outcome)},
        f"results are in {directory}\n"
        f"next: hptransfer report {shlex.quote(str(directory))} -o report.html",
    )


def _parse_output(text: str) -> Path:
    if not text.strip():
        raise ConfigError("--output: expected a folder, found an empty name")
    if "://" in text:
        raise ConfigError(
            f"--output: expected a folder, found the URL {text!r}; a study directory needs a file "
            "system that all machines see: mount it"
        )
    return Path(text)


def _parse_shard(text: str) -> "Shard":
    from hptransfer.study import Shard

    index, slash, count = text.partition("/")
    if slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count):
        return Shard(index=int(index), count=int(count))
    raise ConfigError(f"--shard: expected I/N with 1 ≤ I ≤ N, found {text!r}")
