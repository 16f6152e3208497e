"""Two processes on the CPU (gloo), started by the shell scripts that users start."""
import re

import pytest
import tool_runs
import torch
from runner_config import float_config

pytestmark = [pytest.mark.ddp, pytest.mark.slow]


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    """A folder with a config and the log and work folder of one run with two processes."""
    folder = tmp_path_factory.mktemp('distributed')
    config = float_config('work', epochs=2, log_level='INFO', test_cfg=dict())
    config.train_dataloader.batch_size = 2
    config.test_dataloader, config.test_evaluator = config.val_dataloader, config.val_evaluator
    config.dump(str(folder / 'config.py'))
    (folder / 'log.txt').write_text(launch('dist_train.sh', 'config.py', 2, cwd=folder))
    return folder


def launch(script, *arguments, cwd):
    return tool_runs.run_tool('bash', tool_runs.REPOSITORY / 'tools' / script, *arguments, cwd=cwd)


def test_a_step_counts_the_images_of_all_processes(project):
    assert '4 images (2 per process x 2 process(es) x 1 accumulated), 8 crops' in (project / 'log.txt').read_text()


def test_one_process_resumes_both_to_the_same_weights(project, tmp_path):
    expected = torch.load(project / 'work' / 'iter_6.pth', weights_only=True)['state_dict']
    launch('dist_train.sh', 'config.py', 2, '--work-dir', tmp_path, '--resume', 'work/iter_4.pth', cwd=project)
    state = torch.load(tmp_path / 'iter_6.pth', weights_only=True)['state_dict']
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_two_processes_evaluate_to_the_accuracy_of_the_training_log(project, tmp_path):
    output = launch('dist_test.sh', 'config.py', 'work/iter_6.pth', 2, '--work-dir', tmp_path, cwd=project)
    final = re.search(r'Final accuracy/top1 ([\d.]+)\.', (project / 'log.txt').read_text()).group(1)
    assert float(re.findall(r'accuracy/top1: ([\d.]+)', output)[-1]) == pytest.approx(float(final), abs=0.01)
