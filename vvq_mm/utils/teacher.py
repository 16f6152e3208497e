"""Building a frozen teacher from a config, a model name of MMPretrain or one of timm."""
import copy
from pathlib import Path
from typing import Optional, Union

from mmengine.config import Config
from mmengine.logging import MMLogger
from mmpretrain.registry import MODELS
from torch import nn

from vvq_mm.errors import CheckpointError

from .checkpoint import read_checkpoint

TIMM = 'timm:'


def build_teacher(teacher: Union[dict, str], checkpoint: Optional[str] = None) -> nn.Module:
    """Return a model in eval mode whose parameters need no gradient; called on images, it returns logits.

    Args:
        teacher (dict | str): model config; path of a config file; model name of MMPretrain; or ``timm:NAME``,
            with that model's own classes (for others use
            ``dict(type='TimmClassifier', model_name=..., num_classes=...)``).
        checkpoint (str, optional): its weights; None leaves them random.

    Raises:
        CheckpointError: the checkpoint cannot be read or does not fit the teacher.
    """
    if isinstance(teacher, str) and teacher.startswith(TIMM):
        import timm
        model = timm.create_model(teacher[len(TIMM):])
    elif isinstance(teacher, str):
        model = _from_name(teacher)
    else:
        model = MODELS.build(copy.deepcopy(dict(teacher)))
    if checkpoint is not None:
        load_weights(model, checkpoint)
    elif isinstance(teacher, str) or teacher.get('pretrained') is not True:  # True: timm loads its own
        MMLogger.get_current_instance().warning(f'The teacher {type(model).__name__} has random weights: no checkpoint '
                                                'was given for it.')
    model.eval()  # not chained: some of MMPretrain's train() return None
    return model.requires_grad_(False)


def load_weights(model: nn.Module, checkpoint: str) -> None:
    """Load ``checkpoint`` into ``model``; every key must fit.

    Raises:
        CheckpointError: the checkpoint cannot be read, or is of another model.
    """
    state = read_checkpoint(checkpoint)
    state = next((state[key] for key in ('state_dict', 'model') if key in state), state)
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        shapes = [line.strip().rstrip('.') for line in str(error).splitlines()[1:]]
        raise CheckpointError(f'expected the weights of {type(model).__name__} in {checkpoint}, got a file with '
                              f'{len(shapes)} of another shape ({shapes[0] if shapes else error}); give the checkpoint '
                              'of this very model, with as many classes') from error
    if missing or unexpected:
        raise CheckpointError(f'expected the weights of {type(model).__name__} in {checkpoint}, got a file with '
                              f'{len(missing)} keys missing ({", ".join(missing[:3])}) and {len(unexpected)} '
                              f'unexpected ({", ".join(unexpected[:3])}); give the checkpoint of this very model')


def _from_name(name: str) -> nn.Module:
    """Build the model of a config file, or of a model name that MMPretrain knows."""
    if Path(name).is_file():
        config = Config.fromfile(name)
        model = copy.deepcopy(config.model)
        if config.get('data_preprocessor') is not None:
            model.setdefault('data_preprocessor', config.data_preprocessor)
        return MODELS.build(model)
    import mmpretrain
    return mmpretrain.get_model(name, pretrained=False)
