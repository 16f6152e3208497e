"""What a user may get wrong, through the Runner: a sentence says what was expected, and what came where."""
import json
import shutil

import numpy as np
import pytest
import tool_runs
import torch
from helpers import build, tiny_vit_config
from mmengine.hooks import Hook
from PIL import Image
from qat_config import SOFT_LABELS, make_digit_labels, qat_config, qat_hooks
from runner_config import run

from vvq_mm.datasets.soft_label_store import meta_checksum
from vvq_mm.errors import CheckpointError, QuantizationError, QuantizerNotReady, SoftLabelError, TrainingDiverged
from vvq_mm.registry import HOOKS


@pytest.fixture(scope='module')
def labels(tmp_path_factory):
    return make_digit_labels(tmp_path_factory.mktemp('labels'))


def refuse(config, error, message):
    """Run ``config``, expect an error, and look that the run has left no checkpoint."""
    config.work_dir = f'{config.work_dir}/work'
    with pytest.raises(error, match=message):
        run(config, config.work_dir)
    assert not list(tool_runs.Path(config.work_dir).rglob('*.pth'))


# ---- the policy

POLICIES = dict(
    bits_too_few=(dict(weight=dict(bits=1)), 'bits to be an integer from 2 to 8, got 1 for backbone.*weight'),
    bits_too_many=(dict(act=dict(bits=9)), 'bits to be an integer from 2 to 8, got 9 for backbone.*query'),
    bits_not_whole=(dict(weight=dict(bits=2.5)), 'bits to be an integer from 2 to 8, got 2.5 for'),
    bits_of_a_rule=(dict(rules={'head.*': 16}),
                    r'bits to be an integer from 2 to 8, got 16 for head.layers.head \(weight\).*set it to None'),
    rule_without_match=(dict(rules={'*.qkw': 4}),
                        r"the rule '\*.qkw' to match .* it matches none; the nearest names are .*attn.*print_plan"),
    unknown_slot=(dict(rules={'*.attn.qkv': dict(wieght=4)}),
                  r"a slot of .*attn.qkv \(input, weight; act for all activations\), got 'wieght'"),
    slot_of_another_module=(dict(rules={'*.attn.proj': dict(prob=4)}),
                            "a slot of .*attn.proj .*, got 'prob' in the rule"),
)


@pytest.mark.parametrize('change, message', POLICIES.values(), ids=POLICIES)
def test_a_wrong_policy_is_refused(labels, tmp_path, change, message):
    config = qat_config(tmp_path, labels)
    config.merge_from_dict(dict(model=dict(policy=change)))
    refuse(config, QuantizationError, message)


def test_mixing_images_with_stored_soft_labels_is_refused(labels, tmp_path):
    config = qat_config(tmp_path, labels)
    config.model.train_cfg = dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)])
    message = r'no batch augmentation together with stored soft labels, got Mixup, CutMix in .*train_cfg=None'
    refuse(config, QuantizationError, message)


# ---- forward before calibration

@pytest.mark.parametrize('others', [(), ('Oscillation', ), ('Oscillation', 'AccuracyReport')],
                         ids=['all_other_hooks', 'no_tracking', 'no_evaluation'])
def test_training_without_calibration_is_refused(labels, tmp_path, others):
    hooks = {name: hook for name, hook in qat_hooks().items() if name not in ('Calibrate', *others)}
    message = r'calibrated .*, got none for backbone.*vvq_mm.CalibrateHook'
    refuse(qat_config(tmp_path, labels, hooks=hooks), QuantizerNotReady, message)


# ---- checkpoints

def other_depth(path):
    torch.save(dict(state_dict=build(tiny_vit_config(classes=10, layers=3, in_channels=1)).state_dict()), path)


def other_granularity(path):
    config = qat_config(path.parent, None, bits=2).model
    config.data_preprocessor.type = 'ClsDataPreprocessor'
    config.policy.rules['*.qkv'] = dict(weight=dict(granularity='channel'))
    torch.save(dict(state_dict=build(config).state_dict()), path)


