_base_ = '../_base_/fashion_mnist.py'

model = dict(policy=dict(weight=dict(bits=4), act=dict(bits=4)))
