"""Classifiers for MMPretrain."""
from .exported_classifier import ExportedClassifier, use_exported_file
from .qat_classifier import QATImageClassifier, QATMixin, QATTimmClassifier

__all__ = ['ExportedClassifier', 'QATImageClassifier', 'QATMixin', 'QATTimmClassifier', 'use_exported_file']