def truncated(path):
    other_depth(path)
    path.write_bytes(path.read_bytes()[:5000])


def unsafe(path):
    torch.save(dict(state_dict={}, extra=print), path)


CHECKPOINTS = [
    (other_depth, CheckpointError,
     r'given.pth to fit QATImageClassifier, but the model has no `backbone.layers.2.*use the config'),
    (other_granularity, QuantizationError,
     r'3 scale\(s\) for backbone.layers.0.attn.qkv \(weight\), the checkpoint has 96.*use its policy'),
    (truncated, CheckpointError, r'given.pth \(5000 bytes\) cannot be read: it is truncated.*download it again'),
    (unsafe, CheckpointError, r'tensors and builtins alone, but .*given.pth needs .*print.*--trust-checkpoint'),
]


@pytest.mark.parametrize('write, error, message', CHECKPOINTS, ids=lambda value: getattr(value, '__name__', ''))
def test_a_checkpoint_that_cannot_be_used_is_refused(labels, tmp_path, write, error, message):
    write(tmp_path / 'given.pth')
    refuse(qat_config(tmp_path, labels, load_from=str(tmp_path / 'given.pth')), error, message)


# ---- stored soft labels

def edit_meta(store, **changes):
    meta = {**json.loads((store / 'meta.json').read_text()), **changes}
    (store / 'meta.json').write_text(json.dumps({**meta, 'checksum': meta_checksum(meta)}))


def flip_byte(store):
    content = bytearray((store / 'crops.bin').read_bytes())
    content[0] ^= 1
    (store / 'crops.bin').write_bytes(content)


STORES = dict(
    missing=(shutil.rmtree,
             r'a store of soft labels with a meta.json, got none in .*; make one with tools/soft_labels.py'),
    truncated=(lambda store: (store / 'crops.bin').write_bytes(b'cut'),
               r'bytes in .*crops.bin, got 3 bytes; the store is truncated'),
    other_version=(lambda store: edit_meta(store, version=7),
                   r'a store of version 1, got version 7 in .*meta.json; make it again'),
    other_checksum=(flip_byte, r'checksum \w+ for the crops of image 0 in .*, got \w+; the store is damaged'),
    other_number_of_classes=(lambda store: edit_meta(store, num_classes=12),
                             'classes 12.*, got Digits with classes 10; give the store'),
    class_out_of_range=(lambda store: edit_meta(store, num_classes=3), r'class indices below 3, got \d for image 0 in'),
)


@pytest.mark.parametrize('damage, message', STORES.values(), ids=STORES)
def test_a_store_that_cannot_be_used_is_refused(labels, tmp_path, damage, message):
    store = tmp_path / SOFT_LABELS
    shutil.copytree(labels, store)
    damage(store)
    refuse(qat_config(tmp_path, store), SoftLabelError, message)


DATA = dict(
    other_data_set=(dict(dataset=dict(split='test')),
                    'fingerprint .*, got Digits with fingerprint .*give the store of this data set'),
    other_number_of_images=(dict(dataset=dict(indices=11)), 'images 12.*, got Digits with images 11'),
    more_crops_than_stored=(dict(num_crops=4),
                            'num_crops from 1 to the 3 stored per image in .*, got 4; ask for fewer'),
    random_crops=(dict(pipeline=[dict(type='RandomResizedCrop', scale=32), dict(type='PackInputs')]),
                  'vvq_mm.ReplayCrop'),
)


@pytest.mark.parametrize('change, message', DATA.values(), ids=DATA)
def test_data_that_the_store_was_not_made_for_is_refused(labels, tmp_path, change, message):
    config = qat_config(tmp_path, labels)
    config.merge_from_dict(dict(train_dataloader=dict(dataset=change)))
    refuse(config, SoftLabelError, message)


