"""Editing an ONNX graph: constants, chains of operators, and following a value to where it is used."""
import importlib
from typing import Iterator, Optional, Sequence, Tuple

import numpy as np

from .optional import require

INT2_OPSET = 25  # the first with two-bit integers
Step = Tuple[str, Sequence, dict]  # operator, further inputs, attributes


class GraphEditor:
    """Puts constants and operators into the graph of an ``onnx_ir.Model``."""

    def __init__(self, model) -> None:
        require('onnx')
        self.ir = importlib.import_module('onnx_ir')  # comes with the exporter, as ml_dtypes does
        self.model, self.graph = model, model.graph

    def constant(self, name: str, array: np.ndarray, dtype=None):
        """Return the value of a new initializer, or of the one that has this name already."""
        if name not in self.graph.initializers:
            array = np.ascontiguousarray(array)
            tensor = self.ir.Tensor(array, dtype=dtype or self.ir.DataType.from_numpy(array.dtype), name=name)
            self.graph.register_initializer(self.ir.Value(
                name=name, const_value=tensor, type=self.ir.TensorType(tensor.dtype), shape=self.ir.Shape(array.shape)))
        return self.graph.initializers[name]

    def codes(self, name: str, codes: np.ndarray, bits: int, signed: bool, opset: int):
        """Return integer codes as an initializer of the narrowest type of the opset, and whether they need a Cast."""
        ml_dtypes = importlib.import_module('ml_dtypes')
        width = 2 if bits == 2 and opset >= INT2_OPSET else 4 if bits <= 4 else 8
        kind = f'{"" if signed else "u"}int{width}'
        array = codes.astype(getattr(ml_dtypes, kind) if width < 8 else kind)
        return self.constant(name, array, self.ir.DataType[kind.upper()]), width < 8

    def put(self, after, value, *steps: Step, name: str = ''):
        """Return ``value`` after the operators ``steps``, one on the other's result, inserted behind a node."""
        for number, (operator, inputs, attributes) in enumerate(steps):
            title = f'{name}/{operator}{number}' if name else None
            node = self.ir.node(operator, [value, *inputs], attributes, name=title)
            self.graph.insert_after(after, node)
            after, value = node, node.outputs[0]
        return value

    def insert(self, value, *steps: Step, name: str = '') -> None:
        """Put operators between ``value`` and everything that uses it now."""
        uses = list(value.uses())
        new = self.put(value.producer(), value, *steps, name=name)
        reroute(uses, new)
        self._hand_over(value, new)

    def replace(self, value, new) -> None:
        """Let everything that uses ``value`` use ``new``, the graph's outputs included."""
        reroute(list(value.uses()), new)
        self._hand_over(value, new)

    def _hand_over(self, value, new) -> None:
        """Make ``new`` the output of the graph that ``value`` was, if it was one, under the same name."""
        for index, output in enumerate(self.graph.outputs):
            if output is value:
                new.name, new.type, new.shape = value.name, value.type, value.shape
                value.name = f'{value.name}_before'
                self.graph.outputs[index] = new

    def take_factor(self, value) -> float:
        """Return the number by which alone ``value`` is multiplied next, without that operator from now on; else 1."""
        node = only_user(value)
        numbers = [constant_of(other) for other in node.inputs] if node is not None and node.op_type == 'Mul' else []
        numbers = [number for number in numbers if number is not None and number.size == 1]
        if not numbers:
            return 1.0
        self.replace(node.outputs[0], value)
        self.graph.remove(node, safe=True)
        return numbers[0].item()

    def remove_unused(self) -> None:
        """Remove nodes and constants that lead to no output."""
        importlib.import_module('onnx_ir.passes.common').RemoveUnusedNodesPass()(self.model)


def reroute(uses: list, value) -> None:
    """Let ``uses`` (of another value) use ``value`` instead."""
    for node, index in uses:
        node.replace_input_with(index, value)


def only_user(value):
    """Return the node that uses ``value``, or None if several do, or the graph returns it."""
    users = [use.node for use in value.uses()]
    return users[0] if len(users) == 1 and not value.is_graph_output() else None


def constant_of(value) -> Optional[np.ndarray]:
    """Return the array of a constant value, or None."""
    return None if value is None or value.const_value is None else value.const_value.numpy()


def rearrangements(value, reshapes: bool = True) -> Iterator:
    """Yield the transpositions, and reshapes, through which alone ``value`` goes on, in their order."""
    while True:
        node = only_user(value)
        if node is None or node.op_type not in ('Transpose', 'Reshape')[:1 + reshapes]:
            return
        yield node
        value = node.outputs[0]


def rearranged(node, array: np.ndarray) -> np.ndarray:
    """Return a constant after the Transpose or Reshape ``node``."""
    if node.op_type == 'Transpose':
        return array.transpose(node.attributes.get_ints('perm'))
    return array.reshape(constant_of(node.inputs[1]))


def along_one_axis(array: np.ndarray) -> Tuple[np.ndarray, Optional[int]]:
    """Return an array that is constant but for one axis as that axis' vector, or as a scalar without an axis.

    Example:
        >>> along_one_axis(np.array([[1., 2.], [1., 2.]]))
        (array([1., 2.]), 1)
    """
    first = array[(0, ) * array.ndim]
    if (array == first).all():
        return np.asarray(first), None
    for axis in range(array.ndim):
        vector = array[tuple(slice(None) if other == axis else 0 for other in range(array.ndim))]
        if (array == vector.reshape([-1 if other == axis else 1 for other in range(array.ndim)])).all():
            return vector.copy(), axis
    raise AssertionError('groups divide one axis')
