"""A project of its own, with this package installed from a wheel, inherits a recipe, changes two lines, and trains."""
import re
import sys

import pytest
from imagenet_folder import make_imagenet
from tool_runs import run_tool

pytestmark = pytest.mark.slow

TEXT = """
_base_ = ['vvq_mm::vvq/deit_b_w4a4.py']
model = dict(policy=dict(rules={'backbone.layers.1.attn.qkv': 3}))
train_dataloader = dict(dataset=dict(num_crops=2))
"""
TEXT_SMALL = """
model.update(backbone=dict(arch=dict(_delete_=True, embed_dims=96, num_layers=2, num_heads=3, feedforward_channels=96)),
             head=dict(in_channels=96))
load_from = None
train_dataloader.update(batch_size=2, num_workers=0, persistent_workers=False)
val_dataloader = dict(batch_size=4, num_workers=0)
train_cfg = dict(max_epochs=1)
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(max_keep_ckpts=1))
"""
LAZY = """
from mmengine.config import read_base
with read_base():
    from vvq_mm.configs.vvq_lazy.deit_b_w4a4 import *
model['policy']['rules']['backbone.layers.1.attn.qkv'] = 3
train_dataloader['dataset']['num_crops'] = 2
"""
LAZY_SMALL = """
model['backbone']['arch'] = dict(embed_dims=96, num_layers=2, num_heads=3, feedforward_channels=96)
model['head']['in_channels'] = 96
load_from = None
train_dataloader.update(batch_size=2, num_workers=0, persistent_workers=False)
val_dataloader.update(batch_size=4, num_workers=0)
train_cfg['max_epochs'] = 1
default_hooks['logger']['interval'] = default_hooks['checkpoint']['max_keep_ckpts'] = 1
"""
TRAIN = """
import vvq_mm
from mmengine.config import Config
from mmengine.runner import Runner

config = Config.fromfile('mine.py')
config.work_dir = 'work'
runner = Runner.from_cfg(config)
runner.train()

print('package', vvq_mm.__file__)
for name, _, slot, quantizer in vvq_mm.iter_quantizers(runner.model):
    if slot == 'weight':
        print(f'{name} {quantizer.bits} bits in {quantizer.groups} groups')
"""


@pytest.mark.parametrize('config', [TEXT + TEXT_SMALL, LAZY + LAZY_SMALL], ids=['text_style', 'lazy_style'])
def test_a_project_of_its_own_inherits_overrides_and_trains(site, tmp_path, config):
    make_imagenet(tmp_path)
    (tmp_path / 'mine.py').write_text(config)
    (tmp_path / 'train.py').write_text(TRAIN)
    output = run_tool(sys.executable, 'train.py', cwd=tmp_path, environment=dict(PYTHONPATH=str(site)))
    assert f'package {site}' in output
    assert 'layers.1.attn.qkv 3 bits in 3 groups' in output, 'the rest of the slot stays'
    assert 'layers.0.attn.qkv 4 bits in 3 groups' in output and 'layers.1.attn.proj 4 bits in 1 groups' in output
    assert 'A step: 2 images' in output and '4 crops (2 per image)' in output
    loss = re.search(r'Epoch\(train\)\s+\[1\]\[2/2\].* loss: (\S+)  loss_kd: (\S+)', output)
    assert loss and 5 < float(loss[1]) < 20
    assert re.search(r'Epoch\(val\)\s+\[1\]\[1/1\].*accuracy/top1', output)
    assert (tmp_path / 'work' / 'epoch_1.pth').is_file() and (tmp_path / 'work' / 'oscillation' / 'share.png').is_file()
