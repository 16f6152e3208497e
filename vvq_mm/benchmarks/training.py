"""Training steps of a config's model, quantised in different ways, on the same weights, images and soft labels."""
from contextlib import nullcontext
from typing import List, Optional

import torch
from mmengine.config import Config
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from vvq_mm.calibration import calibrate
from vvq_mm.errors import QuantizationError
from vvq_mm.losses import BinRegularizer
from vvq_mm.oscillation import OscillationTracker
from vvq_mm.registry import MODELS
from vvq_mm.weight_layers import select_weights

from .libraries import use_library
from .memory import state_bytes
from .peers import PEERS, peer_policy
from .textbook import TextbookBinRegularizer, TextbookTracker
from .variants import Variant

SOFT_CLASSES = 10  # stored per image, at most
REGULARIZER_WEIGHT = 0.01
LEARNING_RATE = 1e-5


class TrainingStep:
    """A whole training step: forward, loss, backward, optimizer, tracker.

    Args:
        variant (Variant): how it runs.
        model (nn.Module): calibrated, in training mode; its parameters are trained.
        images (Tensor): (N, C, H, W), normalised.
        samples (list of DataSample): labels and soft labels.
        backend (str): of ``torch.compile``.
    """

    def __init__(self, variant: Variant, model: nn.Module, images: Tensor, samples: list, backend: str) -> None:
        self.variant, self.model, self.batch = variant, model, (images, samples)
        self.loss = model.loss
        if variant.compiled:
            self.loss = torch.compile(model.loss, fullgraph=True, dynamic=False, backend=backend)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
        self.tracker = None
        if variant.track:
            tracker = TextbookTracker if variant.model == 'textbook' else OscillationTracker
            self.tracker = tracker(select_weights(model, max_bits=4))
            self.tracker.start()

    def forward(self) -> Tensor:
        """Return the sum of the losses."""
        if self.batch[0].device.type == 'cpu':
            use_library(self.variant.library)
        with torch.autocast(self.batch[0].device.type, torch.bfloat16) if self.variant.autocast else nullcontext():
            losses = self.loss(*self.batch)
        return sum(value for name, value in losses.items() if 'loss' in name)

    def __call__(self) -> None:
        self.forward().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.tracker is not None:
            self.tracker.update()

    def constants(self) -> List[Tensor]:
        """Return what is there before forward: parameters, buffers and images."""
        return [*self.model.parameters(), *self.model.buffers(), self.batch[0]]

    def tracker_bytes(self) -> Optional[float]:
        """Return the bytes of the tracker's state per tracked weight, or None without a tracker."""
        if self.tracker is None:
            return None
        return state_bytes(self.tracker) / sum(layer.module.weight.numel() for layer in self.tracker.layers)


