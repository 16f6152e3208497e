"""tools/analysis/variation.py on a tiny CNN beside a tiny ViT: tables, JSON, pictures, and bad input."""
import importlib.util
import json
import sys

import pytest
import timm
import torch
from matplotlib.image import imread
from shipped import CONFIGS
from tool_runs import REPOSITORY, run_tool

from vvq_mm.utils.launch import USER_ERRORS

TOOL = REPOSITORY / 'tools' / 'analysis' / 'variation.py'
VIT = CONFIGS / 'digits' / 'vit_fp32.py'
CNN = f"""
_base_ = ['{VIT}']
model = dict(
    _delete_=True, type='ImageClassifier',
    backbone=dict(type='ResNet_CIFAR', depth=18, in_channels=1, stem_channels=2, base_channels=2),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=16, loss=dict(type='CrossEntropyLoss')))
"""


@pytest.fixture(scope='module')
def tool():
    spec = importlib.util.spec_from_file_location('variation_tool', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(tool, tmp_path, monkeypatch, capsys):
    """Run the tool in this process, in an empty folder with cnn.py; returns what it printed, and its JSON."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'cnn.py').write_text(CNN)

    def call(*words):
        monkeypatch.setattr(sys, 'argv', ['variation.py', '--out', 'out', '--images', '6', *map(str, words)])
        tool.run(tool.parse_args())
        return capsys.readouterr().out, json.loads((tmp_path / 'out' / 'variation.json').read_text())

    return call


def test_a_cnn_beside_a_vit(run, tmp_path):
    output, report = run('cnn.py', f'{VIT}={VIT.with_suffix(".pth")}')
    cnn, vit = report['models']
    assert (cnn['name'], vit['name']) == ('cnn (random weights)', 'vit_fp32')
    assert 'Some models have random weights' in output and 'generated' not in output
    assert vit['weights'].endswith('vit_fp32.pth') and vit['images'].startswith('6 images of val_dataloader of ')
    assert (cnn['sdam']['weight']['modules'], vit['sdam']['input']['modules']) == (21, 18)
    weights = torch.load(VIT.with_suffix('.pth'))['state_dict']['backbone.layers.0.attn.qkv.weight']
    found = next(site for site in vit['sites'] if site['module'].endswith('0.attn.qkv'))
    assert found['magnitude'] == pytest.approx(weights.abs().mean().item(), rel=1e-5)
    assert len(found['heads']['magnitude']) == 12
    for name in ('magnitude', 'tails', 'channels', 'heads'):
        assert imread(tmp_path / 'out' / f'{name}.png').std() > 0


def test_a_name_gets_generated_images_and_says_so(run, tmp_path):
    output, report = run('timm:resnet10t', '--img-size', 32)
    assert report['models'][0]['name'] == 'resnet10t (random weights, generated images)'
    assert report['models'][0]['images'] == '6 generated images, normal noise'
    assert 'Some models have generated images' in output
    assert not (tmp_path / 'out' / 'heads.png').exists()


def test_a_name_with_a_checkpoint_can_see_the_images_of_a_config(run, tmp_path):
    torch.save(timm.create_model('resnet10t').state_dict(), tmp_path / 'mine.pth')
    _, report = run('timm:resnet10t=mine.pth', '--img-size', 32, '--data', VIT)
    assert (report['models'][0]['name'], report['models'][0]['weights']) == ('resnet10t', 'mine.pth')
    assert report['models'][0]['images'].endswith('vit_fp32.py, resized to 3x32x32')
    first = next(site for site in report['models'][0]['sites'] if site['slot'] == 'input')
    assert first['shape'] == [6, 3, 32, 32]
    assert first['channels']['magnitude'][0] == pytest.approx(first['channels']['magnitude'][-1]), 'grey'


@pytest.mark.parametrize('words, message', [
    (['timm:resnet18x'], "a model that timm has, got 'resnet18x'; near ones: .*timm:resnet18"),
    (['mmpretrain:deit-tiny'], "that mmpretrain has, got 'deit-tiny'; near ones: .*mmpretrain:deit-tiny_4xb256_in1k"),
    (['resnet50'], "expected CONFIG, timm:NAME or mmpretrain:NAME.*got 'resnet50'; near ones: timm:resnet50"),
    (['cnm.py'], 'a config file at cnm.py, .*: cnn.py'),
    (['cnn.py=none.pth'], 'a checkpoint at none.pth'),
    ([f'cnn.py={VIT.with_suffix(".pth")}'], 'expected the weights of ImageClassifier'),
    (['cnn.py', '--images', '0'], 'expected --images above 0, got 0'),
], ids=['timm', 'mmpretrain', 'bare name', 'config', 'no checkpoint', 'other checkpoint', 'no images'])
def test_bad_input_is_refused(run, words, message):
    with pytest.raises(USER_ERRORS, match=message):
        run(*words)


@pytest.mark.slow
def test_the_tool_ends_in_one_sentence(tmp_path):
    output = run_tool(sys.executable, TOOL, 'timm:resnet18x', cwd=tmp_path, expect=1)
    assert 'Traceback' not in output and output.strip().splitlines()[-1].startswith('QuantizationError: expected the')
