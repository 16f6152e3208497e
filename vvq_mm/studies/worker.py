"""What the process of a run does: train, and write down what was reached."""
import json
import os
import threading
import time
from argparse import Namespace
from importlib import import_module
from multiprocessing import connection, parent_process
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.runner import Runner

import vvq_mm  # noqa: F401  tells MMEngine where `vvq_mm::` configs are
from vvq_mm.hooks import AccuracyReportHook, OscillationHook
from vvq_mm.hooks.training_summary_hook import crops_per_image
from vvq_mm.utils.launch import build_runner, finish_config

from .rows import VERSIONS


def train(config: str, work_dir: str, threads: int) -> None:
    """Train ``config`` as ``tools/train.py`` does; its output goes to ``log.txt`` and the result to ``result.json``.

    Args:
        config (str): path of the config.
        work_dir (str): folder for all that the run writes.
        threads (int): of torch.
    """
    _end_with_parent()
    folder = Path(work_dir)
    with (folder / 'log.txt').open('w') as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    torch.set_num_threads(threads)
    cfg = Config.fromfile(config)
    cfg.work_dir, cfg.launcher = work_dir, 'none'
    arguments = Namespace(cfg_options=None, no_pin_memory=False, trust_checkpoint=False, launcher='none')
    finish_config(cfg, arguments, ('train_dataloader', 'val_dataloader', 'test_dataloader'), persistent_workers=True)
    began = time.perf_counter()
    runner = build_runner(cfg)
    runner.train()
    result = dict(measure(runner), seconds=f'{time.perf_counter() - began:.1f}',
                  **{name: import_module(name).__version__ for name in VERSIONS})
    (folder / 'result.json').write_text(json.dumps(result))


def measure(runner: Runner) -> dict:
    """Return what a finished training reached, as text; empty where the config has no hook that knows it."""
    report = next((hook.report for hook in runner.hooks if isinstance(hook, AccuracyReportHook)), {})
    history = next((hook.tracker.history for hook in runner.hooks if isinstance(hook, OscillationHook)), {})
    dataloader, losses = runner.train_dataloader, runner.message_hub.log_scalars.get('train/loss')
    crops = crops_per_image(dataloader.dataset)
    images = images_seen(runner.iter, len(dataloader), dataloader.batch_size, len(dataloader.dataset))
    return dict(
        full_precision=_text(report.get('float'), 2), start=_text(report.get('calibrated'), 2),
        start_loss=_text(report.get('calibrated_loss'), 4), last=_text(report.get('last'), 2),
        train_loss=_text(losses.mean(50) if losses else None, 4),
        oscillating=_text((history.get('share') or [None])[-1], 5), steps=str(runner.iter), crops=str(images * crops))


def images_seen(iterations: int, batches: int, batch_size: int, images: int) -> int:
    """Return how many images a training drew, where the last of the ``batches`` of a pass may be partial or left out.

    Example:
        >>> images_seen(iterations=3, batches=2, batch_size=4, images=5)  # 4 + 1, then 4
        9
    """
    passes, rest = divmod(iterations, batches)
    return passes * min(batches * batch_size, images) + rest * batch_size


def _text(value, digits: int) -> str:
    return '' if value is None else f'{value:.{digits}f}'


def _end_with_parent() -> None:
    """End this process when the study's ends, whatever ended it: a killed study leaves nothing behind that trains."""
    def wait():
        connection.wait([parent_process().sentinel])
        os._exit(1)

    if parent_process() is not None:
        threading.Thread(target=wait, daemon=True).start()
