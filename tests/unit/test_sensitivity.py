"""Sensitivity: which slots a part covers, a part in float is exact, and what is around it stays as it was."""
import pytest
import timm
import torch
from helpers import VIT_RULES, build, calibrated, policy, tiny_qat, tiny_vit_config
from matplotlib.image import imread
from mmengine.config import Config

import vvq_mm
from vvq_mm.analysis.parts import Part, choose_parts, find_parts
from vvq_mm.analysis.sensitivity import leave_one_out, only_part, part_in_float, plan_without
from vvq_mm.errors import QuantizationError
from vvq_mm.plots.sensitivity import plot_sensitivity
from vvq_mm.studies.leave_one_out import budget, summarise
from vvq_mm.surgery import iter_quantizers, quantizer_mode
from vvq_mm.utils.evaluate import Score
from vvq_mm.weight_layers import select_weights

QKV, ATTENTION = 'backbone.layers.0.attn.qkv', 'backbone.layers.0.attn'
IMAGES = torch.linspace(-2, 2, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)


def mmpretrain_swin():
    stages = dict(embed_dims=12, depths=[1, 1], num_heads=[2, 4])
    backbone = dict(type='SwinTransformer', arch=stages, img_size=32, window_size=2, out_indices=(1, ))
    head = dict(type='LinearClsHead', num_classes=4, in_channels=24)
    return build(dict(type='vvq_mm.QATImageClassifier', backbone=backbone, neck=dict(type='GlobalAveragePooling'),
                      head=head, policy=policy()))


def timm_model(name, **options):
    model = timm.create_model(name, num_classes=4, img_size=32, **options)
    vvq_mm.quantize_(model, policy())
    return model


MODELS = dict(
    mmpretrain_vit=lambda: tiny_qat(),
    mmpretrain_swin=mmpretrain_swin,
    timm_deit=lambda: timm_model('deit_tiny_patch16_224', depth=2, embed_dim=24, num_heads=2),
    timm_swin=lambda: timm_model('swin_tiny_patch4_window7_224', depths=(1, 1), embed_dim=12, num_heads=(2, 4),
                                 window_size=2))


def slots(model, name):
    """The slots of a part, with the last two words of the module's name."""
    part, = choose_parts(model, [name])
    return {('.'.join(piece.module.split('.')[-2:]), piece.slot) for piece in part.pieces}


@pytest.mark.parametrize('name', MODELS)
def test_types_are_found_by_structure(name):
    model = MODELS[name]()
    swin = 'swin' in name
    types = {part.name: part for part in find_parts(model, 'types')}
    assert list(types) == ['MHSA', 'FFN', 'query', 'key', 'value', 'softmax', 'projection', 'fc1', 'fc2',
                           'patch embedding', *(['patch merging'] if swin else []), 'head']
    counts = {part: len(types[part].pieces) for part in types}
    assert counts == dict(MHSA=16, FFN=8, query=4, key=4, value=4, softmax=2, projection=4, fc1=4, fc2=4, head=2,
                          **{'patch embedding': 2}, **({'patch merging': 2} if swin else {}))
    assert all(piece.module.endswith(('fc1', 'layers.0.0')) for piece in types['fc1'].pieces)
    assert all(piece.module.endswith(('fc2', 'layers.1')) for piece in types['fc2'].pieces)
    assert all('patch_embed' in piece.module for piece in types['patch embedding'].pieces)
    assert all(piece.module.endswith('reduction') for piece in types['patch merging'].pieces) if swin else True
    assert [part.name for part in find_parts(model, 'blocks')] == ['block 0', 'block 1']
    assert len(find_parts(model, 'heads')) == (2 + 4 if swin else 2 + 2)


def test_mhsa_and_ffn_share_nothing_and_cover_a_block():
    model = tiny_qat()
    mhsa, ffn, block = (choose_parts(model, [name])[0].pieces for name in ('MHSA', 'FFN', 'block 0'))
    assert not set(map(str, mhsa)) & set(map(str, ffn))
    first = {str(piece) for piece in (*mhsa, *ffn) if piece.module.startswith('backbone.layers.0.')}
    assert first == set(map(str, block))


def test_the_query_is_its_rows_of_qkv_and_its_operand():
    model = tiny_qat(rules=VIT_RULES)
    assert slots(model, 'query') == {('attn.qkv', 'weight'), ('0.attn', 'query'), ('1.attn', 'query')}


@pytest.mark.parametrize('granularity', ['tensor', 'qkv', 'head', 'channel'])
@pytest.mark.parametrize('part, rows', [('query', slice(0, 32)), ('key', slice(32, 64)), ('value', slice(64, 96))])
def test_rows_of_a_part_pass_and_the_others_keep_their_values(granularity, part, rows):
    model = calibrated(tiny_qat(bits=2, rules={'*.qkv': dict(weight=dict(granularity=granularity))}))
    layer = model.get_submodule(QKV)
    before = layer.weight_quantizer(layer.weight)
    with part_in_float(model, choose_parts(model, [part])[0]):
        now = layer.weight_quantizer(layer.weight)
    assert torch.equal(now[rows], layer.weight[rows]) and not torch.equal(before[rows], now[rows])
    others = torch.ones(96, dtype=torch.bool)
    others[rows] = False
    assert torch.equal(now[others], before[others])


