"""A description builds the model again from plain JSON, and never by running what a file names."""
import copy
import json
import sys

import numpy as np
import pytest
from helpers import VIT_RULES, build, calibrated, policy, tiny_vit_config
from mmengine.config import Config, ConfigDict
from mmpretrain.models import VisionTransformer
from mmpretrain.registry import MODELS

from vvq_mm.errors import QuantizationError
from vvq_mm.export.description import build_described, check_description, describe, pack_plan, unpack_plan
from vvq_mm.export.safe_config import plain_config, registered
from vvq_mm.policy import QuantPlan

SHAPE = (3, 32, 32)
PIPELINE = [dict(type='LoadImageFromFile'), dict(type='ResizeEdge', scale=36), dict(type='PackInputs')]


def config(model=None, **dataset):
    """A config with a quantised tiny ViT and a test data set."""
    model = dict(tiny_vit_config(), type='vvq_mm.QATImageClassifier', policy=policy(rules=VIT_RULES), **(model or {}))
    return Config(dict(model=model, test_dataloader=dict(dataset=dict(dict(type='CustomDataset', pipeline=PIPELINE),
                                                                      **dataset))))


def described(cfg=None, **options):
    cfg = config() if cfg is None else cfg
    return describe(cfg, build(copy.deepcopy(cfg.model)), SHAPE, **options)


def test_a_description_is_json_and_builds_the_same_quantised_model():
    cfg = config()
    model = calibrated(build(copy.deepcopy(cfg.model)))
    description = describe(cfg, model, SHAPE)
    again = build_described(json.loads(json.dumps(description)))
    assert list(again.state_dict()) == list(model.state_dict())
    assert repr(calibrated(again)) == repr(model)
    assert not again.training and description['input_shape'] == [3, 32, 32] and description['num_classes'] == 4


def test_describing_leaves_config_and_model_as_they_were():
    cfg, before = config(), config().to_dict()
    model = build(copy.deepcopy(cfg.model))
    model.train()
    describe(cfg, model, SHAPE)
    assert cfg.to_dict() == before and all(module.training for module in model.modules())


def test_what_is_for_training_alone_is_left_out():
    start = dict(type='Pretrained', checkpoint='x.pth')
    cfg = config(dict(init_cfg=start, train_cfg=dict(augments=dict(type='Mixup', alpha=0.8)), pretrained=None))
    cfg.model.backbone.init_cfg = [dict(type='TruncNormal', layer='Linear')]
    cfg.model.head.init_cfg = start
    model = described(cfg)['model']
    assert set(model) == {'type', 'backbone', 'head', 'data_preprocessor'}
    assert 'init_cfg' not in model['backbone'] and 'init_cfg' not in model['head']


def test_an_argument_that_only_sounds_like_weights_elsewhere_is_kept():
    swin = dict(type='SwinTransformerV2', pretrained_window_sizes=[8, 8, 8, 4], pretrained=True)
    assert plain_config(swin, 'MODELS', 'mmpretrain', 'model') == dict(type=swin['type'],
                                                                      pretrained_window_sizes=[8, 8, 8, 4])


def test_the_data_preprocessor_is_that_of_the_config():
    cfg = config()
    preprocessor = cfg.model.pop('data_preprocessor')
    cfg.data_preprocessor = dict(preprocessor, mean=[1., 2., 3.])
    assert build_described(described(cfg)).data_preprocessor.mean.flatten().tolist() == [1, 2, 3]


def test_numpy_and_tuples_become_plain_numbers_and_lists():
    numbers = dict(rate=np.float32(0.5), sizes=(np.int64(2), 3), mean=np.ones(2))
    plain = plain_config(numbers, 'MODELS', 'mmpretrain', 'model')
    assert plain == dict(rate=0.5, sizes=[2, 3], mean=[1.0, 1.0]) and json.dumps(plain)


@pytest.mark.parametrize('value', [object(), float('nan'), {1: 2}], ids=['object', 'nan', 'key'])
def test_what_is_not_json_is_refused_by_its_place(value):
    with pytest.raises(QuantizationError, match='expected model.backbone.option to be numbers'):
        plain_config(dict(backbone=dict(option=value)), 'MODELS', 'mmpretrain', 'model')


@pytest.mark.parametrize('value', [VisionTransformer, 'VisionTransformer', 'mmpretrain.VisionTransformer',
                                   'mmpretrain.models.backbones.VisionTransformer'],
                         ids=['class', 'name', 'scoped', 'path'])
def test_a_class_is_named_however_the_config_names_it(value):
    name = plain_config(dict(type=value), 'MODELS', 'mmpretrain', 'model')['type']
    assert registered(name, 'MODELS') is VisionTransformer


def test_scopes_of_inherited_configs_become_part_of_names():
    inherited = ConfigDict(type='QATImageClassifier', backbone=dict(type='VisionTransformer', _scope_='vvq_mm'),
                           norm_cfg=dict(type='LN'), _scope_='vvq_mm')
    assert plain_config(inherited, 'MODELS', 'mmpretrain', 'model') == dict(
        type='vvq_mm.QATImageClassifier', backbone=dict(type='VisionTransformer'), norm_cfg=dict(type='LN'))


def test_names_of_classes_are_the_checkpoint_s_then_the_data_set_s():
    of_config, of_checkpoint = config(metainfo=dict(classes=list('abcd'))), dict(
        meta=dict(dataset_meta=dict(classes=tuple('wxyz'))))
    assert described(of_config, checkpoint=of_checkpoint)['classes'] == list('wxyz')
    assert described(of_config, checkpoint=dict(meta={}))['classes'] == list('abcd')
    assert described(config())['classes'] is None


