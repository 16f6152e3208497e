"""Soft labels: closed form against the dense definition, and the official code's numbers."""
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vvq_mm.datasets.fkd import labels_of
from vvq_mm.errors import SoftLabelError
from vvq_mm.functional.soft_label import TAILS, densify, encode_topk, soft_cross_entropy, topk_cross_entropy

OFFICIAL = np.load(Path(__file__).parents[1] / 'golden' / 'official_ops.npz')
FORMATS = ['marginal_smoothing_k5', 'marginal_smoothing_k10', 'marginal_renorm', 'smoothing']


def random_label(seed, batch, classes, k):
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.rand(batch, classes, generator=generator, dtype=torch.float64).pow(4)
    return encode_topk(probabilities / probabilities.sum(-1, keepdim=True), k).double()


def dense_by_hand(label, classes, tail):
    """The definition, one number at a time."""
    index, p = label[0].astype(int), label[1].astype(np.float64)
    dense = np.zeros(classes)
    if tail == 'hard':
        dense[index[p.argmax()]] = 1
        return dense
    if tail == 'smooth' and len(p) < classes:
        dense[:] = (1 - p.sum()) / (classes - len(p))
    dense[index] = p / p.sum() if tail == 'renorm' else p
    return dense


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10**6), classes=st.integers(2, 12), k=st.integers(1, 12), tail=st.sampled_from(TAILS),
       temperature=st.floats(0.5, 4))
def test_closed_form_is_the_dense_cross_entropy_in_value_and_gradient(seed, classes, k, tail, temperature):
    label = random_label(seed, 3, classes, min(k, classes))
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, classes, dtype=torch.float64, generator=generator, requires_grad=True)
    loss = topk_cross_entropy(logits, label, tail, temperature)
    target = torch.from_numpy(np.stack([dense_by_hand(item, classes, tail) for item in label.numpy()]))
    expected = -(target * (logits / temperature).log_softmax(-1)).sum(-1).mean() * temperature**2
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(*(torch.autograd.grad(value, logits)[0] for value in (loss, expected)))


@pytest.mark.parametrize('tail', TAILS)
def test_densify_is_the_definition(tail):
    label = random_label(0, 4, 9, 3)
    expected = np.stack([dense_by_hand(item, 9, tail) for item in label.numpy()])
    np.testing.assert_allclose(densify(label, 9, tail).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize('form', FORMATS)
def test_official_formats_become_the_official_dense_labels(form):
    label = torch.from_numpy(labels_of(OFFICIAL[f'soft.{form}.in'].copy(), form))
    expected = torch.from_numpy(OFFICIAL[f'soft.{form}.out'])
    torch.testing.assert_close(densify(label, 1000), expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize('form', FORMATS)
def test_loss_on_official_formats_is_that_of_the_official_dense_labels(form):
    logits = torch.from_numpy(OFFICIAL['soft.ce.logits'])
    label = torch.from_numpy(labels_of(OFFICIAL[f'soft.{form}.in'].copy(), form))
    expected = soft_cross_entropy(logits.double(), torch.from_numpy(OFFICIAL[f'soft.{form}.out']).double())
    torch.testing.assert_close(topk_cross_entropy(logits, label).double(), expected, rtol=1e-5, atol=0)


def test_dense_loss_is_the_official_one():
    logits, target = (torch.from_numpy(OFFICIAL[f'soft.ce.{name}']) for name in ('logits', 'target'))
    assert soft_cross_entropy(logits, target).item() == pytest.approx(float(OFFICIAL['soft.ce.loss']), rel=1e-5)


def test_gradient_keeps_its_size_when_the_temperature_rises():
    # both sides softened: to first order in 1/T the gradient of T^2 * loss does not depend on T
    student, teacher = torch.randn(2, 1, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    student.requires_grad_()
    sizes = []
    for temperature in (20., 40.):
        loss = soft_cross_entropy(student, (teacher / temperature).softmax(-1), temperature)
        sizes.append(torch.autograd.grad(loss, student)[0].norm())
    torch.testing.assert_close(sizes[0], sizes[1], rtol=0.1, atol=0)


def test_tail_is_never_negative():
    label = torch.tensor([[[0., 1.], [0.7, 0.3005]]])  # as float16 rounding can leave it
    assert densify(label, 4).min() == 0


def test_arithmetic_is_float32_for_half_logits_and_under_autocast():
    logits, label = torch.randn(4, 8).bfloat16(), random_label(0, 4, 8, 3).float()
    expected = topk_cross_entropy(logits.float(), label)
    assert torch.equal(topk_cross_entropy(logits, label), expected)
    with torch.autocast('cpu', torch.bfloat16):
        loss = topk_cross_entropy(logits, label)
    assert loss.dtype == torch.float32 and torch.equal(loss, expected)


def test_no_tensor_of_all_classes_is_kept_for_the_target():
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        topk_cross_entropy(torch.randn(2, 50, requires_grad=True), random_label(0, 2, 50, 3).float())
    dense = {x.data_ptr() for x in saved if x.shape == (2, 50)}
    assert len(dense) == 1  # the log-probabilities


@pytest.mark.parametrize('call, message', [
    (lambda: topk_cross_entropy(torch.zeros(1, 4), torch.zeros(1, 2, 2), tail='smoth'), 'smooth, renorm, hard, none'),
    (lambda: topk_cross_entropy(torch.zeros(1, 4), torch.zeros(1, 2, 5)), 'up to 4 classes'),
    (lambda: topk_cross_entropy(torch.zeros(1, 4), torch.zeros(1, 4)), r'\(batch, 2, k\)'),
    (lambda: encode_topk(torch.zeros(1, 4), 5), '1 to the number of classes 4'),
], ids=['tail', 'k', 'shape', 'encode'])
def test_bad_input_is_named(call, message):
    with pytest.raises(SoftLabelError, match=message):
        call()
