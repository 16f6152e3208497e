"""A stopped and resumed full-precision run ends with the bits of an uninterrupted one: the real Runner, on the CPU."""
import pytest
import torch
from runner_config import ITERS_PER_EPOCH, float_config, run

EPOCHS = 2


def final_state(runner):
    state = {f'model.{name}': value for name, value in runner.model.state_dict().items()}
    for index, moments in runner.optim_wrapper.optimizer.state_dict()['state'].items():
        state.update({f'optimizer.{index}.{name}': value for name, value in moments.items()})
    return state


@pytest.fixture(scope='module')
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp('whole')
    return folder, final_state(run(float_config(folder, EPOCHS), 'whole'))


def assert_same_bits(state, expected):
    assert state.keys() == expected.keys()
    different = [name for name in expected if not torch.equal(state[name], expected[name])]
    assert not different


@pytest.mark.parametrize('stop', range(1, EPOCHS * ITERS_PER_EPOCH), ids='after_iteration_{}'.format)
def test_resume_from_any_iteration_is_bit_identical(uninterrupted, tmp_path, stop):
    folder, expected = uninterrupted
    config = float_config(tmp_path, EPOCHS, resume=True, load_from=str(folder / f'iter_{stop}.pth'))
    runner = run(config, f'resumed_{stop}')
    assert runner.iter == EPOCHS * ITERS_PER_EPOCH
    assert_same_bits(final_state(runner), expected)


def test_resume_from_an_epoch_checkpoint_is_bit_identical(uninterrupted, tmp_path):
    hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1))
    run(float_config(tmp_path, EPOCHS, default_hooks=hooks), 'by_epoch')
    config = float_config(tmp_path / 'resumed', EPOCHS, default_hooks=hooks, resume=True,
                          load_from=str(tmp_path / 'epoch_1.pth'))
    assert_same_bits(final_state(run(config, 'by_epoch_resumed')), uninterrupted[1])


def test_resume_is_bit_identical_with_worker_processes(uninterrupted, tmp_path):
    folder, expected = uninterrupted
    config = float_config(tmp_path, EPOCHS, num_workers=1, resume=True, load_from=str(folder / 'iter_2.pth'))
    assert_same_bits(final_state(run(config, 'workers')), expected)


def test_resume_of_an_iteration_based_run_is_bit_identical(tmp_path):
    options = dict(train_cfg=dict(by_epoch=False, max_iters=3), val_cfg=None, val_dataloader=None, val_evaluator=None,
                   param_scheduler=[dict(type='CosineAnnealingLR', by_epoch=False, T_max=3)])
    whole = run(float_config(tmp_path / 'whole', **options), 'iters')
    options.update(resume=True, load_from=str(tmp_path / 'whole' / 'iter_2.pth'))
    resumed = run(float_config(tmp_path / 'resumed', **options), 'iters_resumed')
    assert_same_bits(final_state(resumed), final_state(whole))


def test_a_random_seed_is_taken_over_from_the_checkpoint(tmp_path):
    whole = run(float_config(tmp_path / 'whole', randomness=dict(seed=None)), 'random')
    config = float_config(tmp_path / 'resumed', randomness=dict(seed=None), resume=True,
                          load_from=str(tmp_path / 'whole' / 'iter_4.pth'))
    assert_same_bits(final_state(run(config, 'random_resumed')), final_state(whole))


def test_logged_means_continue_after_a_resume(uninterrupted, tmp_path):
    folder, _ = uninterrupted
    config = float_config(tmp_path, EPOCHS, resume=True, load_from=str(folder / 'iter_4.pth'))
    losses, _ = run(config, 'means').message_hub.get_scalar('train/loss').data
    assert len(losses) == EPOCHS * ITERS_PER_EPOCH
