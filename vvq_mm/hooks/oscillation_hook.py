"""The hook that logs weight oscillation and drives its regulariser."""
from pathlib import Path
from typing import List, Optional, Sequence, Union

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from torch import nn

from vvq_mm.errors import QuantizationError
from vvq_mm.oscillation import OscillationTracker
from vvq_mm.plots import plot_latent_histograms, plot_oscillation
from vvq_mm.registry import HOOKS, MODELS
from vvq_mm.schedules import build_schedule
from vvq_mm.utils.model import unwrap
from vvq_mm.weight_layers import WeightLayer, select_weights

CHECKPOINT_KEY = 'vvq_oscillation'


@HOOKS.register_module()
class OscillationHook(Hook):
    """Counts weight flips, logs and draws them, and sets the weight of the regulariser that lessens them.

    Every ``log_interval`` iterations it logs ``oscillating`` (share of tracked weights whose frequency exceeds
    ``threshold``) and ``bin_weight``, and for each layer ``oscillation/<layer>`` to the visualizer. After training it
    writes ``oscillation/share.png`` and ``oscillation/latent_weights.png`` into the work directory. Its statistics are
    part of the checkpoint and are restored on resume. It runs before :class:`mmengine.hooks.EMAHook`.

    Args:
        momentum (float): weight of one step in the running frequency. Defaults to 0.01.
        interval (int): iterations between two looks at the codes; more than 1 misses flips. Defaults to 1.
        max_bits (int): widest weight to track. Defaults to 4.
        threshold (float): frequency above which a weight counts as oscillating. Defaults to 0.005.
        log_interval (int): iterations between two log entries. Defaults to 50.
        layers (sequence of str, optional): globs on the names of the layers to track. Defaults to all.
        histogram_layers (sequence of str, optional): globs on the tracked layers whose latent weights are drawn.
            Defaults to the first, the middle and the last.
        plot (bool): whether to write the pictures. Defaults to True.
        freeze (float | dict, optional): freeze weights whose frequency exceeds this number or schedule. Defaults to
            never.
        regularizer (dict, optional): config of a regulariser, as ``dict(type='vvq_mm.BinRegularizer', weight=...)``,
            where ``weight`` is a number or a schedule of the progress; ``max_bits`` and ``layers`` default to those
            of the hook.

    Example:
        >>> custom_hooks = [dict(type='vvq_mm.OscillationHook', regularizer=dict(
        ...     type='vvq_mm.BinRegularizer', weight=dict(type='CosineSchedule', start=0., end=0.01, begin=0.25)))]
    """

    priority = 'ABOVE_NORMAL'

    def __init__(self,
                 momentum: float = 0.01,
                 interval: int = 1,
                 max_bits: int = 4,
                 threshold: float = 0.005,
                 log_interval: int = 50,
                 layers: Optional[Sequence[str]] = None,
                 histogram_layers: Optional[Sequence[str]] = None,
                 plot: bool = True,
                 freeze: Union[float, dict, None] = None,
                 regularizer: Optional[dict] = None) -> None:
        if not 0 < momentum <= 1:
            raise QuantizationError(f'expected momentum in (0, 1] in OscillationHook, got {momentum!r}')
        for name, value in dict(interval=interval, log_interval=log_interval).items():
            if not isinstance(value, int) or value < 1:
                raise QuantizationError(f'expected {name} to be a positive number of iterations in OscillationHook, '
                                        f'got {value!r}')
        self.momentum, self.interval, self.max_bits, self.threshold = momentum, interval, max_bits, threshold
        self.log_interval, self.layers, self.histogram_layers, self.plot = log_interval, layers, histogram_layers, plot
        self.freeze_schedule = None if freeze is None else build_schedule(freeze)
        self.regularizer: Optional[nn.Module] = None
        self.weight_schedule, self.weight = None, 0.0
        if regularizer is not None:
            config = {'max_bits': max_bits, 'layers': layers, **_without_weight(regularizer)}
            self.weight_schedule = build_schedule(regularizer['weight'])
            self.regularizer = MODELS.build(config)

    def before_run(self, runner) -> None:
        """Choose the layers and hang the regulariser into the model, before an EMA hook copies it."""
        model = unwrap(runner.model)
        tracked = select_weights(model, self.max_bits, self.layers)
        self.drawn = self._choose_drawn(model, tracked)
        freezing = self.freeze_schedule is not None
        self.tracker = OscillationTracker(tracked, self.momentum, self.threshold, freezing)
        if self.regularizer is not None:
            if getattr(model, 'regularizer', self) not in (None, self.regularizer):
                raise QuantizationError('expected a model that takes a regulariser, as vvq_mm.QATImageClassifier '
                                        f'without one of its own, got {type(model).__name__}; change the model or '
                                        'leave `regularizer` out of OscillationHook')
            select_weights(model, self.regularizer.max_bits, self.regularizer.layers)  # a wrong name fails now
            model.regularizer = self.regularizer.to(next(model.parameters()).device)

    def before_train(self, runner) -> None:
        self.tracker.start()

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if self.regularizer is not None:
            self.weight = self.weight_schedule(runner.iter / runner.max_iters)
            self.regularizer.set_weight(self.weight)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if self.every_n_train_iters(runner, self.interval):
            self.tracker.update()
            if self.freeze_schedule is not None:
                self.tracker.freeze_above(self.freeze_schedule((runner.iter + 1) / runner.max_iters))
        if self.every_n_train_iters(runner, self.log_interval):
            self._log(runner, runner.iter + 1)

    def after_train(self, runner) -> None:
        if self.tracker.history['iteration'][-1:] != [runner.iter]:
            self._log(runner, runner.iter)
        if self.plot and is_main_process():
            self._draw(Path(runner.work_dir) / 'oscillation')

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        checkpoint[CHECKPOINT_KEY] = self.tracker.state_dict()

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        if not runner._resume:
            return
        if CHECKPOINT_KEY in checkpoint:
            self.tracker.load_state_dict(checkpoint[CHECKPOINT_KEY])
        else:
            MMLogger.get_current_instance().warning('The checkpoint has no oscillation statistics: it was saved '
                                                    'without OscillationHook, and they start from zero now.')

    def _log(self, runner, iteration: int) -> None:
        """Record, and tell the message hub (for the log line) and the visualizer (for each layer)."""
        row = self.tracker.record(iteration, self.weight)
        runner.message_hub.update_scalar('train/oscillating', row['share'])
        if self.regularizer is not None:
            name = self.regularizer.loss_name.removeprefix('loss_')  # MMEngine adds up whatever is called a loss
            runner.message_hub.update_scalar(f'train/{name}_weight', self.weight)
        if self.freeze_schedule is not None:
            runner.message_hub.update_scalar('train/frozen', self.tracker.frozen_share())
        shares = {f'oscillation/{name}': share for name, share in row['layers'].items()}
        runner.visualizer.add_scalars(shares, step=iteration)

    def _draw(self, folder: Path) -> None:
        share, latent = folder / 'share.png', folder / 'latent_weights.png'
        plot_oscillation(self.tracker.history, share, threshold=self.threshold)
        plot_latent_histograms([dict(title=f'{layer.name}  ({layer.quantizer.bits} bit)', qmin=layer.quantizer.qmin,
                                     qmax=layer.quantizer.qmax, positions=self.tracker.positions(layer))
                                for layer in self.drawn], latent)
        MMLogger.get_current_instance().info(f'{self.tracker.history["share"][-1]:.2%} of the tracked weights '
                                             f'oscillate; plots: {share} and {latent}')

    def _choose_drawn(self, model: nn.Module, tracked: List[WeightLayer]) -> List[WeightLayer]:
        if self.histogram_layers is None:
            return [tracked[index] for index in sorted({0, len(tracked) // 2, len(tracked) - 1})]
        named = {layer.name for layer in select_weights(model, self.max_bits, self.histogram_layers)}
        return [layer for layer in tracked if layer.name in named]


def _without_weight(config: dict) -> dict:
    """Return the regulariser's own arguments; the weight belongs to the hook."""
    if 'weight' not in config:
        raise QuantizationError("expected `weight` (a number or a schedule) in OscillationHook's regularizer, got "
                                f"{dict(config)}; add weight=dict(type='CosineSchedule', start=0., end=0.01, "
                                'begin=0.25)')
    return {key: value for key, value in config.items() if key != 'weight'}
