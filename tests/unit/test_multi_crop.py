"""Several crops per image: their pixels, their labels, their randomness, their batch."""
import copy
import random

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from mmengine.registry import DATASETS, FUNCTIONS
from mmpretrain.datasets import CustomDataset
from mmpretrain.models import ClsDataPreprocessor
from PIL import Image
from torch.utils.data import DataLoader

from vvq_mm.datasets import (Digits, Draw, MultiCropDataset, ReplayCrop, ResumableSampler, SoftLabelWriter,
                             flatten_collate)
from vvq_mm.errors import SoftLabelError

PACK = dict(type='PackInputs')
PACK_LABEL = dict(type='PackInputs', algorithm_keys=('soft_label', ))
RANDOM = [dict(type='RandomResizedCrop', scale=24), dict(type='RandomFlip', prob=0.5), PACK]
STORED = 6


def use_every_generator(results):
    """A transform that draws from all three generators; mmpretrain's own are divided among them."""
    results['img'] = np.full((2, 2, 1), 256 * random.random() // 1, np.uint8)
    results['img'][0] = 256 * np.random.rand() // 1
    results['img'][1, 1] = 256 * torch.rand(()).item() // 1
    return results


def digits(**kwargs):
    return MultiCropDataset(dict(type='vvq_mm.Digits', indices=12), **{**dict(pipeline=RANDOM, num_crops=3), **kwargs})


@pytest.fixture
def store_path(tmp_path):
    """Labels of 12 digits: crop c of image i is row c, mirrored if c is odd, of class (i + c) modulo 10."""
    dataset = Digits(indices=12)
    with SoftLabelWriter(tmp_path / 'store', dataset, 10, STORED, 1) as writer:
        for i in range(12):
            c = np.arange(STORED)
            boxes = np.stack([c / 32, np.zeros(STORED), np.full(STORED, 0.5), np.ones(STORED)], 1)
            labels = np.stack([(i + c) % 10, np.full(STORED, 0.5)], 1)[..., None]
            writer.write(i, boxes, c % 2, labels)
    return str(tmp_path / 'store')


def stored_digits(path, **kwargs):
    pipeline = [dict(type='vvq_mm.ReplayCrop', scale=16), PACK_LABEL]
    return digits(**{**dict(pipeline=pipeline, soft_labels=path, num_crops=4), **kwargs})


def image_of(seed, height=75, width=100, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize('flip', [False, True], ids=['plain', 'mirrored'])
@pytest.mark.parametrize('channels', [1, 3], ids=['grey', 'colour'])
@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic', 'nearest'])
def test_pixels_are_those_of_torchvision_on_the_pil_image(channels, interpolation, flip):
    image, (top, left, height, width) = image_of(0, channels=channels), (10, 20, 43, 57)
    box = np.array([top, left, height, width]) / (75, 100, 75, 100)
    ours = ReplayCrop((32, 40), interpolation)(dict(img=image, crop_box=box, stored_flip=flip))
    pil = Image.fromarray(image.squeeze())
    expected = TF.resized_crop(pil, top, left, height, width, (32, 40), TF.InterpolationMode(interpolation))
    expected = np.asarray(TF.hflip(expected) if flip else expected).reshape(32, 40, channels)
    np.testing.assert_array_equal(ours['img'], expected)
    assert ours['img'].dtype == np.uint8 and ours['img'].flags.c_contiguous
    assert (ours['img_shape'], ours['flip']) == ((32, 40), flip)


@pytest.mark.parametrize('channels', [1, 3], ids=['grey', 'colour'])
def test_torch_backend_differs_by_at_most_one_grey_level(channels):
    results = dict(img=image_of(0, channels=channels), crop_box=(0.1, 0.2, 0.7, 0.6), stored_flip=True)
    pillow, fast = (ReplayCrop(24, backend=name)(dict(results))['img'].astype(int) for name in ('pillow', 'torch'))
    assert pillow.shape == fast.shape and np.abs(pillow - fast).max() <= 1


def test_a_two_dimensional_image_stays_two_dimensional():
    assert ReplayCrop(6)(dict(img=image_of(0)[..., 0], crop_box=(0, 0, 1, 1)))['img'].shape == (6, 6)


def test_a_box_that_ends_outside_is_cut_at_the_edge():
    image = image_of(0, 8, 8)
    ours = ReplayCrop(4, 'nearest')(dict(img=image, crop_box=(0.5, 0.5, 0.6, 0.6)))['img']
    np.testing.assert_array_equal(ours, image[4:, 4:])


def test_unknown_interpolation_is_named():
    with pytest.raises(ValueError, match="got 'torch' and 'lanczos'"):
        ReplayCrop(4, 'lanczos', 'torch')


def test_an_item_is_a_list_of_packed_crops_of_one_image():
    item = digits()[Draw(5, seed=1)]
    assert [tuple(crop['inputs'].shape) for crop in item] == [(1, 24, 24)] * 3
    assert {crop['data_samples'].sample_idx for crop in item} == {5}
    assert {crop['data_samples'].gt_label.item() for crop in item} == {Digits(indices=12).get_data_info(5)['gt_label']}


def test_the_image_is_loaded_once_per_visit(monkeypatch):
    dataset, loads = digits(num_crops=4), []
    monkeypatch.setattr(dataset.dataset, 'pipeline', lambda info: loads.append(1) or info)
    dataset[0]
    assert len(loads) == 1


def test_a_transform_that_writes_into_its_image_spoils_no_other_crop():
    def blacken(results):
        seen.append(results['img'].max())
        results['img'][:] = 0
        return results

    seen = []
    digits(pipeline=[blacken, PACK])[0]
    assert min(seen) > 0


def test_crops_are_a_function_of_the_seed_alone():
    dataset = digits(pipeline=[use_every_generator, PACK])
    first = [crop['inputs'] for crop in dataset[Draw(0, seed=9)]]
    dataset[Draw(3, seed=4)], torch.rand(5), np.random.rand(), random.random()
    assert all(torch.equal(a, b['inputs']) for a, b in zip(first, dataset[Draw(0, seed=9)]))
    assert not torch.equal(first[0], dataset[Draw(0, seed=10)][0]['inputs'])
    assert not torch.equal(first[0], first[1])


def test_a_visit_leaves_the_generators_alone():
    def states():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before = states()
    digits(pipeline=[use_every_generator, PACK])[0]
    assert states() == before


def batches(dataset, num_workers):
    sampler = ResumableSampler(dataset, seed=2)
    sampler.set_epoch(1)
    loader = DataLoader(dataset, 5, sampler=sampler, num_workers=num_workers, collate_fn=flatten_collate)
    return [batch['inputs'] for batch in loader]


@pytest.mark.parametrize('pipeline', [RANDOM, [use_every_generator, PACK]], ids=['mmpretrain', 'all_generators'])
def test_batches_do_not_depend_on_the_number_of_workers(pipeline):
    alone, two = (batches(digits(pipeline=pipeline), workers) for workers in (0, 2))
    assert len(alone) == 3 and all(torch.equal(a, b) for a, b in zip(alone, two))


def test_stored_labels_arrive_with_their_own_crop(store_path):
    image = Digits(indices=12).get_data_info(7)['img'][..., 0]
    for crop in stored_digits(store_path)[Draw(7, seed=3)]:
        label = crop['data_samples'].soft_label
        assert label.dtype == torch.float32 and label.shape == (2, 1) and label[1, 0] == 0.5
        stored = int(label[0, 0] - 7) % 10
        expected = TF.resized_crop(Image.fromarray(image), stored, 0, 16, 32, (16, 16))
        expected = TF.hflip(expected) if stored % 2 else expected
        np.testing.assert_array_equal(crop['inputs'][0].numpy(), np.asarray(expected))


def test_stored_crops_are_drawn_without_replacement_and_all_of_them_over_time(store_path):
    dataset = stored_digits(store_path)
    visits = [[int(crop['data_samples'].soft_label[0, 0]) for crop in dataset[Draw(0, seed)]] for seed in range(20)]
    assert all(len(set(visit)) == 4 for visit in visits)
    assert {crop for visit in visits for crop in visit} == set(range(STORED))


def test_stored_labels_do_not_depend_on_the_number_of_workers(store_path):
    alone, two = (batches(stored_digits(store_path), workers) for workers in (0, 2))
    assert all(torch.equal(a, b) for a, b in zip(alone, two))


@pytest.mark.parametrize('change, message', [
    (dict(num_crops=STORED + 1), 'num_crops from 1 to the 6 stored .* got 7'),
    (dict(pipeline=RANDOM), 'vvq_mm.ReplayCrop.* got .*RandomResizedCrop'),
    (dict(pipeline=[dict(type='vvq_mm.ReplayCrop', scale=16), PACK]), 'algorithm_keys=.*soft_label'),
    (dict(dataset=dict(type='vvq_mm.Digits', indices=11)), 'images 12.* got Digits with images 11'),
    (dict(soft_labels='/no/such/store'), 'got none in /no/such/store'),
], ids=['crops', 'random_crops', 'label_not_packed', 'data_set', 'missing'])
def test_a_store_that_does_not_fit_is_refused_at_once(store_path, change, message):
    arguments = dict(dataset=dict(type='vvq_mm.Digits', indices=12), soft_labels=store_path, num_crops=2,
                     pipeline=[dict(type='vvq_mm.ReplayCrop', scale=16), PACK_LABEL])
    with pytest.raises(SoftLabelError, match=message):
        MultiCropDataset(**{**arguments, **change})


def image_folder(root):
    """Two classes of two images, of which a/broken.png is none and b/empty.png has no bytes."""
    for name in ('a/fine.png', 'a/broken.png', 'b/fine.png', 'b/empty.png'):
        (root / name).parent.mkdir(exist_ok=True)
        Image.new('RGB', (8, 8)).save(root / name)
    (root / 'a/broken.png').write_bytes(b'not an image')
    (root / 'b/empty.png').write_bytes(b'')
    return CustomDataset(data_root=str(root), pipeline=[dict(type='LoadImageFromFile')])


@pytest.mark.parametrize('name', ['a/broken.png', 'b/empty.png', 'b/fine.png'], ids=['broken', 'empty', 'deleted'])
def test_an_unreadable_image_is_named(tmp_path, name):
    inner = image_folder(tmp_path)
    (tmp_path / 'b/fine.png').unlink()
    index = [inner.get_data_info(i)['img_path'].endswith(name) for i in range(4)].index(True)
    with pytest.raises(OSError, match=f'expected a readable image, got .*{name}'):
        MultiCropDataset(inner, RANDOM)[index]


def test_an_unreadable_image_is_named_by_a_worker_too(tmp_path):
    with pytest.raises(OSError, match='expected a readable image.*(broken|empty).png'):
        list(DataLoader(MultiCropDataset(image_folder(tmp_path), RANDOM), collate_fn=flatten_collate, num_workers=1))


def test_a_loader_that_returns_none_is_an_error_and_not_another_image(tmp_path):
    inner = image_folder(tmp_path)
    inner.pipeline.transforms[0].ignore_empty = True
    (tmp_path / 'a/fine.png').unlink()
    index = [inner.get_data_info(i)['img_path'].endswith('a/fine.png') for i in range(4)].index(True)
    with pytest.raises(OSError, match='expected an image, got none for .*a/fine.png'):
        MultiCropDataset(inner, RANDOM)[index]


def test_a_pipeline_that_does_not_pack_is_named():
    with pytest.raises(ValueError, match="end with PackInputs, got dict without 'inputs' for image 2 of Digits"):
        digits(pipeline=RANDOM[:1])[2]


def test_a_wrapper_without_a_pipeline_is_named():
    with pytest.raises(TypeError, match='got RepeatDataset; put MultiCropDataset inside'):
        MultiCropDataset(dict(type='RepeatDataset', times=2, dataset=dict(type='vvq_mm.Digits', indices=2)), RANDOM)[0]


def test_no_crops_are_refused():
    with pytest.raises(ValueError, match='num_crops of at least 1, got 0'):
        digits(num_crops=0)


def test_building_changes_no_config_and_lazy_init_waits():
    inner = dict(type='vvq_mm.Digits', lazy_init=True)
    config = dict(type='vvq_mm.MultiCropDataset', dataset=inner, pipeline=[dict(PACK)], lazy_init=True)
    before = copy.deepcopy(config)
    dataset = DATASETS.build(config)
    assert config == before and not dataset.dataset._fully_initialized
    assert len(dataset) == 1437 and dataset.metainfo['classes'] == tuple('0123456789') and dataset.get_cat_ids(0) == [0]


def test_a_batch_is_image_after_image_and_what_mmpretrain_takes():
    dataset = digits()
    batch = FUNCTIONS.get('vvq_mm.flatten_collate')([dataset[4], dataset[2]])
    assert batch['inputs'].shape == (6, 1, 24, 24) and batch['inputs'].dtype == torch.uint8
    assert [sample.sample_idx for sample in batch['data_samples']] == [4, 4, 4, 2, 2, 2]
    ready = ClsDataPreprocessor(mean=[127.5], std=[127.5])(batch, training=True)
    assert ready['inputs'].dtype == torch.float32 and len(ready['data_samples']) == 6


def test_crops_of_different_sizes_stay_a_list():
    batch = flatten_collate([dict(inputs=torch.zeros(1, size, size)) for size in (4, 5)])
    assert [tuple(image.shape) for image in batch['inputs']] == [(1, 4, 4), (1, 5, 5)]
