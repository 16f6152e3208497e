"""Optional packages, and one interface to whatever runs an exported file."""
import importlib
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from onnx_files import CLASSES, LINEAR, SHAPE, WEIGHT, write_linear

from vvq_mm.errors import QuantizationError
from vvq_mm.export.images import ImageReader, complete_pipeline
from vvq_mm.export.optional import PACKAGES, require
from vvq_mm.export.runtimes import open_runtime
from vvq_mm.models import ExportedClassifier, use_exported_file

ONNX_BACKENDS = pytest.mark.parametrize('backend', ['onnxruntime', 'openvino'])


@pytest.fixture
def linear(tmp_path):
    return write_linear(tmp_path / 'linear.onnx')


def expected(images):
    return images.flatten(1).double().numpy() @ WEIGHT.astype(np.float64)


class TestOptional:
    def test_a_missing_package_is_asked_for_by_name_with_its_purpose(self, monkeypatch):
        def refuse(name):
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)

        monkeypatch.setattr(importlib, 'import_module', refuse)
        with pytest.raises(QuantizationError, match=r"onnxruntime for running ONNX files.*not installed.*vvq_mm\[dep"):
            require('onnxruntime')

    def test_a_package_that_cannot_be_imported_says_why(self, monkeypatch):
        def refuse(name):
            raise ImportError('libfoo.so: cannot open')

        monkeypatch.setattr(importlib, 'import_module', refuse)
        with pytest.raises(QuantizationError, match='cannot be imported .libfoo.so'):
            require('openvino')

    @pytest.mark.parametrize('version', ['1.9.3', '1.19.99', '0.30'])
    def test_an_old_package_is_named_with_the_version_that_works(self, monkeypatch, version):
        monkeypatch.setattr(importlib, 'import_module', lambda name: SimpleNamespace(__version__=version))
        with pytest.raises(QuantizationError, match=rf'onnxruntime {PACKAGES["onnxruntime"].oldest} .*got {version}'):
            require('onnxruntime')

    @pytest.mark.parametrize('version', ['1.20.0', '1.100', '2.0.dev0'])
    def test_the_oldest_and_newer_ones_are_accepted(self, monkeypatch, version):
        module = SimpleNamespace(__version__=version)
        monkeypatch.setattr(importlib, 'import_module', lambda name: module)
        assert require('onnxruntime') is module


class TestOnnxFiles:
    @ONNX_BACKENDS
    @pytest.mark.parametrize('batch', [1, 3])
    def test_logits_are_those_of_the_graph_at_any_batch_size(self, linear, backend, batch):
        images = torch.randn(batch, *SHAPE)
        runtime = open_runtime(linear, backend, threads=1)
        np.testing.assert_allclose(runtime(images).numpy(), expected(images), atol=1e-4)

    @ONNX_BACKENDS
    def test_what_was_returned_stays_when_the_next_batch_comes(self, linear, backend):
        runtime = open_runtime(linear, backend, threads=1)
        images = torch.randn(2, *SHAPE)
        first = runtime(images)
        runtime(-images)
        np.testing.assert_allclose(first.numpy(), expected(images), atol=1e-4)

    @ONNX_BACKENDS
    def test_images_need_not_be_contiguous(self, linear, backend):
        images = torch.randn(2, *SHAPE).transpose(2, 3)
        np.testing.assert_allclose(open_runtime(linear, backend)(images).numpy(), expected(images), atol=1e-4)

    @ONNX_BACKENDS
    def test_the_description_is_that_of_the_file(self, linear, backend):
        assert open_runtime(linear, backend).description == LINEAR

    @ONNX_BACKENDS
    def test_a_graph_from_elsewhere_runs_without_a_description(self, tmp_path, backend):
        runtime = open_runtime(write_linear(tmp_path / 'x.onnx', description=None), backend)
        assert runtime.description is None and runtime(torch.zeros(1, *SHAPE)).shape == (1, CLASSES)

    def test_onnxruntime_is_the_default(self, linear):
        assert open_runtime(linear).backend == 'onnxruntime'

    def test_openvino_computes_in_float32_unless_told(self, linear):
        """Its own default is bfloat16 on CPUs that have it, with logits off by percents."""
        images = torch.randn(8, *SHAPE)
        logits = {name: open_runtime(linear, 'openvino', precision=name)(images) for name in ('float32', 'bfloat16')}
        error = {name: np.abs(values.numpy() - expected(images)).max() for name, values in logits.items()}
        assert error['float32'] < 1e-4 and error['bfloat16'] < 1

    def test_images_of_another_shape_are_refused_with_both_shapes(self, linear):
        with pytest.raises(QuantizationError, match=r'\(B, 1, 8, 8\).*got \(2, 3, 8, 8\)'):
            open_runtime(linear)(torch.zeros(2, 3, 8, 8))


