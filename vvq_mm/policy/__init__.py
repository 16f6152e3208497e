"""Policies: names of modules in, a plan out."""
from .plan import QuantPlan, describe
from .rules import PlanFile, RulePolicy, match, quantisable

__all__ = ['PlanFile', 'QuantPlan', 'RulePolicy', 'describe', 'match', 'quantisable']
