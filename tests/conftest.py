"""What several test folders share: a small text, a small study trained once, a cache."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from study.small import write_study

# Examples are the same in every run: a test fails where something changed, and not by chance.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")


def pytest_configure(config: pytest.Config) -> None:
    """Keep a process of tests on one core where it is told to take one thread.

    Studies that tests train take a thread for each core that they see, and several processes of
    tests would wait for each other's threads most of the time. What has to run beside each other
    is started under `cores.every_core`.
    """
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    starts_others = not worker and config.getoption("dist", "no") != "no"
    if os.environ.get("OMP_NUM_THREADS") != "1" or starts_others:
        return
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        number = int(worker.removeprefix("gw") or os.getpid())
        os.sched_setaffinity(0, {cores[number % len(cores)]})


@pytest.fixture(scope="session")
def session_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all tests: measured speeds and tokens are reused within a run."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def cache(session_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HPTRANSFER_CACHE", str(session_cache))
    return session_cache


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Undo what training in this process sets: tiny models train faster on one thread."""
    _forget_training()  # of a fixture that several tests share
    yield
    _forget_training()


def _forget_training() -> None:
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(False)


@pytest.fixture
def study_file(tmp_path: Path, cache: Path) -> Path:
    return write_study(tmp_path)


@pytest.fixture(scope="session")
def trained_study(
    tmp_path_factory: pytest.TempPathFactory, session_cache: Path
) -> Callable[[], Path]:
    """Return a function that gives the directory of the small study, trained once per session."""
    found: list[Path] = []

    def train() -> Path:
        if not found:
            from study.training import complete

            folder = tmp_path_factory.mktemp("trained")
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("HPTRANSFER_CACHE", str(session_cache))
                complete(write_study(folder), folder / "finished")
            found.append(folder / "finished")
        return found[0]

    return train


@pytest.fixture
def finished(trained_study: Callable[[], Path], study_file: Path, tmp_path: Path) -> Path:
    """A finished directory of the study in `study_file`, for the test to do with as it likes."""
    return Path(shutil.copytree(trained_study(), tmp_path / "finished"))


@pytest.fixture
def coordinates() -> dict[str, Any]:
    """A coordinate check as plain data: a table that stops learning beside a matrix that learns."""
    widths = (32, 64, 128, 256)

    def module(name: str, kind: str, power: float, passed: bool) -> dict[str, Any]:
        slope = {"value": power, "low": power - 0.01, "high": power + 0.01}
        change = [[[0.1 * (width / 32) ** power] * 2 for width in widths]]
        return {
            "name": name, "kind": kind, "passed": passed, "decided": True,
            "reason": "" if passed else "change shrinks", "change": slope,
            "init": {**slope, "value": 0.0}, "final": {"value": None, "status": "not identified",
                                                       "reason": "zero or not finite"},
            "rms_change": change, "rms_activation": [[[1.0, None]] * 4, [[1.0, 1.0]] * 4],
        }  # fmt: skip

    return {
        "schema": 1, "name": "<b>sp", "widths": list(widths), "seeds": [0, 1], "steps": 1,
        "tolerance": 0.25, "passed": False, "verdict": "FAIL: 1 of 3\nthe embedding shrinks",
        "median_slope": 0.0, "constant": [],
        "modules": [module("token", "Embedding", -1.0, False), module("up", "Linear", 0.0, True),
                    module("down", "Linear", 0.0, True)],
    }  # fmt: skip
