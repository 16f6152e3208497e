"""What is saved holds tensors and builtins alone; what is loaded must fit."""
from fnmatch import fnmatchcase
from typing import List, Optional, Sequence

import torch
from mmengine.hooks import Hook
from mmengine.runner import find_latest_checkpoint

from vvq_mm.errors import CheckpointError
from vvq_mm.registry import HOOKS
from vvq_mm.surgery import iter_quantizers
from vvq_mm.utils.checkpoint import plain_checkpoint, read_checkpoint, restore_message_hub
from vvq_mm.utils.model import unwrap

QUANTIZER_MARK = '_quantizer.'


@HOOKS.register_module()
class SafeCheckpointHook(Hook):
    """Makes checkpoints loadable with ``torch.load(weights_only=True)``, and refuses those that do not fit.

    MMEngine 0.10.7 pickles its message hub, so on torch >= 2.6 it cannot read what it wrote. Here the hub is written
    as tensors and builtins, and turned back when it is read. A file is checked before the Runner opens it: one that is
    truncated or needs unsafe loading is refused in a sentence. Keys that are missing or unexpected, except a
    quantizer's, and shapes that differ stop the run, where MMEngine would warn and go on with random weights. A
    resumed run must find its quantizers too.

    Args:
        may_differ (Sequence[str]): name patterns of weights that need not fit, such as ``'head.*'`` when the data set
            has other classes than the checkpoint. Defaults to ``()``.
    """

    priority = 'LOWEST'  # other hooks put their state into the checkpoint first

    def __init__(self, may_differ: Sequence[str] = ()) -> None:
        self.may_differ = (may_differ,) if isinstance(may_differ, str) else tuple(may_differ)

    def before_run(self, runner) -> None:
        path = checkpoint_to_load(runner)
        if path is not None and '://' not in path:
            read_checkpoint(path)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        left_out: List[str] = []
        checkpoint.update(plain_checkpoint(checkpoint, left_out))
        for key in [item[len('checkpoint/'):].split(':')[0] for item in left_out]:
            checkpoint.pop(key, None)  # a whole entry that is not plain
        if left_out:
            runner.logger.warning(f'Not saved, since neither tensors nor builtins: {"; ".join(left_out)}')

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        path = checkpoint_to_load(runner) or 'the checkpoint'
        if runner._resume:
            _require_training_state(checkpoint, path)
        if 'message_hub' in checkpoint:
            checkpoint['message_hub'] = restore_message_hub(checkpoint['message_hub'])
        model = unwrap(runner.model)
        runner.logger.disabled = True  # the Runner is going to load again, and the model says then what it has loaded
        try:
            problems = find_misfits(model, checkpoint.get('state_dict', checkpoint), self.may_differ)
        finally:
            runner.logger.disabled = False
        if runner._resume:
            problems += _uncalibrated(model)
        if problems:
            raise CheckpointError(
                f'expected {path} to fit {type(model).__name__}, but {"; ".join(problems)}; use the config that the '
                'checkpoint was made with, or name weights that need not fit in SafeCheckpointHook(may_differ=[...])')


def checkpoint_to_load(runner) -> Optional[str]:
    """Return the path of the checkpoint that the Runner is going to load or resume, or None."""
    if runner._resume and runner._load_from is None:
        return find_latest_checkpoint(runner.work_dir)
    return runner._load_from


def find_misfits(model: torch.nn.Module, state: dict, may_differ: Sequence[str] = ()) -> List[str]:
    """Load ``state`` into ``model`` and return a sentence for each way in which it does not fit.

    Loading, rather than comparing names, lets the modules' own hooks convert what they know how to convert, such as a
    position embedding of another image size.

    Args:
        model (nn.Module): takes the weights.
        state (dict): a state dict; a leading ``module.`` in its keys is ignored.
        may_differ (Sequence[str]): name patterns of weights to leave out of the comparison.
    """

    def counts(name: str) -> bool:
        return not any(fnmatchcase(name, pattern) for pattern in may_differ)

    state = {name.removeprefix('module.'): value for name, value in state.items()}
    try:
        kept = {name: value for name, value in state.items() if counts(name)}
        missing, unexpected = model.load_state_dict(kept, strict=False)
    except RuntimeError as error:
        return [line.strip() for line in str(error).splitlines()[1:]] or [str(error)]
    missing = [name for name in missing if counts(name) and QUANTIZER_MARK not in name]
    unexpected = [name for name in unexpected if QUANTIZER_MARK not in name]
    return ([f'it has no {_some(missing)}'] * bool(missing)
            + [f'the model has no {_some(unexpected)}'] * bool(unexpected))


def _uncalibrated(model: torch.nn.Module) -> List[str]:
    names = [f'{name} ({slot})' for name, _, slot, quantizer in iter_quantizers(model) if not quantizer.ready]
    return [f'it has no scale of these bits for the quantizers {_some(names)}'] * bool(names)


def _require_training_state(checkpoint: dict, path: str) -> None:
    missing = [key for key in ('meta', 'message_hub', 'optimizer') if key not in checkpoint]
    if missing:
        raise CheckpointError(
            f'expected a training checkpoint to resume from, but {path} has no {", ".join(missing)} (a "best" or '
            'published one holds weights alone); resume from an `epoch_*.pth` or `iter_*.pth`, or start anew from '
            'these weights with `load_from`')


def _some(names: Sequence[str], shown: int = 8) -> str:
    rest = f' and {len(names) - shown} more' if len(names) > shown else ''
    return ', '.join(f'`{name}`' for name in names[:shown]) + rest
