"""What is random in a step depends on seed, rank and iteration, and an epoch goes on where it was left."""
import random
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, RandomSampler

from vvq_mm.datasets.sampler import ResumableSampler
from vvq_mm.functional.seeding import hash64
from vvq_mm.hooks.exact_resume_hook import ExactResumeHook


DATA = list(range(10))


def fake_runner(iteration, epoch=0, seed=5, sampler=None):
    loader = DataLoader(DATA, batch_size=2, sampler=sampler or ResumableSampler(DATA, seed=1))
    return SimpleNamespace(seed=seed, iter=iteration, epoch=epoch, train_dataloader=loader, train_loop=None,
                           logger=MagicMock())


def draws():
    return random.random(), np.random.rand(), torch.rand(()).item()


def draws_of_step(**kwargs):
    ExactResumeHook().before_train_iter(fake_runner(**kwargs), 0)
    return draws()


def test_a_step_draws_the_same_whatever_ran_before():
    first = draws_of_step(iteration=7)
    draws()
    assert draws_of_step(iteration=7) == first


@pytest.mark.parametrize('other', [dict(iteration=8), dict(iteration=7, seed=6)], ids=['iteration', 'seed'])
def test_another_step_draws_something_else(other):
    assert set(draws_of_step(iteration=7)).isdisjoint(draws_of_step(**other))


def test_ranks_draw_differently(monkeypatch):
    first = draws_of_step(iteration=7)
    monkeypatch.setattr('vvq_mm.hooks.exact_resume_hook.get_rank', lambda: 1)
    assert set(draws_of_step(iteration=7)).isdisjoint(first)


def test_the_next_batch_is_drawn_the_same_after_a_step_and_after_a_resume():
    hook = ExactResumeHook()
    hook.after_train_iter(fake_runner(iteration=6), 0)
    uninterrupted = draws()
    resumed = fake_runner(iteration=7, epoch=1)
    hook.before_train(resumed)
    hook.before_train_epoch(resumed)
    assert draws() == uninterrupted


def test_the_epoch_goes_on_after_the_batches_it_has_seen():
    runner, hook = fake_runner(iteration=8, epoch=1), ExactResumeHook()  # 5 iterations per epoch
    hook.before_train(runner)
    hook.before_train_epoch(runner)
    assert runner.train_dataloader.sampler.start == 3 * 2
    assert len(list(runner.train_dataloader.batch_sampler)) == 2


def test_the_epoch_after_is_whole():
    runner, hook = fake_runner(iteration=8, epoch=1), ExactResumeHook()
    hook.before_train(runner)
    hook.before_train_epoch(runner)
    hook.before_train_epoch(runner)
    assert runner.train_dataloader.sampler.start == 0


def test_the_sampler_takes_over_the_seed_of_the_checkpoint():
    runner = fake_runner(iteration=0, seed=9)
    ExactResumeHook().before_train(runner)
    assert runner.train_dataloader.sampler.seed == 9


@pytest.mark.parametrize('iteration, warnings', [(8, 1), (5, 0)], ids=['mid_epoch', 'epoch_end'])
def test_a_sampler_that_cannot_go_on_is_warned_about(iteration, warnings):
    runner = fake_runner(iteration=iteration, epoch=1, sampler=RandomSampler(DATA))
    ExactResumeHook().before_train(runner)
    assert runner.logger.warning.call_count == warnings


def test_seeds_are_64_bits_and_do_not_collide_for_neighbours():
    seeds = {int(hash64(seed, rank, step, 0)[0]) for seed in range(3) for rank in range(3) for step in range(50)}
    assert len(seeds) == 450 and max(seeds) > 2**60
