"""Markers in an ONNX graph become standard quantisation operators, arranged so that runtimes fuse them.

===================  ==================================================================================================
weight               codes in the narrowest type of the opset -> Cast to int8 -> DequantizeLinear -> product. The Cast
                     is folded when a runtime loads the file; without it ONNX Runtime multiplies 4-bit weights in
                     float.
activation           Clip to the limits of the grid -> QuantizeLinear to int8 (signed) or uint8 -> DequantizeLinear,
                     behind transpositions, next to the product. All zero points are 0: the codes are the model's.
offset of an input   subtracted before QuantizeLinear; what it adds to the product, :math:`\\sum_k \\beta_k w_{kn}`,
                     joins the bias
factor of q k^T      (1 / square root of the width of a head) in the scale of the query's DequantizeLinear
a scale per head     divided out before QuantizeLinear, multiplied back after the product
===================  ==================================================================================================

What does not fit (an offset of an attention operand or of a weight, a scale that varies along the summed axis) keeps
its values and computes its product in float: something stands between DequantizeLinear and the product, or no runtime
could be kept from rounding an offset to a zero point, or from taking scales along one axis for those along another.
"""
from typing import Dict, List

import numpy as np
from torch import nn

from vvq_mm.functional.fake_quant import dequantize
from vvq_mm.quantizers import Quantizer
from vvq_mm.surgery import iter_quantizers

from .onnx_activation import CODES, lower_activation
from .onnx_graph import GraphEditor, Step, along_one_axis, constant_of, only_user, rearranged, rearrangements
from .onnx_trace import DOMAIN, MARKER, SLOT, name_products


def lower(model, source: nn.Module, opset: int) -> None:
    """Replace the markers of ``model`` in place.

    Args:
        model (onnx_ir.Model): of :func:`vvq_mm.export.onnx_trace.trace`.
        source (nn.Module): the quantised model that it was traced from.
        opset (int): of ``model``; two-bit integers exist from 25 on.
    """
    edit = GraphEditor(model)
    slots = {f'{name}.{slot}': (module, slot, quantizer) for name, module, slot, quantizer in iter_quantizers(source)}
    markers = [(node, node.attributes[SLOT].value) for node in list(model.graph) if node.op_type == MARKER]
    weights: Dict[object, np.ndarray] = {}  # value in the graph -> what it holds
    name_products(model, source)
    for node, name in markers:
        module, slot, quantizer = slots[name]
        if slot == 'weight':
            _gemm_to_matmul(edit, node)
            value, values = _lower_weight(edit, node, name, module.weight.detach(), quantizer, opset)
            weights[value] = values
    for node, name in markers:
        _, slot, quantizer = slots[name]
        if slot != 'weight':
            lower_activation(edit, node, name, quantizer, weights)
    for value, values in weights.items():
        _keep_in_float(edit, value, values.ndim)
    edit.remove_unused()
    model.opset_imports.pop(DOMAIN, None)


def _gemm_to_matmul(edit: GraphEditor, marker) -> None:
    """Turn a Gemm on this weight (x W^T + b) into MatMul and Add: a fused Gemm would have to return integers.

    ONNX Runtime would put a Gemm of matrices together again, so x (batch, K) goes through as (batch, 1, K).
    """
    gemm = only_user(marker.outputs[0])
    if gemm is None or gemm.op_type != 'Gemm':
        return
    assert gemm.attributes.get_int('transB', 0) and not gemm.attributes.get_int('transA', 0), 'F.linear is x W^T + b'
    x, weight, *bias = gemm.inputs
    outputs, inputs = weight.shape
    turned = edit.put(gemm, weight, ('Transpose', [], dict(perm=[1, 0])))
    before, after = (edit.constant(f'{gemm.name}.{end}', np.array(shape))
                     for end, shape in (('rows', [-1, 1, inputs]), ('matrix', [-1, outputs])))
    rows = edit.put(turned.producer(), x, ('Reshape', [before], {}))
    product = edit.put(rows.producer(), rows, ('MatMul', [turned], {}))
    product.producer().name = gemm.name
    steps = [*(('Add', [value], {}) for value in bias if value is not None), ('Reshape', [after], {})]
    edit.replace(gemm.outputs[0], edit.put(product.producer(), product, *steps))
    edit.graph.remove(gemm, safe=True)


