"""Small calibrated models of every family, and ONNX files of them."""
import copy

import torch
from helpers import VIT_RULES, build, calibrated, policy, tiny_vit_config
from mmengine.config import Config
from torch import nn

import vvq_mm
from vvq_mm.export.description import describe
from vvq_mm.export.onnx_export import export_onnx

SWIN = dict(
    type='ImageClassifier',
    backbone=dict(type='SwinTransformer', img_size=32, patch_size=4, window_size=4, out_indices=(0, ),
                  arch=dict(embed_dims=16, depths=[2], num_heads=[2])),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=4, in_channels=16, loss=dict(type='CrossEntropyLoss')))
DEIT = dict(type='TimmClassifier', model_name='deit_tiny_patch16_224', img_size=32, patch_size=8, embed_dim=32, depth=1,
            num_heads=2, num_classes=4)
TIMM_SWIN = dict(type='TimmClassifier', model_name='swin_tiny_patch4_window7_224', img_size=32, patch_size=4,
                 window_size=4, depths=(2, ), embed_dim=16, num_heads=(2, ), num_classes=4)
SHAPE = (3, 32, 32)
BATCHES = (1, 3, 8)


def trained(base=None, bits=4, rules=None, layers=1):
    """Return a calibrated model in eval mode with its description; by default a ViT."""
    base = tiny_vit_config(layers=layers) if base is None else base
    cfg = Config(dict(model=dict(base, type='vvq_mm.QAT' + base['type'], policy=policy(bits, rules))))
    torch.manual_seed(0)
    model = calibrated(build(copy.deepcopy(cfg.model)))
    model.eval()
    model.description = describe(cfg, model, SHAPE)
    return model


def sequential(*modules, shape=(16, ), bits=4, rules=None):
    """Return a calibrated ``nn.Sequential`` in eval mode with what an ONNX file needs of a description."""
    torch.manual_seed(0)
    model = nn.Sequential(*modules).eval()
    vvq_mm.quantize_(model, policy(bits, rules))
    vvq_mm.calibrate(model, [torch.randn(16, *shape)])
    model.description = dict(input_shape=list(shape), vvq_mm=vvq_mm.__version__)
    return model


def mlp(**options):
    return sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 8), **options)


def batches(shape=SHAPE):
    """Return random images in batches of different sizes."""
    return [torch.randn(size, *shape) for size in BATCHES]


def exported(folder, model, **options):
    """Write an ONNX file of a model that has a description, and return its path."""
    path = folder / 'model.onnx'
    export_onnx(model, path, model.description, **options)
    return path
