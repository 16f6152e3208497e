"""Losses on the model's own weights."""
from .regularizer import BinRegularizer, DampeningRegularizer, Regularizer

__all__ = ['BinRegularizer', 'DampeningRegularizer', 'Regularizer']