def test_names_of_another_number_of_classes_are_not_taken():
    assert described(config(type='CIFAR10'))['classes'] is None
    ten = config(type='CIFAR10')
    ten.model.head.num_classes = 10
    assert described(ten)['classes'][:2] == ['airplane', 'automobile']


def test_the_pipeline_is_found_inside_a_wrapped_data_set():
    inner = config().test_dataloader.dataset
    wrapped = config()
    wrapped.test_dataloader.dataset = dict(type='RepeatDataset', times=2, dataset=inner)
    assert described(wrapped)['pipeline'] == PIPELINE


def test_a_plan_comes_back_with_its_defaults_written_out():
    lsq = dict(type='LSQQuantizer', bits=3)
    plan = QuantPlan({'fc': {'weight': lsq, 'input': None}, 'head': {'weight': lsq}}, matmul='int8', strict=True)
    packed = pack_plan(plan)
    assert packed['slots'] == {'fc': {'weight': 0, 'input': None}, 'head': {'weight': 0}}
    whole = dict(lsq, signed=True, offset=False, groups=1, axis=0)
    assert packed['configs'] == [whole]
    again = unpack_plan(packed)
    assert again.slots == {'fc': {'weight': whole, 'input': None}, 'head': {'weight': whole}}
    assert (again.matmul, again.strict) == ('int8', True) and pack_plan(again) == packed


def test_a_float_model_is_refused():
    cfg = config()
    cfg.model.policy = None
    with pytest.raises(QuantizationError, match='expected a quantised model.*in float'):
        described(cfg)


def changed(path, value):
    """A description in which one entry is another, as whoever wrote the file may have put it."""
    description = described()
    *way, last = path
    place = description
    for key in way:
        place = place[key]
    place[last] = value
    return description


UNSAFE = {
    'a function': (['model', 'type'], 'os.system'),
    'a function inside': (['model', 'backbone', 'type'], 'os.system'),
    'a module of one word': (['model', 'backbone', 'type'], 'victim'),
    'a class of a module': (['model', 'backbone', 'norm_cfg'], dict(type='victim.Norm')),
    'a registry of a module': (['model', 'backbone', '_scope_'], 'victim'),
    'a type that is no word': (['model', 'backbone', 'type'], ['VisionTransformer']),
    'a model that fetches': (['model', 'backbone'], dict(type='HuggingFaceClassifier', model_name='a/b')),
    'a model that unpickles': (['model', 'backbone'], dict(type='CLIPGenerator', tokenizer_path='x.pth')),
    'a head that unpickles': (['model', 'head'], dict(type='VQAGenerationHead', answer_list_path='x.pkl')),
    'a class that reads configs': (['model', 'head'], dict(type='vvq_mm.TeacherDistiller', teacher='x.py')),
    'a class that opens files': (['model'], dict(type='vvq_mm.ExportedClassifier', file='x.onnx')),
    'settings of training': (['model', 'distiller'], dict(type='vvq_mm.SoftLabelDistiller')),
    'weights': (['model', 'init_cfg'], dict(type='Pretrained', checkpoint='x.pth')),
    'weights inside': (['model', 'head', 'init_cfg'], dict(type='Pretrained', checkpoint='x.pth')),
    'weights of timm': (['model', 'backbone', 'checkpoint_path'], 'x.pth'),
    'weights by default': (['model', 'backbone', 'pretrained'], True),
    'an address': (['model', 'backbone', 'arch'], 'hf-hub:timm/vit_tiny'),
    'a quantizer': (['plan', 'configs', 0, 'type'], 'victim.Quantizer'),
    'a transform': (['pipeline', 0, 'type'], 'victim.Transform'),
}


@pytest.mark.parametrize('path, value', UNSAFE.values(), ids=UNSAFE)
def test_what_a_file_must_not_name_is_refused_before_anything_is_built(path, value, tmp_path, monkeypatch):
    (tmp_path / 'victim').mkdir()
    for name in ('__init__.py', 'registry.py'):
        (tmp_path / 'victim' / name).write_text('raise SystemExit("code of the file was run")')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(QuantizationError, match='expected a registered class|without scopes|without fetching'):
        check_description(changed(path, value))
    assert 'victim' not in sys.modules


def test_a_class_of_one_s_own_is_built_once_it_is_registered(monkeypatch):
    monkeypatch.setattr(MODELS, '_module_dict', dict(MODELS.module_dict))
    description = described()
    description['model']['backbone']['type'] = 'MyTransformer'
    with pytest.raises(QuantizationError, match="type='MyTransformer'.*import the package that registers it"):
        build_described(description)

    class MyTransformer(VisionTransformer):
        pass

    MODELS.register_module(module=MyTransformer)
    assert type(build_described(description).backbone) is MyTransformer


def test_arguments_that_a_class_does_not_know_are_reported():
    with pytest.raises(QuantizationError, match='written by vvq_mm .* got TypeError.*colour'):
        build_described(changed(['model', 'backbone', 'colour'], 'red'))


@pytest.mark.parametrize('key, value, words', [
    ('version', 2, 'expected format version 1, got 2'),
    ('format', 'other', 'that vvq_mm wrote'),
], ids=['version', 'format'])
def test_another_format_is_named(key, value, words):
    with pytest.raises(QuantizationError, match=words):
        check_description(changed([key], value))


@pytest.mark.parametrize('key, value', [('plan', {}), ('plan', None), ('model', []), ('model', 'x')])
def test_a_part_of_another_kind_is_refused(key, value):
    with pytest.raises(QuantizationError, match='parts are of other kinds|a registered class'):
        check_description(changed([key], value))


def test_a_description_with_a_part_missing_is_refused():
    description = described()
    del description['plan'], description['pipeline']
    with pytest.raises(QuantizationError, match='plan, pipeline is missing'):
        check_description(description)
