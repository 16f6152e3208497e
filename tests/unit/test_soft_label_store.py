"""The store of soft labels: what goes in comes out, and whatever is wrong with it is said."""
import json
import pickle
import shutil
import zlib

import numpy as np
import pytest
import torch
from mmpretrain.datasets import CustomDataset
from PIL import Image

from vvq_mm.datasets import SoftLabelStore, SoftLabelWriter
from vvq_mm.datasets.fingerprint import dataset_fingerprint, evenly_spaced
from vvq_mm.datasets.replay_crop import to_pixels
from vvq_mm.datasets.soft_label_store import VERSION, meta_checksum, record_dtype
from vvq_mm.errors import SoftLabelError

IMAGES, CROPS, CLASSES, K = 6, 3, 7, 2


class Labelled:
    """As much of a data set as a store looks at."""

    def __init__(self, labels=(0, 1, 2, 3, 4, 5), classes=CLASSES):
        self.labels = labels
        self.metainfo = dict(classes=tuple(map(str, range(classes))))

    def __len__(self):
        return len(self.labels)

    def get_data_info(self, index):
        return dict(gt_label=self.labels[index])


def random_crops(index):
    rng = np.random.default_rng(index)
    classes = np.stack([rng.permutation(CLASSES)[:K] for _ in range(CROPS)])
    probabilities = np.float16(rng.uniform(0, 1 / K, (CROPS, K)))
    return rng.integers(0, 65536, (CROPS, 4)) / 65535, rng.random(CROPS) < 0.5, np.stack([classes, probabilities], 1)


def write_store(path, dataset=None, **kwargs):
    with SoftLabelWriter(path, dataset or Labelled(), CLASSES, CROPS, K, **kwargs) as writer:
        for index in range(IMAGES):
            writer.write(index, *random_crops(index))
    return path


@pytest.fixture
def store_path(tmp_path):
    return write_store(tmp_path / 'store', teacher='a teacher', crop=dict(scale=(0.1, 1.0)))


def edit_meta(path, seal=True, **changes):
    meta = {**json.loads((path / 'meta.json').read_text()), **changes}
    (path / 'meta.json').write_text(json.dumps({**meta, 'checksum': meta_checksum(meta)} if seal else meta))


def flip_byte(file, position):
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


def test_what_is_written_is_read(store_path):
    store = SoftLabelStore(store_path)
    for index in range(IMAGES):
        boxes, flips, labels = store.read(index, [2, 0])
        expected = [array[[2, 0]] for array in random_crops(index)]
        np.testing.assert_array_equal(boxes, expected[0])
        np.testing.assert_array_equal(flips, expected[1])
        np.testing.assert_array_equal(labels.numpy(), expected[2])
        assert labels.dtype == torch.float32 and flips.dtype == bool


def test_a_crop_with_five_classes_takes_29_bytes(store_path):
    assert record_dtype(5).itemsize == 29
    assert (store_path / 'crops.bin').stat().st_size == IMAGES * CROPS * record_dtype(K).itemsize


def test_meta_says_what_the_store_is(store_path):
    meta = SoftLabelStore(store_path).meta
    assert {key: meta[key] for key in ('version', 'dataset', 'teacher', 'crop')} == dict(
        version=VERSION, dataset='Labelled', teacher='a teacher', crop=dict(scale=[0.1, 1.0]))


def test_boxes_come_back_to_the_pixel_for_every_size():
    rng = np.random.default_rng(0)
    for height, width in rng.integers(1, 20000, (300, 2)):
        h, w = rng.integers(1, height + 1), rng.integers(1, width + 1)
        pixels = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1), h, w
        fractions = np.rint(np.array(pixels) / (height, width, height, width) * 65535) / 65535
        assert to_pixels(fractions, (height, width)) == pixels


def test_a_copy_in_a_worker_reads_the_same_and_carries_no_data(store_path):
    store = SoftLabelStore(store_path)
    content = pickle.dumps(store)
    assert len(content) < 2000
    assert torch.equal(pickle.loads(content).read(1, [0])[2], store.read(1, [0])[2])


def test_it_may_be_moved(store_path, tmp_path):
    SoftLabelStore(shutil.move(store_path, tmp_path / 'elsewhere')).verify()


