# Fashion-MNIST, from ../fashion_mnist/deit_fp32.py; the leaves in ../fashion_mnist choose the bits. Where this differs
# from ./recipe.py, it is what the study supports (../studies/fashion_mnist.yaml, docs/ablation.md): LSQ+ and single-crop
# distillation, since nothing that the paper adds to them was shown to help there. For the paper's recipe: num_crops=4,
# batch_size=32, the rule '*.qkv' with granularity 'qkv', grad_scale 'l1' and a BinRegularizer.
_base_ = ['../fashion_mnist/deit_fp32.py', './recipe.py']

load_from = 'work_dirs/deit_fp32/epoch_30.pth'

model = dict(
    type='vvq_mm.QATImageClassifier',
    policy=dict(
        _base_.vvq_policy,
        weight=dict(_base_.vvq_policy.weight, grad_scale='lsq'),
        rules=dict(_base_.vvq_policy.rules, **{'*.qkv': dict(weight=dict(granularity='tensor'))})),
    distiller=_base_.vvq_distiller)
train_dataloader = dict(
    _delete_=True,
    batch_size=128,  # images; 1 crop of each
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='vvq_mm.ResumableSampler', shuffle=True),
    collate_fn=dict(type='vvq_mm.flatten_collate'),
    dataset=dict(
        type='vvq_mm.MultiCropDataset',
        num_crops=1,
        soft_labels='data/fashion_mnist_soft_labels',
        dataset=dict(type='FashionMNIST', data_root='data/fashion_mnist', split='train', indices=51200),
        pipeline=[
            dict(type='vvq_mm.ReplayCrop', scale=28),
            dict(type='PackInputs', algorithm_keys=('soft_label', )),
        ]))
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-3, weight_decay=1e-4, fused=True),
    clip_grad=None,
    paramwise_cfg=_base_.vvq_optim_wrapper.paramwise_cfg)
param_scheduler = [dict(type='CosineAnnealingLR', eta_min=0, by_epoch=False, begin=0, end=600, T_max=600)]
train_cfg = dict(_delete_=True, by_epoch=False, max_iters=600, val_interval=200)
log_processor = dict(by_epoch=False)
default_hooks = dict(
    _base_.vvq_hooks,
    logger=dict(type='LoggerHook', interval=50),
    oscillation=dict(_base_.vvq_hooks.oscillation, regularizer=None),
    checkpoint=dict(
        type='CheckpointHook', by_epoch=False, interval=200, max_keep_ckpts=1, save_best='accuracy/top1',
        rule='greater'))
