# What text configs inherit from MMPretrain, for lazy configs: MMPretrain's wheel carries no lazy configs. The recipe
# itself is shared with the text configs; a test compares the two styles key by key.
from mmengine.config import read_base

with read_base():
    from .recipe import *  # noqa: F401,F403

default_scope = 'mmpretrain'
data_preprocessor = dict(num_classes=1000, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)

train_dataloader = vvq_train_dataloader  # noqa: F405
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=256, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]
val_dataloader = dict(
    batch_size=64,
    num_workers=5,
    dataset=dict(type='ImageNet', data_root='data/imagenet', split='val', pipeline=test_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False))
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_dataloader = val_dataloader
test_evaluator = val_evaluator

optim_wrapper = vvq_optim_wrapper  # noqa: F405
param_scheduler = vvq_param_scheduler  # noqa: F405
train_cfg = vvq_train_cfg  # noqa: F405
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = vvq_auto_scale_lr  # noqa: F405

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    param_scheduler=dict(type='ParamSchedulerHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='VisualizationHook', enable=False),
    **vvq_hooks)  # noqa: F405
custom_hooks = []
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'))
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='UniversalVisualizer', vis_backends=vis_backends)
log_level = 'INFO'
resume = False
randomness = dict(seed=None, deterministic=False)
