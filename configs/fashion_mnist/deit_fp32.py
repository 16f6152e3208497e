# The full-precision starting point on Fashion-MNIST: a small DeiT on 28-pixel images.
# The four files come from `tools/prepare_fashion_mnist.py`, or are downloaded where there is a network.
# The last 8,800 training images are the validation split, seen by no training: settings are chosen on them, and the
# test images are for what is reported.
_base_ = ['mmpretrain::_base_/default_runtime.py']

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='VisionTransformer',
        arch=dict(embed_dims=64, num_layers=4, num_heads=4, feedforward_channels=128),
        img_size=28,
        patch_size=7,
        in_channels=1,
        drop_path_rate=0.0),
    head=dict(type='VisionTransformerClsHead', num_classes=10, in_channels=64, loss=dict(type='CrossEntropyLoss')))
data_preprocessor = dict(num_classes=10, mean=[72.9], std=[90.0])

train_pipeline = [
    dict(type='RandomResizedCrop', scale=28, crop_ratio_range=(0.6, 1.0), interpolation='bilinear'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=256,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='FashionMNIST', data_root='data/fashion_mnist', split='train', indices=51200, pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=500,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='FashionMNIST',
        data_root='data/fashion_mnist',
        split='train',
        indices=-8800,
        pipeline=[dict(type='PackInputs')]))
val_evaluator = dict(type='Accuracy', topk=(1, ))
test_dataloader = dict(
    batch_size=500,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    # without test_mode=True, MMPretrain reads the training images whatever the split is called
    dataset=dict(
        type='FashionMNIST',
        data_root='data/fashion_mnist',
        split='test',
        test_mode=True,
        pipeline=[dict(type='PackInputs')]))
test_evaluator = val_evaluator

optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0, flat_decay_mult=0.0))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=True, end=2, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=0, by_epoch=True, begin=2, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=30, val_interval=5)
val_cfg = dict()
test_cfg = dict()

randomness = dict(seed=0)
env_cfg = dict(dist_cfg=dict(backend='gloo'))
default_hooks = dict(
    logger=dict(interval=50),
    checkpoint=dict(interval=5, max_keep_ckpts=1),
    safe_checkpoint=dict(type='vvq_mm.SafeCheckpointHook'))
