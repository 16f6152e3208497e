"""Hooks for MMEngine's Runner."""
from .accuracy_report_hook import AccuracyReportHook
from .calibrate_hook import CalibrateHook
from .check_finite_hook import CheckFiniteHook
from .exact_resume_hook import ExactResumeHook
from .oscillation_hook import OscillationHook
from .safe_checkpoint_hook import SafeCheckpointHook
from .training_summary_hook import TrainingSummaryHook

__all__ = ['AccuracyReportHook', 'CalibrateHook', 'CheckFiniteHook', 'ExactResumeHook', 'OscillationHook',
           'SafeCheckpointHook', 'TrainingSummaryHook']
