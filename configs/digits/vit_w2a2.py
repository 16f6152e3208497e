_base_ = '../_base_/digits.py'

model = dict(policy=dict(weight=dict(bits=2), act=dict(bits=2)))
