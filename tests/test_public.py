"""The package's public names."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from functools import cached_property
from pathlib import Path
from types import FunctionType

import pytest

import hptransfer

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", hptransfer.__all__)
def test_every_public_name_is_there_and_documented(name):
    assert name in dir(hptransfer)
    value = getattr(hptransfer, name)
    assert value.__doc__ or not callable(value)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing"):
        hptransfer.nothing  # noqa: B018


FOUND = [*pkgutil.walk_packages(hptransfer.__path__, "hptransfer.")]
MODULES = sorted(module.name for module in FOUND if not module.name.endswith("__main__"))
# Imported only where they are used, on machines that have them.
OPTIONAL = {"triton"}


@pytest.mark.parametrize("name", ["hptransfer", *MODULES])
def test_examples_in_docstrings_hold(name, tmp_path, monkeypatch):
    """Examples may write files, and read those of the repository, as in a fresh clone."""
    for folder in ("studies", "examples"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        pytest.skip(f"{error.name} is not installed")
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.testmod(module, optionflags=flags)
    assert result.failed == 0


PACKAGES = ["hptransfer", "hptransfer.errors"] + [
    module.name
    for module in FOUND
    if module.ispkg and hasattr(importlib.import_module(module.name), "__all__")
]


def list_exported(package):
    """Return the functions and classes that a package exports, by name."""
    module = importlib.import_module(package)
    names = getattr(module, "__all__", vars(module))
    found = {name: getattr(module, name) for name in names}
    return {n: v for n, v in found.items() if inspect.isfunction(v) or inspect.isclass(v)}


def has_example(name, value):
    """Tell whether an example in the docstring of a function, a class or its methods is run.

    A function's has to name it beside its import; a class may be shown by what is made of it.
    """
    methods = (FunctionType, property, cached_property, classmethod, staticmethod)
    members = vars(value).values() if inspect.isclass(value) else ()
    texts = [value.__doc__, *(each.__doc__ for each in members if isinstance(each, methods))]
    parse = doctest.DocTestParser().get_examples
    found = [example for text in texts if text for example in parse(text)]
    run = [example.source for example in found if doctest.SKIP not in example.options]
    used = [line for line in run if not re.match(r"(from|import) ", line)]
    word = rf"\b{name}\b" if inspect.isfunction(value) else ""
    return any(re.search(word, line) for line in used)


def names_in_examples():
    """Return names in the code of the README and of `examples`, which tests run, by their use."""
    readme = (ROOT / "README.md").read_text("utf-8")
    codes = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    codes += [path.read_text("utf-8") for path in (ROOT / "examples").rglob("*.py")]
    nodes = [node for code in codes for node in ast.walk(ast.parse(code))]
    called = [node.func for node in nodes if isinstance(node, ast.Call)]
    imported = [node.names for node in nodes if isinstance(node, ast.ImportFrom)]
    return {
        "called": {getattr(each, "attr", getattr(each, "id", "")) for each in called},
        "imported": {alias.name for names in imported for alias in names},
    }


@pytest.mark.parametrize("package", PACKAGES)
def test_every_exported_function_has_an_example_that_runs(package):
    shown = names_in_examples()
    lacking = [
        name
        for name, value in list_exported(package).items()
        if not has_example(name, value)
        and name not in shown["called" if inspect.isfunction(value) else "imported"]
    ]
    assert lacking == []


def test_an_example_that_is_skipped_or_only_imports_is_none():
    def shown():
        """>>> shown()"""

    def imported():
        """>>> from there import imported"""

    def skipped():
        """>>> skipped()  # doctest: +SKIP"""

    found = [has_example(each.__name__, each) for each in (shown, imported, skipped)]
    assert found == [True, False, False]


@pytest.mark.parametrize("package", ["hptransfer", "hptransfer.study"])
def test_what_is_exported_is_what_is_listed(package):
    """The names stand for the loader and for type checkers; a package may list them for people."""
    module = importlib.import_module(package)
    assert {*module._HOME_OF} == {*module.__all__} - {"__version__"}
    tree = ast.parse(inspect.getsource(module))
    imported = [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "hptransfer"
        for alias in node.names
    ]
    assert sorted(imported) == sorted(module.__all__)


def test_rules_need_neither_scipy_nor_torch():
    code = (
        "import sys, hptransfer; hptransfer.resolve; hptransfer.LATTICE; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'scipy', 'pyarrow', 'pydantic')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
