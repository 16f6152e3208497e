"""Configs of quantised Runner runs that take seconds: a tiny ViT on a few digits with stored soft labels."""
import torch
from mmengine.config import Config
from mmpretrain.utils import register_all_modules

from helpers import LSQ, VIT_RULES
from runner_config import IMAGES, float_config
from vvq_mm.datasets import CropSettings, Digits, make_soft_labels

WEIGHT = dict(type='CosineSchedule', start=0., end=1e-3, begin=0.25)
SOFT_LABELS, CROPS, CLASSES = 'soft_labels', 3, 10


def make_digit_labels(folder, num_crops=CROPS, **digits):
    """Write stored soft labels of an arbitrary teacher for the digits of :func:`qat_config` and return their folder."""
    register_all_modules()
    random = torch.Generator().manual_seed(0)

    def teacher(images):
        return torch.randn(len(images), CLASSES, generator=random).mul(3).softmax(-1)

    dataset = Digits(**{'indices': IMAGES, 'pipeline': [], **digits})
    make_soft_labels(dataset, teacher, folder / SOFT_LABELS, num_crops, CLASSES, crop=CropSettings(size=32))
    return folder / SOFT_LABELS


def qat_hooks(**oscillation):
    """Return the hooks of the shipped recipes, logging in every iteration."""
    names = ('Calibrate', 'Oscillation', 'ExactResume', 'SafeCheckpoint', 'CheckFinite', 'TrainingSummary',
             'AccuracyReport')
    hooks = {name: dict(type=f'vvq_mm.{name}Hook') for name in names}
    hooks['Calibrate']['num_batches'] = 1
    hooks['Oscillation'].update(momentum=0.1, log_interval=1, plot=False,
                                regularizer=dict(type='vvq_mm.BinRegularizer', weight=WEIGHT))
    hooks['Oscillation'].update(oscillation)
    return hooks


def qat_config(work_dir, soft_labels, bits=2, epochs=2, hooks=None, **top_level):
    """Return a Config of 3 iterations per epoch; checkpoints are taken after each iteration."""
    config = float_config(work_dir, epochs, hooks=(qat_hooks() if hooks is None else hooks).values()).to_dict()
    template = dict(LSQ, bits=bits)
    config['model'].update(
        type='vvq_mm.QATImageClassifier',
        policy=dict(type='vvq_mm.RulePolicy', weight=template, act=template, rules=VIT_RULES),
        distiller=dict(type='vvq_mm.SoftLabelDistiller'))
    crops = [dict(type='vvq_mm.ReplayCrop', scale=32), dict(type='PackInputs', algorithm_keys=('soft_label', ))]
    config['train_dataloader']['dataset'].update(pipeline=crops, soft_labels=str(soft_labels))
    paramwise = dict(custom_keys={'_quantizer': dict(decay_mult=0.)})
    config['optim_wrapper'] = dict(optimizer=dict(type='AdamW', lr=1e-2, weight_decay=1e-2), paramwise_cfg=paramwise)
    return Config({**config, **top_level})