def damage(name):
    """Return a function that damages a store in the named way."""
    return dict(
        missing=lambda path: shutil.rmtree(path),
        no_labels=lambda path: (path / 'crops.bin').unlink(),
        truncated=lambda path: (path / 'crops.bin').write_bytes((path / 'crops.bin').read_bytes()[:-1]),
        truncated_checksums=lambda path: (path / 'checksums.bin').write_bytes(b''),
        byte_in_labels=lambda path: flip_byte(path / 'crops.bin', 4 * CROPS * record_dtype(K).itemsize + 3),
        byte_in_checksums=lambda path: flip_byte(path / 'checksums.bin', 5),
        meta_changed=lambda path: edit_meta(path, seal=False, teacher='another'),
        meta_cut=lambda path: (path / 'meta.json').write_text('{"version": 1'),
        version=lambda path: edit_meta(path, version=VERSION + 1),
    )[name]


@pytest.mark.parametrize('name, message', [
    ('missing', r'expected a store of soft labels .* got none in .*store; make one with tools/soft_labels.py'),
    ('no_labels', r'expected \d+ bytes in .*crops.bin, got no such file'),
    ('truncated', r'expected \d+ bytes in .*crops.bin, got \d+ bytes; the store is truncated'),
    ('truncated_checksums', r'expected 24 bytes in .*checksums.bin, got 0 bytes'),
    ('byte_in_labels', 'expected checksum .* image 4 in .*store, got'),
    ('byte_in_checksums', 'expected checksum .* image 1 in .*store, got'),
    ('meta_changed', r'expected checksum .* in .*meta.json'),
    ('meta_cut', r'expected JSON with a `version` in .*meta.json'),
    ('version', rf'expected a store of version {VERSION}, got version {VERSION + 1} in .*meta.json'),
])
def test_a_damaged_store_is_refused_when_it_is_opened(store_path, name, message):
    damage(name)(store_path)
    with pytest.raises(SoftLabelError, match=message):
        SoftLabelStore(store_path)


def test_verify_finds_damage_after_opening(store_path):
    store = SoftLabelStore(store_path)
    store.verify()
    flip_byte(store_path / 'crops.bin', 0)
    with pytest.raises(SoftLabelError, match='image 0'):
        store.verify()


def test_a_class_index_out_of_range_is_caught_when_it_is_read(store_path):
    store = SoftLabelStore(store_path)
    crops = np.memmap(store_path / 'crops.bin', record_dtype(K), 'r+', shape=(IMAGES, CROPS))
    crops['index'][2, 1, 0] = CLASSES
    crops.flush()
    store.read(2, [0])
    with pytest.raises(SoftLabelError, match=f'expected class indices below {CLASSES}, got {CLASSES} for image 2'):
        store.read(2, [1])
    np.array([zlib.crc32(records.tobytes()) for records in crops], '<u4').tofile(store_path / 'checksums.bin')
    with pytest.raises(SoftLabelError, match='expected class indices below'):
        SoftLabelStore(store_path)


@pytest.mark.parametrize('dataset, message', [
    (Labelled((0, 1, 2, 3, 4)), 'images 6.* got Labelled with images 5'),
    (Labelled(classes=8), 'classes 7.* got Labelled with classes 8'),
    (Labelled((0, 1, 2, 3, 5, 4)), 'fingerprint .* got Labelled with fingerprint'),
], ids=['images', 'classes', 'labels'])
def test_another_data_set_is_refused(store_path, dataset, message):
    store = SoftLabelStore(store_path)
    store.check_dataset(Labelled())
    with pytest.raises(SoftLabelError, match=message):
        store.check_dataset(dataset)


@pytest.mark.parametrize('index, crops', [(IMAGES, [0]), (0, [CROPS]), (0, [-1])], ids=['image', 'crop', 'negative'])
def test_reading_past_the_end_is_refused(store_path, index, crops):
    with pytest.raises(SoftLabelError, match='expected an image below 6 and crops below 3'):
        SoftLabelStore(store_path).read(index, crops)


def test_more_crops_than_stored_are_refused(store_path):
    store = SoftLabelStore(store_path)
    store.check_crops(CROPS)
    with pytest.raises(SoftLabelError, match='1 to the 3 stored per image .* got 4'):
        store.check_crops(CROPS + 1)


