"""Quantisation operators of an activation in an ONNX graph; what they are is in :mod:`vvq_mm.export.onnx_lower`."""
from typing import Dict, List

import numpy as np
from torch import Tensor

from vvq_mm.functional.groups import expand_groups
from vvq_mm.quantizers import Quantizer

from .onnx_graph import GraphEditor, Step, constant_of, only_user, rearranged, rearrangements, reroute

CODES = '.codes'  # ends the name of every tensor of codes in the file


def lower_activation(edit: GraphEditor, marker, name: str, quantizer: Quantizer,
                     weights: Dict[object, np.ndarray]) -> None:
    """Put clipping, quantisation and dequantisation of an activation in place of its marker.

    Args:
        edit (GraphEditor): of the graph.
        marker (onnx_ir.Node): of the activation.
        name (str): ``MODULE.SLOT``.
        quantizer (Quantizer): of the slot.
        weights (dict): values of the graph that are weights -> what they hold.
    """
    place = marker.outputs[0]
    path = list(rearrangements(place, reshapes=quantizer.groups == 1))
    if path:  # quantise behind transpositions: runtimes fuse what stands next to the product
        edit.replace(place, marker.inputs[0])
        place = path[-1].outputs[0]
    slot = name.rpartition('.')[2]
    factor = edit.take_factor(place)
    product = only_user(place)
    if product is not None and product.op_type == 'MatMul' and slot == 'query':
        factor *= edit.take_factor(product.outputs[0])
    scale, offset, spread = _array(quantizer.effective_scale(), quantizer, marker, path), None, None
    if quantizer.offset is not None:
        offset = _array(quantizer.offset.detach(), quantizer, marker, path)
    if scale.size > 1:  # divided out: runtimes want one scale for an activation
        spread, scale = scale, np.ones((), np.float32)
    x, after = (place, path[-1]) if path else (marker.inputs[0], marker)
    rounds = spread is not None or (slot == 'input' and quantizer.signed)
    uses = list(place.uses())
    codes = edit.put(after, x, *_quantise(edit, name, quantizer, scale, offset, spread, rounds), name=name)
    codes.name = name + CODES
    zero = edit.constant(f'{name}.zero_point', np.array(0, _container(quantizer)))
    step = edit.constant(f'{name}.scale', scale) if factor == 1 else \
        edit.constant(f'{name}.product_scale', (scale * factor).astype(np.float32))
    value = edit.put(codes.producer(), codes, ('DequantizeLinear', [step, zero], {}), name=name)
    reroute(uses, value)
    offset = None if offset is None else (offset * factor).astype(np.float32)
    _restore(edit, value, product, spread, offset, weights)


def _container(quantizer: Quantizer) -> type:
    return np.int8 if quantizer.signed else np.uint8


def _quantise(edit: GraphEditor, name: str, quantizer: Quantizer, scale: np.ndarray, offset, spread,
              rounds: bool) -> List[Step]:
    """Return the operators from an activation to its codes.

    With ``rounds`` division and rounding are written out. OpenVINO quantises to int8 as x / s + 128, which leaves 16
    bits behind the point, so values within 1e-5 of the border of two bins get the wrong code; whole numbers are safe.
    """
    steps, unit = [], scale
    if offset is not None:
        steps.append(('Sub', [edit.constant(f'{name}.offset', offset)], {}))
    if spread is not None:
        steps.append(('Div', [edit.constant(f'{name}.spread', spread)], {}))
    if rounds:
        unit = np.ones((), np.float32)
        steps += [('Div', [edit.constant(f'{name}.scale', scale)], {})] if spread is None else []
        steps.append(('Round', [], {}))
    container = _container(quantizer)
    if (quantizer.qmin, quantizer.qmax) != (np.iinfo(container).min, np.iinfo(container).max):
        limits = [edit.constant(f'{name}.{end}', unit * np.float32(limit))
                  for end, limit in (('low', quantizer.qmin), ('high', quantizer.qmax))]
        steps.append(('Clip', limits, {}))
    unit = edit.constant(f'{name}.unit' if rounds else f'{name}.scale', unit)
    return [*steps, ('QuantizeLinear', [unit, edit.constant(f'{name}.zero_point', np.array(0, container))], {})]


def _array(values: Tensor, quantizer: Quantizer, marker, path: list) -> np.ndarray:
    """Return a scalar, or one value per index of the quantizer's axis in the shape that broadcasts behind ``path``."""
    if quantizer.groups == 1:
        return values.reshape(()).cpu().numpy()
    shape = [size if isinstance(size, int) else 1 for size in marker.inputs[0].shape]
    array = expand_groups(values.cpu(), shape, quantizer.axis).numpy()
    for node in path:
        array = rearranged(node, array)
    return array


def _restore(edit: GraphEditor, value, product, spread, offset, weights: Dict[object, np.ndarray]) -> None:
    """Multiply by ``spread`` and add ``offset``: after the product where that is the same, else before it."""
    is_product = product is not None and product.op_type == 'MatMul'
    weight = weights.get(product.inputs[1]) if is_product else None
    late_spread = spread is not None and offset is None and is_product and spread.shape[-2:] == (1, 1)
    late_offset = offset is not None and spread is None and weight is not None
    if spread is not None and not late_spread:
        edit.insert(value, ('Mul', [edit.constant(f'{value.name}.spread', spread)], {}))
        value = only_user(value).outputs[0]
    if offset is not None and not late_offset:
        edit.insert(value, ('Add', [edit.constant(f'{value.name}.offset', offset)], {}))
    if not is_product:
        return
    output = product.outputs[0]
    if late_spread:
        edit.insert(output, ('Mul', [edit.constant(f'{value.name}.spread', spread)], {}),
                    name=f'{product.name}/{value.name}')
        output = only_user(output).outputs[0]
    if late_offset:
        _add_to_bias(edit, output, np.broadcast_to(offset.reshape(-1), weight.shape[:1]).astype(np.float64) @ weight)


def _add_to_bias(edit: GraphEditor, output, correction: np.ndarray) -> None:
    """Add a row to a product: to the bias behind it, or on its own."""
    name, user = f'{output.name}.bias', only_user(output)
    bias = [value for value in user.inputs if constant_of(value) is not None] if user and user.op_type == 'Add' else []
    if bias and constant_of(bias[0]).ndim == 1:
        new = edit.constant(name, (constant_of(bias[0]) + correction).astype(np.float32))
        user.replace_input_with(list(user.inputs).index(bias[0]), new)
    else:
        edit.insert(output, ('Add', [edit.constant(name, correction.astype(np.float32))], {}))
