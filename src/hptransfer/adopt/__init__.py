"""Use on your own PyTorch model: roles, param groups and initial weights, without wrappers.

``infer_roles`` finds what each parameter is, as a plain table; ``param_groups`` and ``init_`` turn
a rule into ordinary ``torch.optim`` groups and initial weights; ``guard`` watches that a scheduler
leaves the ratios between groups as the rule gave them. ``coordinate_check`` trains a few steps at
several widths and says which modules keep their size; ``audit`` compares what a model and its
optimizer do today with the rules.
"""

from hptransfer.adopt._audit import Audit, audit
from hptransfer.adopt._audit_findings import say_factor
from hptransfer.adopt._coord_check import coordinate_check, make_token_batches
from hptransfer.adopt._coord_check_result import CoordinateCheck
from hptransfer.adopt._fold_multipliers import UnfoldedMultiplierError
from hptransfer.adopt._lr_guard import Guard, guard
from hptransfer.adopt._model_init import InitReport, init_
from hptransfer.adopt._optimizers import RuleOptimizer, rule_optimizer
from hptransfer.adopt._param_groups import OptaxExport, ParamGroups, export, param_groups
from hptransfer.adopt._role_inference import UnclearRolesError, infer_roles
from hptransfer.adopt._tensor_rules import Options as RuleOptions
from hptransfer.adopt._tensor_rules import TensorNumbers, resolve_tensors
from hptransfer.adopt.role_table import RoleTable

__all__ = [
    "Audit",
    "CoordinateCheck",
    "Guard",
    "InitReport",
    "OptaxExport",
    "ParamGroups",
    "RoleTable",
    "RuleOptimizer",
    "RuleOptions",
    "TensorNumbers",
    "UnclearRolesError",
    "UnfoldedMultiplierError",
    "audit",
    "coordinate_check",
    "export",
    "guard",
    "infer_roles",
    "init_",
    "make_token_batches",
    "param_groups",
    "resolve_tensors",
    "rule_optimizer",
    "say_factor",
]
