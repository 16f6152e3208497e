"""tools/train.py and tools/test.py as subprocesses, on a tiny full-precision model."""
import json

import pytest
import tool_runs
import torch
from runner_config import ITERS_PER_EPOCH, float_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    """A folder with a config file and the work folder of one finished run."""
    folder = tmp_path_factory.mktemp('project')
    config = float_config('work', epochs=2, log_level='INFO', test_cfg=dict())
    config.test_dataloader, config.test_evaluator = config.val_dataloader, config.val_evaluator
    config.dump(str(folder / 'config.py'))
    (folder / 'log.txt').write_text(tool_runs.train('config.py', cwd=folder))
    return folder


def test_training_ends_with_the_accuracy_and_the_checkpoint(project):
    final = next(line for line in (project / 'log.txt').read_text().splitlines() if 'Final accuracy/top1 ' in line)
    assert final.endswith(f'iter_{2 * ITERS_PER_EPOCH}.pth')


def test_training_says_what_a_step_and_an_epoch_are(project):
    log = (project / 'log.txt').read_text()
    assert '4 images (4 per process x 1 process(es) x 1 accumulated), 8 crops (2 per image)' in log
    assert 'one pass over 12 images, 3 iterations' in log and 'Learning rate 0.01 per optimiser step' in log


def test_resume_goes_on_from_the_last_checkpoint_to_the_same_weights(project, tmp_path):
    expected = torch.load(project / 'work' / 'iter_6.pth', weights_only=True)['state_dict']
    (tmp_path / 'last_checkpoint').write_text(str(project / 'work' / 'iter_4.pth'))
    output = tool_runs.train('config.py', '--work-dir', tmp_path, '--resume', cwd=project)
    assert 'resumed epoch: 1, iter: 4' in output
    state = torch.load(tmp_path / 'iter_6.pth', weights_only=True)['state_dict']
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_testing_writes_the_metrics_of_the_run(project, tmp_path):
    out = tmp_path / 'metrics.json'
    tool_runs.test('config.py', 'work/iter_6.pth', '--work-dir', tmp_path, '--out', out, '--out-item', 'metrics',
                   cwd=project)
    metrics = json.loads(out.read_text())
    assert f'Final accuracy/top1 {metrics["accuracy/top1"]:.2f}.' in (project / 'log.txt').read_text()


def test_options_of_the_command_line_come_last(project, tmp_path):
    output = tool_runs.train('config.py', '--work-dir', tmp_path, '--no-validate', '--cfg-options',
                             'train_cfg.max_epochs=1', 'optim_wrapper.optimizer.lr=0.5', cwd=project)
    assert 'Learning rate 0.5' in output and 'accuracy: not validated' in output
    assert (tmp_path / 'iter_3.pth').exists() and not (tmp_path / 'iter_4.pth').exists()


def one_sentence(output, kind):
    last = output.strip().splitlines()[-1]
    assert last.startswith(f'{kind}: expected') and 'Traceback' not in output
    return last


def test_a_missing_config_names_near_ones(project):
    output = tool_runs.train('confg.py', cwd=project, expect=1)
    assert 'config.py' in one_sentence(output, 'FileNotFoundError')


def test_a_damaged_checkpoint_ends_in_a_sentence(project, tmp_path):
    (tmp_path / 'cut.pth').write_bytes(b'PK')
    output = tool_runs.test('config.py', tmp_path / 'cut.pth', '--work-dir', tmp_path, cwd=project, expect=1)
    assert 'cut.pth' in one_sentence(output, 'CheckpointError')


def test_an_unsafe_checkpoint_is_loaded_with_the_flag(project, tmp_path):
    checkpoint = torch.load(project / 'work' / 'iter_6.pth', weights_only=True)
    torch.save(dict(checkpoint, extra=tmp_path), tmp_path / 'unsafe.pth')  # a pathlib object
    given = tmp_path / 'unsafe.pth'
    output = tool_runs.test('config.py', given, '--work-dir', tmp_path, '--trust-checkpoint', cwd=project)
    assert 'accuracy/top1' in output
