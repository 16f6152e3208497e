"""The oscillation state against a naive loop over weights in float64."""
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vvq_mm.functional.oscillation import OscillationState, init_state, update_


def naive(steps, momentum):
    """Return direction, frequency and mean code of one weight, by the definition."""
    last, frequency, mean = 0, 0.0, float(steps[0])
    for before, now in zip(steps, steps[1:]):
        sign = (now > before) - (now < before)
        frequency = momentum * (sign * last == -1) + (1 - momentum) * frequency
        mean = momentum * now + (1 - momentum) * mean
        last = sign or last
    return last, frequency, mean


def run(steps, momentum, freezing=True):
    codes = torch.tensor(steps, dtype=torch.int8)
    state = init_state(codes[0], freezing)
    moved = [update_(state, row, momentum).item() for row in codes[1:]]
    return state, moved


histories = st.integers(1, 5).flatmap(lambda weights: st.lists(
    st.lists(st.integers(-128, 127), min_size=weights, max_size=weights), min_size=1, max_size=30))


@settings(max_examples=100, deadline=None)
@given(steps=histories, momentum=st.floats(0.001, 1))
def test_state_equals_the_naive_loop(steps, momentum):
    state, moved = run(steps, momentum)
    for weight in range(len(steps[0])):
        direction, frequency, mean = naive([row[weight] for row in steps], momentum)
        assert state.direction[weight] == direction
        assert state.frequency[weight].item() == pytest.approx(frequency, abs=1e-6)
        assert state.mean_codes[weight].item() == pytest.approx(mean, abs=1e-3)
    assert moved == [sum(a != b for a, b in zip(before, now)) for before, now in zip(steps, steps[1:])]
    assert state.codes.tolist() == steps[-1]


@settings(max_examples=50, deadline=None)
@given(steps=histories, momentum=st.floats(0.001, 1))
def test_frequency_stays_between_zero_and_one(steps, momentum):
    frequency = run(steps, momentum)[0].frequency
    assert (frequency >= 0).all() and (frequency <= 1).all()


@pytest.mark.parametrize('steps', [[0, 0, 0, 0], [-4, -3, -2, 3], [3, 3, 2, 2, -4]], ids=['still', 'rising', 'falling'])
def test_a_code_that_never_turns_back_does_not_oscillate(steps):
    assert run([[code] for code in steps], 0.5)[0].frequency.item() == 0


def test_a_pause_between_two_opposite_moves_still_counts_as_turning_back():
    assert run([[0], [1], [1], [1], [0]], 0.5)[0].frequency.item() == 0.5


def test_the_first_move_is_no_turn():
    assert run([[0], [-1]], 0.5)[0].frequency.item() == 0


def test_the_widest_jump_of_eight_bits_keeps_its_sign():
    assert run([[127], [-128]], 0.5)[0].direction.item() == -1


def test_state_takes_six_bytes_per_weight():
    state = init_state(torch.zeros(100, dtype=torch.int8))
    assert sum(tensor.numel() * tensor.element_size() for tensor in state.to_dict().values()) == 600


def test_init_does_not_share_memory_with_the_codes():
    codes = torch.zeros(3, dtype=torch.int8)
    state = init_state(codes)
    codes += 1
    assert state.codes.tolist() == [0, 0, 0]


@pytest.mark.parametrize('freezing', [False, True], ids=['tracking', 'freezing'])
def test_going_on_from_a_saved_state_equals_never_stopping(freezing):
    generator = torch.Generator().manual_seed(0)
    steps = torch.randint(-2, 2, (20, 50), generator=generator).tolist()
    whole, _ = run(steps, 0.1, freezing)
    half, _ = run(steps[:10], 0.1, freezing)
    saved = half.to_dict()
    update_(half, torch.ones_like(half.codes), 0.1)  # what was saved is a copy
    resumed = OscillationState.from_dict(saved)
    for row in steps[10:]:
        update_(resumed, torch.tensor(row, dtype=torch.int8), 0.1)
    for name, tensor in whole.to_dict().items():
        assert torch.equal(tensor, resumed.to_dict()[name]), name
