_base_ = '../_base_/swin_t.py'

model = dict(policy=dict(weight=dict(bits=3), act=dict(bits=3)))
