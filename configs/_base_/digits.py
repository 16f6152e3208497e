# Digits by VVQ, from the full-precision model beside ../digits/vit_fp32.py; the leaves in ../digits choose the bits.
_base_ = ['../digits/vit_fp32.py', './recipe.py']

load_from = '{{ fileDirname }}/../digits/vit_fp32.pth'

model = dict(type='vvq_mm.QATImageClassifier', policy=_base_.vvq_policy, distiller=_base_.vvq_distiller)
train_dataloader = dict(
    _delete_=True,
    batch_size=64,  # images; 4 crops of each
    num_workers=0,
    sampler=dict(type='vvq_mm.ResumableSampler', shuffle=True),
    collate_fn=dict(type='vvq_mm.flatten_collate'),
    dataset=dict(
        type='vvq_mm.MultiCropDataset',
        num_crops=4,
        soft_labels='data/digits_soft_labels',
        dataset=dict(type='vvq_mm.Digits', split='train', size=32),
        pipeline=[
            dict(type='vvq_mm.ReplayCrop', scale=32),
            dict(type='PackInputs', algorithm_keys=('soft_label', )),
        ]))
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=1e-4, fused=True),
    paramwise_cfg=_base_.vvq_optim_wrapper.paramwise_cfg)
param_scheduler = _base_.vvq_param_scheduler
train_cfg = dict(by_epoch=True, max_epochs=24, val_interval=4)
default_hooks = dict(
    _base_.vvq_hooks,
    logger=dict(type='LoggerHook', interval=23),
    oscillation=dict(_base_.vvq_hooks.oscillation, log_interval=23),
    checkpoint=dict(type='CheckpointHook', interval=4, max_keep_ckpts=1, save_best='accuracy/top1', rule='greater'))
