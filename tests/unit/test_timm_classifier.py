"""MMPretrain's TimmClassifier, quantised: any timm model through the Runner's interface, under timm's own keys."""
import torch
from helpers import VIT_RULES, build, calibrated, policy
from mmpretrain.structures import DataSample

import vvq_mm


def timm_classifier():
    rules = {'*.qkv': VIT_RULES['*.qkv'], 'model.head': 8}
    return build(dict(type='vvq_mm.QATTimmClassifier', model_name='deit_tiny_patch16_224', img_size=32, depth=2,
                      num_classes=4, policy=policy(rules=rules)))


def test_its_checkpoint_keeps_timm_s_keys_and_comes_back():
    model, image = calibrated(timm_classifier()), torch.randn(1, 3, 32, 32)
    model.eval()
    state = model.state_dict()
    assert 'blocks.0.attn.qkv.weight' in state and 'blocks.0.attn.qkv.weight_quantizer.scale' in state
    again = timm_classifier()
    again.eval()
    missing, unexpected = again.load_state_dict(state)
    assert not missing and not unexpected and torch.equal(again(image), model(image))


def test_it_trains_with_labels_and_predicts():
    model = calibrated(timm_classifier())
    samples = [DataSample().set_gt_label(index) for index in (0, 3)]
    sum(model.loss(torch.randn(2, 3, 32, 32), samples).values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert len(model.predict(torch.randn(2, 3, 32, 32), samples)) == 2
    attentions = [module for _, module, slot, _ in vvq_mm.iter_quantizers(model) if slot == 'prob']
    assert [type(module).__name__ for module in attentions] == ['QuantAttention'] * 2
