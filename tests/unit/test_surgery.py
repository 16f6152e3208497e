"""Surgery on real models of MMPretrain and timm: same function in float, every slot used once, float keys kept."""
import copy
import pickle

import pytest
import timm
import torch
import torch.nn.functional as F
from mmengine.config import Config
from helpers import VIT_RULES, build, calibrated, policy, tiny_mlp, tiny_qat, tiny_vit
from torch import nn

import vvq_mm
from vvq_mm.errors import QuantizationError, QuantizerNotReady
from vvq_mm.layers import SlotMixin
from vvq_mm.layers.attention import AttentionMixin, attention_class, quantized_attention


def mmpretrain_backbone(type_, **options):
    return build(dict(type=type_, **options))


ZOO = {
    'mmpretrain ViT': lambda: mmpretrain_backbone('VisionTransformer', arch='deit-tiny', img_size=32, patch_size=8),
    'mmpretrain distilled DeiT': lambda: mmpretrain_backbone('DistilledVisionTransformer', arch='deit-tiny',
                                                             img_size=32, patch_size=8),
    'mmpretrain Swin': lambda: mmpretrain_backbone('SwinTransformer', arch='tiny', img_size=64, pad_small_map=True),
    'mmpretrain SwinV2': lambda: mmpretrain_backbone('SwinTransformerV2', arch='tiny', img_size=64, window_size=8,
                                                     pad_small_map=True),
    'mmpretrain BEiT': lambda: mmpretrain_backbone('BEiTViT', arch='deit-tiny', img_size=32, patch_size=8),
    'timm DeiT': lambda: timm.create_model('deit_tiny_patch16_224', img_size=64),
    'timm distilled DeiT': lambda: timm.create_model('deit_tiny_distilled_patch16_224', img_size=64),
    'timm Swin': lambda: timm.create_model('swin_tiny_patch4_window7_224', img_size=64, window_size=4),
    'timm SwinV2': lambda: timm.create_model('swinv2_tiny_window8_256', img_size=64, window_size=4),
    'timm EVA-02': lambda: timm.create_model('eva02_tiny_patch14_224', img_size=56),
    'timm ViT with qk-norm': lambda: timm.create_model('vit_tiny_patch16_224', img_size=64, qk_norm=True),
}


def flat(output):
    return output[-1] if isinstance(output, (tuple, list)) else output


@pytest.mark.parametrize('name', ZOO)
def test_every_model_keeps_its_float_function_and_uses_every_slot_once(name):
    model = ZOO[name]()
    model.eval()  # not chained: MMPretrain's backbones return None from train()
    size = dict(EVA=56).get(name.split()[1][:3], 32 if 'mmpretrain' in name and 'Swin' not in name else 64)
    image = torch.randn(1, 3, size, size)
    keys = set(model.state_dict())
    with torch.no_grad():
        expected = flat(model(image))
        vvq_mm.quantize_(model, policy())
        with vvq_mm.quantizer_mode(model, 'float'):
            actual = flat(model(image))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    vvq_mm.verify(model, image)
    assert keys <= set(model.state_dict())
    slots = {slot for *_, slot, _ in vvq_mm.iter_quantizers(model)}
    assert slots == {'query', 'key', 'value', 'prob', 'weight', 'input'}


@pytest.mark.parametrize('name, weights, scales, acts', [('deit_t', 50, 74, 98), ('swin_t', 53, 77, 97)],
                         ids=['DeiT-T', 'Swin-T'])
def test_sites_are_those_of_the_official_code(name, weights, scales, acts):
    """The official DeiT-T has 74 weight and 98 activation quantizers, Swin-T 77 and 97 that are used.

    Here q, k and v share a layer with three scales.
    """
    cfg = Config.fromfile(f'configs/vvq/{name}_w4a4.py')
    quantised = build(dict(cfg.model, distiller=None))
    count = quantised.plan.count()
    assert (count['weight'], count['act']) == (weights, acts)
    groups = [quantizer.groups for *_, slot, quantizer in vvq_mm.iter_quantizers(quantised) if slot == 'weight']
    assert sum(groups) == scales


