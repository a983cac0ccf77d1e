"""What every dated result says of its making, and where it is written."""

import json
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from hptransfer._version import __version__
from hptransfer.study._local_engine import describe_machine
from hptransfer.train._device import count_cores

RESULTS = Path(__file__).parent / "results"


def describe_making() -> dict[str, Any]:
    """Return the date, the machine and the versions."""
    machine = describe_machine()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {"name": machine.name, "device": machine.device, "cores": count_cores()},
        "versions": {
            "hptransfer": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def write_document(path: Path, document: dict[str, Any]) -> None:
    """Write a result."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
