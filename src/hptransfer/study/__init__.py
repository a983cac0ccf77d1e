"""Studies: the study file, its trials, the plan, the results store, and what trains them.

`run_study` trains what is missing of a study, `plan_study` says beforehand what it will take,
`read_status` says what a study directory holds, and `verify_table` trains some of a table's trials
again. The names are loaded when they are first used: only those that train need PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hptransfer.study._plan import StackedGroup
    from hptransfer.study._preview import StudyPlan, plan_study
    from hptransfer.study._runner import RoundEvent, RunError, RunOutcome, Shard, run_study
    from hptransfer.study._status import StudyStatus, read_status
    from hptransfer.study._trial import num_tokens
    from hptransfer.study._verify import TrialCheck, verify_table
    from hptransfer.study.config import StudyConfig, load_study, parse_study
    from hptransfer.study.events import DEFAULT_CHECKPOINT_SECONDS, ENGINES, EngineName, Event

__all__ = [
    "DEFAULT_CHECKPOINT_SECONDS",
    "ENGINES",
    "EngineName",
    "Event",
    "RoundEvent",
    "RunError",
    "RunOutcome",
    "Shard",
    "StackedGroup",
    "StudyConfig",
    "StudyPlan",
    "StudyStatus",
    "TrialCheck",
    "load_study",
    "num_tokens",
    "parse_study",
    "plan_study",
    "read_status",
    "run_study",
    "verify_table",
]

_HOMES = {
    "_trial": ("num_tokens",),
    "_plan": ("StackedGroup",),
    "config": ("StudyConfig", "load_study", "parse_study"),
    "events": ("DEFAULT_CHECKPOINT_SECONDS", "ENGINES", "EngineName", "Event"),
    "_preview": ("StudyPlan", "plan_study"),
    "_runner": ("RoundEvent", "RunError", "RunOutcome", "Shard", "run_study"),
    "_status": ("StudyStatus", "read_status"),
    "_verify": ("TrialCheck", "verify_table"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'hptransfer.study' has no attribute {name!r}")
    return getattr(import_module(f"hptransfer.study.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
