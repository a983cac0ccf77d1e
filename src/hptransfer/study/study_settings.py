"""A study directory's ``study.json``: whose directory it is, and what it was started with."""

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hptransfer._atomic import TMP_SUFFIX, atomic_write
from hptransfer._documents import (
    DigestError,
    canonical_json,
    check_document,
    read_document,
    seal_document,
)
from hptransfer._messages import describe_error, show_value
from hptransfer._version import __version__
from hptransfer.errors import ConfigError, StoreError
from hptransfer.study.config import ADAPTIVE, GRIDS, StudyConfig, parse_study

SETTINGS_FILE = "study.json"
SCHEMA_VERSION = 2
"""Version of the file; since 2 it carries a digest."""
_KEYS = {
    "name": str, "identity": str, "axis": str, "config": dict, "data": dict, "versions": dict,
    "code": dict,
}  # fmt: skip
_DATA_KEYS = {"data_hash": str}


def _write_settings(directory: Path, settings: Mapping[str, Any], *, replace: bool) -> None:
    sealed = seal_document(settings, context=SETTINGS_FILE)
    with atomic_write(directory / SETTINGS_FILE, replace=replace) as tmp:
        tmp.write_text(
            json.dumps(sealed, ensure_ascii=False, indent=1, allow_nan=False), encoding="utf-8"
        )


def read_settings(directory: Path) -> dict[str, Any]:
    """Return the content of a study directory's ``study.json``.

    Raises
    ------
    StoreError
        If the directory is no study's, or the file is damaged.
    """
    path = directory / SETTINGS_FILE
    try:
        settings = read_document(path)
        if (schema := settings.get("schema")) not in (1, SCHEMA_VERSION):
            raise StoreError(
                f"{path}: expected schema {SCHEMA_VERSION}, found {show_value(schema)}; "
                "a newer hptransfer wrote it"
            )
        if schema != 1:
            check_document(settings, context=SETTINGS_FILE)
        _check_types({"code": {}, **settings}, _KEYS)
        _check_types(settings["data"], _DATA_KEYS)
    except FileNotFoundError:
        raise StoreError(
            f"{directory}: expected a study directory, found no {SETTINGS_FILE} in it"
        ) from None
    except (DigestError, OSError) as error:
        reason = describe_error(error)
        raise StoreError(f"{path}: expected a study's settings, found damage ({reason})") from None
    return settings


def _check_types(document: Mapping[str, Any], types: Mapping[str, type]) -> None:
    for key, kind in types.items():
        if not isinstance(found := document.get(key), kind):
            raise DigestError(f"{key}: expected {kind.__name__}, found {show_value(found)}")


def read_identity(directory: Path) -> str:
    """Return the identity of the study that a directory belongs to.

    Raises
    ------
    StoreError
        If the directory is no study's, or its settings are damaged.
    """
    return str(read_settings(directory)["identity"])


def read_config(
    directory: Path, *, root: Path | None = None, settings: Mapping[str, Any] | None = None
) -> StudyConfig:
    """Return the config of the study that a directory belongs to.

    Parameters
    ----------
    directory : Path
        The study directory.
    root : Path, optional
        The folder that ``data.text`` globs start from; by default the current one.
    settings : mapping, optional
        Content of its ``study.json``, where that is read already.

    Raises
    ------
    StoreError
        If the directory is no study's, or its settings are damaged or were edited: they must
        have the identity that they record.
    """
    path, settings = directory / SETTINGS_FILE, settings or read_settings(directory)
    try:
        config = parse_study(settings["config"], source=str(path), root=root)
    except ConfigError as error:
        raise StoreError(f"{error}; the file is damaged or was edited") from None
    if config.identity() != settings["identity"] or config.sweep.axis != settings.get("axis"):
        raise StoreError(
            f"{path}: expected the study with identity {settings['identity'][:12]}…, found "
            "another config under it: the file is damaged or was edited"
        )
    return config


