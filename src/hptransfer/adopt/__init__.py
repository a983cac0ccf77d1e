"""Use on your own PyTorch model: roles, param groups and initial weights, without wrappers.

``infer_roles`` finds what each parameter is, as a plain table; ``param_groups`` and ``init_`` turn
a rule into ordinary ``torch.optim`` groups and initial weights; ``guard`` watches that a scheduler
leaves the ratios between groups as the rule gave them.
"""

from hptransfer.adopt.groups import param_groups
from hptransfer.adopt.guard import guard
from hptransfer.adopt.init import init_
from hptransfer.adopt.roles import infer_roles
from hptransfer.adopt.table import ParameterRole, RoleTable

__all__ = ["ParameterRole", "RoleTable", "guard", "infer_roles", "init_", "param_groups"]
