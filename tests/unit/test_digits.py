"""The embedded data set."""
import builtins

import numpy as np
import pytest
from mmengine.registry import DATASETS
from sklearn.datasets import load_digits

from vvq_mm.datasets import Digits


def infos(split, **kwargs):
    dataset = Digits(split, **kwargs)
    return [dataset.get_data_info(i) for i in range(len(dataset))]


def labels(split):
    return np.bincount([info['gt_label'] for info in infos(split)], minlength=10)


def test_splits_have_the_documented_sizes():
    assert [len(Digits(split)) for split in ('train', 'test', 'fit', 'val')] == [1437, 360, 1077, 360]


def test_each_class_is_divided_alike():
    counts = np.bincount(load_digits(return_X_y=True)[1])
    assert np.abs(labels('test') - counts / 5).max() < 1


def test_train_and_test_together_are_all_digits_and_fit_and_val_are_train():
    def pixels(*splits):
        return sorted(info['img'].tobytes() for split in splits for info in infos(split, size=8))

    everything = np.rint(load_digits(return_X_y=True)[0] * (255 / 16)).astype(np.uint8)
    assert pixels('train', 'test') == sorted(image.tobytes() for image in everything)
    assert pixels('fit', 'val') == pixels('train')


@pytest.mark.parametrize('size', [8, 32])
def test_images_are_uint8_of_one_channel_and_use_the_whole_range(size):
    images = np.stack([info['img'] for info in infos('test', size=size)])
    assert images.dtype == np.uint8 and images.shape == (360, size, size, 1)
    assert (images.min(), images.max()) == (0, 255)


def test_config_name_builds_it():
    assert len(DATASETS.build(dict(type='vvq_mm.Digits', split='val'))) == 360


def test_unknown_split_is_named():
    with pytest.raises(ValueError, match="test, train, val, fit, got 'valid'"):
        Digits('valid')


def test_missing_scikit_learn_is_an_error_that_says_what_to_install(monkeypatch):
    real = builtins.__import__
    monkeypatch.setattr(builtins, '__import__', lambda name, *args, **kwargs: (_ for _ in ()).throw(ImportError(name))
                        if name.startswith('sklearn') else real(name, *args, **kwargs))
    with pytest.raises(ImportError, match='pip install scikit-learn'):
        Digits()
