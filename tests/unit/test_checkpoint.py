"""Reading checkpoints without running their code, and reducing them to tensors and builtins."""
import datetime
from collections import OrderedDict, deque
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mmengine.logging import HistoryBuffer

from vvq_mm.errors import CheckpointError
from vvq_mm.utils.checkpoint import (load_trusted, make_safe_copy, plain_message_hub, read_checkpoint,
                                     restore_message_hub, to_plain)


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return Path.touch, (Path(self.path), )


def unsafe_file(folder, content):
    path = folder / 'unsafe.pth'
    torch.save(content, path)
    return path


def through_file(value, folder):
    torch.save(value, folder / 'plain.pth')
    return torch.load(folder / 'plain.pth', weights_only=True)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='nothing.pth'):
        read_checkpoint(tmp_path / 'nothing.pth')


@pytest.mark.parametrize('keep', [0, 10, 2000], ids=['empty', 'header_only', 'half'])
def test_a_truncated_file_is_named(tmp_path, keep):
    path = tmp_path / 'cut.pth'
    torch.save(dict(state_dict=dict(weight=torch.zeros(1000))), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match='cut.pth.*truncated'):
        read_checkpoint(path)


def test_a_file_that_is_no_checkpoint_is_named(tmp_path):
    (tmp_path / 'page.pth').write_text('<html>not found</html>')
    with pytest.raises(CheckpointError, match='page.pth.*not a checkpoint'):
        read_checkpoint(tmp_path / 'page.pth')


@pytest.mark.parametrize('zipped', [True, False], ids=['zip_format', 'legacy_format'])
def test_unsafe_loading_is_refused_with_the_class_and_the_flag(tmp_path, zipped):
    path = tmp_path / 'unsafe.pth'
    torch.save(dict(buffer=HistoryBuffer([1.], [1])), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r'unsafe.pth.*mmengine\S+HistoryBuffer.*--trust-checkpoint'):
        read_checkpoint(path)


def test_code_in_a_checkpoint_does_not_run(tmp_path):
    path = unsafe_file(tmp_path, dict(state_dict={}, extra=Bomb(tmp_path / 'exploded')))
    with pytest.raises(CheckpointError):
        read_checkpoint(path)
    assert not (tmp_path / 'exploded').exists()


def test_the_trusted_scheme_loads_for_a_runner(tmp_path):
    path = unsafe_file(tmp_path, dict(state_dict=dict(a=torch.ones(2)), extra=Bomb(tmp_path / 'exploded')))
    assert load_trusted(f'trusted://{path}')['state_dict']['a'].tolist() == [1, 1]
    assert (tmp_path / 'exploded').exists()  # the user said so


def test_a_safe_copy_keeps_the_weights_and_names_what_it_lost(tmp_path):
    state = dict(a=torch.ones(2))
    path = unsafe_file(tmp_path, dict(state_dict=state, when=datetime.date(2020, 1, 1), best=np.float64(0.5)))
    lost = make_safe_copy(path, tmp_path / 'safe.pth')
    copy = read_checkpoint(tmp_path / 'safe.pth')
    assert lost == ['checkpoint/when: datetime.date']
    assert copy['best'] == 0.5 and type(copy['best']) is float and copy['state_dict']['a'].tolist() == [1, 1]


PLAIN = [
    (np.float32(0.25), 0.25), (np.int64(3), 3), (np.str_('x'), 'x'), (np.bool_(True), True), (Path('a'), 'a'),
    (deque([1, 2]), [1, 2]), ((1, np.int8(2)), (1, 2)), ({np.int64(1): {'a': np.float64(2)}}, {1: {'a': 2.0}}),
    (np.array(['u', 'v']), ['u', 'v']), ({3}, [3]),
]


@pytest.mark.parametrize('value, plain', PLAIN, ids=lambda value: type(value).__name__)
def test_builtins_replace(value, plain, tmp_path):
    left_out = []
    result = through_file(to_plain(value, 'x', left_out), tmp_path)
    assert result == plain and type(result) is type(plain) and not left_out


def test_a_state_dict_keeps_the_versions_of_its_modules(tmp_path):
    state = torch.nn.BatchNorm1d(2).state_dict()
    assert through_file(to_plain(state, 'x', []), tmp_path)._metadata == state._metadata


@given(values=st.lists(st.floats(allow_nan=False, width=64), max_size=20), limit=st.integers(1, 30))
def test_the_message_hub_comes_back_exactly(tmp_path_factory, values, limit):
    buffer = HistoryBuffer(max_length=limit)
    for value in values:
        buffer.update(value, 2)
    state = dict(log_scalars=OrderedDict(loss=buffer), runtime_info=OrderedDict(iter=3),
                 resumed_keys=OrderedDict(loss=True, iter=True))
    plain = through_file(to_plain(plain_message_hub(state), 'hub', []), tmp_path_factory.getbasetemp())
    back = restore_message_hub(plain)
    for ours, theirs in zip(back['log_scalars']['loss'].data, buffer.data):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype
    assert back['log_scalars']['loss'].max_length == limit
    assert back['runtime_info'] == state['runtime_info'] and back['resumed_keys'] == state['resumed_keys']


def test_smoothed_values_go_on_as_before():
    buffer = HistoryBuffer([4., 2., 1.], [1, 1, 2])
    state = dict(log_scalars=dict(loss=buffer), runtime_info={}, resumed_keys={})
    back = restore_message_hub(plain_message_hub(state))['log_scalars']['loss']
    buffer.update(8.)
    back.update(8.)
    assert back.mean(3) == buffer.mean(3)
