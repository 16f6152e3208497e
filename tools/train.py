"""Train a model from a config file."""
import argparse

import vvq_mm  # noqa: F401  tells MMEngine where `vvq_mm::` configs are
from mmengine.config import Config
from mmengine.runner import Runner
from vvq_mm.utils.launch import add_common_arguments, build_runner, errors_in_a_sentence, finish_config, load_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_arguments(parser)
    parser.add_argument('--resume', nargs='?', const='auto',
                        help='go on from this checkpoint, or without a value from the last one in the work folder')
    parser.add_argument('--no-validate', action='store_true', help='do not evaluate during training')
    parser.add_argument('--auto-scale-lr', action='store_true',
                        help='scale the learning rate by images per step over auto_scale_lr.base_batch_size')
    parser.add_argument('--no-persistent-workers', action='store_true', help='start data workers anew in each epoch')
    return parser.parse_args()


def merge_args(cfg: Config, args: argparse.Namespace) -> Config:
    """Apply the arguments to the config."""
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if args.amp:
        cfg.optim_wrapper.type = 'AmpOptimWrapper'
        cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    if args.auto_scale_lr:
        cfg.auto_scale_lr.enable = True
    fields = ('train_dataloader', 'val_dataloader', 'test_dataloader')
    finish_config(cfg, args, fields, persistent_workers=not args.no_persistent_workers)
    return cfg


def log_result(runner: Runner) -> None:
    """Say where the weights are and how good they were at the last validation."""
    scalars, info = runner.message_hub.log_scalars, runner.message_hub.runtime_info
    final = ', '.join(f'{name.removeprefix("val/")} {buffer.current():.2f}'
                      for name, buffer in scalars.items() if name.startswith('val/accuracy'))
    checkpoint = info.get('last_ckpt', 'none was saved')
    runner.logger.info(f'Final {final or "accuracy: not validated"}. Checkpoint: {checkpoint}')


def main() -> None:
    args = parse_args()
    with errors_in_a_sentence():
        runner = build_runner(merge_args(load_config(args), args))
        runner.train()
        log_result(runner)


if __name__ == '__main__':
    main()
