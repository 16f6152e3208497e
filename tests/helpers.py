"""Tiny models and reference formulas shared by the tests."""
import torch
from mmpretrain.registry import MODELS
from mmpretrain.utils import register_all_modules
from torch import nn

import vvq_mm

LSQ = dict(type='LSQQuantizer', bits=4)
VIT_RULES = {
    '*.qkv': dict(weight=dict(granularity='qkv')),
    '*.ffn.layers.1': dict(input=dict(signed=False, offset=True)),
    'backbone.patch_embed.projection': 8,
    'head.*': 8,
}


def policy(bits=4, rules=None, **options):
    """A policy with LSQ templates of ``bits``."""
    template = dict(type='LSQQuantizer', bits=bits, **options)
    return dict(type='RulePolicy', weight=template, act=template, rules=rules or {})


def tiny_vit_config(classes=4, layers=2, **backbone):
    """An mmpretrain DeiT of 32-pixel images: 16 patches, 32 channels, 2 heads."""
    return dict(
        type='ImageClassifier',
        backbone=dict(
            type='VisionTransformer',
            arch=dict(embed_dims=32, num_layers=layers, num_heads=2, feedforward_channels=64),
            img_size=32,
            patch_size=8,
            **backbone),
        head=dict(
            type='VisionTransformerClsHead',
            num_classes=classes,
            in_channels=32,
            loss=dict(type='CrossEntropyLoss')),
        data_preprocessor=dict(num_classes=classes, mean=[127.5] * 3, std=[127.5] * 3))


def build(config):
    """Build a classifier of MMPretrain or ours."""
    register_all_modules()
    return MODELS.build(config)


def tiny_vit(**kwargs):
    return build(tiny_vit_config(**kwargs))


def tiny_qat(bits=4, rules=VIT_RULES, **options):
    """A quantised, uncalibrated tiny ViT classifier; ``options`` go to the classifier."""
    return build(dict(tiny_vit_config(), type='vvq_mm.QATImageClassifier', policy=policy(bits, rules), **options))


def calibrated(model, size=32, channels=3):
    """Calibrate on random images and return the model."""
    vvq_mm.calibrate(model, [torch.randn(4, channels, size, size)])
    return model


def tiny_mlp():
    return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 4))
