"""Markers in an ONNX graph become standard quantisation operators, arranged so that runtimes fuse them.

===================  ==================================================================================================
weight               codes in the narrowest type of the opset -> Cast to int8 -> DequantizeLinear -> product. The Cast
                     is folded when a runtime loads the file; without it ONNX Runtime takes 4-bit weights for
                     weight-only quantisation and computes in float.
activation           Clip to the limits of the grid -> QuantizeLinear to int8 (signed) or uint8 -> DequantizeLinear,
                     behind transpositions, next to the product. All zero points are 0: the codes are the model's.
offset of an input   subtracted before QuantizeLinear; what it adds to the product, :math:`\\sum_k \\beta_k w_{kn}`,
                     joins the bias
factor of q k^T      (1 / square root of the width of a head) in the scale of the query's DequantizeLinear
a scale per head     divided out before QuantizeLinear, multiplied back after the product
===================  ==================================================================================================

What does not fit (an offset of an attention operand or of a weight, a scale that varies along the summed axis) keeps its
values and computes its product in float.
"""
from typing import Dict

import numpy as np
from torch import nn

from vvq_mm.functional.fake_quant import dequantize
from vvq_mm.quantizers import Quantizer
from vvq_mm.surgery import iter_quantizers

from .onnx_activation import CODES, lower_activation
from .onnx_graph import GraphEditor, along_one_axis, only_user, rearranged, rearrangements
from .onnx_trace import DOMAIN, MARKER, SLOT


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
    edit.remove_unused()
    model.opset_imports.pop(DOMAIN, None)


def _gemm_to_matmul(edit: GraphEditor, marker) -> None:
    """Turn a Gemm on this weight (x W^T + b) into MatMul and Add: a fused Gemm would have to return integers."""
    gemm = only_user(marker.outputs[0])
    if gemm is None or gemm.op_type != 'Gemm':
        return
    assert gemm.attributes.get_int('transB', 0) and not gemm.attributes.get_int('transA', 0), 'F.linear is x W^T + b'
    x, weight, *bias = gemm.inputs
    turned = edit.put(gemm, weight, ('Transpose', [], dict(perm=[1, 0])))
    steps = [('MatMul', [turned], {})] + [('Add', [value], {}) for value in bias if value is not None]
    output = edit.put(turned.producer(), x, *steps)
    edit.replace(gemm.outputs[0], output)
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
    vector, axis = along_one_axis(scale)
    spread = edit.constant(f'{name}.scale', _thin(scale))
    summed = axis not in (None, 0 if scale.ndim > 2 else scale.ndim - 1)
    steps = [('Cast', [], dict(to=edit.ir.DataType['INT8' if quantizer.signed else 'UINT8']))] if narrow else []
    if offset:  # in float at once: OpenVINO would round an offset behind DequantizeLinear to a zero point
        steps = [('Cast', [], dict(to=edit.ir.DataType.FLOAT)), ('Mul', [spread], {})]
        steps += [('Add', [edit.constant(f'{name}.offset', _thin(array))], {}) for array in offset]
    elif summed:  # ONNX Runtime would take these scales for those of the columns
        unit = edit.constant(f'{name}.unit', np.ones((), np.float32))
        steps += [('DequantizeLinear', [unit], {}), ('Mul', [spread], {})]
    else:
        scale = edit.constant(f'{name}.scale', vector)
        steps += [('DequantizeLinear', [scale], {} if axis is None else dict(axis=axis))]
    value = edit.put(end.producer(), integers, *steps, name=name)
    product = only_user(end)
    if product is not None:
        product.name = name.removesuffix('.weight')
    edit.replace(end, value)
    return value, values


def _thin(array: np.ndarray) -> np.ndarray:
    """Return an array that is constant but for one axis with length 1 along all others."""
    vector, axis = along_one_axis(array)
    return vector.reshape([-1 if other == axis else 1 for other in range(array.ndim)]) if vector.ndim else vector
