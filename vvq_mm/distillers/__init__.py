"""Distillers: where the student's target comes from."""
from .base import Distiller, SumDistiller
from .online import TeacherDistiller
from .stored import SoftLabelDistiller

__all__ = ['Distiller', 'SoftLabelDistiller', 'SumDistiller', 'TeacherDistiller']
