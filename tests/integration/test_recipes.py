"""Every ImageNet recipe, from a fresh interpreter in another folder: two training steps and a validation.

DeiT-T and Swin-T run at their real size, DeiT-S and DeiT-B with two blocks.
"""
import re

import pytest
from imagenet_folder import make_imagenet
from shipped import IMAGENET
from tool_runs import REPOSITORY, train

SHALLOW = {
    'deit_s': "dict(_delete_=True,embed_dims=384,num_layers=2,num_heads=6,feedforward_channels=1536)",
    'deit_b': "dict(_delete_=True,embed_dims=768,num_layers=2,num_heads=12,feedforward_channels=3072)",
}
FEW = """
_base_ = '{recipe}'
load_from = None
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(num_crops=2))
val_dataloader = dict(batch_size=4, num_workers=0)
train_cfg = dict(max_epochs=1)
default_hooks = dict(calibrate=dict(num_batches=1), logger=dict(interval=1), checkpoint=dict(max_keep_ckpts=1))
{model}
"""


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp('elsewhere')
    make_imagenet(root)
    return root


@pytest.mark.slow
@pytest.mark.parametrize('name', IMAGENET)
def test_recipe_trains_two_steps_and_validates(name, folder):
    family = name[:-5]
    model = f'model = dict(backbone=dict(arch={SHALLOW[family]}))' if family in SHALLOW else ''
    config = folder / f'{name}.py'
    config.write_text(FEW.format(recipe=REPOSITORY / 'configs' / 'vvq' / f'{name}.py', model=model))
    output = train(config, cwd=folder)
    assert 'A step: 2 images' in output and '4 crops (2 per image)' in output
    step = re.search(r'Epoch\(train\)\s+\[1\]\[2/2\].* loss: (\S+)  loss_kd: (\S+)', output)
    assert step and 5 < float(step[1]) < 20, 'a cross-entropy with 1000 classes starts near ln 1000 = 6.9'
    assert re.search(r'Epoch\(val\)\s+\[1\]\[1/1\].*accuracy/top1', output)
    assert 'of the tracked weights oscillate' in output
    assert (folder / 'work_dirs' / name / 'epoch_1.pth').is_file()
    (folder / 'work_dirs' / name / 'epoch_1.pth').unlink()
