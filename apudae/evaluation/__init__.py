"""How often is a model right, under every attack at hand?"""

from ..core.arguments import AttackWarning
from ..core.scores import (
    Accuracy,
    Auc,
    Difference,
    accuracy,
    auc,
    outcomes,
    paired_difference,
    roc,
)
from .attackers import BUDGETS, Budget, plan
from .certification import ABSTAINED, Certificates, Smoothed, certify, lower_bound, votes
from .diagnostics import RULES, Finding, inspect_model
from .evaluate import evaluate
from .report import Report

__all__ = [
    "ABSTAINED",
    "BUDGETS",
    "RULES",
    "Accuracy",
    "AttackWarning",
    "Auc",
    "Budget",
    "Certificates",
    "Difference",
    "Finding",
    "Report",
    "Smoothed",
    "accuracy",
    "auc",
    "certify",
    "evaluate",
    "inspect_model",
    "lower_bound",
    "outcomes",
    "paired_difference",
    "plan",
    "roc",
    "votes",
]
