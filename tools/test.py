"""Evaluate a checkpoint, or an exported file, with a config file."""
import argparse
from copy import deepcopy

import mmengine
import vvq_mm  # noqa: F401  tells MMEngine where `vvq_mm::` configs are
from mmengine.config import Config, ConfigDict
from mmengine.evaluator import DumpResults
from vvq_mm.export.runtimes import BACKENDS
from vvq_mm.models import use_exported_file
from vvq_mm.utils.launch import add_common_arguments, build_runner, errors_in_a_sentence, finish_config, load_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_arguments(parser)
    parser.add_argument('checkpoint', help='checkpoint file, or with --backend an exported file')
    parser.add_argument('--backend', choices=list(BACKENDS), help='run a file of tools/export.py with this')
    parser.add_argument('--out', help='file for the results (.pkl, .json or .yml)')
    parser.add_argument('--out-item', choices=['metrics', 'pred'], help='content of --out; predictions by default')
    parser.add_argument('--show', action='store_true', help='show the predictions in a window')
    parser.add_argument('--show-dir', help='folder for pictures of the predictions')
    parser.add_argument('--interval', type=int, default=1, help='show every n-th sample')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds for which a window is shown')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation; flips, if the config names none')
    args = parser.parse_args()
    if args.out_item is not None and args.out is None:
        parser.error('--out-item needs --out FILE')
    if args.backend is not None and args.launcher != 'none':
        parser.error('--backend runs in one process; leave --launcher out')
    return args


def merge_args(cfg: Config, args: argparse.Namespace) -> Config:
    """Apply the arguments to the config."""
    cfg.load_from, cfg.resume = args.checkpoint, False
    if args.amp:
        cfg.test_cfg.fp16 = True
    if args.show or args.show_dir is not None:
        cfg.default_hooks.setdefault('visualization', ConfigDict(type='VisualizationHook'))
        cfg.default_hooks.visualization.update(enable=True, show=args.show, wait_time=args.wait_time,
                                               out_dir=args.show_dir, interval=args.interval)
    finish_config(cfg, args, ('test_dataloader',))
    if args.backend is not None:  # after `--cfg-options`, which mean the model of the config
        use_exported_file(cfg, args.checkpoint, args.backend)
    if args.tta:
        use_test_time_augmentation(cfg)
    return cfg


def use_test_time_augmentation(cfg: Config) -> None:
    """Wrap the model and the pipeline for test-time augmentation, as mmpretrain does."""
    pipeline = cfg.test_dataloader.dataset.pipeline
    if 'tta_pipeline' not in cfg:
        flips = [dict(type='RandomFlip', prob=1.), dict(type='RandomFlip', prob=0.)]
        cfg.tta_pipeline = deepcopy(pipeline[:-1]) + [dict(type='TestTimeAug', transforms=[flips, [pipeline[-1]]])]
    cfg.setdefault('tta_model', dict(type='mmpretrain.AverageClsScoreTTA'))
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline


def main() -> None:
    args = parse_args()
    with errors_in_a_sentence():
        runner = build_runner(merge_args(load_config(args), args))
        if args.out and args.out_item in ('pred', None):
            runner.test_evaluator.metrics.append(DumpResults(out_file_path=args.out))
        metrics = runner.test()
        if args.out and args.out_item == 'metrics':
            mmengine.dump(metrics, args.out)


if __name__ == '__main__':
    main()
