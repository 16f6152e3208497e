"""What the Runner saves loads safely; what it is given must be whole, safe and fitting."""
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from helpers import tiny_qat, tiny_vit
from mmengine.logging import HistoryBuffer, MMLogger
from mmengine.runner import Runner
from runner_config import ITERS_PER_EPOCH, float_config, run

from vvq_mm.errors import CheckpointError
from vvq_mm.hooks.safe_checkpoint_hook import SafeCheckpointHook


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp('saved')
    run(float_config(folder, epochs=1), 'saved')
    return folder / f'iter_{ITERS_PER_EPOCH}.pth'


@pytest.fixture
def checkpoint(saved):
    return torch.load(saved, weights_only=True)


def start(tmp_path, checkpoint, **options):
    """Write a checkpoint and start a run from it."""
    torch.save(checkpoint, tmp_path / 'given.pth')
    config = float_config(tmp_path, epochs=1, load_from=str(tmp_path / 'given.pth'), **options)
    return run(config, f'start_{tmp_path.name}')


def test_a_saved_checkpoint_needs_no_unsafe_loading(checkpoint):
    assert {'state_dict', 'optimizer', 'param_schedulers', 'message_hub', 'meta'} <= checkpoint.keys()


def test_a_whole_checkpoint_is_taken(tmp_path, checkpoint):
    name = 'backbone.cls_token'
    runner = Runner.from_cfg(float_config(tmp_path, load_from=str(tmp_path / 'given.pth'), experiment_name='taken'))
    torch.save(checkpoint, tmp_path / 'given.pth')
    runner.call_hook('before_run')
    runner.load_or_resume()
    assert torch.equal(runner.model.state_dict()[name], checkpoint['state_dict'][name])


def test_keys_of_a_wrapped_model_fit(tmp_path, checkpoint):
    checkpoint['state_dict'] = {f'module.{name}': value for name, value in checkpoint['state_dict'].items()}
    start(tmp_path, checkpoint)


def test_a_model_wrapped_for_test_time_augmentation_fits(tmp_path, checkpoint):
    torch.save(checkpoint, tmp_path / 'given.pth')
    config = float_config(tmp_path, load_from=str(tmp_path / 'given.pth'))
    config.model = dict(type='AverageClsScoreTTA', module=config.model)
    runner = Runner.from_cfg(config)
    runner.load_or_resume()
    name = 'backbone.cls_token'
    assert torch.equal(runner.model.module.state_dict()[name], checkpoint['state_dict'][name])


def test_a_missing_key_stops_the_run(tmp_path, checkpoint):
    del checkpoint['state_dict']['backbone.cls_token']
    with pytest.raises(CheckpointError, match='given.pth.*it has no `backbone.cls_token`'):
        start(tmp_path, checkpoint)


def test_an_unexpected_key_stops_the_run(tmp_path, checkpoint):
    checkpoint['state_dict']['backbone.other'] = torch.zeros(1)
    with pytest.raises(CheckpointError, match='the model has no `backbone.other`'):
        start(tmp_path, checkpoint)


def test_another_shape_stops_the_run(tmp_path, checkpoint):
    checkpoint['state_dict']['head.layers.head.bias'] = torch.zeros(3)
    with pytest.raises(CheckpointError, match=r'size mismatch for head\.layers\.head\.bias.*\[3\].*\[10\]'):
        start(tmp_path, checkpoint)


def test_weights_that_may_differ_are_left_alone(tmp_path, checkpoint):
    checkpoint['state_dict']['head.layers.head.bias'] = torch.zeros(3)
    start(tmp_path, checkpoint, hooks=[dict(type='vvq_mm.SafeCheckpointHook', may_differ='head.*')])


def test_keys_of_quantizers_do_not_count(tmp_path, checkpoint):
    checkpoint['state_dict']['backbone.layers.0.attn.qkv.weight_quantizer.scale'] = torch.ones(1)
    start(tmp_path, checkpoint)


@pytest.mark.parametrize('resume', [False, True], ids=['load', 'resume'])
def test_only_a_resumed_run_must_find_its_quantizers(resume):
    logger = MMLogger.get_current_instance()
    runner = SimpleNamespace(model=tiny_qat(), _resume=resume, _load_from='float.pth', logger=logger)
    checkpoint = dict(state_dict=tiny_vit().state_dict(), meta={}, optimizer={}, message_hub=dict(log_scalars={}))
    refused = pytest.raises(CheckpointError, match=r'float.pth.*no scale of these bits.*patch_embed.projection \(')
    with refused if resume else nullcontext():
        SafeCheckpointHook().after_load_checkpoint(runner, checkpoint)


def test_weights_alone_cannot_be_resumed(tmp_path, checkpoint):
    with pytest.raises(CheckpointError, match='has no message_hub, optimizer.*load_from'):
        start(tmp_path, dict(state_dict=checkpoint['state_dict'], meta=checkpoint['meta']), resume=True)


def test_a_truncated_checkpoint_stops_the_run_before_it_starts(tmp_path, saved):
    (tmp_path / 'cut.pth').write_bytes(saved.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match='cut.pth.*truncated'):
        run(float_config(tmp_path, load_from=str(tmp_path / 'cut.pth')), 'cut')


def test_a_checkpoint_of_plain_mmengine_is_refused_and_can_be_trusted(tmp_path):
    run(float_config(tmp_path, epochs=1, hooks=[]), 'foreign')
    path = tmp_path / f'iter_{ITERS_PER_EPOCH - 1}.pth'
    with pytest.raises(CheckpointError, match='HistoryBuffer.*--trust-checkpoint'):
        run(float_config(tmp_path / 'a', epochs=1, resume=True, load_from=str(path)), 'refused')
    runner = run(float_config(tmp_path / 'b', epochs=1, resume=True, load_from=f'trusted://{path}'), 'trusted')
    history = runner.message_hub.get_scalar('train/loss')
    assert isinstance(history, HistoryBuffer) and len(history.data[0]) == ITERS_PER_EPOCH


@pytest.mark.parametrize('resume', [False, True], ids=['load', 'resume'])
def test_averaged_weights_are_saved_and_loaded(tmp_path, resume):
    hooks = [dict(type='EMAHook', momentum=0.1, priority='ABOVE_NORMAL'), dict(type='vvq_mm.SafeCheckpointHook')]
    run(float_config(tmp_path, epochs=1, hooks=hooks), 'ema')
    path = str(tmp_path / 'iter_2.pth')
    assert 'ema_state_dict' in torch.load(path, weights_only=True)
    run(float_config(tmp_path / 'again', epochs=1, hooks=hooks, resume=resume, load_from=path), 'ema_again')
