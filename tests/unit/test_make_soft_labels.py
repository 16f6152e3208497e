"""Making a store: what the teacher sees is what training will see again."""
import numpy as np
import pytest
import timm
import torch
from mmpretrain.datasets import CustomDataset
from PIL import Image

from helpers import build, tiny_vit_config
from vvq_mm.datasets import CropSettings, Digits, MultiCropDataset, SoftLabelStore, make_soft_labels
from vvq_mm.datasets.make_soft_labels import sample_box
from vvq_mm.datasets.teacher_probabilities import input_size, teacher_probabilities
from vvq_mm.errors import SoftLabelError

CROP = CropSettings(size=16, flip_prob=0.5, interpolation='bilinear')
CLASSES, CROPS = 10, 5


class Recorder:
    """A teacher that keeps what it saw; the mean grey level decides the class."""

    def __init__(self):
        self.images = []

    def __call__(self, images):
        self.images.append(images)
        return torch.nn.functional.one_hot(images.float().mean((1, 2, 3)).long() % CLASSES, CLASSES) * 0.9 + 0.01


def make(path, teacher=None, dataset=None, **kwargs):
    dataset = dataset or Digits(indices=8)
    options = {**dict(crop=CROP, topk=3, batch_size=7), **kwargs}
    return make_soft_labels(dataset, teacher or Recorder(), path, CROPS, CLASSES, **options)


def test_training_sees_the_very_pixels_that_the_teacher_saw(tmp_path):
    teacher = Recorder()
    make(tmp_path / 'store', teacher)
    pipeline = [dict(type='vvq_mm.ReplayCrop', scale=16), dict(type='PackInputs', algorithm_keys=('soft_label', ))]
    dataset = MultiCropDataset(Digits(indices=8), pipeline, CROPS, str(tmp_path / 'store'))
    seen = {image.numpy().tobytes() for image in torch.cat(teacher.images)}
    replayed = [crop for i in range(8) for crop in dataset[i]]
    assert {crop['inputs'].numpy().tobytes() for crop in replayed} == seen and len(seen) > 30
    for crop in replayed:
        best = crop['data_samples'].soft_label[0, 0]
        assert best == crop['inputs'].float().mean().long() % CLASSES


@pytest.mark.parametrize('change', [dict(batch_size=1), dict(batch_size=100), dict(num_workers=2)],
                         ids=['single', 'large', 'workers'])
def test_the_store_does_not_depend_on_batch_size_or_workers(tmp_path, change):
    make(tmp_path / 'one')
    make(tmp_path / 'two', **change)
    for name in ('crops.bin', 'checksums.bin', 'meta.json'):
        assert (tmp_path / 'one' / name).read_bytes() == (tmp_path / 'two' / name).read_bytes()


def test_crops_of_an_image_depend_on_seed_and_index_alone(tmp_path):
    make(tmp_path / 'all')
    make(tmp_path / 'first', dataset=Digits(indices=2))
    make(tmp_path / 'other', seed=1)
    boxes = {name: SoftLabelStore(tmp_path / name).read(1, range(CROPS))[0] for name in ('all', 'first', 'other')}
    np.testing.assert_array_equal(boxes['all'], boxes['first'])
    assert (boxes['all'] != boxes['other']).any()


def test_summary_counts_agreement_and_kept_probability(tmp_path):
    def teacher(images):
        return torch.tensor([[0.5, 0.2, 0.2, 0.1] + [0.] * 6]).expand(len(images), -1)

    dataset = Digits(indices=8)
    zeros = np.mean([dataset.get_data_info(i)['gt_label'] == 0 for i in range(8)])
    assert 0 < zeros < 1
    assert make(tmp_path / 'store', teacher, dataset) == pytest.approx(dict(agreement=zeros, mass=0.9), rel=1e-6)


def test_more_top_classes_than_there_are_keeps_all(tmp_path):
    make(tmp_path / 'store', topk=50)
    assert SoftLabelStore(tmp_path / 'store').k == CLASSES