def open_study(
    directory: Path,
    config: StudyConfig,
    *,
    data: Mapping[str, Any],
    code: Mapping[str, str] | None = None,
    new_code: bool = False,
) -> None:
    """Make a study directory, or check that one belongs to this study, this text and this code.

    A grid that has grown is recorded; everything else must be as it was.

    Parameters
    ----------
    directory : Path
        Made with its parents if it is missing.
    config : StudyConfig
        The study.
    data : mapping
        What is recorded of the text, with its ``data_hash``.
    code : mapping of str to str, optional
        Digests of the user's own source files by path.
    new_code : bool
        Whether to go on, and record it, where they are others than in the first run.

    Raises
    ------
    StoreError
        If the directory is another study's, of another text or code, or no study's and not empty.
    """
    path = directory / SETTINGS_FILE
    known = path.exists() or path.is_symlink()  # a link to itself does not exist
    if known:
        settings = read_settings(directory)
        stored = read_config(directory, settings=settings)
        _check_same(directory, stored, config)
        require_text(directory, settings, data["data_hash"])
        if not new_code:
            require_code(directory, settings, code)
        config = _merge_grids(stored, config)
        if stored.to_dict() == config.to_dict() and settings.get("code") == code:
            return
    else:
        _check_empty(directory)
        directory.mkdir(parents=True, exist_ok=True)
    settings = {
        "schema": SCHEMA_VERSION,
        "name": config.name,
        "identity": config.identity(),
        "axis": config.sweep.axis,
        "config": config.to_dict(),
        "data": dict(data),
        **({} if code is None else {"code": dict(code)}),
        "versions": {"hptransfer": __version__, "python": platform.python_version()},
    }
    try:
        _write_settings(directory, settings, replace=known)
    except FileExistsError:  # another process was first: ours must be its study
        open_study(directory, config, data=data, code=code, new_code=new_code)


def _check_empty(directory: Path) -> None:
    """Raise if a directory holds anything except the leftovers of an interrupted start."""
    if directory.exists() and not directory.is_dir():
        raise StoreError(f"{directory}: expected a study directory or an empty one, found a file")
    others = sorted(path.name for path in directory.glob("*") if path.suffix != TMP_SUFFIX)
    if others and SETTINGS_FILE not in others:  # where it is, another process was first
        raise StoreError(
            f"{directory}: expected a study directory or an empty one, "
            f"found other files ({others[0]})"
        )


def _merge_grids(stored: StudyConfig, config: StudyConfig) -> StudyConfig:
    """Return `config` with every grid value and point that the directory already knows."""
    document, before = config.to_dict(), stored.to_dict()

    def join(now: dict[str, Any], then: dict[str, Any], key: str) -> None:
        known = then.get(key, [])
        if now.get(key) != ADAPTIVE and (values := now.get(key, [])) + known:
            now[key] = [*known, *(value for value in values if value not in known)]

    for key in GRIDS:
        join(document["sweep"], before["sweep"], key)
    join(document, before, "points")
    return parse_study(document, source="study", root=config.root)


def _check_same(directory: Path, stored: StudyConfig, config: StudyConfig) -> None:
    """Refuse another study, a search in the place of a grid, and a grid in that of a search."""
    before, now = (
        {"sweep.base_lr": ADAPTIVE if each.sweep.is_adaptive else "a list"}
        | _flatten(each.settings())
        for each in (stored, config)
    )
    for key in {**before, **now}:
        found, wanted = before.get(key), now.get(key)
        if canonical_json(found) != canonical_json(wanted):  # as identities do: 1 is not 1.0
            raise StoreError(
                f"{directory}: expected results of study {config.name!r} with {key} = {wanted!r}, "
                f"found study {stored.name!r} with {key} = {found!r}; choose another directory"
            )
    if stored.identity() != config.identity():  # as of a key with a dot and a table with its name
        raise StoreError(
            f"{directory}: expected results of study {config.name!r}, found those of "
            f"{stored.name!r} with other settings; choose another directory"
        )


def require_text(directory: Path, settings: Mapping[str, Any], data_hash: str) -> None:
    """Refuse to go on with other text than a study directory's settings record.

    Raises
    ------
    StoreError
        If `data_hash` is another text's.
    """
    if settings["data"]["data_hash"] != data_hash:
        raise StoreError(
            f"{directory}: expected the text of the first run, sha256 "
            f"{settings['data']['data_hash'][:12]}…, found text with {data_hash[:12]}…; "
            "choose another directory"
        )


def require_code(
    directory: Path, settings: Mapping[str, Any], code: Mapping[str, str] | None
) -> None:
    """Refuse to go on with other code of the user's own than a study directory's settings record.

    Raises
    ------
    StoreError
        If a source file has changed, is gone or is new; directories of old record none.
    """
    before, now = settings.get("code", code) or {}, code or {}
    for name in {**before, **now}:
        if before.get(name) != now.get(name):
            change = "changed" if name in before and name in now else "new"
            raise StoreError(
                f"{directory}: expected the code of the first run, found {name} "
                f"{change if name in now else 'no longer used'}; choose another directory, or go "
                "on with the new code by run --new-code"
            )


def _flatten(document: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in document.items():
        if isinstance(value, Mapping) and value:  # an empty one is part of an identity too
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
