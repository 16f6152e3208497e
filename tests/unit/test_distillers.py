"""Distillers against naive formulas, and what stays out of checkpoints."""
import copy
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from helpers import calibrated, tiny_qat, tiny_vit_config
from mmengine.logging import MMLogger
from mmpretrain.structures import DataSample

from vvq_mm.distillers import SoftLabelDistiller, SumDistiller, TeacherDistiller
from vvq_mm.errors import CheckpointError, QuantizationError, SoftLabelError
from vvq_mm.functional.soft_label import densify, encode_topk


def samples(count=3, classes=4, stored=True):
    labels = encode_topk(torch.randn(count, classes).softmax(-1), 2)
    result = []
    for index in range(count):
        sample = DataSample().set_gt_label(index % classes)
        if stored:
            sample.set_field(labels[index], 'soft_label')
        result.append(sample)
    return result, labels


@pytest.fixture
def teacher_config():
    return dict(tiny_vit_config(), _scope_='mmpretrain')


def test_stored_labels_give_the_cross_entropy_with_their_dense_form():
    data_samples, labels = samples()
    logits = torch.randn(3, 4)
    losses = SoftLabelDistiller()(logits, None, data_samples)
    expected = -(densify(labels, 4) * logits.log_softmax(-1)).sum(1).mean()
    torch.testing.assert_close(losses, dict(loss_kd=expected))


def test_hard_weight_mixes_in_the_true_labels():
    data_samples, _ = samples()
    logits = torch.randn(3, 4)
    pure = SoftLabelDistiller()(logits, None, data_samples)['loss_kd']
    mixed = SoftLabelDistiller(hard_weight=0.25, weight=2.0)(logits, None, data_samples)
    torch.testing.assert_close(mixed['loss_kd'], 2 * 0.75 * pure)
    torch.testing.assert_close(mixed['loss_hard'], 2 * 0.25 * F.cross_entropy(logits, torch.tensor([0, 1, 2])))


@pytest.mark.parametrize('temperature', [1.0, 4.0], ids=lambda t: f'T{t:g}')
def test_an_online_teacher_gives_the_tempered_cross_entropy(teacher_config, temperature):
    distiller = TeacherDistiller(teacher_config, temperature=temperature)
    inputs, logits = torch.randn(3, 3, 32, 32), torch.randn(3, 4)
    loss = distiller(logits, inputs, samples()[0])['loss_kd']
    target = (distiller.teacher(inputs) / temperature).softmax(-1)
    expected = -(target * (logits / temperature).log_softmax(-1)).sum(1).mean() * temperature**2
    torch.testing.assert_close(loss, expected)


def test_several_distillers_are_logged_apart(teacher_config):
    teacher = dict(type='vvq_mm.TeacherDistiller', teacher=teacher_config)
    both = SumDistiller(dict(stored=dict(type='vvq_mm.SoftLabelDistiller', weight=0.5), online=teacher))
    losses = both(torch.randn(3, 4), torch.randn(3, 3, 32, 32), samples()[0])
    assert sorted(losses) == ['loss_kd_online', 'loss_kd_stored'] and both.uses_stored_labels


def test_the_teacher_is_in_no_state_dict_and_needs_no_gradient(teacher_config):
    model = tiny_qat(distiller=dict(type='vvq_mm.TeacherDistiller', teacher=teacher_config))
    assert not any('teacher' in name or 'distiller' in name for name in model.state_dict())
    teacher = model.distiller.teacher
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    model.train()
    assert not teacher.training
    assert not {id(mine) for mine in teacher.parameters()} & {id(parameter) for parameter in model.parameters()}


def test_a_teacher_checkpoint_must_fit(teacher_config, tmp_path):
    torch.save(dict(state_dict=dict(other=torch.zeros(1))), tmp_path / 'teacher.pth')
    with pytest.raises(CheckpointError, match='1 unexpected .other.'):
        TeacherDistiller(teacher_config, checkpoint=str(tmp_path / 'teacher.pth'))


def test_missing_stored_labels_say_where_to_name_the_store():
    message = 'soft_label with every crop, got none; name a store in train_dataloader.dataset.soft_labels'
    with pytest.raises(SoftLabelError, match=message):
        SoftLabelDistiller()(torch.randn(3, 4), None, samples(stored=False)[0])


@pytest.mark.parametrize('options, message', [(dict(temperature=0), 'temperature above 0, got 0'),
                                              (dict(hard_weight=1.5), 'hard_weight between 0 and 1, got 1.5'),
                                              (dict(tail='smoth'), "tail to be one of .*, got 'smoth'")], ids=str)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SoftLabelDistiller(**options)


def test_without_a_distiller_the_head_s_own_loss_is_used():
    model = calibrated(tiny_qat())
    losses = model.loss(torch.randn(3, 3, 32, 32), samples()[0])
    assert list(losses) == ['loss']


def test_mixup_with_stored_labels_is_refused():
    with pytest.raises(QuantizationError, match='no batch augmentation together with stored soft labels, got Mixup'):
        tiny_qat(distiller=dict(type='vvq_mm.SoftLabelDistiller'),
                 train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8)]))


def test_mixup_with_an_online_teacher_is_fine(teacher_config):
    model = tiny_qat(distiller=dict(type='vvq_mm.TeacherDistiller', teacher=teacher_config),
                     train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8)]))
    assert model.data_preprocessor.batch_augments is not None


def test_building_twice_from_one_config_gives_the_same_model(teacher_config):
    config = dict(type='vvq_mm.TeacherDistiller', teacher=teacher_config)
    before = copy.deepcopy(config)
    tiny_qat(distiller=config)
    tiny_qat(distiller=config)
    assert config == before


def test_a_teacher_without_a_checkpoint_is_warned_of(teacher_config):
    with mock.patch.object(MMLogger.get_current_instance(), 'warning') as warning:
        TeacherDistiller(teacher_config)
    assert 'random weights' in warning.call_args.args[0]
