# Fashion-MNIST by VVQ, from ../fashion_mnist/deit_fp32.py; the leaves in ../fashion_mnist choose the bits.
_base_ = ['../fashion_mnist/deit_fp32.py', './recipe.py']

load_from = 'work_dirs/deit_fp32/epoch_30.pth'

model = dict(type='vvq_mm.QATImageClassifier', policy=_base_.vvq_policy, distiller=_base_.vvq_distiller)
train_dataloader = dict(
    _delete_=True,
    batch_size=128,  # images; 4 crops of each, 512 crops per step as in the paper
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='vvq_mm.ResumableSampler', shuffle=True),
    collate_fn=dict(type='vvq_mm.flatten_collate'),
    dataset=dict(
        type='vvq_mm.MultiCropDataset',
        num_crops=4,
        soft_labels='data/fashion_mnist_soft_labels',
        dataset=dict(type='FashionMNIST', data_root='data/fashion_mnist', split='train', indices=51200),
        pipeline=[
            dict(type='vvq_mm.ReplayCrop', scale=28),
            dict(type='PackInputs', algorithm_keys=('soft_label', )),
        ]))
optim_wrapper = dict(_delete_=True, **_base_.vvq_optim_wrapper)
param_scheduler = _base_.vvq_param_scheduler
train_cfg = dict(by_epoch=True, max_epochs=2, val_interval=1)
default_hooks = dict(
    _base_.vvq_hooks,
    logger=dict(type='LoggerHook', interval=50),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=1, save_best='accuracy/top1', rule='greater'))
