"""Variation against naive float64 formulas; which rows are a head's; what is left of a model after a look at it."""
import copy
import json

import numpy as np
import pytest
import torch
from helpers import calibrated, tiny_qat, tiny_vit
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread
from torch import nn

from vvq_mm.analysis.variation import Moments, count_outliers, measure, merge, moments, sdam
from vvq_mm.errors import QuantizationError
from vvq_mm.plots import variation as plots

IMAGES = [torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
samples = st.lists(st.floats(-10, 10, width=32), min_size=4, max_size=30).filter(lambda x: np.std(x) > 1e-3)


def naive_kurtosis(x):
    x = np.asarray(x, dtype=np.float64)
    return ((x - x.mean())**4).mean() / ((x - x.mean())**2).mean()**2


def of(values):
    return moments(torch.tensor(values, dtype=torch.float64)[None])


def site(report, module, slot):
    return next(site for site in report['sites'] if (site['module'], site['slot']) == (module, slot))


# ---- moments

@given(samples)
def test_moments_are_those_of_the_formulas(x):
    found = of(x)
    assert found.magnitude.item() == pytest.approx(np.abs(x).mean())
    assert found.std.item() == pytest.approx(np.std(x))
    assert found.kurtosis.item() == pytest.approx(naive_kurtosis(x))


@given(samples, st.floats(0.01, 100), st.floats(-5, 5))
def test_kurtosis_knows_neither_scale_nor_shift(x, factor, shift):
    assert of([factor * value + shift for value in x]).kurtosis.item() == pytest.approx(naive_kurtosis(x), rel=1e-5)


@pytest.mark.parametrize('sample, kurtosis', [(torch.randn, 3.0), (torch.rand, 1.8)], ids=['normal', 'uniform'])
def test_kurtosis_is_pearsons(sample, kurtosis):
    assert moments(sample(1, 200_000)).kurtosis.item() == pytest.approx(kurtosis, rel=0.03)


@pytest.mark.parametrize('value', [0.0, 0.1, 1e4])
def test_a_constant_has_no_kurtosis(value):
    assert of([value] * 1000).kurtosis.isnan()


@given(samples, st.integers(1, 3), st.sampled_from([0.0, 1e4]))
def test_merged_parts_are_the_whole(x, cut, shift):
    """Also far from 0, where sums of plain powers would cancel."""
    x = [value + shift for value in x]
    parts = Moments(*map(torch.stack, zip(of(x[:cut]), of(x[cut:]))))
    for merged, whole in zip(merge(parts, dim=0), of(x)):
        assert merged.item() == pytest.approx(whole.item(), rel=1e-7, abs=1e-6)


@given(samples, st.floats(0.5, 3))
def test_outliers_are_those_beyond_sigma(x, sigma):
    distance = np.abs(np.array(x) - np.mean(x)) / np.std(x)
    if np.abs(distance - sigma).min() > 1e-9:
        assert count_outliers(torch.tensor(x, dtype=torch.float64)[None], of(x), sigma).item() == sum(distance > sigma)


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=9))
def test_sdam_is_the_deviation_over_modules(magnitudes):
    assert sdam(magnitudes) == pytest.approx(np.std(magnitudes), abs=1e-12)
    assert sdam(magnitudes[:1] * 4) == pytest.approx(0, abs=1e-12), 'equal modules do not vary'


# ---- sites of a model

def test_every_weighted_layer_counts_once_in_sdam():
    report = measure(tiny_vit(), IMAGES)
    for slot in ('weight', 'input'):
        magnitudes = [site['magnitude'] for site in report['sites'] if site['slot'] == slot]
        assert report['sdam'][slot]['modules'] == len(magnitudes) == 10
        assert report['sdam'][slot]['sdam'] == pytest.approx(np.std(magnitudes))
        assert report['sdam'][slot]['relative'] == pytest.approx(np.std(magnitudes) / np.mean(magnitudes))


def test_inputs_of_all_batches_are_those_of_the_formulas():
    model, seen = tiny_vit().eval(), []
    name = 'backbone.layers.1.ffn.layers.1'
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        for images in IMAGES:
            model(images)
    handle.remove()
    x = torch.cat(seen).double().flatten(0, -2).numpy()
    found = site(measure(model, IMAGES, sigma=2.5), name, 'input')
    assert found['elements'] == x.size
    assert found['kurtosis'] == pytest.approx(naive_kurtosis(x))
    assert found['outliers'] == pytest.approx((np.abs(x - x.mean()) > 2.5 * x.std()).mean())
    assert found['channels']['kurtosis'][0] == pytest.approx(min(naive_kurtosis(column) for column in x.T))
    assert found['channels']['magnitude'][-1] == pytest.approx(np.abs(x).mean(0).max())
    outliers = (np.abs(x - x.mean(0)) > 2.5 * x.std(0)).mean(0)
    assert found['channels']['outliers'][-1] == pytest.approx(outliers.max())


@pytest.mark.parametrize('batches', [[1] * 6, [2, 4]], ids=str)
def test_the_batch_size_changes_nothing(batches):
    model = tiny_vit()
    once, often = (measure(model, torch.cat(IMAGES).split(sizes)) for sizes in ([6], batches))
    for one, other in zip(once['sites'], often['sites']):
        assert one['magnitude'] == pytest.approx(other['magnitude'], rel=1e-5)
        assert one['kurtosis'] == pytest.approx(other['kurtosis'], rel=1e-4)