class Workload:
    """Builds the models of a config for the benchmark: DropPath 0, random images, random soft labels, fixed seed.

    Args:
        path (str): config file of a :class:`vvq_mm.models.QATImageClassifier` with a backbone of MMPretrain.
        batch (int): images of a step.
        device (str): ``cpu`` or ``cuda``. Defaults to ``cpu``.
        depth (int, optional): number of blocks kept. Defaults to all.
        image_size (int, optional): edge of the images. Defaults to the backbone's ``img_size``, or 224.
        backend (str): of ``torch.compile``. Defaults to ``inductor``.
    """

    def __init__(self, path: str, batch: int, device: str = 'cpu', depth: Optional[int] = None,
                 image_size: Optional[int] = None, backend: str = 'inductor') -> None:
        self.config = Config.fromfile(path).model.to_dict()
        self.device, self.backend = device, backend
        backbone, head = self.config.get('backbone'), self.config.get('head', {})
        if not backbone or not self.config.get('policy'):
            raise QuantizationError(f'expected a model with a backbone and a policy in {path}, got '
                                    f'{self.config.get("type")}; take one of configs/vvq')
        self.image_size = backbone['img_size'] = image_size or backbone.get('img_size', 224)
        backbone['drop_path_rate'] = 0.0
        if depth is not None:
            backbone['arch'] = _shortened(backbone, depth)
        torch.manual_seed(0)
        self.images = torch.randn(batch, backbone.get('in_channels', 3), self.image_size, self.image_size,
                                  device=device)
        self.samples = [_sample(head.get('num_classes', 1000)).to(device) for _ in range(batch)]
        self.state = self._build('float', 'float', True).state_dict()
        self.state = self.quantised('ours').state_dict()  # calibrated once, for all of ours

    def step(self, variant: Variant) -> TrainingStep:
        """Return the step of a variant, with a model of its own.

        Raises:
            ImportError: a library of another's fake quantisation is not installed.
            QuantizationError: the device has no int8 products.
        """
        if variant.model == 'float':
            model = self._build('float', variant.matmul, variant.distil)
            model.load_state_dict({key: self.state[key] for key in model.state_dict()})
            if not variant.fused_attention:
                _write_out_attention(model)
        else:
            model = self.quantised(variant.model, variant.matmul, variant.distil)
        if variant.regularize:
            model.regularizer = (TextbookBinRegularizer if variant.model == 'textbook' else BinRegularizer)()
            model.regularizer.set_weight(REGULARIZER_WEIGHT)
        return TrainingStep(variant, model.to(self.device).train(), self.images, self.samples, self.backend)

    def quantised(self, kind: str, matmul: str = 'float', distil: bool = True) -> nn.Module:
        """Return a calibrated model by this package (``ours``) or by one of :data:`vvq_mm.benchmarks.PEERS`."""
        model = self._build(kind, matmul, distil)
        state = {key: value for key, value in self.state.items() if kind == 'ours' or '_quantizer.' not in key}
        model.load_state_dict(state, strict=False)  # what is not there yet is calibrated
        calibrate(model, [self.images])
        return model

    def _build(self, kind: str, matmul: str, distil: bool) -> nn.Module:
        policy = dict(self.config['policy'], matmul=matmul, strict=matmul == 'int8')
        if kind != 'ours':
            policy = None if kind == 'float' else peer_policy(self.config['policy'], PEERS[kind])
        distiller = self.config.get('distiller') if distil else None
        model = MODELS.build({**self.config, 'policy': policy, 'distiller': distiller})
        return model.to(self.device).train()


def _shortened(backbone: dict, depth: int) -> dict:
    """Return the architecture of a ViT with only the first blocks."""
    arch = backbone.get('arch')
    arch = arch if isinstance(arch, dict) else getattr(MODELS.get(backbone['type']), 'arch_zoo', {}).get(arch, {})
    if 'num_layers' not in arch:
        raise QuantizationError(f'expected a ViT or DeiT to keep {depth} blocks of, got {backbone["type"]}; leave '
                                '--depth out')
    return dict(arch, num_layers=depth)


def _sample(classes: int) -> DataSample:
    """Return a random label with random soft labels."""
    chosen = torch.randperm(classes)[:SOFT_CLASSES]
    soft = torch.stack([chosen.float(), torch.randn(len(chosen)).softmax(0)])
    sample = DataSample().set_gt_label(int(chosen[0]))
    sample.set_field(soft, 'soft_label', dtype=Tensor)
    return sample


def _write_out_attention(model: nn.Module) -> None:
    """Let attention compute ``softmax(q k^T) v`` operator by operator instead of by torch's fused one."""
    def explicit(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None):
        assert attn_mask is None and dropout_p == 0 and not is_causal
        scores = query @ key.transpose(-2, -1) * (query.shape[-1]**-0.5 if scale is None else scale)
        return scores.softmax(-1) @ value

    for module in model.modules():
        if hasattr(module, 'scaled_dot_product_attention'):
            module.scaled_dot_product_attention = explicit
