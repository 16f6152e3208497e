"""Calibration: training images in, one scale per slot out, once, the same on every rank."""
import pytest
import torch
import torch.multiprocessing as mp
from helpers import calibrated, policy, tiny_mlp, tiny_qat
from ranks import calibrate_rank, scales

import vvq_mm
from vvq_mm.errors import QuantizationError
from vvq_mm.quantizers import Observer


def test_every_quantizer_is_ready_afterwards_and_has_its_own_scale():
    model = calibrated(tiny_qat())
    assert all(quantizer.ready and quantizer.initialized.item() == 1 for *_, quantizer in vvq_mm.iter_quantizers(model))
    assert (scales(model) > 0).all() and len(set(scales(model).tolist())) > 0.9 * len(scales(model))


def test_a_second_calibration_changes_nothing():
    model = calibrated(tiny_qat())
    before = scales(model)
    assert vvq_mm.calibrate(model, [torch.randn(2, 3, 32, 32) * 100]) == 0
    assert torch.equal(scales(model), before)


def test_training_flags_and_modes_are_restored():
    model = tiny_qat()
    model.train()
    model.backbone.layers[0].eval()
    flags = {name: module.training for name, module in model.named_modules()}
    calibrated(model)
    assert {name: module.training for name, module in model.named_modules()} == flags
    assert {quantizer.mode for *_, quantizer in vvq_mm.iter_quantizers(model)} == {'quantize'}


def test_the_calibrated_network_is_near_the_float_one_at_8_bits():
    torch.manual_seed(0)
    model, images = calibrated(tiny_qat(8)).eval(), torch.randn(4, 3, 32, 32)
    with vvq_mm.quantizer_mode(model, 'float'):
        expected = model(images)
    assert (model(images) - expected).abs().max() < 0.05 * expected.abs().max()


def test_no_batch_is_refused():
    with pytest.raises(QuantizationError, match='at least one batch'):
        vvq_mm.calibrate(tiny_qat(), [])


def test_a_slot_that_no_forward_reaches_is_named():
    model = torch.nn.ModuleDict(dict(used=torch.nn.Linear(4, 4), unused=torch.nn.Linear(4, 4)))
    vvq_mm.quantize_(model, policy())
    with pytest.raises(QuantizationError, match=r'reach unused \(input\)'):
        vvq_mm.calibrate(model, [torch.randn(2, 4)], forward=lambda x: model['used'](x))


def test_the_observer_keeps_the_extremes_and_the_exact_mean_magnitude():
    observer, batches = Observer(groups=2, axis=1), [torch.randn(300, 8, 40) for _ in range(3)]
    for batch in batches:
        observer.update(batch)
    statistics, everything = observer.statistics(), torch.cat(batches)
    for group, part in enumerate(everything.chunk(2, 1)):
        assert statistics.values[group].min() == part.min() and statistics.values[group].max() == part.max()
        torch.testing.assert_close(statistics.mean_abs[group], part.abs().mean())


def test_weights_are_calibrated_without_a_forward():
    model = tiny_mlp()
    vvq_mm.quantize_(model, dict(type='RulePolicy', weight=dict(type='LSQQuantizer', bits=4), act=None))
    assert vvq_mm.calibrate(model, []) == 2


def _two_ranks(folder, *options):
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(calibrate_rank, (folder / 'meeting_point', results, *options), nprocs=2)
        return results[0], results[1]


@pytest.mark.ddp
def test_ranks_with_different_images_end_with_equal_scales(tmp_path):
    """The official code initialises rank 0 alone, after wrapping: its ranks train with different scales for ever."""
    first, second = _two_ranks(tmp_path, False)
    assert first == second and len(first) == 4


@pytest.mark.ddp
def test_ranks_with_different_weights_are_told(tmp_path):
    first, second = _two_ranks(tmp_path, True)
    assert 'different weights' in first and 'different weights' in second


@pytest.mark.ddp
def test_ranks_may_look_at_different_numbers_of_batches(tmp_path):
    first, second = _two_ranks(tmp_path, False, (1, 3))
    assert first == second and len(first) == 4


@pytest.mark.ddp
def test_a_rank_without_a_batch_stops_all_ranks(tmp_path):
    """It alone would raise, and the others would wait for it."""
    first, second = _two_ranks(tmp_path, False, (1, 0))
    assert 'at least one batch' in first and 'at least one batch' in second