def test_fused_and_explicit_attention_of_timm_agree_when_quantised():
    fused = timm.create_model('deit_tiny_patch16_224', img_size=32, depth=2).eval()
    explicit = copy.deepcopy(fused)
    for block in explicit.blocks:
        block.attn.fused_attn = False
    for block in fused.blocks:
        block.attn.fused_attn = True
    image = torch.randn(2, 3, 32, 32)
    for model in (fused, explicit):
        vvq_mm.quantize_(model, policy(8))
        vvq_mm.calibrate(model, [image])
    torch.testing.assert_close(fused(image), explicit(image), rtol=1e-4, atol=1e-4)


def test_quantised_attention_without_quantizers_is_the_fused_kernel():
    slots = AttentionMixin()
    slots.query_quantizer = slots.key_quantizer = slots.value_quantizer = slots.prob_quantizer = None
    q, k, v = torch.randn(3, 2, 4, 9, 16).unbind(0)
    mask = torch.rand(9, 9) > 0.3
    mask.fill_diagonal_(True)
    for options in (dict(), dict(scale=0.5), dict(is_causal=True), dict(attn_mask=mask),
                    dict(attn_mask=torch.randn(9, 9))):
        expected = F.scaled_dot_product_attention(q, k, v, **options)
        torch.testing.assert_close(quantized_attention(slots, q, k, v, **options), expected)


def test_per_head_scales_quantise_each_head_alone():
    model = calibrated(tiny_qat(rules={'*.attn': dict(act=dict(granularity='head')),
                                       '*.attn.qkv': dict(weight=dict(granularity='head')),
                                       '*.attn.proj': dict(weight=dict(granularity='head'))}))
    attention = model.backbone.layers[0].attn
    query = torch.randn(2, 2, 5, 16)
    out = attention.query_quantizer(query)
    for head in range(2):
        scale = attention.query_quantizer.scale[head]
        torch.testing.assert_close(out[:, head], ((query[:, head] / scale).clamp(-8, 7).round() * scale))
    weight, quantizer = attention.proj.weight, attention.proj.weight_quantizer
    columns = [(part / scale).clamp(-8, 7).round() * scale for part, scale in zip(weight.chunk(2, 1), quantizer.scale)]
    torch.testing.assert_close(quantizer(weight), torch.cat(columns, 1))


def test_objects_and_hooks_survive_the_swap():
    model = tiny_mlp()
    parameter, calls = model[0].weight, []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    vvq_mm.quantize_(model, policy())
    vvq_mm.calibrate(model, [torch.randn(2, 6)])
    calls.clear()
    model(torch.randn(2, 6))
    assert model[0].weight is parameter and calls == [1]
    assert isinstance(model[0], nn.Linear) and type(model[0]).__name__ == 'QuantLinear'


def test_unquantise_gives_the_float_model_back():
    model, image = tiny_vit().eval(), torch.randn(1, 3, 32, 32)
    expected, keys = model(image), list(model.state_dict())
    vvq_mm.quantize_(model, policy(rules=VIT_RULES))
    vvq_mm.unquantize_(model)
    assert list(model.state_dict()) == keys and torch.equal(model(image), expected)
    assert not any(isinstance(module, SlotMixin) for module in model.modules())


def test_quantising_twice_is_refused():
    model = tiny_mlp()
    vvq_mm.quantize_(model, policy())
    with pytest.raises(QuantizationError, match='quantised already'):
        vvq_mm.quantize_(model, policy())


def test_forward_before_calibration_names_module_and_slot():
    with pytest.raises(QuantizerNotReady, match=r'patch_embed.projection \('):
        tiny_qat()(torch.randn(1, 3, 32, 32))


def test_deepcopy_of_a_quantised_model_is_exact():
    model = calibrated(tiny_qat()).eval()
    image = torch.randn(1, 3, 32, 32)
    assert torch.equal(copy.deepcopy(model)(image), model(image))


class Odd(nn.Module):
    """Looks like an attention, but multiplies three times."""
    num_heads = 1

    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.proj(self.qkv(x) @ x.mT @ x @ x.mT)


