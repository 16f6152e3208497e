"""The official FKD files: every format, and nothing in them is run."""
import os
import pickle

import numpy as np
import pytest
import torch
from mmpretrain.datasets import CustomDataset
from PIL import Image

from vvq_mm.datasets import SoftLabelStore, convert_fkd, load_fkd
from vvq_mm.datasets.fkd import FORMATS, find_fkd, labels_of
from vvq_mm.errors import SoftLabelError

CROPS, CLASSES = 4, 20


class Attack:
    """Runs code when it is unpickled the trusting way."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path, )


def fkd_content(form, seed=0):
    """What the official generator saves for one image."""
    rng = np.random.default_rng(seed)
    coordinates = rng.uniform(0.1, 0.5, (CROPS, 4)).astype(np.float32)
    index = np.stack([rng.permutation(CLASSES) for _ in range(CROPS)])
    probability = np.sort(rng.dirichlet(np.ones(CLASSES), CROPS))[:, ::-1]
    shape = FORMATS[form]
    if form == 'hard':
        labels = index[:, 0]
    elif form == 'smoothing':
        labels = np.stack([index[:, 0], probability[:, 0]], 1).astype(np.float32)
    else:
        labels = np.stack([index[:, :shape[1]], probability[:, :shape[1]]], 1).astype(np.float32)
    return [coordinates, rng.random(CROPS) < 0.5, labels]


def write_fkd(path, form='marginal_smoothing_k5', seed=0, legacy=False):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = fkd_content(form, seed)
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return content


@pytest.mark.parametrize('legacy', [False, True], ids=['zip', 'legacy'])
@pytest.mark.parametrize('form', FORMATS)
def test_a_file_of_any_format_is_read_without_trust(tmp_path, form, legacy):
    content = write_fkd(tmp_path / 'x.tar', form, legacy=legacy)
    for ours, official in zip(load_fkd(tmp_path / 'x.tar'), content):
        np.testing.assert_array_equal(ours, official)
        assert ours.dtype == official.dtype


@pytest.mark.parametrize('module', ['numpy.core', 'numpy._core'], ids=['numpy1', 'numpy2'])
def test_files_of_numpy_1_and_2_are_read(tmp_path, module):
    content = write_fkd(tmp_path / 'x.tar', legacy=True)
    here = np.ndarray([0]).__reduce__()[0].__module__.removesuffix('.multiarray')
    here, there = (f'c{name}.multiarray\n'.encode() for name in (here, module))
    raw = (tmp_path / 'x.tar').read_bytes()
    assert here in raw
    (tmp_path / 'x.tar').write_bytes(raw.replace(here, there))
    np.testing.assert_array_equal(load_fkd(tmp_path / 'x.tar')[0], content[0])


def test_half_precision_files_are_read(tmp_path):
    coordinates, flips, labels = fkd_content('smoothing')
    torch.save([coordinates.astype(np.float16), flips, labels.astype(np.float16)], tmp_path / 'x.tar')
    assert load_fkd(tmp_path / 'x.tar')[0].dtype == np.float16


@pytest.mark.parametrize('legacy', [False, True], ids=['zip', 'legacy'])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, legacy):
    content = [*fkd_content('hard'), Attack(tmp_path / 'owned')]
    torch.save(content, tmp_path / 'x.tar', _use_new_zipfile_serialization=not legacy)
    with pytest.raises(SoftLabelError, match=r'x\.tar, got the class or function posix.mkdir; it was not run'):
        load_fkd(tmp_path / 'x.tar')
    assert not (tmp_path / 'owned').exists()


def test_code_inside_an_object_array_is_refused_and_not_run(tmp_path):
    array = np.array([Attack(tmp_path / 'owned')], dtype=object)
    torch.save([array, array, array], tmp_path / 'x.tar')
    with pytest.raises(SoftLabelError, match='got the class or function numpy.dtypes.ObjectDType; it was not run'):
        load_fkd(tmp_path / 'x.tar')
    assert not (tmp_path / 'owned').exists()


def test_the_allow_list_ends_with_the_call(tmp_path):
    write_fkd(tmp_path / 'x.tar')
    load_fkd(tmp_path / 'x.tar')
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / 'x.tar', weights_only=True)


def test_what_the_user_has_allowed_stays_allowed(tmp_path):
    write_fkd(tmp_path / 'x.tar')
    with torch.serialization.safe_globals([np.dtype]):
        load_fkd(tmp_path / 'x.tar')
        assert np.dtype in torch.serialization.get_safe_globals()


@pytest.mark.parametrize('content, got', [
    (dict(a=1), 'dict'),
    ([np.zeros((2, 4)), np.zeros(2)], r'\(2, 4\), \(2,\)'),
    ([np.zeros((2, 3)), np.zeros(2), np.zeros(2)], r'\(2, 3\)'),
    ([np.zeros((2, 4)), np.zeros(2), np.zeros(3)], r'\(3,\)'),
    ([np.zeros((2, 4)), np.zeros(2), 'labels'], 'str'),
], ids=['no_list', 'two_arrays', 'coordinates', 'lengths', 'text'])
def test_other_contents_are_refused(tmp_path, content, got):
    torch.save(content, tmp_path / 'x.tar')
    with pytest.raises(SoftLabelError, match=rf'x\.tar, got .*{got}'):
        load_fkd(tmp_path / 'x.tar')


def test_missing_and_truncated_files_are_named(tmp_path):
    with pytest.raises(SoftLabelError, match=r'x\.tar, got no file'):
        load_fkd(tmp_path / 'x.tar')
    write_fkd(tmp_path / 'x.tar')
    (tmp_path / 'x.tar').write_bytes((tmp_path / 'x.tar').read_bytes()[:-100])
    with pytest.raises(SoftLabelError, match=r'x\.tar, got a damaged file'):
        load_fkd(tmp_path / 'x.tar')


def test_labels_of_another_format_are_named():
    with pytest.raises(SoftLabelError, match=r'\(K, 2, 10\) for the format marginal_smoothing_k10, got \(4, 2, 5\)'):
        labels_of(fkd_content('marginal_smoothing_k5')[2], 'marginal_smoothing_k10')
    with pytest.raises(SoftLabelError, match="got 'ori'"):
        labels_of(np.zeros((4, CLASSES)), 'ori')


@pytest.fixture
def images(tmp_path):
    """An image folder named as ImageNet's, with a dot in the name of a file and of a folder."""
    root = tmp_path / 'v1.0' / 'imagenet' / 'train'
    for name in ('n01/n01_1.JPEG', 'n01/n01.2.JPEG', 'n02/n02_1.JPEG'):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (8, 8)).save(root / name)
    (tmp_path / 'list.txt').write_text('n01/n01_1.JPEG 0\nn01/n01.2.JPEG 0\nn02/n02_1.JPEG 1\n')
    classes = [str(i) for i in range(CLASSES)]
    return CustomDataset(data_root=str(root), ann_file=str(tmp_path / 'list.txt'), metainfo=dict(classes=classes))