def bad_crops(**changes):
    boxes, flips, labels = random_crops(0)
    labels = labels.copy()
    for (row, value) in changes.get('label', {}).items():
        labels[0, row, 0] = value
    return changes.get('boxes', boxes), flips, labels


@pytest.mark.parametrize('crops, message', [
    (bad_crops(label={0: CLASSES}), 'class indices from 0 to 6'),
    (bad_crops(label={0: -1}), 'class indices from 0 to 6'),
    (bad_crops(label={1: 1.1}), 'probabilities from 0 to 1'),
    (bad_crops(label={1: np.nan}), 'probabilities from 0 to 1'),
    (bad_crops(boxes=np.full((CROPS, 4), 2.)), 'boxes as fractions'),
    (bad_crops(boxes=np.zeros((CROPS - 1, 4))), 'of shapes'),
], ids=['class', 'negative_class', 'probability', 'nan', 'box', 'shape'])
def test_what_does_not_fit_is_not_written(tmp_path, crops, message):
    with pytest.raises(SoftLabelError, match=f'{message}.* image 3'):
        with SoftLabelWriter(tmp_path / 'store', Labelled(), CLASSES, CROPS, K) as writer:
            writer.write(3, *crops)
    assert list(tmp_path.iterdir()) == []


def test_an_incomplete_store_is_not_kept(tmp_path):
    with pytest.raises(SoftLabelError, match='all 6 images .* got 1 .the first missing is 1.'):
        with SoftLabelWriter(tmp_path / 'store', Labelled(), CLASSES, CROPS, K) as writer:
            writer.write(0, *random_crops(0))
    assert list(tmp_path.iterdir()) == []


def test_nothing_appears_at_the_target_before_the_end(tmp_path):
    with SoftLabelWriter(tmp_path / 'store', Labelled(), CLASSES, CROPS, K) as writer:
        for index in range(IMAGES):
            writer.write(index, *random_crops(index))
        assert not (tmp_path / 'store').exists()
    assert [path.name for path in tmp_path.iterdir()] == ['store']


def test_an_older_store_is_replaced_only_by_force(store_path, tmp_path):
    with pytest.raises(SoftLabelError, match='no file or an empty folder .* or force it'):
        write_store(store_path)
    write_store(store_path, teacher='newer', force=True)
    assert SoftLabelStore(store_path).meta['teacher'] == 'newer'
    assert [path.name for path in tmp_path.iterdir()] == ['store']


def test_a_folder_with_other_files_is_never_replaced(tmp_path):
    (tmp_path / 'thesis.tex').write_text('precious')
    with pytest.raises(SoftLabelError, match='thesis.tex; choose another folder, it holds other files'):
        write_store(tmp_path, force=True)
    assert (tmp_path / 'thesis.tex').read_text() == 'precious'


@pytest.mark.parametrize('classes, k, message', [
    (6, 2, 'num_classes from 7 to 7, got 6'),
    (7, 8, 'k from 1 to 7, got 8'),
], ids=['classes', 'k'])
def test_numbers_that_do_not_fit_the_data_set_are_refused(tmp_path, classes, k, message):
    with pytest.raises(SoftLabelError, match=message):
        SoftLabelWriter(tmp_path / 'store', Labelled(), classes, CROPS, k)


def folder_of_images(root, names=('a/0.png', 'a/1.png', 'b/0.png')):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (4, 4)).save(root / name)
    return CustomDataset(data_root=str(root))


def test_the_fingerprint_follows_names_and_labels_and_not_the_place(tmp_path):
    here, there = (dataset_fingerprint(folder_of_images(tmp_path / name)) for name in ('here', 'there'))
    renamed = dataset_fingerprint(folder_of_images(tmp_path / 'renamed', ('a/0.png', 'a/2.png', 'b/0.png')))
    assert here == there != renamed


def test_samples_are_evenly_spaced_with_both_ends():
    chosen = evenly_spaced(100000)
    assert len(chosen) == 4096 and (chosen[0], chosen[-1]) == (0, 99999) and set(np.diff(chosen)) <= {24, 25}
