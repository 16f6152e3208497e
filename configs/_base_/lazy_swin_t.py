# Swin-T by VVQ as a lazy config; the leaves in ../vvq_lazy choose the bits.
from mmengine.config import read_base

with read_base():
    from .lazy_in1k import *  # noqa: F401,F403

load_from = ('https://download.openmmlab.com/mmclassification/v0/swin-transformer/'
             'swin_tiny_224_b16x64_300e_imagenet_20210616_090925-66df6be6.pth')

model = dict(
    type='vvq_mm.QATImageClassifier',
    backbone=dict(type='SwinTransformer', arch='tiny', img_size=224, drop_path_rate=0.1),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=768,
        init_cfg=None,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
        cal_acc=False),
    init_cfg=[
        dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.),
        dict(type='Constant', layer='LayerNorm', val=1., bias=0.),
    ],
    policy=dict(vvq_policy, rules=dict(vvq_policy['rules'], **vvq_swin_rules)),  # noqa: F405
    distiller=vvq_distiller,  # noqa: F405
    train_cfg=None)