def test_a_head_is_its_channels_everywhere():
    model = calibrated(tiny_qat(bits=2))
    attention = model.get_submodule(ATTENTION)
    head, operand = slice(16, 32), torch.randn(3, 2, 5, 16)
    weight, columns, channels = attention.qkv.weight, attention.proj.weight, torch.randn(3, 5, 32)
    with part_in_float(model, choose_parts(model, ['block 0 head 1'])[0]):
        rows = attention.qkv.weight_quantizer(weight).unflatten(0, (3, 32))[:, head]
        assert torch.equal(rows, weight.unflatten(0, (3, 32))[:, head])
        assert torch.equal(attention.proj.weight_quantizer(columns)[:, head], columns[:, head])
        assert torch.equal(attention.proj.input_quantizer(channels)[..., head], channels[..., head])
        for slot in attention.SLOTS:
            passed = getattr(attention, f'{slot}_quantizer')(operand) == operand
            assert passed[:, 1].all() and not passed[:, 0].all(), slot


def test_all_parts_in_float_are_the_float_model():
    model = calibrated(tiny_qat(bits=2))
    with quantizer_mode(model, 'float'):
        expected = model(IMAGES)
    patch, blocks, head = (choose_parts(model, [name]) for name in ('patch_embedding', 'blocks', 'Head'))
    with part_in_float(model, patch[0]), part_in_float(model, blocks[0]), part_in_float(model, blocks[1]), \
            part_in_float(model, head[0]):
        assert torch.equal(model(IMAGES), expected)


@pytest.mark.parametrize('part', ['value', 'FFN', 'block 1 head 0'])
def test_the_model_is_restored(part):
    model = calibrated(tiny_qat(bits=2))
    before = model(IMAGES)
    with pytest.raises(KeyboardInterrupt), part_in_float(model, choose_parts(model, [part])[0]):
        assert not torch.equal(model(IMAGES), before)
        raise KeyboardInterrupt
    assert torch.equal(model(IMAGES), before)


def test_gradients_reach_the_float_rows_unclipped_and_the_scale_only_from_the_others():
    layer = calibrated(tiny_qat(bits=2)).get_submodule(QKV)
    quantizer, weight = layer.weight_quantizer, (layer.weight * 100).detach().requires_grad_()  # all are clipped
    quantizer.keep_float(dict(groups=3, axis=0, members=[2]))
    quantizer(weight).sum().backward()
    assert (weight.grad[64:] == 1).all() and weight.grad[:64].abs().sum() < 64 * 32
    assert quantizer.scale.grad[2] == 0 and quantizer.scale.grad[0] != 0


def test_leave_one_out_reports_gains_over_everything_quantised():
    model = calibrated(tiny_qat())
    scores = iter([Score(60., 1.5, 4), Score(40., 2.5, 4)])
    first, second = leave_one_out(model, choose_parts(model, ['query', 'softmax']), lambda: next(scores),
                                  Score(50., 2., 4))
    assert (first.part, first.gain_top1, first.gain_loss) == ('query', 10., 0.5)
    assert (second.part, second.gain_top1, second.gain_loss, second.weights) == ('softmax', -10., -0.5, 0.)
    sizes = [module.weight.numel() for _, module, slot, _ in iter_quantizers(model) if slot == 'weight']
    assert first.weights == pytest.approx(2 * 32 * 32 / sum(sizes))


def test_only_one_part_can_be_quantised():
    model = calibrated(tiny_qat(bits=2))
    part, = choose_parts(model, ['backbone.layers.0.attn.proj'])
    with only_part(model, part):
        assert [f'{name}.{slot}' for name, _, slot, quantizer in iter_quantizers(model)
                if quantizer.mode == 'quantize'] == [f'{ATTENTION}.proj.weight', f'{ATTENTION}.proj.input']


# ---- the same parts in a plan, for training

@pytest.mark.parametrize('part', ['value', 'softmax', 'MHSA', 'block 0 head 1'])
def test_a_plan_without_a_part_is_the_model_with_the_part_in_float(part):
    model = calibrated(tiny_qat(bits=2))
    found, = choose_parts(model, [part])
    planned = build(tiny_vit_config())
    vvq_mm.apply_plan(planned, plan_without(model.plan, found))
    planned.eval().load_state_dict(model.state_dict(), strict=False)
    with part_in_float(model.eval(), found):
        assert torch.equal(planned(IMAGES), model(IMAGES))