class TestWrongFiles:
    def test_a_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match='expected an exported file at .*no.onnx'):
            open_runtime(tmp_path / 'no.onnx')

    @pytest.mark.parametrize('backend', ['packed', 'integer'])
    def test_an_onnx_file_for_a_packed_backend(self, linear, backend):
        with pytest.raises(QuantizationError, match=f'packed file for the backend {backend}, got an ONNX file.*use the '
                                                    'backend onnxruntime or openvino'):
            open_runtime(linear, backend)

    @ONNX_BACKENDS
    def test_a_checkpoint(self, tmp_path, backend):
        torch.save({}, tmp_path / 'a.pth')
        with pytest.raises(QuantizationError, match='got a PyTorch checkpoint at .*tools/export.py'):
            open_runtime(tmp_path / 'a.pth', backend)

    @ONNX_BACKENDS
    def test_a_truncated_onnx_file(self, linear, backend):
        linear.write_bytes(linear.read_bytes()[:100])
        with pytest.raises(QuantizationError, match=f'a whole ONNX file that {backend} .* can run, got .*linear.onnx'):
            open_runtime(linear, backend)

    def test_an_opset_that_onnxruntime_does_not_know(self, tmp_path):
        with pytest.raises(QuantizationError, match=r'up to \d+, which is what onnxruntime .* got opset 99 .*lower'):
            open_runtime(write_linear(tmp_path / 'new.onnx', opset=99), 'onnxruntime')

    def test_an_opset_that_a_newer_onnxruntime_knows_names_that_one(self, linear, monkeypatch):
        import onnxruntime

        def refuse(*args, **kwargs):  # the words of onnxruntime 1.23
            raise RuntimeError('Opset 25 is under development and support for this is limited. [...] Current official '
                               'support for domain ai.onnx is till opset 23.')

        monkeypatch.setattr(onnxruntime, 'InferenceSession', refuse)
        with pytest.raises(QuantizationError, match=r'up to 23, .* got opset 25 in .*onnxruntime>=1\.24'):
            open_runtime(linear, 'onnxruntime')

    def test_unknown_backend_and_precision(self, linear):
        with pytest.raises(QuantizationError, match='packed, integer, onnxruntime, openvino, got .tensorrt'):
            open_runtime(linear, 'tensorrt')
        with pytest.raises(QuantizationError, match="'bfloat16' with onnxruntime"):
            open_runtime(linear, 'onnxruntime', precision='bfloat16')

    def test_a_damaged_description(self, tmp_path):
        with pytest.raises(QuantizationError, match='expected a description that vvq_mm wrote'):
            ExportedClassifier(write_linear(tmp_path / 'x.onnx', description=['no']))


