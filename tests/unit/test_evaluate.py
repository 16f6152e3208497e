"""Evaluation outside a Runner: what a score is, and which images it is of."""
import math

import pytest
import torch
from helpers import tiny_qat, tiny_vit_config
from mmengine.config import Config
from mmpretrain.structures import DataSample

import vvq_mm
from vvq_mm.errors import QuantizationError
from vvq_mm.utils.evaluate import Score, build_batches, build_model, calibration_images, count, evaluate, mean

DIGITS = dict(type='vvq_mm.Digits', pipeline=[dict(type='PackInputs')])


def sample(scores, label):
    return DataSample().set_pred_score(torch.tensor(scores)).set_gt_label(label)


def test_a_score_is_the_share_of_hits_and_the_mean_cross_entropy():
    total = count([sample([0.5, 0.25, 0.25], 0), sample([0.5, 0.25, 0.25], 2)])
    assert mean(total) == Score(50.0, pytest.approx((math.log(2) + math.log(4)) / 2), 2)


def test_a_probability_of_zero_is_a_large_finite_loss():
    assert 20 < count([sample([1.0, 0.0], 1)]).loss < math.inf


def test_samples_without_one_label_or_without_probabilities_do_not_count():
    several = sample([0.5, 0.5], 0).set_gt_label([0, 1])
    assert count([several, DataSample().set_gt_label(0), torch.zeros(2)]).images == 0
    with pytest.raises(QuantizationError, match='images with one label each.*got none'):
        mean(count([several]))


def test_fewer_images_are_spread_over_the_data_set():
    loader = build_batches(dict(dataset=DIGITS, batch_size=2), images=3)
    size = len(loader.dataset.dataset)
    assert list(loader.dataset.indices) == [0, size // 3, 2 * size // 3] and len(loader) == 2


def test_crops_of_a_training_loader_become_one_batch():
    crops = dict(type='vvq_mm.MultiCropDataset', dataset=dict(type='vvq_mm.Digits'), num_crops=3,
                 pipeline=[dict(type='RandomResizedCrop', scale=32), dict(type='PackInputs')])
    loader = build_batches(dict(dataset=crops, batch_size=2, collate_fn=dict(type='vvq_mm.flatten_collate')), images=4)
    assert [batch['inputs'].shape[0] for batch in loader] == [6, 6]


def test_the_model_of_a_config_is_evaluated_as_its_predictions_say():
    config = tiny_vit_config(classes=10, in_channels=1)
    config['data_preprocessor'] = dict(num_classes=10, mean=[127.5], std=[127.5])
    model = build_model(Config(dict(model=config, default_scope='mmpretrain')))
    batches = build_batches(dict(dataset=dict(DIGITS, size=32), batch_size=8), images=20)
    score = evaluate(model, batches)
    logits = torch.cat([model(images) for images in calibration_images(model, batches, 3)]).log_softmax(-1)
    labels = torch.tensor([int(s.gt_label) for batch in batches for s in batch['data_samples']])
    assert score.images == 20 and not model.training
    assert score.top1 == pytest.approx(100 * (logits.argmax(-1) == labels).float().mean().item())
    assert score.loss == pytest.approx(-logits[range(20), labels].mean().item(), abs=1e-5)


def test_a_quantised_model_takes_a_float_checkpoint(tmp_path):
    config = dict(tiny_vit_config(), type='vvq_mm.QATImageClassifier', policy=tiny_qat_policy())
    source = tiny_qat()
    vvq_mm.unquantize_(source)
    torch.save(source.state_dict(), tmp_path / 'float.pth')
    model = build_model(Config(dict(model=config, default_scope='mmpretrain')), str(tmp_path / 'float.pth'))
    assert torch.equal(model.head.layers.head.weight, source.head.layers.head.weight)


def tiny_qat_policy():
    lsq = dict(type='LSQQuantizer', bits=4)
    return dict(type='RulePolicy', weight=lsq, act=lsq)
