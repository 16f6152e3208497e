_base_ = '../_base_/swin_t.py'

model = dict(policy=dict(weight=dict(bits=4), act=dict(bits=4)))