@pytest.mark.parametrize('probability, flips', [(0., {False}), (1., {True}), (0.5, {False, True})],
                         ids=['never', 'always', 'half'])
def test_flips_follow_their_probability(tmp_path, probability, flips):
    make(tmp_path / 'store', crop=CROP._replace(flip_prob=probability))
    store = SoftLabelStore(tmp_path / 'store')
    assert {bool(flip) for i in range(8) for flip in store.read(i, range(CROPS))[1]} == flips


@pytest.mark.parametrize('teacher, message', [
    (lambda images: torch.rand(len(images), 1000), r'shape \(5, 10\) from the teacher, got \(5, 1000\)'),
    (lambda images: torch.full((len(images), 10), 3.), r'sum to 1 from the teacher, got values from 3 to 3'),
    (lambda images: torch.full((len(images), 10), float('nan')), 'values from nan to nan'),
], ids=['classes', 'logits', 'nan'])
def test_a_teacher_that_gives_no_probabilities_leaves_no_store(tmp_path, teacher, message):
    with pytest.raises(SoftLabelError, match=message):
        make(tmp_path / 'store', teacher)
    assert list(tmp_path.iterdir()) == []


def test_an_unreadable_image_is_named_and_leaves_no_store(tmp_path):
    for name in ('a/0.png', 'b/1.png'):
        (tmp_path / 'data' / name).parent.mkdir(parents=True)
        Image.new('RGB', (20, 30)).save(tmp_path / 'data' / name)
    (tmp_path / 'data/b/1.png').write_bytes(b'broken')
    dataset = CustomDataset(data_root=str(tmp_path / 'data'), pipeline=[dict(type='LoadImageFromFile')])
    with pytest.raises(OSError, match='b/1.png'):
        make_soft_labels(dataset, Recorder(), tmp_path / 'store', CROPS, 2, crop=CROP)
    assert [path.name for path in tmp_path.iterdir()] == ['data']


@pytest.mark.parametrize('size', [(375, 500), (10, 1000), (1000, 10), (1, 1)], ids=['photo', 'wide', 'tall', 'pixel'])
def test_boxes_lie_in_the_image_and_have_the_area_and_shape_asked_for(size):
    rng, (height, width), (scale, ratio) = np.random.default_rng(0), size, ((0.08, 0.936), (3 / 4, 4 / 3))
    for _ in range(200):
        top, left, h, w = sample_box(rng, height, width, scale, ratio)
        assert 0 <= top <= height - h and 0 <= left <= width - w and h >= 1 and w >= 1
        if size == (375, 500):
            assert 0.078 < h * w / (375 * 500) < 0.94 and 0.73 < w / h < 1.36


def test_probabilities_of_a_model_of_mmpretrain_use_its_own_preprocessor():
    model = build(tiny_vit_config())
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    expected = model.eval()((images.float() - 127.5) / 127.5).softmax(-1)
    torch.testing.assert_close(teacher_probabilities(model)(images), expected)
    assert input_size(model) == 32


@pytest.mark.parametrize('channels', [1, 3], ids=['grey', 'colour'])
def test_probabilities_of_a_model_of_timm_see_rgb_and_its_own_mean(channels):
    model = timm.create_model('resnet10t', num_classes=4)
    images = torch.randint(0, 256, (2, channels, 32, 32), dtype=torch.uint8)
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ('mean', 'std'))
    expected = (model.eval()((images.float().flip(1) / 255 - mean) / std) / 2).softmax(-1)
    torch.testing.assert_close(teacher_probabilities(model, temperature=2.)(images), expected)
    assert input_size(model) == model.pretrained_cfg['input_size'][-1]


def test_a_model_without_normalisation_is_refused():
    with pytest.raises(TypeError, match='got Linear; write a function'):
        teacher_probabilities(torch.nn.Linear(2, 2))
