_base_ = '../_base_/fashion_mnist.py'

model = dict(policy=dict(weight=dict(bits=2), act=dict(bits=2)))
