"""Load a function of the user's own, named by module or file."""

import ast
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from hptransfer._messages import did_you_mean
from hptransfer.errors import ConfigError

#: By module, what it was loaded by, and its file's digest when that was first looked at.
_LOADED: dict[str, tuple[object, str]] = {}


def load_function(option: str, spec: str) -> Callable[..., Any]:
    """Return the function that ``package.module:name`` or ``path/to/file.py:name`` means.

    Modules are looked for in the working directory too. A file is imported as part of the package
    that it stands in, or else with its folder's other modules at hand.

    Parameters
    ----------
    option : str
        Named in errors.
    spec : str
        The module or file and the name in it, which may have dots.

    Raises
    ------
    ConfigError
        If it is not of that form, the module cannot be imported, or there is no such function.
    """
    where, colon, name = spec.rpartition(":")
    if not colon or not where or not name:
        raise ConfigError(f"{option}: expected MODULE:NAME or FILE.py:NAME, found {spec!r}")
    try:
        module: Any = _load_file(Path(where)) if where.endswith(".py") else _import(where)
    except (Exception, SystemExit) as error:  # importing runs the user's code
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{option}: importing {where!r} raised {what}") from error
    value = module
    for part in name.split("."):
        if not hasattr(value, part):
            own = [k for k, v in vars(module).items() if callable(v) and not k.startswith("_")]
            near = did_you_mean(name, own) or f"; it has {', '.join(own[-8:])}" * bool(own)
            raise ConfigError(f"{option}: {where!r} has no {name!r}{near}")
        value = getattr(value, part)
    if not callable(value):
        raise ConfigError(f"{option}: expected a function, found {name!r}, {type(value).__name__}")
    function: Callable[..., Any] = value
    return function


def _add_path(folder: Path) -> None:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


def _import(name: str) -> ModuleType:
    _add_path(Path.cwd())
    return importlib.import_module(name)


def _load_file(path: Path) -> ModuleType:
    path = path.resolve()
    folder, parts = path.parent, [path.stem]
    if (folder / "__init__.py").exists() and _imports_relatively(path):
        while (folder / "__init__.py").exists():
            parts.insert(0, folder.name)
            folder = folder.parent
        _add_path(folder)
        return importlib.import_module(".".join(parts))
    _add_path(folder)
    name = f"_hptransfer_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"no module could be made of {path}")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickles in the file look their own module up.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _imports_relatively(path: Path) -> bool:
    """Tell whether a file imports from its package by dots."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    return any(isinstance(node, ast.ImportFrom) and node.level > 0 for node in ast.walk(tree))


def hash_code(specs: Iterable[str]) -> dict[str, str]:
    """Return the sha256 of each source file that functions of the user's own are made of.

    Parameters
    ----------
    specs : iterable of str
        The functions, as for `load_function`.

    Returns
    -------
    dict of str to str
        By path from the folder that modules are looked for in: the functions' files, and those of
        their folder or package that they import. Of an installed package the function's file alone.

    Raises
    ------
    ConfigError
        If a module of them was loaded before its file changed.
    """
    found: dict[str, str] = {}
    digests: dict[Path, str] = {}
    for spec in specs:
        where = named = spec.rpartition(":")[0]
        if not named.endswith(".py"):
            module = importlib.util.find_spec(named)
            where = (module and module.origin) or ""
        if not where.endswith(".py"):  # an extension
            continue
        waiting, root = [Path(where).resolve()], Path(where).resolve().parent
        while (root / "__init__.py").exists():
            root = root.parent
        if not named.endswith(".py"):  # packages need no __init__.py
            depth = named.count(".") + Path(where).match("__init__.py")
            above = Path(where).absolute().parents[depth].resolve()
            root = above if waiting[0].is_relative_to(above) else root
        seen: set[Path] = set()
        while waiting:
            path = waiting.pop()
            if path in seen or not path.is_relative_to(root):
                continue
            seen.add(path)
            content, name = path.read_bytes(), path.relative_to(root).as_posix()
            digest = digests[path] = hashlib.sha256(content).hexdigest()
            while found.setdefault(name, digest) != digest:  # of two folders
                name = f"./{name}"
            if "site-packages" not in path.parts:
                waiting += _find_imports(path, content, root)
    _require_loaded(digests)
    return found


def _require_loaded(digests: Mapping[Path, str]) -> None:
    """Raise if a module that is not loaded anew was first seen with other content of its file."""
    files = {path.name for path in digests}
    for name, module in [*sys.modules.items()]:
        about = getattr(module, "__dict__", {})
        file, spec = about.get("__file__"), about.get("__spec__")  # a new one where reloaded
        if not isinstance(file, str) or Path(file).name not in files:
            continue
        if (digest := digests.get(path := Path(file).resolve())) is None:
            continue
        if name not in _LOADED or _LOADED[name][0] is not spec:
            _LOADED[name] = spec, digest
        elif _LOADED[name][1] != digest:
            raise ConfigError(f"{path} has changed since this Python loaded it: restart Python")


def _find_imports(path: Path, content: bytes, root: Path) -> Iterator[Path]:
    """Yield the files of a source file's folder or package that it imports, at whatever place.

    A file that Python cannot read imports nothing, as one that is imported in a ``try``.
    """
    try:
        tree = ast.parse(content, filename=str(path))
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        folders, names = (path.parent, root), []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = [node.module] if node.module else []
            names = [".".join([*module, *more]) for more in ([], *([a.name] for a in node.names))]
            if node.level > len(path.parents):
                continue
            if node.level:
                folders = (path.parents[node.level - 1],) * 2
        for name in names:
            parts = [part for part in name.split(".") if part]
            for folder in dict.fromkeys(folders):
                for count in range(len(parts) + 1):
                    place = folder.joinpath(*parts[:count])
                    for file in (place.parent / f"{place.name}.py", place / "__init__.py"):
                        if file.is_file():
                            yield file.resolve()
