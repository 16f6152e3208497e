from mmengine.config import read_base

with read_base():
    from .._base_.lazy_deit_t import *  # noqa: F401,F403

model.policy.weight.bits = 2  # noqa: F405
model.policy.act.bits = 2  # noqa: F405
