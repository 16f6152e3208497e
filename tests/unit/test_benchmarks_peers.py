"""Other people's quantisation in the benchmark computes what it is said to compute."""
import sys

import pytest
import torch
from helpers import VIT_RULES, calibrated, policy, tiny_vit

from vvq_mm.benchmarks import (PEERS, BrevitasQuantizer, StraightThroughQuantizer, TextbookBinRegularizer,
                               TextbookQuantizer, TextbookTracker, TorchaoQuantizer, TorchLearnableQuantizer,
                               peer_policy, state_bytes)
from vvq_mm.functional.scale_init import Statistics
from vvq_mm.losses import BinRegularizer
from vvq_mm.oscillation import OscillationTracker
from vvq_mm.quantizers import LSQQuantizer
from vvq_mm.registry import QUANTIZERS
from vvq_mm.surgery import iter_quantizers, quantize_
from vvq_mm.weight_layers import select_weights

NEEDS = {'torchao': 'torchao', 'brevitas': 'brevitas'}
SITES = {
    'weight': dict(kind='weight'),
    'weight, 3 groups': dict(kind='weight', groups=3),
    'weight, groups of columns': dict(kind='weight', groups=2, axis=1),
    'signed activation': dict(kind='act'),
    'unsigned activation': dict(kind='act', signed=False),
    'unsigned with offset': dict(kind='act', signed=False, offset=True),
}


def ready(quantizer):
    """Give it scales of 0.2, 0.25 and so on, and an offset of two steps, which is an integer zero point too."""
    groups = quantizer.groups
    quantizer.initialise(Statistics(torch.randn(groups, 64), torch.ones(groups)))
    with torch.no_grad():
        quantizer.scale.copy_(0.2 + 0.05 * torch.arange(groups))
        if quantizer.offset is not None:
            quantizer.offset.fill_(-2 * 0.2)
    return quantizer


def run(quantizer, x, upstream):
    x = x.clone().requires_grad_()
    y = quantizer(x)
    y.backward(upstream)
    return y.detach(), x.grad, quantizer.scale.grad, None if quantizer.offset is None else quantizer.offset.grad


