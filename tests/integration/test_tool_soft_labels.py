"""tools/soft_labels.py and tools/prepare_fashion_mnist.py as a user runs them."""
import gzip
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import build, tiny_vit_config
from vvq_mm.datasets import SoftLabelStore

ROOT = Path(__file__).parents[2]
MODEL = tiny_vit_config(classes=10, in_channels=1)
MODEL['data_preprocessor'] = dict(num_classes=10, mean=[127.5], std=[127.5])
# a training set with augmentation of its own, which the tool must leave out
AUGMENTATION = [dict(type='RandomResizedCrop', scale=8), dict(type='PackInputs')]
DIGITS = dict(type='vvq_mm.Digits', indices=20, pipeline=AUGMENTATION)


def run(tool, *arguments):
    command = [sys.executable, str(ROOT / 'tools' / tool), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd='/', env=None)


def write_config(path, dataset):
    path.write_text(f'model = {MODEL!r}\ntrain_dataloader = dict(dataset={dataset!r})\n')
    return path


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """A folder with a config, a checkpoint, and what `make` said and made of them."""
    folder = tmp_path_factory.mktemp('made')
    torch.manual_seed(0)
    torch.save(dict(state_dict=build(MODEL).state_dict()), folder / 'teacher.pth')
    dataset = dict(type='vvq_mm.MultiCropDataset', dataset=DIGITS, pipeline=[], soft_labels='not/made/yet')
    config = write_config(folder / 'digits.py', dataset)
    result = run('soft_labels.py', 'make', config, folder / 'teacher.pth', '--out', folder / 'store', '--num-crops', 3,
                 '--topk', 4, '--flip-prob', 0)
    assert result.returncode == 0, result.stderr
    return folder, result.stdout


def test_make_writes_a_store_and_says_how_good_the_teacher_is(made):
    folder, output = made
    store = SoftLabelStore(folder / 'store')
    assert (store.num_images, store.num_crops, store.num_classes, store.k) == (20, 3, 10, 4)
    assert store.meta['crop']['size'] == 32 and store.meta['crop']['flip_prob'] == 0
    assert 'teacher.pth' in store.meta['teacher']
    assert '20 images of Digits, 3 crops each' in output and '% of the crops' in output


def test_verify_reads_everything_and_knows_the_data_set(made):
    folder, _ = made
    result = run('soft_labels.py', 'verify', folder / 'store', '--config', folder / 'digits.py')
    assert result.returncode == 0 and '20 images x 3 crops, top 4 of 10 classes' in result.stdout, result.stderr


def test_verify_says_in_one_sentence_that_the_data_set_is_another(made):
    folder, _ = made
    result = run('soft_labels.py', 'verify', folder / 'store', '--config', folder / 'digits.py', '--cfg-options',
                 'train_dataloader.dataset.dataset.split=test')
    assert result.returncode == 1 and 'got Digits with fingerprint' in result.stderr
    assert 'Traceback' not in result.stderr


def test_a_teacher_of_other_classes_is_refused_and_leaves_nothing(made, tmp_path):
    import timm
    folder, _ = made
    torch.save(timm.create_model('resnet10t').state_dict(), tmp_path / 'resnet.pth')
    result = run('soft_labels.py', 'make', folder / 'digits.py', tmp_path / 'resnet.pth', '--teacher', 'timm:resnet10t',
                 '--out', tmp_path / 'store', '--num-crops', 2, '--size', 32)
    assert result.returncode == 1, result.stderr
    assert 'got (40, 1000); give a teacher for this number of classes' in result.stderr
    assert not [path for path in tmp_path.iterdir() if path.name.startswith('store')]


def test_convert_fkd_makes_a_store(tmp_path):
    for name in ('a/0.png', 'b/0.png'):
        (tmp_path / 'images' / name).parent.mkdir(parents=True)
        Image.new('RGB', (8, 8)).save(tmp_path / 'images' / name)
        labels = tmp_path / 'fkd' / name.replace('.png', '.tar')
        labels.parent.mkdir(parents=True)
        torch.save([np.full((2, 4), 0.5, np.float32), np.array([True, False]), np.array([1, 0])], labels)
    config = write_config(tmp_path / 'images.py', dict(type='CustomDataset', data_root=str(tmp_path / 'images')))
    result = run('soft_labels.py', 'convert-fkd', config, tmp_path / 'fkd', '--out', tmp_path / 'store', '--format',
                 'hard')
    assert result.returncode == 0, result.stderr
    boxes, flips, labels = SoftLabelStore(tmp_path / 'store').read(1, [0, 1])
    assert flips.tolist() == [True, False] and labels[:, :, 0].tolist() == [[1, 1], [0, 1]]
    np.testing.assert_allclose(boxes, 0.5, atol=1e-5)


FASHION = Path('/usr/share/datasets/fashion-mnist')


@pytest.mark.skipif(not FASHION.is_dir(), reason='the Debian package dataset-fashion-mnist is not installed')
def test_fashion_mnist_is_unpacked_for_mmpretrain(tmp_path):
    from mmpretrain.datasets import FashionMNIST
    result = run('prepare_fashion_mnist.py', FASHION, tmp_path)
    assert result.returncode == 0, result.stderr
    assert len(FashionMNIST(data_root=str(tmp_path), split='test', test_mode=True, download=False)) == 10000


@pytest.mark.parametrize('content, message', [
    (None, 'expected train-images-idx3-ubyte.gz in'),
    (b'\x1f\x8bcut', 'expected a whole gzip file'),
    (gzip.compress(b'other'), 'not the published Fashion-MNIST'),
], ids=['missing', 'damaged', 'other'])
def test_wrong_fashion_mnist_files_are_named_and_nothing_is_written(tmp_path, content, message):
    (tmp_path / 'packed').mkdir()
    if content is not None:
        (tmp_path / 'packed' / 'train-images-idx3-ubyte.gz').write_bytes(content)
    result = run('prepare_fashion_mnist.py', tmp_path / 'packed', tmp_path / 'out')
    assert result.returncode == 1 and message in result.stderr and 'train-images-idx3-ubyte.gz' in result.stderr
    assert 'Traceback' not in result.stderr and not (tmp_path / 'out').exists()
