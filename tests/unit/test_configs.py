"""Every shipped config parses, is not deeper than three files, and means the same in both of MMEngine's styles."""
import ast

import pytest
from mmengine.config import Config
from shipped import CONFIGS, IMAGENET, TEXT

import vvq_mm  # noqa: F401


def plain(value):
    """Config data without what MMEngine adds while parsing: scopes, and the function ``read_base`` itself."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if key != '_scope_' and not callable(item)}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def depth(path):
    """Number of files of this project from a config to its furthest base, both included."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == '_base_':
            bases = ast.literal_eval(node.value)
            bases = bases if isinstance(bases, list) else [bases]
            return 1 + max(0 if '::' in base else depth((path.parent / base).resolve()) for base in bases)
    return 1


def test_twelve_imagenet_recipes_are_shipped():
    models = ('deit_t', 'deit_s', 'deit_b', 'swin_t')
    assert IMAGENET == sorted(f'{model}_w{bits}a{bits}' for model in models for bits in (4, 3, 2))


@pytest.mark.parametrize('path', TEXT, ids=lambda path: f'{path.parent.name}/{path.stem}')
def test_inheritance_is_at_most_three_deep(path):
    assert depth(path) <= 3


@pytest.mark.parametrize('name', IMAGENET)
def test_bits_are_those_of_the_name(name):
    policy = Config.fromfile(CONFIGS / 'vvq' / f'{name}.py').model.policy
    assert f'w{policy.weight.bits}a{policy.act.bits}' == name.split('_')[-1]


@pytest.mark.parametrize('name', IMAGENET)
def test_lazy_and_text_config_say_the_same(name):
    text = plain(Config.fromfile(CONFIGS / 'vvq' / f'{name}.py')._cfg_dict.to_dict())
    lazy = plain(Config.fromfile(CONFIGS / 'vvq_lazy' / f'{name}.py')._cfg_dict.to_dict())
    only_mmpretrain = {'train_pipeline', 'bgr_mean', 'bgr_std', 'dataset_type'}  # building blocks of what is replaced
    text.setdefault('custom_hooks', [])
    assert {key: value for key, value in text.items() if key not in only_mmpretrain} == lazy


@pytest.mark.parametrize('name', IMAGENET)
def test_what_the_recipe_must_not_inherit_is_gone(name):
    cfg = Config.fromfile(CONFIGS / 'vvq' / f'{name}.py')
    assert cfg.model.train_cfg is None, 'Mixup and CutMix do not go with stored labels'
    assert not cfg.get('custom_hooks'), 'no EMAHook'
    assert cfg.optim_wrapper.clip_grad is None
    assert cfg.optim_wrapper.paramwise_cfg.custom_keys['_quantizer'].decay_mult == 0
    assert cfg.model.backbone.drop_path_rate == 0.1
    assert cfg.optim_wrapper.optimizer.weight_decay == 1e-4 and cfg.optim_wrapper.optimizer.lr == 5e-4
    assert [scheduler.type for scheduler in cfg.param_scheduler] == ['CosineAnnealingLR']
