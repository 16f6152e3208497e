# DeiT-B by VVQ; the leaves in ../vvq choose the bits.
_base_ = ['mmpretrain::deit/deit-base_16xb64_in1k.py', './recipe.py']

load_from = 'https://download.openmmlab.com/mmclassification/v0/deit/deit-base_pt-16xb64_in1k_20220216-db63c16c.pth'

model = dict(
    type='vvq_mm.QATImageClassifier',
    policy=_base_.vvq_policy,
    distiller=_base_.vvq_distiller,
    train_cfg=None)  # no Mixup and CutMix: a stored label belongs to one crop
train_dataloader = dict(_delete_=True, **_base_.vvq_train_dataloader)
optim_wrapper = dict(_delete_=True, **_base_.vvq_optim_wrapper)
param_scheduler = _base_.vvq_param_scheduler
train_cfg = _base_.vvq_train_cfg
auto_scale_lr = _base_.vvq_auto_scale_lr
default_hooks = _base_.vvq_hooks
custom_hooks = []  # no EMAHook: an average of weights is not the network that was quantised
