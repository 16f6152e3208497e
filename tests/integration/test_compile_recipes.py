"""Forward and loss of every recipe are one graph to ``torch.compile``, on floats and on integers."""
import pytest
import torch
from helpers import build, policy
from mmengine.config import Config
from mmpretrain.structures import DataSample
from qat_config import make_digit_labels, qat_config
from runner_config import run
from shipped import TEXT

import vvq_mm
from vvq_mm.layers import product
from vvq_mm.losses import BinRegularizer

RECIPES = {f'{path.parent.name}/{path.stem}': path for path in TEXT if path.stem.endswith(('w2a2', 'w4a4'))}
SMALL_VIT = dict(embed_dims=24, num_layers=2, num_heads=3, feedforward_channels=48)
SMALL_SWIN = dict(embed_dims=12, depths=[2, 2, 1, 1], num_heads=[1, 2, 4, 4])  # the second block shifts its windows
TIMM = {
    'timm ViT': dict(model_name='vit_tiny_patch16_224', img_size=32, depth=2),
    'timm Swin': dict(model_name='swin_tiny_patch4_window7_224', img_size=56, embed_dim=12, depths=(2, 1),
                      num_heads=(1, 2)),
}
RULES = {'*.qkv': dict(weight=dict(granularity='qkv'))}


@pytest.fixture(autouse=True)
def any_device_multiplies_integers(monkeypatch):
    monkeypatch.setattr(product, 'device_obstacle', lambda device: '')
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def recipe_model(path, matmul):
    """Return the recipe's classifier, with few blocks and channels but all that makes its graph, and its image size."""
    model = Config.fromfile(path).model
    model.policy.matmul = matmul
    if 'Swin' in model.backbone.type:
        model.backbone.update(arch=SMALL_SWIN)
        model.head.update(in_channels=SMALL_SWIN['embed_dims'] * 8)
    else:
        model.backbone.update(arch=SMALL_VIT)
        model.head.update(in_channels=SMALL_VIT['embed_dims'])
    mean = model.get('data_preprocessor', Config.fromfile(path).get('data_preprocessor', {})).get('mean', [0.] * 3)
    size = model.backbone.get('img_size', 224)
    return build(model), len(mean), size


def stored_labels(count, classes, k=3):
    """Return samples with the labels of a multi-crop dataset: the classes of the ``k`` largest probabilities."""
    rows = [torch.stack((torch.randperm(classes)[:k].float(), torch.full((k, ), 0.9 / k))) for _ in range(count)]
    return [DataSample().set_gt_label(0).set_field(row, 'soft_label', dtype=torch.Tensor) or _with(row) for row in rows]


def _with(row):
    sample = DataSample().set_gt_label(0)
    sample.soft_label = row
    return sample
