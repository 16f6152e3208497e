"""tools/test.py --backend and tools/predict.py, as a user runs them, on the digits of the shipped configs."""
import pickle
import re
import sys

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmpretrain.utils import register_all_modules
from onnx_files import LINEAR, write_linear
from shipped import CONFIGS
from tool_runs import REPOSITORY, run_tool
from tool_runs import test as run_test

import vvq_mm
from vvq_mm.datasets import Digits

pytestmark = pytest.mark.slow
CONFIG = CONFIGS / 'digits' / 'vit_w4a4.py'  # with hooks that look into the network
SMALL = ['--cfg-options', 'test_dataloader.dataset.size=8']


def predict(*arguments, **options):
    return run_tool(sys.executable, REPOSITORY / 'tools' / 'predict.py', *arguments, **options)


def digits(split='test', size=8):
    """Return images (N, 1, size, size), float64 from 0 to 255, and labels."""
    dataset = Digits(split, size=size, pipeline=[])
    return np.stack([item['img'][None, ..., 0] for item in dataset]).astype(float), dataset.get_gt_labels()


def write_images(folder, size, step):
    """Write every ``step``-th test digit as a PNG, bright on dark as the data set has them, and return the paths."""
    paths = []
    for index, image in enumerate(digits(size=size)[0][::step]):
        paths.append(folder / f'{index:03}.png')
        assert cv2.imwrite(str(paths[-1]), image[0])
    return paths


def rows(output):
    """Return the lines of the table below its head."""
    return [line for line in output.splitlines() if line.endswith(' %')]


@pytest.fixture(scope='module')
def linear(tmp_path_factory):
    """An ONNX file of least squares on 8 x 8 digits, a folder to run in, and its logits of the test images."""
    pytest.importorskip('onnxruntime')
    folder = tmp_path_factory.mktemp('linear')
    (train, labels), (test, _) = digits('train'), digits()
    train, test = (((images - 78) / 96).reshape(len(images), -1) for images in (train, test))
    weight = 4 * np.linalg.lstsq(train, np.eye(10)[labels], rcond=None)[0]
    model = dict(type='ImageClassifier', data_preprocessor=dict(type='ClsDataPreprocessor', mean=[78.], std=[96.]))
    description = dict(LINEAR, model=model, num_classes=10, classes=None)
    write_linear(folder / 'linear.onnx', description, weight=weight)
    return folder, test @ weight


@pytest.fixture(scope='module')
def packed(tmp_path_factory):
    """A folder with a packed file and the checkpoint it was made of: calibrated, not trained."""
    from vvq_mm.export.description import describe
    from vvq_mm.export.packed import save_packed
    from vvq_mm.utils.evaluate import build_batches, build_model, calibration_images
    register_all_modules()
    folder = tmp_path_factory.mktemp('packed')
    cfg = Config.fromfile(CONFIG)
    model = build_model(cfg, cfg.load_from)
    vvq_mm.calibrate(model, calibration_images(model, build_batches(cfg.val_dataloader, 64), 1))
    torch.save(dict(state_dict=model.state_dict(), meta={}), folder / 'model.pth')
    save_packed(model, folder / 'model.safetensors', describe(cfg, model, (1, 32, 32)))
    return folder


def evaluated(folder, *arguments):
    """Return accuracy and predicted probabilities of tools/test.py."""
    out = folder / 'predictions.pkl'
    log = run_test(CONFIG, *arguments, '--work-dir', folder / 'work', '--out', out, cwd=folder)
    scores = np.stack([np.asarray(item['pred_score']) for item in pickle.loads(out.read_bytes())])
    return float(re.findall(r'accuracy/top1: (\d+\.\d+)', log)[-1]), scores


@pytest.mark.parametrize('backend', ['onnxruntime', 'openvino'])
def test_the_accuracy_is_that_of_the_graph_on_the_test_set_of_the_config(linear, backend):
    pytest.importorskip(backend)
    folder, logits = linear
    accuracy, scores = evaluated(folder, 'linear.onnx', '--backend', backend, *SMALL)
    expected = torch.from_numpy(logits).softmax(-1)
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert accuracy == pytest.approx(100 * (logits.argmax(-1) == digits()[1]).mean(), abs=1e-3)


def test_a_packed_file_tests_like_its_checkpoint(packed):
    accuracy, scores = evaluated(packed, 'model.pth')
    packed_accuracy, packed_scores = evaluated(packed, 'model.safetensors', '--backend', 'packed')
    assert packed_accuracy == accuracy and np.array_equal(packed_scores, scores)


def test_images_in_files_get_the_classes_of_the_data_set(packed):
    images = write_images(packed, size=32, step=9)
    table = rows(predict('model.safetensors', *images, '--batch-size', 7, cwd=packed))
    scores = evaluated(packed, 'model.safetensors', '--backend', 'packed')[1]
    assert [int(row.split()[1]) for row in table if '.png' in row] == scores[::9].argmax(-1).tolist()


def test_the_classes_of_an_onnx_file_are_printed_best_first(linear):
    folder, logits = linear
    images = write_images(folder, size=8, step=120)
    table = rows(predict('linear.onnx', *images, '--topk', 2, cwd=folder))
    best = torch.from_numpy(logits[::120]).softmax(-1).topk(2)
    expected = [f'{label} {100 * score:.1f} %' for score, label in zip(best.values.ravel(), best.indices.ravel())]
    assert [' '.join(row.split()[-3:]) for row in table] == expected
    assert len({len(row) for row in table}) == 1


@pytest.mark.parametrize('command, error', [
    (('predict', 'linear.onnx', 'no.png'), 'FileNotFoundError: expected an image at no.png'),
    (('predict', 'linear.onnx', 'linear.onnx'), 'QuantizationError: expected an image that can be read at linear.onnx'),
    (('test', CONFIG, CONFIGS / 'digits' / 'vit_fp32.pth', '--backend', 'onnxruntime'),
     'QuantizationError: expected an ONNX file for the backend onnxruntime, got a PyTorch checkpoint'),
    (('test', CONFIG, 'linear.onnx', '--backend', 'onnxruntime', '--cfg-options', 'model.head.num_classes=7'),
     'QuantizationError: expected a file with the 7 classes of the config, got 10 in linear.onnx'),
    (('test', CONFIG, 'linear.onnx', '--backend', 'onnxruntime'),
     'QuantizationError: expected images of shape (B, 1, 8, 8) for linear.onnx, got (360, 1, 32, 32)'),
], ids=['no image', 'not an image', 'checkpoint', 'classes', 'shape'])
def test_what_cannot_work_ends_in_a_sentence(linear, command, error):
    tool, *arguments = command
    output = dict(predict=predict, test=run_test)[tool](*arguments, cwd=linear[0], expect=1)
    assert output.strip().splitlines()[-1].startswith(error) and 'Traceback' not in output
