"""Image files as an exported network wants them: read and brought to size as its test set was."""
from pathlib import Path
from typing import List, Union

from mmpretrain.registry import TRANSFORMS

from vvq_mm.errors import QuantizationError

from .safe_config import HOME, check_config

_COLOURS = {1: 'grayscale', 3: 'color'}


class ImageReader:
    """Reads image files with the test pipeline that a file's description holds.

    What the pipeline lacks, because its data set holds arrays, is added: reading the file (in grey for one channel,
    in colour for three) and resizing to the network's input. The data preprocessor, which normalises, comes after
    this.

    Args:
        description (dict): of an exported file, see ``vvq_mm.export.description``.

    Raises:
        QuantizationError: images of neither one nor three channels, or a transform that is not registered.

    Example:
        >>> ImageReader(open_runtime('vit_w4a4.onnx').description)('three.png')['inputs'].shape
        torch.Size([1, 32, 32])
    """

    def __init__(self, description: dict) -> None:
        check_config(description['pipeline'], 'TRANSFORMS', 'pipeline')  # before anything from the file is built
        self.load, *self.steps = [TRANSFORMS.build(dict(step, _scope_=HOME)) for step in complete_pipeline(description)]

    def __call__(self, path: Union[str, Path]) -> dict:
        """Return the packed image: 'inputs', uint8 (C, H, W), and 'data_samples'.

        Raises:
            FileNotFoundError: no such file.
            QuantizationError: the file is not an image that can be read.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f'expected an image at {path}, but there is no such file; check the path')
        try:
            results = self.load(dict(img_path=str(path)))
        except Exception as error:  # OpenCV and mmcv raise half a dozen kinds here, assertions among them
            raise QuantizationError(f'expected an image that can be read at {path}, but it cannot '
                                    f'({type(error).__name__}); check that it is a whole PNG, JPEG or the like'
                                    ) from error
        for step in self.steps:
            results = step(results)
        return results


def complete_pipeline(description: dict) -> List[dict]:
    """Return the transforms from image file to packed image, the first of which reads the file.

    >>> [step['type'] for step in complete_pipeline(dict(input_shape=[1, 8, 8], pipeline=[dict(type='PackInputs')]))]
    ['LoadImageFromFile', 'Resize', 'PackInputs']
    """
    channels, height, width = description['input_shape']
    steps = [dict(step) for step in description['pipeline']]
    readers = [step for step in steps if _name(step) == 'LoadImageFromFile']
    steps = [step for step in steps if step not in readers]
    if not any('Resize' in _name(step) or 'Crop' in _name(step) for step in steps):
        steps.insert(0, dict(type='Resize', scale=(width, height), backend='pillow', interpolation='bilinear'))
    if not any(_name(step) == 'PackInputs' for step in steps):
        steps.append(dict(type='PackInputs'))
    if not readers and channels not in _COLOURS:
        raise QuantizationError(f'expected a network for images of 1 or 3 channels, got one of {channels}; make its '
                                'inputs in Python and give them to vvq_mm.export.open_runtime')
    return (readers or [dict(type='LoadImageFromFile', color_type=_COLOURS[channels])])[:1] + steps


def _name(step: dict) -> str:
    return step['type'].rpartition('.')[2]
