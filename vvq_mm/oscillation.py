"""Tracking of weight oscillation in a whole model: counts, frequencies, freezing and history; torch only."""
from typing import Dict, List

import torch
from torch import Tensor

from vvq_mm.errors import CheckpointError, QuantizerNotReady
from vvq_mm.functional.oscillation import OscillationState, init_state, update_
from vvq_mm.weight_layers import WeightLayer


class OscillationTracker:
    """Watches the integer codes of some layers' weights; call :meth:`update` after each optimizer step.

    Args:
        layers (list of WeightLayer): from :func:`vvq_mm.weight_layers.select_weights`.
        momentum (float): weight of one step in the running frequency. Defaults to 0.01.
        threshold (float): a weight counts as oscillating while its frequency exceeds this. Defaults to 0.005.
        freezing (bool): whether weights will be frozen: 4 more bytes per weight, and the quantizers get their
            ``frozen`` buffers at once, so that later copies of the model have them too. Defaults to False.

    Example:
        >>> tracker = OscillationTracker(select_weights(model, max_bits=4))
        >>> tracker.start()
        >>> for images, labels in batches:
        ...     step(images, labels)
        ...     tracker.update()
        >>> tracker.record(iteration=100)['share']
        0.0123
    """

    def __init__(self,
                 layers: List[WeightLayer],
                 momentum: float = 0.01,
                 threshold: float = 0.005,
                 freezing: bool = False) -> None:
        self.layers, self.momentum, self.threshold, self.freezing = layers, momentum, threshold, freezing
        self.states: Dict[str, OscillationState] = {}
        self.moved, self.updates = 0, 0  # codes that moved since the last record (a device tensor), and steps
        self.history = dict(iteration=[], share=[], flips=[], weight=[], layers={layer.name: [] for layer in layers})
        if freezing:
            self.freeze_above(float('inf'))

    def start(self) -> None:
        """Take the present codes as the starting point of the layers that have no state yet.

        Raises:
            QuantizerNotReady: a weight quantizer has no scale yet.
        """
        for layer in self.layers:
            if not layer.quantizer.ready:
                raise QuantizerNotReady('expected calibrated weights before their oscillation is tracked, got none for '
                                        f"{layer.name}; add dict(type='vvq_mm.CalibrateHook') to custom_hooks or call "
                                        'vvq_mm.calibrate first')
            if layer.name not in self.states:
                self.states[layer.name] = init_state(layer.codes(), self.freezing)

    def update(self) -> None:
        """Take in the codes after an optimizer step; the device is not waited for."""
        moved = [update_(self.states[layer.name], layer.codes(), self.momentum) for layer in self.layers]
        self.moved = self.moved + torch.stack(moved).sum()
        self.updates += 1

    def freeze_above(self, limit: float) -> None:
        """Freeze the weights whose frequency exceeds ``limit`` at their mean code; what is frozen stays so."""
        for layer in self.layers:
            state = self.states.get(layer.name)
            if state is None:
                weight = layer.module.weight
                layer.quantizer.freeze(torch.zeros_like(weight, dtype=torch.bool), torch.zeros_like(weight))
            else:
                layer.quantizer.freeze(state.frequency > limit, state.mean_codes.round())

    def record(self, iteration: int, weight: float = 0.0) -> dict:
        """Append a row to ``history`` and return it; the only method that waits for the device.

        Args:
            iteration (int): number of finished iterations.
            weight (float): the regulariser's weight at present, kept for the plot. Defaults to 0.

        Returns:
            dict: ``iteration``; ``share`` of oscillating weights; ``flips``, the share of codes that moved in a step
            (mean since the last record); ``weight``; ``layers``, the share in each layer by name.
        """
        counts = [(self.states[layer.name].frequency > self.threshold).sum() for layer in self.layers]
        *counts, moved = torch.stack(counts + [torch.as_tensor(self.moved, device=counts[0].device)]).tolist()
        sizes = [layer.module.weight.numel() for layer in self.layers]
        flips = moved / sum(sizes) / max(self.updates, 1)
        row = dict(iteration=iteration, share=sum(counts) / sum(sizes), flips=flips, weight=weight,
                   layers={layer.name: count / size for layer, count, size in zip(self.layers, counts, sizes)})
        for key in ('iteration', 'share', 'flips', 'weight'):
            self.history[key].append(row[key])
        for name, share in row['layers'].items():
            self.history['layers'][name].append(share)
        self.moved, self.updates = 0, 0
        return row

    def frozen_share(self) -> float:
        """Return the share of tracked weights that are frozen; waits for the device."""
        frozen = torch.stack([(~layer.quantizer.frozen.isnan()).sum() for layer in self.layers]).sum().item()
        return frozen / sum(layer.module.weight.numel() for layer in self.layers)

    def positions(self, layer: WeightLayer) -> Tensor:
        """Return the latent weights of a layer in units of its codes, flat float32 on the CPU."""
        return (layer.latent() / layer.quantizer.expanded_scale(layer.module.weight)).detach().flatten().float().cpu()

    def state_dict(self) -> dict:
        """Return all that resuming needs, tensors (on the CPU) and builtins alone."""
        return dict(layers={name: state.to_dict() for name, state in self.states.items()}, history=_copy(self.history),
                    moved=int(self.moved), updates=self.updates)

    def load_state_dict(self, saved: dict) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            CheckpointError: it was made for other layers or shapes.
        """
        expected = {layer.name: tuple(layer.module.weight.shape) for layer in self.layers}
        got = {name: tuple(tensors['codes'].shape) for name, tensors in saved['layers'].items()}
        differing = sorted(name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name))
        if differing:
            name = differing[0]
            here, there = expected.get(name, 'not tracked'), got.get(name, 'absent')
            raise CheckpointError(f'expected oscillation statistics of the {len(expected)} tracked layers, the '
                                  f'checkpoint differs in {len(differing)}: {name} is {here} here and {there} there; '
                                  'resume with the policy, layers and max_bits that the checkpoint was made with')
        for layer in self.layers:
            tensors = dict(saved['layers'][layer.name])
            mean_codes = tensors.pop('mean_codes', None)
            if self.freezing:
                tensors['mean_codes'] = tensors['codes'].float() if mean_codes is None else mean_codes
            self.states[layer.name] = OscillationState.from_dict(tensors, layer.module.weight.device)
        self.history = _copy(saved['history'])
        self.moved, self.updates = saved['moved'], saved['updates']


def _copy(history: dict) -> dict:
    return {key: _copy(value) if isinstance(value, dict) else list(value) for key, value in history.items()}