def test_an_attention_with_another_number_of_products_is_refused():
    model = nn.Sequential(Odd())
    vvq_mm.quantize_(model, policy())
    with pytest.raises(QuantizationError, match='expected 2 attention products, saw 3 in QuantOdd'):
        vvq_mm.calibrate(model, [torch.randn(1, 4, 4)])


def test_a_registered_class_brings_its_own_forward():

    @attention_class('Odd')
    class OddMixin(AttentionMixin):

        def forward(self, x):
            return self.proj(self.slot('query', self.qkv(x)))

    model = nn.Sequential(Odd())
    vvq_mm.quantize_(model, policy(rules={'0': dict(key=None, value=None, prob=None)}))
    vvq_mm.verify(model, torch.randn(1, 4, 4))


def test_verify_names_a_bypassed_layer():

    class Bypass(nn.Module):

        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return F.linear(x, self.fc.weight)

    model = Bypass()
    vvq_mm.quantize_(model, policy())
    with pytest.raises(QuantizationError, match=r'fc.weight \(0 times\)'):
        vvq_mm.verify(model, torch.randn(1, 4))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=['bf16', 'fp16'])
def test_autocast_keeps_scales_in_float32(dtype):
    model = calibrated(tiny_qat())
    with torch.autocast('cpu', dtype=dtype):
        loss = model(torch.randn(2, 3, 32, 32)).float().square().mean()
    loss.backward()
    assert all(quantizer.scale.grad.dtype == torch.float32 and quantizer.scale.grad.isfinite().all()
               for *_, quantizer in vvq_mm.iter_quantizers(model))


def test_a_timm_model_trains_in_a_plain_loop():
    torch.manual_seed(0)
    model = timm.create_model('deit_tiny_patch16_224', img_size=32, depth=1, num_classes=3)
    images, labels = torch.randn(12, 3, 32, 32), torch.arange(12) % 3
    vvq_mm.quantize_(model, policy(4))
    vvq_mm.calibrate(model, [images])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        losses.append(F.cross_entropy(model(images), labels))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


def test_an_error_in_the_plan_leaves_the_model_as_it_was():
    model = tiny_mlp()
    with pytest.raises(QuantizationError, match='integer from 2 to 8'):
        vvq_mm.quantize_(model, policy(rules={'2': 9}))
    assert not any(isinstance(module, SlotMixin) for module in model.modules())


def test_an_unknown_mode_is_refused():
    with pytest.raises(QuantizationError, match="quantize, float, observe, got 'flaot'"):
        with vvq_mm.quantizer_mode(tiny_mlp(), 'flaot'):
            pass


def test_a_quantised_model_can_be_pickled_whole():
    """Its classes are made at run time, so that pickle cannot find them by name."""
    model, image = calibrated(tiny_qat()).eval(), torch.randn(1, 3, 32, 32)
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(again(image), model(image)) and type(again.head.layers.head) is type(model.head.layers.head)


class Keywords(nn.Module):
    """Gives the operands of its products by name."""
    num_heads = 1

    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(4, 12), nn.Linear(4, 4)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.proj(torch.bmm(torch.matmul(input=q, other=k.mT).softmax(-1), mat2=v))


def test_operands_given_by_name_are_quantised():
    model = nn.Sequential(Keywords())
    vvq_mm.quantize_(model, policy())
    vvq_mm.verify(model, torch.randn(2, 3, 4))


def test_recomputed_activations_give_the_same_gradients():
    """Gradient checkpointing runs the forward of an attention again in backward."""
    model = timm.create_model('deit_tiny_patch16_224', img_size=32, depth=2)
    vvq_mm.quantize_(model, policy())
    image = torch.randn(2, 3, 32, 32)
    vvq_mm.calibrate(model, [image])
    again = copy.deepcopy(model)
    again.set_grad_checkpointing()
    for one in (model, again):
        one(image).square().mean().backward()
    for expected, actual in zip(model.parameters(), again.parameters()):
        torch.testing.assert_close(actual.grad, expected.grad)