def test_channels_of_a_convolution_are_output_rows_and_input_planes():
    model = nn.Sequential(nn.Conv2d(3, 5, 3))
    model[0].weight.data[4] *= 100
    images = IMAGES[0] * torch.tensor([1., 50., 1.]).view(3, 1, 1)
    report = measure(model, [images])
    weight, planes = (site(report, '0', slot)['channels'] for slot in ('weight', 'input'))
    assert (weight['count'], planes['count']) == (5, 3)
    assert weight['magnitude'][-1] == pytest.approx(model[0].weight[4].abs().mean().item(), rel=1e-6)
    assert planes['magnitude'][-1] == pytest.approx(images[:, 1].abs().mean().item(), rel=1e-6)


@pytest.mark.parametrize('part', range(3), ids=['query', 'key', 'value'])
def test_heads_are_the_right_rows_and_outputs(part):
    model, words, head = tiny_vit(), ('query', 'key', 'value'), 1  # 2 heads of 16 channels
    attention = model.backbone.layers[0].attn
    rows = slice(32 * part + 16 * head, 32 * part + 16 * (head + 1))
    attention.qkv.weight.data[rows] *= 10
    report = measure(model, IMAGES)
    weight = site(report, 'backbone.layers.0.attn.qkv', 'weight')['heads']
    largest = int(np.argmax(weight['magnitude']))
    assert weight['label'][largest] == f'{words[part]} {head}'
    assert weight['magnitude'][largest] == pytest.approx(attention.qkv.weight[rows].abs().mean().item(), rel=1e-6)
    outputs = [site(report, 'backbone.layers.0.attn', word)['heads'] for word in words]
    assert outputs[part]['magnitude'][head] > 5 * max(value['magnitude'][0] for value in outputs)
    assert plots.head_values(report, 'magnitude')[words[part]][0] == outputs[part]['magnitude']
    assert plots.head_weights(report, 'magnitude')[words[part]][0][head] == weight['magnitude'][largest]


def test_heads_of_the_projection_are_columns():
    model = tiny_vit()
    projection = model.backbone.layers[0].attn.proj
    projection.weight.data[:, 16:] *= 10
    heads = site(measure(model, IMAGES), 'backbone.layers.0.attn.proj', 'weight')['heads']
    assert heads['magnitude'] == pytest.approx([projection.weight[:, part].abs().mean().item()
                                                for part in (slice(0, 16), slice(16, 32))], rel=1e-6)


def test_the_model_is_left_as_it_was():
    model = tiny_vit().eval()
    state, classes = copy.deepcopy(model.state_dict()), [type(module) for module in model.modules()]
    measure(model, IMAGES)
    assert [type(module) for module in model.modules()] == classes
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_quantised_model_is_looked_at_where_it_is_quantised():
    model = tiny_qat(bits=2)
    in_float = measure(model, IMAGES)
    quantised = measure(calibrated(model), IMAGES)
    assert (in_float['forward'], quantised['forward']) == ('float', 'quantised')
    first, last = 'backbone.patch_embed.projection', 'head.layers.head'
    assert site(in_float, first, 'input') == site(quantised, first, 'input'), 'images before rounding'
    assert site(in_float, last, 'weight') == site(quantised, last, 'weight'), 'latent weights'
    assert site(in_float, last, 'input') != site(quantised, last, 'input')


class OddAttention(nn.Module):
    """Looks like an attention but has one product."""

    def __init__(self):
        super().__init__()
        self.num_heads, self.qkv, self.proj, self.unused = 2, nn.Linear(8, 24), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        query, key, value = self.qkv(x).chunk(3, -1)
        return self.proj((query @ key.mT).softmax(-1).sum(-1, keepdim=True) * value)


def test_an_attention_with_other_products_is_left_out_and_idle_layers_are_named(caplog):
    report = measure(nn.Sequential(OddAttention()), [torch.randn(2, 5, 8)])
    assert {found['slot'] for found in report['sites']} == {'weight', 'input'}
    assert 'Operands of attentions are left out: expected 2 attention products' in caplog.text
    assert report['unused'] == ['0.unused (input)']


def test_values_that_are_not_finite_are_refused():
    model = tiny_vit()
    model.backbone.layers[1].attn.proj.weight.data[0, 0] = float('nan')
    with pytest.raises(QuantizationError, match=r'NaN or infinity in backbone.layers.1.attn.* \('):
        measure(model, IMAGES)


# ---- pictures

def reports():
    cnn = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 30 * 30, 2))
    cnn[0].weight.data[:] = 0.5  # a constant: no kurtosis
    cnn[0].weight.data[0] = 0  # a channel that a logarithm has no place for
    models = dict(cnn=cnn, vit=tiny_vit())
    text = json.dumps([dict(measure(model, IMAGES), name=name) for name, model in models.items()])
    return json.loads(text.replace('NaN', 'null'))


@pytest.mark.parametrize('plot', [plots.plot_magnitude, plots.plot_tails, plots.plot_channels, plots.plot_heads])
def test_models_are_drawn_side_by_side_from_json(tmp_path, plot):
    plot(reports(), tmp_path / 'new' / 'picture.png')
    assert imread(tmp_path / 'new' / 'picture.png').std() > 0


def test_heads_of_a_model_without_are_refused(tmp_path):
    with pytest.raises(ValueError, match='attention heads'):
        plots.plot_heads(reports()[:1], tmp_path / 'picture.png')