def test_a_weight_with_a_part_in_float_has_no_codes_and_is_not_tracked():
    model = calibrated(tiny_qat(bits=2))
    with part_in_float(model, choose_parts(model, ['query'])[0]):
        names = [layer.name for layer in select_weights(model)]
        assert QKV not in names and f'{ATTENTION}.proj' in names
        with pytest.raises(QuantizationError, match=f'quantised as a whole, got {QKV} .weight. with a float_part'):
            model.get_submodule(QKV).weight_quantizer.codes(model.get_submodule(QKV).weight)


def test_integer_products_give_way_to_a_part_in_float(monkeypatch):
    monkeypatch.setattr('vvq_mm.layers.product.device_obstacle', lambda device: '')
    plans = [dict(policy(2, VIT_RULES), matmul=matmul) for matmul in ('float', 'int8')]
    first, second = (build(dict(tiny_vit_config(), type='vvq_mm.QATImageClassifier', policy=plan)) for plan in plans)
    calibrated(first).eval()
    second.eval().load_state_dict(first.state_dict())
    for part in ('query', 'block 0 head 0'):
        found, = choose_parts(first, [part])
        with part_in_float(first, found), part_in_float(second, found):
            torch.testing.assert_close(second(IMAGES), first(IMAGES), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize('part', [dict(groups=3, axis=0), dict(groups=3, axis=0, members=[3]), {},
                                  dict(groups=3, axis=0, members=[])], ids=['no members', 'beyond', 'empty', 'none'])
def test_a_wrong_float_part_is_refused(part):
    with pytest.raises(QuantizationError, match='float_part to be dict.*got .*attn.qkv'):
        tiny_qat(rules={'*.qkv': dict(weight=dict(float_part=part))})


# ---- a budget of training steps

def test_a_budget_keeps_the_proportions_of_the_schedules():
    warm_up = dict(type='LinearLR', by_epoch=True, begin=0, end=2, convert_to_iter_based=True)
    steps = dict(type='LinearLR', by_epoch=False, begin=0, end=7)
    cosine = dict(type='CosineAnnealingLR', by_epoch=True, begin=2, convert_to_iter_based=True)
    changes = budget(Config(dict(train_cfg=dict(by_epoch=True, max_epochs=10),
                                 param_scheduler=[warm_up, steps, cosine])), 50)
    assert changes['train_cfg'] == dict(_delete_=True, by_epoch=False, max_iters=50, val_interval=50)
    assert changes['param_scheduler'] == [dict(type='LinearLR', by_epoch=False, begin=0, end=10), steps,
                                          dict(type='CosineAnnealingLR', by_epoch=False, begin=10)]


def test_a_budget_refuses_a_schedule_without_an_end():
    cfg = Config(dict(train_cfg=dict(max_epochs=4), param_scheduler=dict(type='StepLR', step_size=1, gamma=0.1)))
    with pytest.raises(QuantizationError, match='with a beginning and an end, got StepLR'):
        budget(cfg, 8)


def test_gains_of_trainings_are_paired_by_seed():
    rows = [dict(method=method, seed=seed, last=last) for method, seed, last in
            [('all', '0', '50'), ('all', '1', '60'), ('all but query', '1', '63'), ('all but query', '0', '51'),
             ('all but key', '0', '49'), ('all but key', '1', '59')]]
    first, second = summarise(rows, [Part('key', ()), Part('query', ())], [0.2, 0.1])
    assert first == dict(part='query', weights=0.1, top1=57., gain_top1=2., error=pytest.approx(1.), seeds=2)
    assert (second['part'], second['gain_top1'], second['error']) == ('key', -1., None)  # equal: no spread is known


# ---- names

@pytest.mark.parametrize('word, message', [
    ('patch merging', r"that QATImageClassifier has .*\(MHSA, FFN, .*head\), got 'patch merging'"),
    ('qeury', "got 'qeury' in --parts; did you mean 'query'"),
    ('block 7', "got 'block 7' in --parts; did you mean 'block"),
    ('laeyrs', "got 'laeyrs' in --parts; did you mean 'layers'"),
])
def test_a_part_that_the_model_does_not_have_is_named(word, message):
    with pytest.raises(QuantizationError, match=message):
        choose_parts(tiny_qat(), ['types', word])


def test_parts_that_are_in_float_anyway_are_no_parts():
    model = tiny_qat(rules={'head.*': None, '*.attn': dict(prob=None)})
    assert not {'head', 'softmax'} & {part.name for part in find_parts(model, 'types')}
    with pytest.raises(QuantizationError, match='softmax'):
        choose_parts(model, ['softmax'])


# ---- the picture

@pytest.mark.parametrize('count', [1, 41])
def test_bars_of_any_number_of_parts_are_drawn(tmp_path, count):
    rows = [dict(part=f'block {index}', weights=0.1 * (index % 2), gain_top1=3. - index, gain_loss=0.) for index in
            range(count)]
    plot_sensitivity(rows, tmp_path / 'new' / 'bars.png', 'title', 'caption', dict(gain_top1=4., gain_loss=1e3))
    assert imread(tmp_path / 'new' / 'bars.png').std() > 0
