"""Train what is missing of a study; a rerun of the same command resumes.

Finished groups of trials are stored as they come, and groups under way are saved at an interval
and on Ctrl-C or SIGTERM, so a crash or a power cut loses a minute's work. A study file whose grid
has grown trains what is new.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hptransfer.errors import ConfigError
from hptransfer.study import DEFAULT_CHECKPOINT_SECONDS, ENGINES, Engine

if TYPE_CHECKING:
    from hptransfer.study.config import StudyConfig
    from hptransfer.study.runner import Shard

#: Between looks at what other shards have finished.
WAIT_SECONDS = 5.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("study", type=Path, metavar="STUDY.toml", help="the study file")
    parser.add_argument(
        "-o", "--output", metavar="DIR",
        help="the study directory (default: the study's name, here)",
    )  # fmt: skip
    parser.add_argument(
        "--workers", type=int, metavar="N",
        help="groups trained at a time (default: one per core, or one on a GPU)",
    )  # fmt: skip
    parser.add_argument(
        "--engine", choices=ENGINES, default="local",
        help="where groups train: here, or as tasks of a Ray cluster (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--address", metavar="HOST:PORT",
        help="the Ray cluster's, or 'auto' (default: a Ray is started here for the run)",
    )  # fmt: skip
    parser.add_argument(
        "--checkpoint", type=float, default=DEFAULT_CHECKPOINT_SECONDS, metavar="SECONDS",
        help="time between checkpoints of groups under way (default: %(default)g)",
    )  # fmt: skip
    parser.add_argument(
        "--shard", metavar="I/N", help="train only share I of N, for job arrays on a shared folder"
    )
    parser.add_argument(
        "--wait", action="store_true",
        help="wait for other shards where an adaptive study's round is theirs to finish",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Train what is missing and say where it is."""
    from hptransfer.study.config import load_study

    if args.workers is not None and args.workers < 1:
        raise ConfigError(f"--workers: expected 1 or more, found {args.workers}")
    if not args.checkpoint > 0:
        raise ConfigError(f"--checkpoint: expected seconds above 0, found {args.checkpoint:g}")
    if args.address is not None and args.engine != "ray":
        raise ConfigError(f"--address: expected --engine ray with it, found {args.engine}")
    config = load_study(args.study)
    directory = _parse_output(args.output) if args.output else Path(config.name)
    shard = _parse_shard(args.shard) if args.shard else None

    from hptransfer.study.runner import open_engine

    with open_engine(args.engine, address=args.address):
        train_missing(
            config,
            directory,
            workers=args.workers,
            shard=shard,
            checkpoint=args.checkpoint,
            wait=args.wait,
            engine=args.engine,
        )
    print(f"results are in {directory}; next: hptransfer report {directory} -o report.html")
    return 0


def train_missing(
    config: "StudyConfig",
    directory: Path,
    *,
    workers: int | None = None,
    shard: "Shard | None" = None,
    checkpoint: float = DEFAULT_CHECKPOINT_SECONDS,
    wait: bool = False,
    engine: Engine = "local",
) -> None:
    """Train what is missing of a study, with live progress on stderr.

    What the engine needs is open (`hptransfer.study.runner.open_engine`), and serves all rounds.
    An adaptive study is trained round by round. A shard with nothing left in a round says so, or
    with `wait` looks again until the other shards are done.
    """
    from rich.console import Console

    from hptransfer.cli._progress import RunProgress
    from hptransfer.study.runner import prepare_run, run_groups

    console = Console(stderr=True)
    while True:
        work = prepare_run(config, directory, workers=workers, shard=shard, engine=engine)
        for path in work.damaged:
            print(
                f"hptransfer: {path}: damaged, set aside; its trials train again", file=sys.stderr
            )
        if work.groups:
            _say_notes(f"round {work.round}: ", work.notes)
            with RunProgress(
                config,
                work.groups,
                num_finished=work.num_finished,
                num_trials=work.num_trials,
                console=console,
            ) as progress:
                run_groups(
                    config,
                    directory,
                    work.groups,
                    on_event=progress,
                    workers=workers,
                    checkpoint_interval=checkpoint,
                    engine=engine,
                )
            print(progress.summary(), file=sys.stderr)
            if not config.sweep.is_adaptive:
                return
        elif config.sweep.is_adaptive and work.elsewhere:
            if not wait:
                print(
                    f"round {work.round} waits for {work.elsewhere} groups of other shards; the "
                    "same command goes on when they are done (or with --wait)",
                    file=sys.stderr,
                )
                return
            time.sleep(WAIT_SECONDS)
        else:
            _say_notes("", work.notes)
            print(f"{work.num_finished} trials are finished, nothing is missing", file=sys.stderr)
            return


def _parse_output(text: str) -> Path:
    if "://" in text:
        raise ConfigError(
            f"-o: expected a folder, found the URL {text!r}; a study directory needs a file system "
            "that all machines see: mount it"
        )
    return Path(text)


def _say_notes(start: str, notes: Sequence[str]) -> None:
    for note in notes:
        print(f"{start}{note}", file=sys.stderr)


def _parse_shard(text: str) -> "Shard":
    from hptransfer.study.runner import Shard

    index, slash, count = text.partition("/")
    if slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count):
        return Shard(index=int(index), count=int(count))
    raise ConfigError(f"--shard: expected I/N with 1 ≤ I ≤ N, found {text!r}")