class TestExportedClassifier:
    def test_predictions_are_the_softmax_of_the_logits_of_normalised_images(self, linear):
        model = ExportedClassifier(linear)
        pixels = torch.randint(0, 256, (2, *SHAPE), dtype=torch.uint8)
        samples = model.test_step(dict(inputs=pixels))
        logits = torch.from_numpy(expected((pixels.double() - 128) / 64))
        for sample, row in zip(samples, logits):
            torch.testing.assert_close(sample.pred_score.double(), row.softmax(0), atol=1e-5, rtol=0)
            assert sample.pred_label.item() == row.argmax()

    def test_the_preprocessor_of_the_config_comes_before_that_of_the_file(self, linear):
        model = ExportedClassifier(linear, data_preprocessor=dict(num_classes=CLASSES, mean=[0.], std=[1.]))
        assert model.data_preprocessor.mean.item() == 0

    @pytest.mark.parametrize('options', [dict(num_classes=7), dict(data_preprocessor=dict(num_classes=7))],
                             ids=['head', 'preprocessor'])
    def test_another_number_of_classes_is_refused(self, linear, options):
        with pytest.raises(QuantizationError, match='the 7 classes of the config, got 4'):
            ExportedClassifier(linear, **options)

    def test_training_is_refused(self, linear):
        with pytest.raises(QuantizationError, match="got 'loss'"):
            ExportedClassifier(linear)(torch.zeros(1, *SHAPE), mode='loss')

    def test_a_class_that_is_not_registered_is_never_imported(self, tmp_path):
        attack = dict(LINEAR, model=dict(LINEAR['model'], data_preprocessor=dict(type='os.system', command='true')))
        with pytest.raises(QuantizationError, match='os.system'):
            ExportedClassifier(write_linear(tmp_path / 'x.onnx', attack))

    def test_a_config_loses_its_model_and_the_hooks_that_look_into_it(self):
        cfg = Config(dict(
            model=dict(type='vvq_mm.QATImageClassifier', head=dict(num_classes=CLASSES)), load_from='x.pth',
            data_preprocessor=dict(mean=[1.], std=[2.]),
            default_hooks=dict(oscillation=dict(type='vvq_mm.OscillationHook'), logger=dict(type='LoggerHook')),
            custom_hooks=[dict(type='EMAHook'), dict(type='vvq_mm.SafeCheckpointHook')]))
        use_exported_file(cfg, 'x.onnx', 'openvino')
        assert cfg.model == dict(type='vvq_mm.ExportedClassifier', file='x.onnx', backend='openvino',
                                 data_preprocessor=dict(mean=[1.], std=[2.]), num_classes=CLASSES)
        assert list(cfg.default_hooks) == ['logger'] and cfg.load_from is None
        assert [hook.type for hook in cfg.custom_hooks] == ['vvq_mm.SafeCheckpointHook']


class TestImages:
    def describe(self, shape, *pipeline):
        return dict(input_shape=list(shape), pipeline=[dict(type=name) for name in pipeline])

    def test_a_pipeline_of_arrays_is_completed_to_one_of_files(self):
        steps = complete_pipeline(self.describe((3, 16, 24), 'PackInputs'))
        assert steps[0] == dict(type='LoadImageFromFile', color_type='color')
        assert steps[1]['type'] == 'Resize' and steps[1]['scale'] == (24, 16)  # width, height

    def test_a_complete_pipeline_stays_as_it_is(self):
        pipeline = self.describe((3, 16, 16), 'LoadImageFromFile', 'CenterCrop', 'PackInputs')
        assert complete_pipeline(pipeline) == pipeline['pipeline']

    def test_grey_images_keep_their_values(self, tmp_path):
        pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / 'grey.png'), pixels)
        image = ImageReader(LINEAR)(tmp_path / 'grey.png')['inputs']
        assert image.shape == SHAPE and np.array_equal(image[0].numpy(), pixels)

    def test_colour_images_are_resized_to_the_input(self, tmp_path):
        cv2.imwrite(str(tmp_path / 'colour.png'), np.full((40, 30, 3), (1, 2, 3), np.uint8))
        image = ImageReader(self.describe((3, 16, 24), 'PackInputs'))(tmp_path / 'colour.png')['inputs']
        assert image.shape == (3, 16, 24) and image[:, 5, 5].tolist() == [1, 2, 3]

    def test_missing_and_unreadable_images_are_named(self, tmp_path):
        read = ImageReader(LINEAR)
        with pytest.raises(FileNotFoundError, match='no.png'):
            read(tmp_path / 'no.png')
        for content in (b'', b'not an image'):
            (tmp_path / 'text.png').write_bytes(content)
            with pytest.raises(QuantizationError, match='an image that can be read at .*text.png'):
                read(tmp_path / 'text.png')

    def test_other_channels_are_refused(self):
        with pytest.raises(QuantizationError, match='1 or 3 channels, got one of 5'):
            ImageReader(self.describe((5, 8, 8), 'PackInputs'))

    def test_a_transform_that_is_not_registered_is_never_imported(self):
        with pytest.raises(QuantizationError, match='os.system'):
            ImageReader(self.describe((1, 8, 8), 'os.system'))
