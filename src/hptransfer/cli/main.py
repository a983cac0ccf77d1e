"""The ``hptransfer`` command: parse, call, turn errors into exit codes."""

import argparse
import errno
import gc
import io
import logging
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from types import FrameType
from typing import NoReturn

from hptransfer._messages import describe_error, did_you_mean
from hptransfer._version import __version__
from hptransfer.cli._arguments import Option, add_options, read_options
from hptransfer.errors import ConfigError, HptransferError

COMMANDS = {
    "demo": "real text to a transfer report in ./hptransfer-demo/",
    "plan": "trials, tokens, FLOPs, memory and time of a study, before it is run",
    "run": "train what is missing of a study",
    "search": "search with your own training job: where to measure next, run and recorded",
    "status": "what a study directory holds, and what is missing",
    "verify": "whether a random handful of a table's trials come out the same again",
    "fit": "the transfer metrics of a study or of any loss table",
    "recommend": "the learning rate to use at a width, and its risk",
    "report": "one self-contained HTML page of a study or of any loss table",
    "columns": "what each column of a table holds, and as what it is read",
    "factors": "what each of the lattice's switches does to a table of metrics",
    "rules": "a parameterization's numbers at a width",
    "audit": "what your own model and optimizer do today, against the rules",
    "coordinate-check": "whether a rule works on your own model: what keeps its size",
}

JSON: Option = ("--json", None, bool, None, "print one JSON document instead")


class Terminated(KeyboardInterrupt):
    """SIGTERM, a scheduler's preemption: ends a command as Ctrl-C does, with its own code."""


class _Parser(argparse.ArgumentParser):
    """Errors are one line, as all of ours are."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def _say_interrupted(signum: int) -> int:
    print(
        "hptransfer: interrupted; what is finished is kept, the same command resumes",
        file=sys.stderr,
    )
    return 128 + signum


#: New objects between looks for cycles. A study of 100,000 trials makes a million objects and next
#: to no cycles; looking for them at Python's own 700 is a sixth of a command's time.
GC_THRESHOLD = 100_000


def _parse_command(argv: Sequence[str]) -> argparse.Namespace:
    """Return what these arguments say; only the command that they name is loaded."""
    parser = _Parser(
        prog="hptransfer",
        description="Which learning rate does the big model need, known from small ones, "
        "and how wrong could that be?",
        epilog="Exit codes: 0 done, 1 the work failed, 2 the input was wrong, 3 answered but a "
        "file was damaged, 130 or 143 interrupted by Ctrl-C or SIGTERM (the same command resumes).",
    )

    def print_help(args: argparse.Namespace) -> int:
        parser.print_help()
        return 0

    parser.set_defaults(run=print_help)
    parser.add_argument("--version", action="version", version=f"hptransfer {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    asked = next((argument for argument in argv if not argument.startswith("-")), None)
    if asked is not None and asked not in COMMANDS:
        hint = did_you_mean(asked, COMMANDS) or f"; expected one of {', '.join(COMMANDS)}"
        parser.error(f"no command {asked!r}{hint}")
    for name, summary in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary)
        if name == asked:
            command = import_module(f"hptransfer.cli.{name.replace('-', '_')}")
            subparser.description = command.__doc__
            add_options(subparser, [*command.OPTIONS, JSON])
            subparser.set_defaults(run=command.run)
            place = list(argv).index(name) + 1
            known = subparser._option_string_actions
            argv = [*argv[:place], *read_options(name, argv[place:], known)]
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors are one line on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without µ shows a question mark
            stream.reconfigure(errors="replace")
    warnings = logging.StreamHandler(sys.stderr)
    warnings.setFormatter(logging.Formatter("hptransfer: %(message)s"))
    logging.getLogger("hptransfer").addHandler(warnings)
    received: list[int] = []

    def terminate(signum: int, frame: FrameType | None) -> NoReturn:
        received.append(signum)
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    thresholds = gc.get_threshold()
    gc.set_threshold(GC_THRESHOLD, *thresholds[1:])
    try:
        args = _parse_command(sys.argv[1:] if argv is None else argv)
        code: int = args.run(args)
    except KeyboardInterrupt:
        return _say_interrupted(received[-1] if received else signal.SIGINT)
    # A library that is interrupted may raise an error of its own instead (Ray does).
    except BaseException as error:
        if received:
            return _say_interrupted(received[-1])
        return _describe_end(error)
    finally:
        logging.getLogger("hptransfer").removeHandler(warnings)
        signal.signal(signal.SIGTERM, before)
        gc.set_threshold(*thresholds)
    return code


def _describe_end(error: BaseException) -> int:
    """Say on stderr why a command ended; return its exit code. Other errors are raised again."""
    if isinstance(error, HptransferError):
        print(f"hptransfer: {error}", file=sys.stderr)
        return error.exit_code
    if isinstance(error, BrokenPipeError):
        # The reader (head, less) went away: not an error of ours; keep exit quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if isinstance(error, OSError | MemoryError):
        print(f"hptransfer: {describe_error(error)}", file=sys.stderr)
        mistaken = isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG
        return ConfigError.exit_code if mistaken else 1
    raise error
