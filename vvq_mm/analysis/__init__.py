"""Analyses: torch only, plain data out."""
from .cost import Cost, model_bytes, model_cost

__all__ = ['Cost', 'model_bytes', 'model_cost']
