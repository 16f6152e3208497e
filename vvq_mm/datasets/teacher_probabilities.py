"""A model of MMPretrain or timm as a function from stored pixels to probabilities."""
from typing import Callable, Optional, Union

import torch
from torch import Tensor, nn


def teacher_probabilities(model: nn.Module,
                          device: Union[str, torch.device] = 'cpu',
                          temperature: float = 1.0) -> Callable[[Tensor], Tensor]:
    """Return a function from images, uint8 (B, C, H, W), to probabilities (B, classes), for :func:`make_soft_labels`.

    Images come as MMCV loads them, BGR. A model of MMPretrain normalises them by its own data preprocessor, one of timm
    by the mean and standard deviation of its ``pretrained_cfg``; images of one channel are repeated for a teacher of
    three.

    Args:
        model (nn.Module): the teacher; moved to ``device`` and put in eval mode.
        device (str | torch.device): where it runs. Defaults to ``cpu``.
        temperature (float): divides the logits. Defaults to 1.

    Raises:
        TypeError: the model says nothing about normalisation.
    """
    model = model.to(device).eval()
    if not hasattr(model, 'data_preprocessor') and not hasattr(model, 'pretrained_cfg'):
        raise TypeError('expected a teacher of MMPretrain (with data_preprocessor) or timm (with pretrained_cfg), got '
                        f'{type(model).__name__}; write a function from uint8 images to probabilities for it')

    def probabilities(images: Tensor) -> Tensor:
        if hasattr(model, 'data_preprocessor'):
            inputs = model.data_preprocessor(dict(inputs=images), training=False)['inputs']
        else:
            inputs = _normalise(images.to(device), model.pretrained_cfg)
        with torch.no_grad():
            return (model(inputs).float() / temperature).softmax(-1)

    return probabilities


def input_size(model: nn.Module) -> Optional[int]:
    """Return the side of the images that a model was made for, None if it does not say."""
    if hasattr(model, 'pretrained_cfg'):
        return model.pretrained_cfg['input_size'][-1]
    size = getattr(getattr(model, 'backbone', None), 'img_size', None)
    return size if size is None or isinstance(size, int) else size[0]


def _normalise(images: Tensor, config: dict) -> Tensor:
    """Return BGR uint8 images as timm's models want them: RGB floats of the given mean and standard deviation."""
    mean, std = (255 * images.new_tensor(config[key], dtype=torch.float32).view(-1, 1, 1) for key in ('mean', 'std'))
    return (images.flip(1).float() - mean) / std
