"""The full-precision digits model in the repository is small, is what its config describes, and can be made again."""
import re

import pytest
import torch
from mmengine.config import Config
from shipped import CONFIGS
from tool_runs import test as run_test
from tool_runs import train

CONFIG, CHECKPOINT = CONFIGS / 'digits' / 'vit_fp32.py', CONFIGS / 'digits' / 'vit_fp32.pth'


def accuracy(output):
    return float(re.findall(r'accuracy/top1[: ]+(\d+\.\d+)', output)[-1])


def test_it_is_under_a_megabyte_and_was_made_by_its_config():
    assert CHECKPOINT.stat().st_size < 1_000_000
    made_by = Config.fromstring(torch.load(CHECKPOINT)['meta']['cfg'], '.py')
    cfg = Config.fromfile(CONFIG)
    for key in ('model', 'optim_wrapper', 'param_scheduler', 'train_cfg', 'train_pipeline'):
        assert made_by[key] == cfg[key], key
    assert made_by.train_dataloader.batch_size == cfg.train_dataloader.batch_size


@pytest.mark.slow
def test_it_can_be_made_again(tmp_path):
    """The same training, 60 epochs, ends within five of the 360 test images."""
    shipped = accuracy(run_test(CONFIG, CHECKPOINT, cwd=tmp_path))
    again = accuracy(train(CONFIG, cwd=tmp_path))
    assert shipped > 97 and abs(again - shipped) < 1.4
