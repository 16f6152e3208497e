"""A folder that looks like ImageNet: a handful of generated images, lists of labels, and their stored soft labels."""
import numpy as np
from mmpretrain.datasets import ImageNet
from PIL import Image

from vvq_mm.datasets import CropSettings, make_soft_labels


def make_imagenet(root, images=4, classes=1000):
    """Write ``root/data/imagenet`` and ``root/data/imagenet_soft_labels``."""
    data, random = root / 'data' / 'imagenet', np.random.default_rng(0)
    (data / 'meta').mkdir(parents=True)
    for split in ('train', 'val'):
        lines = []
        for index in range(images):
            path = data / split / f'n{index:08d}' / f'image_{index}.JPEG'
            path.parent.mkdir(parents=True)
            Image.fromarray(random.integers(0, 256, (96, 128, 3), dtype=np.uint8)).resize((320, 240)).save(path)
            lines.append(f'{path.relative_to(data / split)} {index * 7}')
        (data / 'meta' / f'{split}.txt').write_text('\n'.join(lines))
    dataset = ImageNet(data_root=str(data), split='train', pipeline=[dict(type='LoadImageFromFile')])
    make_soft_labels(dataset, lambda batch: random_probabilities(len(batch), classes),
                     root / 'data' / 'imagenet_soft_labels', num_crops=4, num_classes=classes,
                     crop=CropSettings(size=32))


def random_probabilities(count, classes):
    import torch
    return torch.randn(count, classes, generator=torch.Generator().manual_seed(0)).mul(3).softmax(-1)
