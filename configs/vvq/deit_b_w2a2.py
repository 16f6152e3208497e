_base_ = '../_base_/deit_b.py'

model = dict(policy=dict(weight=dict(bits=2), act=dict(bits=2)))