@pytest.mark.parametrize('folder', ['imagenet/train/n01', 'train/n01', 'n01'], ids=['official', 'split', 'class'])
def test_label_files_are_found_below_the_root(tmp_path, folder):
    write_fkd(tmp_path / 'fkd' / folder / 'n01.2.tar')
    assert find_fkd(tmp_path / 'fkd', '/v1.0/imagenet/train/n01/n01.2.JPEG') == tmp_path / 'fkd' / folder / 'n01.2.tar'


@pytest.mark.parametrize('form', FORMATS)
def test_a_converted_store_holds_the_same_crops_and_labels(tmp_path, images, form):
    contents = []
    for i in range(len(images)):
        parts = images.get_data_info(i)['img_path'].split('/')[-4:]
        contents.append(write_fkd((tmp_path / 'fkd').joinpath(*parts).with_suffix('.tar'), form, seed=i))
    convert_fkd(tmp_path / 'fkd', images, tmp_path / 'store', form)
    store = SoftLabelStore(tmp_path / 'store')
    store.check_dataset(images)
    for i, (coordinates, flips, labels) in enumerate(contents):
        boxes, stored_flips, stored = store.read(i, range(CROPS))
        np.testing.assert_allclose(boxes, coordinates, atol=0.51 / 65535)
        np.testing.assert_array_equal(stored_flips, flips)
        expected = labels_of(labels, form)
        np.testing.assert_array_equal(stored[:, 0], expected[:, 0])
        np.testing.assert_allclose(stored[:, 1], expected[:, 1], rtol=1e-3, atol=1e-7)


def test_conversion_stops_at_the_first_bad_file_and_leaves_nothing(tmp_path, images):
    for i in (0, 1):
        parts = images.get_data_info(i)['img_path'].split('/')[-4:]
        write_fkd((tmp_path / 'fkd').joinpath(*parts).with_suffix('.tar'))
    with pytest.raises(SoftLabelError, match='n02_1.tar, got no file'):
        convert_fkd(tmp_path / 'fkd', images, tmp_path / 'store')
    assert not [path for path in tmp_path.iterdir() if path.name.startswith('store')]