def _lower_weight(edit: GraphEditor, marker, name: str, weight, quantizer: Quantizer, opset: int) -> tuple:
    """Put codes and scale of a weight in the layout of its product; return the value and the array it stands for."""
    codes = quantizer.codes(weight)
    values = dequantize(codes, quantizer.current_scale().detach(), quantizer.offset, quantizer.axis)
    parts = [codes, values, quantizer.expanded_scale(weight).expand_as(weight)]
    if quantizer.offset is not None:
        parts.append(quantizer.expanded_offset(weight).expand_as(weight))
    parts = [part.cpu().numpy() for part in parts]
    end = marker.outputs[0]
    for node in list(rearrangements(end)):
        parts, end = [rearranged(node, part) for part in parts], node.outputs[0]
    codes, values, scale, *offset = parts
    integers, narrow = edit.codes(name + CODES, codes, quantizer.bits, quantizer.signed, opset)
    steps = _dequantise(edit, name, 'INT8' if quantizer.signed else 'UINT8', narrow, scale, offset)
    value = edit.put(end.producer(), integers, *steps, name=name)
    edit.replace(end, value)
    return value, values


def _dequantise(edit: GraphEditor, name: str, container: str, narrow: bool, scale: np.ndarray,
                offset: List[np.ndarray]) -> List[Step]:
    """Return the operators from the codes of a weight to its values; ``offset`` holds one array or none."""
    if offset:  # at once to float: OpenVINO would round an offset behind DequantizeLinear to a zero point
        return [('Cast', [], dict(to=edit.ir.DataType.FLOAT)),
                ('Mul', [edit.constant(f'{name}.scale', _thin(scale))], {}),
                ('Add', [edit.constant(f'{name}.offset', _thin(offset[0]))], {})]
    vector, axis = along_one_axis(scale)
    cast = [('Cast', [], dict(to=edit.ir.DataType[container]))] if narrow else []
    attributes = {} if axis is None else dict(axis=axis)
    return [*cast, ('DequantizeLinear', [edit.constant(f'{name}.scale', vector)], attributes)]


def _keep_in_float(edit: GraphEditor, value, dimensions: int) -> None:
    """Let the scale of a weight follow DequantizeLinear, unless its product is one of integers.

    Otherwise ONNX Runtime would quantise a float operand on the way (MatMulNBits), or take scales along a summed axis
    for those of the outputs.
    """
    node, product = value.producer(), only_user(value)
    if node.op_type != 'DequantizeLinear' or product is None:
        return
    makers = [operand.producer() for operand in product.inputs[:2]]
    scale, axis = constant_of(node.inputs[1]), node.attributes.get_int('axis', None)
    outputs = 1 if product.op_type == 'MatMul' else 0
    if axis in (None, outputs) and all(maker is not None and maker.op_type == node.op_type for maker in makers):
        return
    shape = [-1 if other == axis else 1 for other in range(dimensions)] if scale.ndim else []
    node.attributes.pop('axis', None)
    name = node.inputs[1].name
    node.replace_input_with(1, edit.constant(f'{name}.unit', np.ones((), np.float32)))
    edit.insert(value, ('Mul', [edit.constant(f'{name}.factors', scale.reshape(shape))], {}))


def _thin(array: np.ndarray) -> np.ndarray:
    """Return an array that is constant but for one axis with length 1 along all others."""
    vector, axis = along_one_axis(array)
    return vector.reshape([-1 if other == axis else 1 for other in range(array.ndim)]) if vector.ndim else vector
