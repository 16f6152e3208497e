"""Cutting a stored crop out of an image again, pixel for pixel."""
from typing import Sequence, Tuple, Union

import numpy as np
import torch
import torch.nn.functional as F
from mmcv.transforms import BaseTransform
from PIL import Image

from vvq_mm.registry import TRANSFORMS

_PILLOW = {name: getattr(Image.Resampling, name.upper())
           for name in ('nearest', 'bilinear', 'bicubic', 'box', 'hamming', 'lanczos')}
_TORCH = ('bilinear', 'bicubic')


@TRANSFORMS.register_module()
class ReplayCrop(BaseTransform):
    """Crops ``crop_box`` out of ``img``, resizes it with antialiasing, and mirrors it if ``stored_flip`` says so.

    The same pixels as ``torchvision.transforms.functional.resized_crop`` of a PIL image, which the official FKD loader
    uses. The image is cut before it is resized: ``Image.resize(box=...)`` would mix in pixels from outside the crop.

    Required keys: ``img`` (uint8, (H, W), (H, W, 1) or (H, W, 3)), ``crop_box`` (top, left, height, width as fractions
    of the image), ``stored_flip`` (optional). Changed keys: ``img``, ``img_shape``, ``flip``, ``flip_direction``.

    Args:
        scale (int | Sequence[int]): side of the result, or (height, width), in pixels.
        interpolation (str): ``bilinear``, ``bicubic``, and with pillow also ``nearest``, ``box``, ``hamming``,
            ``lanczos``. Defaults to ``bilinear``.
        backend (str): ``pillow``, or ``torch``, which is faster and differs by at most one grey level. Defaults to
            ``pillow``.

    Example:
        >>> crop = ReplayCrop(2)
        >>> crop(dict(img=np.eye(4, dtype=np.uint8), crop_box=(0, 0.5, 0.5, 0.5), stored_flip=False))['img'].shape
        (2, 2)
    """

    def __init__(self,
                 scale: Union[int, Sequence[int]],
                 interpolation: str = 'bilinear',
                 backend: str = 'pillow') -> None:
        known = {'pillow': tuple(_PILLOW), 'torch': _TORCH}
        if backend not in known or interpolation not in known[backend]:
            raise ValueError(f'expected backend and interpolation to be one of {known}, got {backend!r} and '
                             f'{interpolation!r} for ReplayCrop')
        self.scale: Tuple[int, int] = (scale, scale) if isinstance(scale, int) else tuple(scale)
        self.interpolation, self.backend = interpolation, backend

    def transform(self, results: dict) -> dict:
        """Replace ``img`` by the crop."""
        top, left, height, width = to_pixels(results['crop_box'], results['img'].shape[:2])
        resize = self._pillow if self.backend == 'pillow' else self._torch
        img = resize(np.ascontiguousarray(results['img'][top:top + height, left:left + width]))
        flip = bool(results.get('stored_flip', False))
        results['img'] = np.ascontiguousarray(img[:, ::-1]) if flip else img
        results['img_shape'] = img.shape[:2]
        results['flip'], results['flip_direction'] = flip, 'horizontal' if flip else None
        return results

    def _pillow(self, img: np.ndarray) -> np.ndarray:
        single = img.ndim == 3 and img.shape[2] == 1
        image = Image.fromarray(img[..., 0] if single else img).resize(self.scale[::-1], _PILLOW[self.interpolation])
        return np.array(image)[..., None] if single else np.array(image)

    def _torch(self, img: np.ndarray) -> np.ndarray:
        channels_last = torch.from_numpy(img).reshape(1, *img.shape[:2], -1).permute(0, 3, 1, 2)
        out = F.interpolate(channels_last, self.scale, mode=self.interpolation, antialias=True, align_corners=False)
        return out[0].permute(1, 2, 0).reshape(*self.scale, *img.shape[2:]).contiguous().numpy()

    def __repr__(self) -> str:
        return (f'{type(self).__name__}(scale={self.scale}, interpolation={self.interpolation!r}, '
                f'backend={self.backend!r})')


def to_pixels(box: Sequence[float], shape: Sequence[int]) -> Tuple[int, int, int, int]:
    """Return (top, left, height, width) in pixels of a box in fractions of an image of ``shape`` (height, width).

    Rounded to the nearest pixel and kept inside the image, since boxes stored in float16 can end a pixel outside.

    Example:
        >>> to_pixels((0.25, 0, 0.5, 1), (8, 10))
        (2, 0, 4, 10)
    """
    top, left = (min(round(float(box[axis]) * shape[axis]), shape[axis] - 1) for axis in (0, 1))
    height, width = (max(round(float(box[2 + axis]) * shape[axis]), 1) for axis in (0, 1))
    return top, left, min(height, shape[0] - top), min(width, shape[1] - left)
