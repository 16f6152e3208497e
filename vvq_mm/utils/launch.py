"""What tools/train.py and tools/test.py share: arguments, the config, CPU processes, and errors in a sentence."""
import os
import os.path as osp
from argparse import ArgumentParser, Namespace
from contextlib import contextmanager
from copy import deepcopy
from difflib import get_close_matches
from pathlib import Path
from typing import Iterator

import torch.distributed
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.device import get_device
from mmengine.logging import MMLogger
from mmengine.registry import RUNNERS
from mmengine.runner import Runner, find_latest_checkpoint

from vvq_mm.errors import CheckpointError, QuantizationError, QuantizerNotReady, SoftLabelError, TrainingDiverged
from vvq_mm.utils.checkpoint import TRUSTED

USER_ERRORS = (CheckpointError, OSError, QuantizationError, QuantizerNotReady, SoftLabelError, TrainingDiverged)


def add_common_arguments(parser: ArgumentParser) -> None:
    """Add the arguments that training and testing have in common, named as in mmpretrain."""
    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', help='folder for logs, checkpoints and metrics; ./work_dirs/CONFIG by default')
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument('--no-pin-memory', action='store_true', help='do not pin the memory of batches')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction,
                        help='override settings of the config: key=value pairs; nested keys a.b=1, lists key="[a,b]"')
    parser.add_argument('--trust-checkpoint', action='store_true',
                        help='load the given checkpoint even if that can run code that the file contains')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by old launchers')


def load_config(args: Namespace) -> Config:
    """Read the config that ``args`` names and apply what training and testing have in common."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg = Config.fromfile(existing_config(args.config))
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = osp.join('./work_dirs', osp.splitext(osp.basename(args.config))[0])
    return cfg


def existing_config(path: str) -> str:
    """Return ``path``; where there is no such file, an error names near ones.

    Raises:
        FileNotFoundError: with up to three existing configs of a similar name.
    """
    if osp.isfile(path):
        return path
    folder = next(parent for parent in Path(path).absolute().parents if parent.is_dir())
    package = Path(__file__).resolve().parents[1] / '.mim' / 'configs'
    known = {str(file.relative_to(folder) if root is folder else file): file.stem
             for root in (folder, package) for file in sorted(root.rglob('*.py'))[:1000]}
    near = get_close_matches(Path(path).stem, known.values(), n=3, cutoff=0.4)
    hint = ', '.join(name for name, stem in known.items() if stem in near) or 'none of a similar name'
    raise FileNotFoundError(f'expected a config file at {path}, but there is no such file; '
                            f'near it (in {folder}): {hint}')


def finish_config(cfg: Config, args: Namespace, fields: Iterator[str], **defaults) -> None:
    """Apply ``--cfg-options``, the data loaders' defaults, and what this machine needs; changes ``cfg``.

    Args:
        cfg (Config): of the run.
        args (Namespace): the parsed arguments.
        fields (Iterable[str]): the data loaders to complete.
        **defaults: settings of a data loader where the config has none.
    """
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    for field in fields:
        if cfg.get(field) is not None:
            cfg[field] = _complete_dataloader(cfg[field], pin=not args.no_pin_memory, defaults=defaults)
    if args.trust_checkpoint:
        _trust_checkpoint(cfg)
    if args.launcher == 'pytorch' and get_device() == 'cpu':
        _use_gloo(cfg)


def build_runner(cfg: Config) -> Runner:
    """Return the Runner that ``cfg`` describes."""
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


@contextmanager
def errors_in_a_sentence() -> Iterator[None]:
    """End the program with the message of an error that the user can mend; the traceback is logged at level DEBUG."""
    try:
        yield
    except USER_ERRORS as error:
        MMLogger.get_current_instance().debug('The error came from here.', exc_info=True)
        raise SystemExit(_sentence(error)) from None
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def _sentence(error: Exception) -> str:
    """Return kind and message; of an error in a data loader's worker, which comes as a traceback, the last line."""
    lines = str(error).strip().splitlines()
    if lines and lines[0].startswith('Caught ') and 'DataLoader worker' in lines[0]:
        return lines[-1]
    return f'{type(error).__name__}: {error}'


def _complete_dataloader(dataloader: ConfigDict, pin: bool, defaults: dict) -> ConfigDict:
    complete = ConfigDict(pin_memory=True, collate_fn=dict(type='default_collate'), **defaults)
    complete.update(deepcopy(dataloader))
    complete.pin_memory = complete.pin_memory and pin and get_device() != 'cpu'
    if not complete.get('num_workers', 0):
        complete.persistent_workers = False  # torch refuses to keep workers that there are none of
    return complete


def _trust_checkpoint(cfg: Config) -> None:
    path = cfg.get('load_from')
    if cfg.get('resume') and path is None:
        path = find_latest_checkpoint(cfg.work_dir)
    if path is not None and '://' not in path:
        cfg.load_from = TRUSTED + path


def _use_gloo(cfg: Config) -> None:
    """Let several processes train on a CPU: MMEngine's own launcher insists on CUDA devices."""
    torch.distributed.init_process_group('gloo')
    cfg.model_wrapper_cfg = dict(type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False,
                                 find_unused_parameters=cfg.get('find_unused_parameters', False))
    cfg.setdefault('env_cfg', {})
    cfg.env_cfg.dist_cfg = dict(backend='gloo')
