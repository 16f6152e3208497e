_base_ = '../_base_/fashion_mnist.py'

model = dict(policy=dict(weight=dict(bits=3), act=dict(bits=3)))
