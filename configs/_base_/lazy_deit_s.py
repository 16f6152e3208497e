# DeiT-S by VVQ as a lazy config; the leaves in ../vvq_lazy choose the bits.
from mmengine.config import read_base

with read_base():
    from .lazy_in1k import *  # noqa: F401,F403

load_from = 'https://download.openmmlab.com/mmclassification/v0/deit/deit-small_pt-4xb256_in1k_20220218-9425b9bb.pth'

model = dict(
    type='vvq_mm.QATImageClassifier',
    backbone=dict(type='VisionTransformer', arch='deit-small', img_size=224, patch_size=16, drop_path_rate=0.1),
    neck=None,
    head=dict(
        type='VisionTransformerClsHead',
        num_classes=1000,
        in_channels=384,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original')),
    init_cfg=[
        dict(type='TruncNormal', layer='Linear', std=.02),
        dict(type='Constant', layer='LayerNorm', val=1., bias=0.),
    ],
    policy=vvq_policy,  # noqa: F405
    distiller=vvq_distiller,  # noqa: F405
    train_cfg=None)
