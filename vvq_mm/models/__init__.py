"""Classifiers for MMPretrain."""
from .qat_classifier import QATImageClassifier, QATMixin, QATTimmClassifier

__all__ = ['QATImageClassifier', 'QATMixin', 'QATTimmClassifier']