def sample():
    """A tensor that reaches over both ends of the grid, and an upstream gradient."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 4, generator=generator)
    return x, torch.randn(6, 4, generator=generator)


@pytest.mark.parametrize('site', SITES.values(), ids=SITES)
@pytest.mark.parametrize('peer, rule', [(StraightThroughQuantizer, dict(weight='lsq', act='lsq')),
                                        (TextbookQuantizer, dict(weight='l1', act='official_act'))],
                         ids=['straight-through', 'textbook'])
def test_values_and_gradients_are_those_of_lsq(peer, rule, site):
    ours = ready(LSQQuantizer(bits=3, grad_scale=rule[site['kind']], **site))
    theirs = ready(peer(bits=3, **site))
    for got, expected in zip(run(theirs, *sample()), run(ours, *sample())):
        assert (got is None) == (expected is None)
        if got is not None:
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('site', SITES.values(), ids=SITES)
def test_torch_operator_has_the_values_of_lsq_and_a_gradient_up_to_half_a_step_outside(site):
    ours, theirs = ready(LSQQuantizer(bits=3, **site)), ready(TorchLearnableQuantizer(bits=3, **site))
    x, upstream = sample()
    value, grad, grad_scale, _ = run(theirs, x, upstream)
    torch.testing.assert_close(value, ours(x).detach())
    assert ((grad == upstream) | (grad == 0)).all() and (grad == upstream)[run(ours, x, upstream)[1] != 0].all()
    assert grad_scale.abs().sum() > 0


@pytest.mark.parametrize('site', SITES.values(), ids=SITES)
def test_brevitas_has_the_values_of_lsq_and_learns_its_own_scale(site):
    pytest.importorskip('brevitas')
    torch.manual_seed(0)
    statistics = Statistics(torch.randn(site.get('groups', 1), 64), torch.ones(site.get('groups', 1)))
    ours, theirs = LSQQuantizer(bits=3, **site), BrevitasQuantizer(bits=3, **site)
    for quantizer in (ours, theirs):
        quantizer.initialise(statistics)
    if ours.offset is not None:  # Brevitas rounds the zero point
        with torch.no_grad():
            steps = (ours.offset / ours.scale).round()
            ours.offset.copy_(steps * ours.scale)
    x, upstream = sample()
    torch.testing.assert_close(theirs(x), ours(x))
    theirs(x).backward(upstream)
    assert theirs.fake.scaling_impl.value.grad.abs().sum() > 0


@pytest.mark.parametrize('kind', ['weight', 'act'])
def test_torchao_has_a_grid_of_its_own_in_each_row(kind):
    pytest.importorskip('torchao')
    x = sample()[0] * torch.logspace(-3, 3, 6)[:, None]
    value = ready(TorchaoQuantizer(bits=3, kind=kind))(x)
    spread = x.amax(1) - x.amin(1) if kind == 'act' else 2 * x.abs().amax(1)
    assert ((value - x).abs().amax(1) <= spread / 6).all()


def test_torchao_takes_the_weight_of_a_convolution():
    pytest.importorskip('torchao')
    weight = torch.randn(4, 3, 2, 2)
    assert ready(TorchaoQuantizer(bits=8))(weight).sub(weight).abs().max() < 0.05


def test_a_missing_library_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, 'torchao.quantization.qat', None)
    with pytest.raises(ImportError, match=r'expected torchao .*pip install vvq_mm\[bench\]'):
        TorchaoQuantizer(bits=4)


@pytest.mark.parametrize('name', PEERS)
def test_a_peer_trains_at_exactly_our_sites(name):
    pytest.importorskip(NEEDS.get(name, 'torch'))
    ours, theirs = tiny_vit(), tiny_vit()
    ours_policy = policy(4, VIT_RULES, grad_scale='l1')
    quantize_(ours, ours_policy)
    quantize_(theirs, peer_policy(ours_policy, PEERS[name]))
    sites = [[(module, slot) for module, _, slot, _ in iter_quantizers(model)] for model in (ours, theirs)]
    assert sites[0] == sites[1]
    assert {type(quantizer) for *_, quantizer in iter_quantizers(theirs)} == {PEERS[name]}
    calibrated(theirs)(torch.randn(2, 3, 32, 32))[0].sum().backward()
    assert theirs.backbone.layers[0].attn.qkv.weight.grad.abs().sum() > 0


def test_no_peer_is_registered():
    assert not any(QUANTIZERS.get(peer.__name__) for peer in PEERS.values())


@pytest.fixture
def layers():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(12, 9), torch.nn.Linear(9, 4))


def quantise_weights(model, **options):
    """Textbook quantizers with scales at which some weights are clipped and none is on the last code."""
    quantize_(model, dict(type='RulePolicy', weight=dict(type=TextbookQuantizer, bits=3, **options), act=None))
    for layer in select_weights(model):
        ready(layer.quantizer)
        with torch.no_grad():
            layer.quantizer.scale.mul_(0.27)
        layer.quantizer.grad_scale = 'l1'  # what the textbook has, for ours
    return select_weights(model)


@pytest.mark.parametrize('reduction', ['sum', 'mean'])
@pytest.mark.parametrize('granularity', ['tensor', 'channel'])
def test_textbook_regulariser_is_the_bin_regulariser(layers, reduction, granularity):
    chosen, results = quantise_weights(layers, granularity=granularity), []
    for kind in (BinRegularizer, TextbookBinRegularizer):
        regularizer = kind(reduction=reduction)
        regularizer.set_weight(0.5)
        layers.zero_grad()
        loss = regularizer(layers)
        loss.backward()
        results.append([loss.detach(), *(parameter.grad for layer in chosen
                                         for parameter in (layer.module.weight, layer.quantizer.scale))])
    assert results[0][0] > 0
    for ours, theirs in zip(*results):
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-6)


def test_textbook_tracker_counts_the_same_oscillations_in_25_bytes_per_weight(layers):
    chosen = quantise_weights(layers)
    ours, theirs = OscillationTracker(chosen, momentum=0.1), TextbookTracker(chosen, momentum=0.1, freeze_above=9.)
    ours.start(), theirs.start()
    for _ in range(6):
        with torch.no_grad():
            for layer in chosen:
                layer.module.weight.add_(0.3 * torch.randn_like(layer.module.weight))
        ours.update(), theirs.update()
    for layer in chosen:
        frequency = theirs.states[layer.name]['frequency']
        assert frequency.max() > 0
        torch.testing.assert_close(frequency, ours.states[layer.name].frequency, atol=1e-3, rtol=1e-3)
    weights = sum(layer.module.weight.numel() for layer in chosen)
    assert state_bytes(theirs) == 25 * weights
