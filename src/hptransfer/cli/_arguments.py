"""Arguments that commands share: lists, workers, and which file or folder is meant."""

import argparse
import os
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path

from hptransfer._messages import did_you_mean
from hptransfer.errors import ConfigError


def split_list(text: str) -> list[str]:
    """Return the parts of an option's value that commas separate."""
    return [part.strip() for part in text.split(",") if part.strip()]


def positive_number(text: str) -> float:
    """Return a number above 0; argparse words the error of another."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, found {text!r}")
    return value


def check_workers(workers: int | None, *, most: int | None = None) -> None:
    """Raise where a number of workers is below 1, or above `most`, the cores by default.

    Raises
    ------
    ConfigError
        If it is.
    """
    most = os.cpu_count() or 1 if most is None else most
    if workers is not None and not 1 <= workers <= most:
        raise ConfigError(
            f"--workers: expected 1 to {most}, the cores of this machine, found {workers}"
        )


def find_study_file(path: Path) -> Path:
    """Return the study file that is meant: ``mine`` and its folder stand for ``mine.toml``.

    Raises
    ------
    ConfigError
        If there is no such file; the nearest name there is proposed.
    """
    if path.is_file():
        return path
    named = path.with_name(f"{path.name}.toml")
    if named.is_file():
        return named
    if path.is_dir():
        raise ConfigError(
            f"{path}: expected a study file such as {named}, found a folder; to read its results, "
            f"hptransfer status {path}"
        )
    there = [file.name for file in path.parent.glob("*.toml")] if path.parent.is_dir() else []
    hint = did_you_mean(path.name, there)
    raise ConfigError(f"{path}: no such study file{hint or '; expected a path ending in .toml'}")


def find_results(source: Path | str) -> Path | str:
    """Return where the results of a study file lie; any other source as it is.

    Raises
    ------
    ConfigError
        If nothing of the study has been trained.
    """
    path = Path(source)
    if path.suffix != ".toml" or not path.is_file():
        return source
    try:
        name = tomllib.loads(path.read_text("utf-8")).get("name")
    except (ValueError, OSError):
        name = None
    for folder in (Path(str(name or path.stem)), path.with_suffix("")):
        if (folder / "study.json").is_file():
            return folder
    raise ConfigError(
        f"{path}: a study file, of which nothing is trained here yet: hptransfer run {path}"
    )


def check_options(
    command: str, argv: Iterable[str], known: Iterable[str], refuse: Callable[[str], None]
) -> None:
    """Refuse the first option that a command does not have, with the nearest that it has."""
    options = [option for option in known if option.startswith("--")]
    for argument in argv:
        if argument == "--":
            return
        name = argument.partition("=")[0]
        if not name.startswith("--") or any(option.startswith(name) for option in options):
            continue
        refuse(f"no option {name}{did_you_mean(name, options)}; see hptransfer {command} --help")
