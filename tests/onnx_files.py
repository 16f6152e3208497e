"""A network small enough to check by hand, in an ONNX file as the exporter would describe it."""
import json

import numpy as np
import pytest

CLASSES, SHAPE = 4, (1, 8, 8)
WEIGHT = np.random.default_rng(0).normal(size=(64, CLASSES)).astype(np.float32)
LINEAR = dict(
    format='vvq_mm',
    version=1,
    vvq_mm='0.1.0',
    model=dict(type='ImageClassifier', data_preprocessor=dict(type='ClsDataPreprocessor', mean=[128.], std=[64.])),
    plan=dict(configs=[], slots={}, matmul='float', strict=False),
    classes=['ant', 'bee', 'cat', 'dog'],
    num_classes=CLASSES,
    input_shape=list(SHAPE),
    pipeline=[dict(type='PackInputs')])


def write_linear(path, description=LINEAR, opset=21, weight=WEIGHT):
    """Write logits = flattened images @ ``weight`` and return the path; skips the test without the runtimes."""
    onnx = [pytest.importorskip(name) for name in ('onnxruntime', 'openvino', 'onnx')][-1]
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT

    graph = helper.make_graph(
        [helper.make_node('Flatten', ['images'], ['pixels']), helper.make_node('MatMul', ['pixels', 'W'], ['logits'])],
        'linear',
        [helper.make_tensor_value_info('images', float32, ['batch', *SHAPE])],
        [helper.make_tensor_value_info('logits', float32, ['batch', weight.shape[1]])],
        [helper.make_tensor('W', float32, weight.shape, weight.ravel())])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', opset)], ir_version=10)
    if description is not None:
        helper.set_model_props(model, dict(vvq_mm=json.dumps(description)))
    onnx.save(model, str(path))
    return path
