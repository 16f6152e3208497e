from mmengine.config import read_base

with read_base():
    from .._base_.lazy_swin_t import *  # noqa: F401,F403

model.policy.weight.bits = 3  # noqa: F405
model.policy.act.bits = 3  # noqa: F405
