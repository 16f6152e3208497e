from mmengine.config import read_base

with read_base():
    from .._base_.lazy_deit_b import *  # noqa: F401,F403

model.policy.weight.bits = 4  # noqa: F405
model.policy.act.bits = 4  # noqa: F405
