"""What the commands say of known tables stays what it is; fields may be added."""

import json
import math
from typing import Any

import pytest

from golden.make import COMMANDS, HERE, SLOW, missing, run_command


def find_differences(golden: Any, found: Any, where: str = "") -> list[str]:
    """Return each place at which a document lacks what the golden one has, or says another."""
    if isinstance(golden, dict) and isinstance(found, dict):
        out = [f"{where}.{key} is missing" for key in golden if key not in found]
        for key in golden.keys() & found.keys():
            out += find_differences(golden[key], found[key], f"{where}.{key}")
        return out
    if isinstance(golden, list) and isinstance(found, list) and len(golden) == len(found):
        pairs = zip(golden, found, strict=True)
        return [
            d for k, (a, b) in enumerate(pairs) for d in find_differences(a, b, f"{where}[{k}]")
        ]
    numbers = isinstance(golden, float) and isinstance(found, float)
    if numbers and math.isclose(golden, found, rel_tol=1e-6, abs_tol=1e-12):
        return []
    return [] if golden == found else [f"{where}: expected {golden!r}, found {found!r}"]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in COMMANDS],
)
def test_documents_stay(name: str) -> None:
    if why := missing(name):
        pytest.skip(why)
    golden = json.loads((HERE / f"{name}.json").read_text("utf-8"))
    assert find_differences(golden, run_command(name)) == []


def test_a_difference_is_found() -> None:
    golden = {"fits": [{"value": 1.0, "reason": "a", "low": None}]}
    assert find_differences(golden, {"fits": [{**golden["fits"][0], "more": 1}]}) == []
    for change in ({"value": 1.00001}, {"reason": "b"}, {"low": 0.0}):
        assert find_differences(golden, {"fits": [{**golden["fits"][0], **change}]})
    assert find_differences(golden, {"fits": []})
    assert find_differences(golden, {})
