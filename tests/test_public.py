"""The package's public names."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

import hptransfer


@pytest.mark.parametrize("name", hptransfer.__all__)
def test_every_public_name_is_there_and_documented(name):
    assert name in dir(hptransfer)
    value = getattr(hptransfer, name)
    assert value.__doc__ or not callable(value)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing"):
        hptransfer.nothing  # noqa: B018


MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(hptransfer.__path__, "hptransfer.")
    if not module.name.endswith("__main__")
)


@pytest.mark.parametrize("name", ["hptransfer", *MODULES])
def test_examples_in_docstrings_hold(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


@pytest.mark.parametrize("package", ["hptransfer", "hptransfer.study"])
def test_what_is_exported_is_what_is_listed(package):
    """The names stand three times: for people, for the loader and for type checkers."""
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
