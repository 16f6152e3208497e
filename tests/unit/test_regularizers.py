"""Regularisers over a model: which layers, which weight, which gradient."""
import copy

import pytest
import torch
from torch import nn

from vvq_mm import calibrate, quantize_
from vvq_mm.errors import QuantizationError
from vvq_mm.functional.bins import bin_loss, dampening_loss
from vvq_mm.losses import BinRegularizer, DampeningRegularizer
from vvq_mm.weight_layers import select_weights

LSQ = dict(type='LSQQuantizer', bits=4, grad_scale='l1')


def make_model(rules=None, **weight):
    """Three linear layers, `stem` and `head` at 8 bits and `body` at 4, or as the rules say."""
    torch.manual_seed(0)
    model = nn.Sequential()
    for name, shape in dict(stem=(6, 8), body=(8, 9), head=(9, 4)).items():
        model.add_module(name, nn.Linear(*shape))
    rules = {'stem': dict(weight=8), 'head': dict(weight=8)} if rules is None else rules
    quantize_(model, dict(type='RulePolicy', weight={**LSQ, **weight}, act=None, rules=rules))
    calibrate(model, [torch.randn(4, 6)])
    return model


def layer_loss(function, model, name, reduction='sum'):
    module = model.get_submodule(name)
    quantizer = module.weight_quantizer
    codes = quantizer.codes(module.weight)
    return function(module.weight, codes, quantizer.scale, quantizer.grid, quantizer.axis, reduction)


@pytest.mark.parametrize('reduction', ['sum', 'mean'])
@pytest.mark.parametrize('kind, function', [(BinRegularizer, bin_loss), (DampeningRegularizer, dampening_loss)],
                         ids=['bin', 'dampening'])
def test_loss_is_the_weighted_sum_over_narrow_layers(kind, function, reduction):
    model = make_model(rules={'stem': dict(weight=8)})
    regularizer = kind(reduction=reduction)
    regularizer.set_weight(0.5)
    expected = 0.5 * sum(layer_loss(function, model, name, reduction) for name in ('body', 'head'))
    torch.testing.assert_close(regularizer(model), expected)


def test_wide_layers_take_part_when_asked():
    model, regularizer = make_model(), BinRegularizer(max_bits=8)
    regularizer.set_weight(1.0)
    expected = sum(layer_loss(bin_loss, model, name) for name in ('stem', 'body', 'head'))
    torch.testing.assert_close(regularizer(model), expected)


def test_layers_are_chosen_by_glob_in_the_order_of_the_model():
    model = make_model(rules={})
    assert [layer.name for layer in select_weights(model, 4, ['head', 's*', '*e*'])] == ['stem', 'head']


def test_a_glob_that_fits_nothing_names_the_nearest():
    model, regularizer = make_model(rules={}), BinRegularizer(layers=['bodi'])
    with pytest.raises(QuantizationError, match="'bodi'.*nearest names are body"):
        regularizer(model)


def test_a_model_without_narrow_weights_is_an_error():
    with pytest.raises(QuantizationError, match='at most 4 bits.*the model has: 8'):
        BinRegularizer()(make_model(rules={'*': dict(weight=8)}))


def test_an_unknown_reduction_is_named():
    with pytest.raises(QuantizationError, match="sum, mean, got 'max' for BinRegularizer"):
        BinRegularizer(reduction='max')


def test_it_is_inactive_until_its_weight_is_not_zero():
    regularizer = BinRegularizer()
    states = [regularizer.active]
    for value in (0.1, 0.0):
        regularizer.set_weight(value)
        states.append(regularizer.active)
    assert states == [False, True, False]


def test_gradients_reach_weight_and_scale_of_regularised_layers_alone():
    model, regularizer = make_model(), BinRegularizer()
    with torch.no_grad():
        model.body.weight[:, 0] = 100  # clipped, so that the scale has a gradient
        model.body.weight[0, 0] = -100
        model.body.weight[1, 0] = model.body.weight_quantizer.scale * 6.8
    regularizer.set_weight(1.0)
    regularizer(model).backward()
    assert model.body.weight.grad.abs().sum() > 0 and model.body.weight_quantizer.scale.grad.abs().sum() > 0
    assert model.stem.weight.grad is None and model.head.weight.grad is None


def test_scale_gradient_carries_the_quantizer_own_factor():
    gradients = []
    for rule in ('none', 'l1'):
        model, regularizer = make_model(grad_scale=rule), BinRegularizer()
        with torch.no_grad():
            model.body.weight[0] = 100
            model.body.weight[1] = model.body.weight_quantizer.scale * 6.8
        regularizer.set_weight(1.0)
        regularizer(model).backward()
        gradients.append(model.body.weight_quantizer.scale.grad.item())
    factor = (model.body.weight.abs().sum() * 7).rsqrt().item()
    assert gradients[1] == pytest.approx(gradients[0] * factor, rel=1e-5) and gradients[0] != 0


def test_an_uncalibrated_layer_is_left_out():
    model, regularizer = make_model(rules={}), BinRegularizer()
    regularizer.set_weight(1.0)
    model.body.weight_quantizer.ready = model.stem.weight_quantizer.ready = False
    torch.testing.assert_close(regularizer(model), layer_loss(bin_loss, model, 'head'))


def test_as_part_of_the_model_it_adds_no_key_and_survives_deepcopy():
    model = make_model()
    keys = list(model.state_dict())
    model.regularizer = BinRegularizer()
    model.regularizer.set_weight(1.0)
    twin = copy.deepcopy(model)
    assert list(model.state_dict()) == keys
    torch.testing.assert_close(twin.regularizer(twin), model.regularizer(model))


def test_per_channel_scales_have_bins_per_channel():
    model, regularizer = make_model(granularity='channel'), BinRegularizer()
    regularizer.set_weight(1.0)
    weight, quantizer = model.body.weight, model.body.weight_quantizer
    rows = [bin_loss(row, codes, scale, quantizer.grid)
            for row, codes, scale in zip(weight, quantizer.codes(weight), quantizer.scale.split(1))]
    torch.testing.assert_close(regularizer(model), sum(rows))
