"""tools/analysis/sensitivity.py: both modes on a tiny model, a suggested plan that trains, and bad input."""
import csv
import json
import re
import runpy
import sys

import pytest
import torch
from helpers import build, tiny_vit_config
from matplotlib.image import imread
from mmengine.config import Config
from qat_config import make_digit_labels, qat_config, qat_hooks
from runner_config import run
from tool_runs import REPOSITORY

TOOL = REPOSITORY / 'tools' / 'analysis' / 'sensitivity.py'


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with a config, its soft labels and a full-precision checkpoint."""
    folder = tmp_path_factory.mktemp('sensitivity')
    labels = make_digit_labels(folder)
    torch.manual_seed(0)
    model = build(tiny_vit_config(classes=10, in_channels=1))
    torch.save(dict(state_dict=model.state_dict()), folder / 'float.pth')
    hooks = {name: hook for name, hook in qat_hooks().items() if name not in ('SafeCheckpoint', 'ExactResume')}
    config = qat_config('work', labels, bits=3, hooks=hooks, load_from=str(folder / 'float.pth'))
    config.param_scheduler = [dict(type='CosineAnnealingLR', by_epoch=True, begin=0, convert_to_iter_based=True)]
    config.dump(str(folder / 'tiny.py'))
    return folder


@pytest.fixture
def tool(folder, monkeypatch, capsys):
    """The tool in this process, which starts at once: arguments -> what it said."""
    def main(*arguments):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, 'argv', ['sensitivity.py', *map(str, arguments)])
        try:
            runpy.run_path(str(TOOL), run_name='__main__')
        except SystemExit as error:
            return str(error.code)
        return capsys.readouterr().out
    return main


def test_post_training_writes_table_json_and_picture(tool, folder):
    output = tool('tiny.py', '--parts', 'types', 'block_1', '--images', 8, '--calibration-images', 6, '--out', 'ptq')
    saved = json.loads((folder / 'ptq' / 'ptq_chosen.json').read_text())
    assert saved['images'] == 8 and saved['checkpoint'] == str(folder / 'float.pth')
    parts = [row['part'] for row in saved['rows']]
    assert {'MHSA', 'query', 'softmax', 'block 1'} <= set(parts) and all(part in output for part in parts)
    gains = [row['gain_loss'] for row in saved['rows']]
    assert gains == sorted(gains, reverse=True) and any(gains)
    row = saved['rows'][0]
    assert row['gain_loss'] == pytest.approx(saved['quantised']['loss'] - row['loss'])
    assert imread(folder / 'ptq' / 'ptq_chosen.png').std() > 0


@pytest.mark.parametrize('budget', ['average_bits=3', 'bitops=0.0065'])
def test_a_suggested_plan_keeps_the_budget_and_trains(tool, folder, budget):
    out = folder / budget.partition('=')[0]
    output = tool('tiny.py', '--suggest', budget, '--images', 4, '--widths', 2, 3, 4, '--out', out)
    assert 'Before training, the mixed plan is' in output
    saved = json.loads((out / 'suggest.json').read_text())
    assert saved['mixed']['average_bits'] <= 3 or 'bitops' in budget
    assert saved['mixed']['cost']['bit_operations'] <= 6.5e6 or 'average' in budget
    plan = json.loads((out / 'policy.json').read_text())
    assert {config['bits'] for slots in plan['plan']['slots'].values() for config in slots.values()} <= {2, 3, 4, 8}
    cfg = Config.fromfile(folder / 'tiny.py')
    policy = dict(_delete_=True, type='vvq_mm.PlanFile', path=str(out / 'policy.json'))
    cfg.merge_from_dict(dict(model=dict(policy=policy), work_dir=str(out / 'run'), train_cfg=dict(max_epochs=1)))
    model = run(cfg, 'mixed').model
    assert model.plan.to_dict() == plan['plan']


@pytest.mark.slow
def test_trained_variants_have_a_row_each_and_are_not_trained_again(tool, folder):
    arguments = ('tiny.py', '--mode', 'qat', '--parts', 'value', '--iterations', 2, '--out', 'qat')
    assert 'trained for 2 steps' in tool(*arguments)
    with (folder / 'qat' / 'sensitivity.csv').open() as stream:
        rows = list(csv.DictReader(stream))
    assert [(row['method'], row['steps']) for row in rows] == [('all', '2'), ('all but value', '2')]
    saved = json.loads((folder / 'qat' / 'qat_chosen.json').read_text())
    assert [row['part'] for row in saved['rows']] == ['value'] and saved['seeds'] == [0]
    assert imread(folder / 'qat' / 'qat_chosen.png').std() > 0
    before = (folder / 'qat' / 'sensitivity.csv').read_text()
    tool(*arguments)
    assert (folder / 'qat' / 'sensitivity.csv').read_text() == before


@pytest.mark.parametrize('arguments, sentence', [
    (['--parts', 'qurey'], "got 'qurey' in --parts; did you mean 'query'"),
    (['--parts', 'patch merging'], r"module types that QATImageClassifier has .*MHSA.*got 'patch merging'"),
    (['--mode', 'qat', '--parts', 'patch merging'], 'expected module types that QATImageClassifier has'),
    (['--suggest', 'bits=3'], "expected a budget as average_bits=3 or bitops=.*got 'bits=3'"),
    (['--suggest', 'average_bits=1.5'], 'a budget that the smallest width, 2, fits into, got average_bits=1.5'),
    (['--cfg-options', 'model.policy=None'], 'a config whose model has a policy, got vvq_mm.QATImageClassifier'),
    (['--cfg-options', 'load_from=None'], 'expected a checkpoint, got none, and no load_from in'),
    (['--cfg-options', 'train_dataloader=None'], 'expected train_dataloader in .*images are needed to calibrate'),
], ids=['typo', 'absent type', 'absent type, qat', 'budget', 'small budget', 'float', 'no checkpoint', 'no images'])
def test_bad_input_ends_in_a_sentence(tool, arguments, sentence):
    message = tool('tiny.py', '--images', 8, *arguments)
    assert message.startswith('QuantizationError: expected') and '\n' not in message.strip()
    assert re.search(sentence, message), message
