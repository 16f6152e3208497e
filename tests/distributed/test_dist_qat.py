"""Quantised training with two processes on the CPU (gloo): calibrated together, trained to equal weights, resumed."""
import re
from pathlib import Path

import pytest
import tool_runs
import torch
from qat_config import make_digit_labels, qat_config, qat_hooks

pytestmark = [pytest.mark.ddp, pytest.mark.slow]
LAST = 6


@pytest.fixture(scope='module')
def project(tmp_path_factory):
    """A folder with a config, and the log and work folder of one run with two processes."""
    folder = tmp_path_factory.mktemp('distributed')
    hooks = dict(qat_hooks(freeze=0.05), record=dict(type='vvq_mm.RankRecordHook'))
    config = qat_config('work', make_digit_labels(folder), hooks=hooks, log_level='INFO')
    config.custom_imports = dict(imports=['rank_record'])
    config.train_dataloader.batch_size = 2
    config.dump(str(folder / 'config.py'))
    (folder / 'log.txt').write_text(launch(cwd=folder))
    return folder


def launch(*arguments, cwd):
    path = f'{Path(__file__).parent}:{tool_runs.REPOSITORY}'
    script = tool_runs.REPOSITORY / 'tools' / 'dist_train.sh'
    return tool_runs.run_tool('bash', script, 'config.py', 2, *arguments, cwd=cwd, environment=dict(PYTHONPATH=path))


def on_both_ranks(folder, what):
    return [torch.load(folder / f'{what}_{rank}.pth', weights_only=True) for rank in (0, 1)]


def differences(first, second):
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name].nan_to_num(-99.), second[name].nan_to_num(-99.))]


def test_the_ranks_see_different_images(project):
    """Otherwise equal scales and weights would say nothing."""
    assert differences(*on_both_ranks(project / 'work', 'images_1')) == ['inputs']


def test_scales_are_equal_on_both_ranks_right_after_calibration(project):
    first, second = on_both_ranks(project / 'work', 'calibrated')
    assert len(first) == 28 and len({value.sum().item() for value in first.values()}) > 20
    assert not differences(first, second)


def test_weights_scales_and_frozen_codes_are_equal_on_both_ranks_at_the_end(project):
    first, second = on_both_ranks(project / 'work', 'end')
    assert any((~value.isnan()).any() for name, value in first.items() if name.endswith('frozen'))
    assert not differences(first, second)


def test_oscillation_is_logged_and_in_the_checkpoint(project):
    log = (project / 'log.txt').read_text()
    shares = [float(share) for share in re.findall(r'oscillating: ([\d.]+)', log)]
    assert len(shares) == LAST and shares[-1] > shares[0]
    history = torch.load(project / 'work' / f'iter_{LAST}.pth', weights_only=True)['vvq_oscillation']['history']
    assert history['iteration'] == list(range(1, LAST + 1))
    assert history['share'] == pytest.approx(shares, abs=1e-4)


def test_the_checkpoint_of_one_process_resumes_both_to_the_same_bits(project, tmp_path):
    output = launch('--work-dir', tmp_path, '--resume', 'work/iter_4.pth', cwd=project)
    assert 'resumed epoch: 1, iter: 4' in output and 'Calibrated' not in output
    for rank, resumed in enumerate(on_both_ranks(tmp_path, 'end')):
        assert not differences(resumed, on_both_ranks(project / 'work', 'end')[rank])
    got, expected = (torch.load(folder / f'iter_{LAST}.pth', weights_only=True)['vvq_oscillation']
                     for folder in (tmp_path, project / 'work'))
    assert got['history'] == expected['history']
    assert not any(differences(got['layers'][name], state) for name, state in expected['layers'].items())
