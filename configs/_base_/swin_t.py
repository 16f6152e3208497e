# Swin-T by VVQ; the leaves in ../vvq choose the bits.
_base_ = ['mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py', './recipe.py']

load_from = ('https://download.openmmlab.com/mmclassification/v0/swin-transformer/'
             'swin_tiny_224_b16x64_300e_imagenet_20210616_090925-66df6be6.pth')

model = dict(
    type='vvq_mm.QATImageClassifier',
    backbone=dict(drop_path_rate=0.1),
    policy=dict(_base_.vvq_policy, rules=dict(_base_.vvq_policy.rules, **_base_.vvq_swin_rules)),
    distiller=_base_.vvq_distiller,
    train_cfg=None)  # no Mixup and CutMix: a stored label belongs to one crop
train_dataloader = dict(_delete_=True, **_base_.vvq_train_dataloader)
optim_wrapper = dict(_delete_=True, **_base_.vvq_optim_wrapper)
param_scheduler = _base_.vvq_param_scheduler
train_cfg = _base_.vvq_train_cfg
auto_scale_lr = _base_.vvq_auto_scale_lr
default_hooks = _base_.vvq_hooks
