"""Measurement: every step equally often, and bytes as one counts them by hand."""
import gc
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from vvq_mm.benchmarks import Timing, interleaved, peak_memory, saved_bytes, state_bytes
from vvq_mm.functional.oscillation import OscillationState

FLOAT = 4


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    torch._dynamo.reset()


def test_every_round_runs_each_step_once():
    calls = []
    steps = {name: lambda name=name: calls.append(name) for name in 'abc'}
    timings = interleaved(steps, rounds=7, warmup=2, progress=False)
    assert {name: len(timing.seconds) for name, timing in timings.items()} == dict(a=7, b=7, c=7)
    assert ''.join(calls[:6]) == 'aabbcc'
    rounds = [''.join(calls[start:start + 3]) for start in range(6, len(calls), 3)]
    assert len(rounds) == 7 and all(sorted(once) == ['a', 'b', 'c'] for once in rounds)
    assert len(set(rounds)) > 1, 'no step always follows the same one'


def test_garbage_collection_waits_for_the_end_of_a_round_and_is_restored_after_an_error():
    collecting = []

    def step():
        collecting.append(gc.isenabled())
        if len(collecting) == 3:
            raise KeyError('step')

    with pytest.raises(KeyError):
        interleaved({'step': step}, rounds=3, warmup=1, progress=False)
    assert collecting == [True, False, False] and gc.isenabled()


def test_progress_goes_to_stderr(capsys):
    interleaved({'a step': lambda: None}, rounds=1, warmup=1)
    captured = capsys.readouterr()
    assert captured.out == '' and 'rounds' in captured.err


def test_timing_summary_is_the_median_and_the_quartiles():
    timing = Timing([5., 1., 2., 3., 4.])
    assert (timing.median, timing.quartiles, timing.minimum) == (3., (2., 4.), 1.)
    assert Timing([2.]).quartiles == (2., 2.)


def test_ratio_is_taken_round_by_round():
    slow_machine = Timing([1., 10.]), Timing([2., 20.])
    assert slow_machine[1].over(slow_machine[0]).seconds == [2., 2.]


def linear_gelu(batch=8, inputs=16, hidden=32, outputs=4):
    model = nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))
    return model, torch.randn(batch, inputs)


def test_saved_bytes_of_a_model_are_those_of_its_activations():
    model, x = linear_gelu()
    activations = 8 * 16 + 2 * 8 * 32  # input of each linear layer, input of the GELU
    assert saved_bytes(lambda: model(x).sum(), exclude=model.parameters()) == activations * FLOAT
    assert saved_bytes(lambda: model(x).sum(), exclude=[*model.parameters(), x]) == 2 * 8 * 32 * FLOAT


def test_a_storage_saved_twice_counts_once_and_a_view_as_the_whole():
    x = torch.randn(10, requires_grad=True)

    def forward():
        y = x.exp()  # saved by exp, and its half by both sides of the product
        return (y[:5] * y[:5]).sum()

    assert saved_bytes(forward) == 10 * FLOAT


class KeepsOnContext(torch.autograd.Function):
    """Square whose factor never passes through ``save_for_backward``."""

    @staticmethod
    def forward(ctx, x):
        ctx.kept = dict(factor=[2 * x])
        return x * x

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.kept['factor'][0]


def test_tensors_kept_on_a_context_count():
    x = torch.randn(10, requires_grad=True)
    assert saved_bytes(lambda: KeepsOnContext.apply(x).sum()) == 10 * FLOAT


@pytest.mark.parametrize('backend', ['aot_eager', pytest.param('inductor', marks=pytest.mark.slow)])
def test_saved_bytes_of_a_compiled_model(backend):
    class Exponential(nn.Module):
        def forward(self, x):
            return (x.exp() * 2).sin().sum()

    x = torch.randn(1000, requires_grad=True)
    model = torch.compile(Exponential(), backend=backend)
    assert saved_bytes(lambda: Exponential()(x)) == 2 * 1000 * FLOAT  # of the sine the argument, of exp the result
    assert saved_bytes(lambda: model(x)) == 1000 * FLOAT  # one of them is computed again


def test_counting_saved_bytes_does_not_compile_again():
    model, x = linear_gelu()
    compiled = torch.compile(model, backend='aot_eager')
    frames = torch._dynamo.utils.counters['frames']
    compiled(x)
    before = frames['total']
    for _ in range(2):
        saved = saved_bytes(lambda: compiled(x).sum(), exclude=model.parameters())
    assert frames['total'] == before
    assert saved == (8 * 16 + 2 * 8 * 32) * FLOAT


def test_peak_memory_is_the_most_held_at_once():
    def step():
        first = torch.empty(1000)
        second = torch.empty(2000)
        del first
        torch.empty(500)
        return second

    step()
    assert peak_memory(step) == 3000 * FLOAT


def test_peak_memory_leaves_out_what_was_there_before():
    kept = [torch.empty(10**6)]

    def step():
        kept.clear()
        kept.append(torch.empty(100))

    assert peak_memory(step) == 100 * FLOAT


def test_state_bytes_are_those_of_tensors_in_dicts_and_dataclasses():
    tensors = dict(codes=torch.zeros(10, dtype=torch.int8), direction=torch.zeros(10, dtype=torch.int8),
                   frequency=torch.zeros(10))
    for state in (tensors, OscillationState(**tensors)):
        assert state_bytes(SimpleNamespace(states={'layer': state, 'the same': state})) == 60


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='mallopt is of glibc')
def test_kept_memory_is_not_asked_for_again():
    code = """
import resource, torch
from vvq_mm.benchmarks import keep_freed_memory
assert keep_freed_memory()
faults = []
for _ in range(8):  # the heap may grow in the first few
    torch.ones(2**24)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
assert faults[7] - faults[4] < 100, faults  # else 16,384 each time
"""
    subprocess.run([sys.executable, '-c', code], check=True)


def test_peak_memory_of_a_training_step_holds_the_saved_activations():
    model, x = linear_gelu(batch=512)
    parameters = list(model.parameters())

    def step():
        torch.autograd.grad(model(x).sum(), parameters)

    step()
    saved = saved_bytes(lambda: model(x).sum(), exclude=[*parameters, x])
    assert saved == 2 * 512 * 32 * FLOAT
    assert saved < peak_memory(step) < 3 * saved
