"""The contract that every quantizer keeps; a new quantizer inherits ``QuantizerContract`` and has the suite."""
import copy

import pytest
import torch

from vvq_mm.errors import QuantizationError, QuantizerNotReady
from vvq_mm.quantizers import LSQQuantizer, weight_statistics


class QuantizerContract:
    """Subclass and write ``make(**options)``."""

    def make(self, **options):
        raise NotImplementedError

    def ready(self, **options):
        quantizer = self.make(**options)
        quantizer.initialise(weight_statistics(self.weight(), quantizer.groups, quantizer.axis))
        return quantizer

    def weight(self):
        return torch.randn(12, 8, generator=torch.Generator().manual_seed(0))

    def test_codes_times_scale_is_the_output(self):
        quantizer = self.ready(groups=3)
        values = quantizer.codes(self.weight()).float() * quantizer.expanded_scale(self.weight())
        assert torch.equal(values, quantizer(self.weight()))

    def test_every_parameter_gets_a_finite_gradient(self):
        quantizer = self.ready(bits=2)
        weight = self.weight().requires_grad_()
        quantizer(weight).square().sum().backward()
        for parameter in [weight, *quantizer.parameters()]:
            assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0

    def test_forward_writes_nothing(self):
        quantizer = self.ready()
        versions = {name: tensor._version for name, tensor in quantizer.state_dict(keep_vars=True).items()}
        quantizer(self.weight())
        assert versions == {name: tensor._version for name, tensor in quantizer.state_dict(keep_vars=True).items()}

    def test_forward_before_calibration_says_what_to_do(self):
        with pytest.raises(QuantizerNotReady, match='layers.3.qkv .*CalibrateHook'):
            self.make(where='layers.3.qkv (weight)')(self.weight())

    def test_a_saved_quantizer_comes_back_exactly(self):
        saved, fresh = self.ready(groups=3), self.make(groups=3)
        fresh.load_state_dict(saved.state_dict())
        assert fresh.ready and torch.equal(fresh(self.weight()), saved(self.weight()))

    def test_a_float_checkpoint_leaves_it_uncalibrated_without_complaint(self):
        quantizer = self.ready()
        assert not quantizer.load_state_dict({}, strict=False).unexpected_keys
        assert not quantizer.ready and quantizer.initialized.item() == 0

    def test_scale_is_dropped_when_bits_change(self):
        quantizer = self.make(bits=3)
        quantizer.load_state_dict(self.ready(bits=4).state_dict())
        assert not quantizer.ready and quantizer.loaded_grid.bits == 4 and quantizer.code_range.tolist() == [-4, 3]

    def test_scale_is_dropped_when_the_sign_changes(self):
        quantizer = self.make(signed=False)
        quantizer.load_state_dict(self.ready().state_dict())
        assert not quantizer.ready
        assert (str(quantizer.loaded_grid), str(quantizer.grid)) == ('4 signed', '4 unsigned')

    def test_another_granularity_is_refused_by_name(self):
        with pytest.raises(QuantizationError, match='expected 3 scale.*mlp.fc1.*the checkpoint has 1'):
            self.make(groups=3, where='mlp.fc1 (weight)').load_state_dict(self.ready().state_dict())

    def test_an_offset_that_is_missing_is_refused(self):
        with pytest.raises(QuantizationError, match='expected an offset'):
            self.make(offset=True).load_state_dict(self.ready().state_dict())

    def test_deepcopy_gives_the_same_function(self):
        quantizer = self.ready()
        assert torch.equal(copy.deepcopy(quantizer)(self.weight()), quantizer(self.weight()))

    @pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=['fp16', 'bf16'])
    def test_dtype_is_kept(self, dtype):
        assert self.ready()(self.weight().to(dtype)).dtype == dtype

    def test_forward_traces_without_a_graph_break(self):
        quantizer = self.ready()
        compiled = torch.compile(quantizer, fullgraph=True, backend='eager')
        assert torch.equal(compiled(self.weight()), quantizer(self.weight()))

    def test_frozen_weights_hold_their_code_and_get_no_gradient(self):
        quantizer, weight = self.ready(), self.weight().requires_grad_()
        mask = torch.zeros(12, 8, dtype=torch.bool)
        mask[0] = True
        quantizer.freeze(mask, torch.full((12, 8), 3, dtype=torch.int8))
        out = quantizer(weight)
        assert torch.equal(out[0], 3 * quantizer.effective_scale().expand(8))
        assert (quantizer.codes(weight)[0] == 3).all()
        out.sum().backward()
        assert (weight.grad[0] == 0).all() and (weight.grad[1:] != 0).any()

    def test_frozen_weights_survive_a_checkpoint(self):
        quantizer, fresh = self.ready(), self.make()
        quantizer.freeze(self.weight() > 1, quantizer.codes(self.weight()) + 1)
        fresh.load_state_dict(quantizer.state_dict())
        assert torch.equal(fresh(self.weight()), quantizer(self.weight()))

    def test_what_was_frozen_before_keeps_its_code(self):
        quantizer = self.ready()
        everything = torch.ones(12, 8, dtype=torch.bool)
        quantizer.freeze(everything, torch.full((12, 8), 1, dtype=torch.int8))
        quantizer.freeze(everything, torch.full((12, 8), 2, dtype=torch.int8))
        assert (quantizer.codes(self.weight()) == 1).all()

    @pytest.mark.parametrize('bits', [1, 9, 4.0, '4', True], ids=repr)
    def test_bits_outside_2_to_8_or_not_an_integer_are_refused(self, bits):
        with pytest.raises(QuantizationError, match='integer from 2 to 8, got .* for head'):
            self.make(bits=bits, where='head')

    def test_a_tensor_that_does_not_divide_into_the_groups_is_refused_when_it_is_observed(self):
        quantizer = self.make(kind='act', groups=5, axis=-1, where='mlp.fc1 (input)')
        quantizer.mode = 'observe'
        with pytest.raises(QuantizationError, match='5 groups of equal size, got length 8 in mlp.fc1'):
            quantizer(self.weight())

    def test_its_line_in_print_names_the_bits(self):
        assert '3 bit' in repr(self.make(bits=3)) and 'not calibrated' in repr(self.make())


class TestLSQ(QuantizerContract):

    def make(self, bits=4, **options):
        return LSQQuantizer(bits=bits, **options)

    def test_unknown_gradient_rule_is_refused(self):
        with pytest.raises(QuantizationError, match="none, lsq, l1, official_act, got 'l2'"):
            self.make(grad_scale='l2')

    def test_unknown_init_is_refused(self):
        with pytest.raises(QuantizationError, match="mse, percentile, lsq, official, got 'max'"):
            self.make(init='max')

    @pytest.mark.parametrize('bits, signed, dtype', [(4, True, torch.int8), (8, True, torch.int8),
                                                     (8, False, torch.uint8)], ids=str)
    def test_codes_have_the_narrowest_integer_type(self, bits, signed, dtype):
        assert self.ready(bits=bits, signed=signed).codes(self.weight()).dtype == dtype

    def test_nan_weights_are_refused_by_name(self):
        quantizer = self.make(where='blocks.1 (weight)')
        with pytest.raises(QuantizationError, match='finite values.*blocks.1'):
            quantizer.initialise(weight_statistics(torch.full((4, 4), float('nan')), 1, 0))
