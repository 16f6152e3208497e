"""The package's exceptions: each message says what was expected, what came, where, and what to do."""


class QuantizationError(ValueError):
    """A policy, plan, quantizer or checkpoint that cannot be used as given."""


class QuantizerNotReady(RuntimeError):
    """A quantizer was asked to quantise before its scale was calibrated or loaded."""


class SoftLabelError(ValueError):
    """A soft-label store or label that is missing, damaged, or made for something else."""


class CheckpointError(RuntimeError):
    """A checkpoint that is truncated, does not fit, or would need unsafe loading."""


class TrainingDiverged(RuntimeError):
    """The loss or a scale stopped being finite."""