def test_a_model_of_fewer_classes_than_the_labels_is_refused(labels, tmp_path):
    config = qat_config(tmp_path, labels)
    config.model.head.num_classes = 6
    config.val_cfg = config.val_dataloader = config.val_evaluator = None
    refuse(config, SoftLabelError, r'class indices below the 6 classes of the model, got \d in the soft labels')


# ---- during training

@HOOKS.register_module()
class BreakScaleHook(Hook):
    """Stands for a step of training that diverges: breaks a scale in the second iteration."""

    priority = 'VERY_HIGH'  # as the optimizer's step, before other hooks look

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if runner.iter == 1:
            runner.model.backbone.layers[0].attn.qkv.weight_quantizer.scale.data.fill_(float('nan'))


def test_a_run_that_diverges_stops_with_iteration_and_layer(labels, tmp_path):
    hooks = dict(break_scale=dict(type='vvq_mm.BreakScaleHook'), **qat_hooks())
    config = qat_config(tmp_path, labels, hooks=hooks)
    message = r'in iteration 2: .*is that of backbone.layers.0.attn.qkv \(weight\), after iteration 2'
    with pytest.raises(TrainingDiverged, match=message):
        run(config, 'diverges')
    assert sorted(file.name for file in tmp_path.glob('*.pth')) == ['iter_1.pth'], 'none of the broken state'


def test_a_loss_that_is_not_finite_stops_with_its_iteration(labels, tmp_path):
    config = qat_config(tmp_path, labels, hooks=dict(check=qat_hooks()['CheckFinite']))
    config.model.data_preprocessor.std, config.model.policy = [0.0], None
    refuse(config, TrainingDiverged, 'the loss was NaN or infinite in iteration 1; all scales were finite')


@pytest.fixture
def images(tmp_path):
    """The config of a run on a folder of pictures of which one is cut off."""
    for index in range(4):
        path = tmp_path / 'images' / str(index % 2) / f'{index}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40, 40, 3), index, dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:20])
    config = qat_config(tmp_path / 'run', None)
    config.model.update(backbone=dict(config.model.backbone, in_channels=3), distiller=None)
    dataset = dict(type='CustomDataset', data_root=str(tmp_path / 'images'), pipeline=[dict(type='LoadImageFromFile')])
    crops = [dict(type='RandomResizedCrop', scale=32), dict(type='PackInputs')]
    config.train_dataloader.dataset = dict(type='vvq_mm.MultiCropDataset', dataset=dataset, pipeline=crops, num_crops=2)
    config.val_cfg = config.val_dataloader = config.val_evaluator = None
    return config


def test_an_unreadable_image_is_named(images):
    refuse(images, OSError, r'expected .*image, got .* for .*images/1/3.png; restore the file')


# ---- at the command line

@pytest.mark.slow
@pytest.mark.parametrize('option, sentence', [
    ('model.policy.weight.bits=1', 'QuantizationError: expected bits to be an integer from 2 to 8, got 1 for'),
    ('train_dataloader.dataset.soft_labels=nowhere', 'SoftLabelError: expected a store of soft labels with a'),
], ids=['bits', 'store'])
def test_the_tool_ends_in_one_sentence(labels, tmp_path, option, sentence):
    qat_config('work', labels).dump(str(tmp_path / 'config.py'))
    one_sentence(tool_runs.train('config.py', '--cfg-options', option, cwd=tmp_path, expect=1), sentence)
    assert not list(tmp_path.rglob('*.pth'))


@pytest.mark.slow
def test_an_unreadable_image_in_a_worker_process_ends_in_one_sentence(images, tmp_path):
    images.train_dataloader.num_workers = 1
    images.dump(str(tmp_path / 'config.py'))
    output = tool_runs.train('config.py', cwd=tmp_path, expect=1)
    assert one_sentence(output, 'OSError: expected').split(';')[0].endswith('3.png')


def one_sentence(output, start):
    last = output.strip().splitlines()[-1]
    assert last.startswith(start) and 'Traceback' not in output, output
    return last
