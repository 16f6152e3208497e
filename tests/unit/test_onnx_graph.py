"""Editing an ONNX graph by hand: following values, moving constants, putting operators in between."""
import numpy as np
import pytest

from vvq_mm.export.onnx_graph import (GraphEditor, along_one_axis, constant_of, only_user, rearranged, rearrangements,
                                      reroute)

pytest.importorskip('onnx')
ir = pytest.importorskip('onnx_ir')


@pytest.fixture
def edit():
    """The graph  x -> Transpose -> Mul by 3 -> Relu -> y."""
    x = ir.Value(name='x', type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([2, 4]))
    transpose = ir.node('Transpose', [x], dict(perm=[1, 0]))
    model = ir.Model(ir.Graph([x], [], nodes=[transpose], opset_imports={'': 24}), ir_version=10)
    editor = GraphEditor(model)
    y = editor.put(transpose, transpose.outputs[0], ('Mul', [editor.constant('three', np.float32(3))], {}),
                   ('Relu', [], {}))
    y.name = 'y'
    model.graph.outputs.append(y)
    return editor


def kinds(edit):
    return [node.op_type for node in edit.graph]


@pytest.mark.parametrize('array, vector, axis', [
    (np.full((2, 3), 5.), 5., None),
    (np.array([[1., 2.], [1., 2.]]), [1., 2.], 1),
    (np.array([[1., 1.], [2., 2.]]), [1., 2.], 0),
    (np.arange(3.).reshape(1, 3, 1, 1).repeat(2, 0), [0., 1., 2.], 1),
], ids=['constant', 'columns', 'rows', 'kernel'])
def test_an_array_that_varies_along_one_axis_is_a_vector(array, vector, axis):
    found, along = along_one_axis(array)
    assert found.tolist() == vector and along == axis


def test_a_constant_is_made_once_for_a_name(edit):
    assert edit.constant('three', np.float32(7)) is edit.constant('three', np.float32(3))
    assert constant_of(edit.constant('three', np.float32(7))) == 3


@pytest.mark.parametrize('bits, opset, kind, narrow', [
    (2, 24, 'INT4', True), (2, 25, 'INT2', True), (3, 25, 'INT4', True), (5, 25, 'INT8', False)])
def test_codes_come_back_from_the_narrowest_type(edit, bits, opset, kind, narrow):
    codes = np.array([[-2, 1, 0], [1, -1, -2]], np.int8)
    value, needs_cast = edit.codes('w', codes, bits, True, opset)
    assert value.dtype == ir.DataType[kind] and needs_cast == narrow
    np.testing.assert_array_equal(value.const_value.numpy().astype(int), codes)


def test_operators_go_between_a_value_and_its_users(edit):
    edit.insert(edit.graph[0].outputs[0], ('Neg', [], {}), ('Abs', [], {}))
    assert kinds(edit) == ['Transpose', 'Neg', 'Abs', 'Mul', 'Relu']


def test_an_output_keeps_its_name_when_something_follows_it(edit):
    edit.insert(edit.graph.outputs[0], ('Neg', [], {}))
    assert kinds(edit)[-1] == 'Neg'
    assert edit.graph.outputs[0].name == 'y' and edit.graph.outputs[0].producer().op_type == 'Neg'


def test_a_factor_is_taken_out_once(edit):
    value = edit.graph[0].outputs[0]
    assert edit.take_factor(value) == 3 and kinds(edit) == ['Transpose', 'Relu']
    assert edit.take_factor(value) == 1 and kinds(edit) == ['Transpose', 'Relu']


def test_a_value_with_two_users_has_no_only_user(edit):
    value = edit.graph[0].outputs[0]
    assert only_user(value).op_type == 'Mul'
    edit.put(edit.graph[0], value, ('Abs', [], {}))
    assert only_user(value) is None


def test_what_the_graph_returns_has_no_only_user(edit):
    assert only_user(edit.graph.outputs[0]) is None


def test_rearrangements_end_at_the_first_other_operator(edit):
    transpose = edit.graph[0]
    edit.insert(transpose.outputs[0], ('Reshape', [edit.constant('shape', np.array([8]))], {}))
    start = edit.put(transpose, transpose.inputs[0], ('Identity', [], {}))
    reroute([(transpose, 0)], start)
    assert [node.op_type for node in rearrangements(start)] == ['Transpose', 'Reshape']
    assert [node.op_type for node in rearrangements(start, reshapes=False)] == ['Transpose']
    array = np.arange(8).reshape(2, 4)
    for node in list(rearrangements(start)):
        array = rearranged(node, array)
    np.testing.assert_array_equal(array, np.arange(8).reshape(2, 4).T.ravel())


def test_what_leads_nowhere_is_removed(edit):
    edit.put(edit.graph[0], edit.graph[0].outputs[0], ('Mul', [edit.constant('unused', np.float32(2))], {}))
    edit.remove_unused()
    assert kinds(edit) == ['Transpose', 'Mul', 'Relu'] and 'unused' not in edit.graph.initializers
