"""The package's public names."""

import doctest
import subprocess
import sys

import pytest

import hptransfer
import hptransfer.scaling


@pytest.mark.parametrize("name", hptransfer.__all__)
def test_every_public_name_is_there_and_documented(name):
    assert name in dir(hptransfer)
    value = getattr(hptransfer, name)
    assert value.__doc__ or not callable(value)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing"):
        hptransfer.nothing  # noqa: B018


def test_examples_in_docstrings_hold():
    for module in (hptransfer, hptransfer.scaling):
        result = doctest.testmod(module)
        assert result.attempted > 0
        assert result.failed == 0


def test_rules_need_neither_scipy_nor_torch():
    code = (
        "import sys, hptransfer; hptransfer.resolve; hptransfer.LATTICE; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'scipy', 'pyarrow', 'pydantic')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
