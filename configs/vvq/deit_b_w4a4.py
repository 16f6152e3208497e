_base_ = '../_base_/deit_b.py'

model = dict(policy=dict(weight=dict(bits=4), act=dict(bits=4)))
