"""Schedules: values at the corners, the official schedule, and what a wrong config says."""
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vvq_mm.errors import QuantizationError
from vvq_mm.schedules import ConstantSchedule, CosineSchedule, LinearSchedule, build_schedule

OFFICIAL = np.load(Path(__file__).parents[1] / 'golden' / 'official_ops.npz')
RAMPS = [CosineSchedule, LinearSchedule]


def test_cosine_defaults_are_the_official_weight_at_every_epoch():
    ours = [CosineSchedule()(epoch / 150) for epoch in range(150)]
    np.testing.assert_allclose(ours, OFFICIAL['obr.schedule'], rtol=1e-12, atol=1e-17)


def test_cosine_equals_its_formula():
    schedule = CosineSchedule(start=0.2, end=1.0, begin=0.1, until=0.9)
    assert schedule(0.3) == pytest.approx(1.0 + (0.2 - 1.0) * 0.5 * (1 + math.cos(math.pi * 0.25)))


def test_linear_is_half_way_at_half_time():
    assert LinearSchedule(start=0.04, end=0.01, begin=0.2, until=0.6)(0.4) == pytest.approx(0.025)


@pytest.mark.parametrize('kind', RAMPS)
@pytest.mark.parametrize('progress, value', [(0.0, 3.0), (0.25, 3.0), (0.75, 5.0), (1.0, 5.0)])
def test_ramps_hold_their_ends_before_and_after(kind, progress, value):
    assert kind(start=3, end=5, begin=0.25, until=0.75)(progress) == value


@pytest.mark.parametrize('kind', RAMPS)
@given(a=st.floats(0, 1), b=st.floats(0, 1))
def test_ramps_never_turn(kind, a, b):
    schedule = kind(start=0.0, end=1.0, begin=0.1)
    assert schedule(min(a, b)) <= schedule(max(a, b))


def test_a_number_is_a_constant():
    assert [build_schedule(0.5)(progress) for progress in (0, 1)] == [0.5, 0.5]


def test_a_dict_names_a_schedule_and_is_not_changed():
    config = dict(type='CosineSchedule', start=0., end=2., begin=0.)
    assert build_schedule(config)(1.0) == 2.0
    assert config == dict(type='CosineSchedule', start=0., end=2., begin=0.)


def test_the_package_prefix_is_allowed():
    assert isinstance(build_schedule(dict(type='vvq_mm.ConstantSchedule', value=1)), ConstantSchedule)


def test_a_function_is_a_schedule():
    assert build_schedule(math.sqrt)(0.25) == 0.5


@pytest.mark.parametrize('config, words', [
    (dict(type='CosineSchedule', begin=0.8, until=0.2), ['0 <= begin < until <= 1', 'begin=0.8', 'until=0.2']),
    (dict(type='LinearSchedule', until=1.5), ['until=1.5', 'LinearSchedule']),
    (dict(type='CosineSchedule', end='big'), ['finite number', "'big'", 'end']),
    (dict(type='CosineSchedule', start=float('nan')), ['finite number', 'start']),
    (dict(type='CosineSchedule', stop=1), ['stop', 'CosineSchedule']),
    ('0.01', ['finite number', "'0.01'"]),
    (None, ['finite number', 'None']),
    (True, ['finite number', 'True']),
], ids=['reversed', 'beyond the end', 'text', 'nan', 'unknown argument', 'string', 'none', 'bool'])
def test_a_wrong_schedule_is_named(config, words):
    with pytest.raises(QuantizationError) as error:
        build_schedule(config)
    for word in words:
        assert word in str(error.value)


def test_an_unknown_schedule_names_the_known_ones():
    with pytest.raises(QuantizationError, match='CosineSchedule.*StepSchedule'):
        build_schedule(dict(type='StepSchedule'))
