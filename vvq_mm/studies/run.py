"""One run of a study: a config that inherits another, with a seed."""
import hashlib
import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from pprint import pformat
from typing import Any, Dict

from mmengine.config import Config

EVALUATE_ON = ('val', 'test')
# `_delete_`, since a config that inherits would otherwise keep what only the validation has, such as `indices`
USE_TEST_IMAGES = [
    'val_dataloader = dict(_delete_=True, **_base_.test_dataloader)',
    'val_evaluator = dict(_delete_=True, **_base_.test_evaluator) if isinstance(_base_.test_evaluator, dict) '
    'else _base_.test_evaluator',
]
# the parts of a config that decide what is trained and measured
DECISIVE = ('model', 'data_preprocessor', 'train_dataloader', 'val_dataloader', 'val_evaluator', 'optim_wrapper',
            'param_scheduler', 'train_cfg', 'default_hooks', 'custom_hooks')
# hooks, by name, that change nothing in what is trained
PASSIVE = ('accuracy', 'check_finite', 'checkpoint', 'exact_resume', 'logger', 'safe_checkpoint', 'summary', 'timer',
           'visualization')


@dataclass(frozen=True)
class Run:
    """A training that a study asks for.

    Args:
        study (str): name of the study.
        method (str): name of the method.
        bits (str): as ``'4/4'``, weights and activations; a label, what sets the bits is in ``changes``.
        seed (int): of the training.
        config (str): path of the config to inherit.
        changes (dict): what differs from it, nested as in an inheriting config.
        evaluate_on (str): ``val``, or ``test``: the validation of the run then uses ``test_dataloader`` and
            ``test_evaluator``. Defaults to ``val``.
    """

    study: str
    method: str
    bits: str
    seed: int
    config: str
    changes: Dict[str, Any] = field(default_factory=dict)
    evaluate_on: str = 'val'

    @property
    def name(self) -> str:
        """Name of the run's folder and config."""
        words = [self.method, f'w{self.bits.replace("/", "a")}' if self.bits else '', f'seed{self.seed}']
        return '_'.join(word.replace(' ', '_') for word in words if word)

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits of what is trained: they follow the inherited config and a plan file, not the seed.

        What an inherited setting says counts as if it were written in the study; the name of the checkpoint that
        training starts from counts, its weights do not.
        """
        return _digest(self._text(self.changes))

    def config_text(self) -> str:
        """Return the config of the run, for ``tools/train.py`` as well."""
        return self._text(merge(self.changes, dict(randomness=dict(seed=self.seed))))

    def _text(self, changes: dict) -> str:
        lines = [f'_base_ = [{str(Path(self.config).absolute())!r}]', '']
        lines += [f'{key} = {pformat(value, width=110, sort_dicts=False)}' for key, value in changes.items()]
        return '\n'.join([*lines, *(USE_TEST_IMAGES if self.evaluate_on == 'test' else []), ''])


@lru_cache(maxsize=None)
def _digest(text: str) -> str:
    cfg = Config.fromstring(text, '.py').to_dict()
    facts = {key: cfg[key] for key in DECISIVE if key in cfg}
    facts['default_hooks'] = {key: hook for key, hook in (cfg.get('default_hooks') or {}).items() if key not in PASSIVE}
    facts['load_from'] = Path(cfg.get('load_from') or '').name
    path = (facts['model'].get('policy') or {}).get('path')  # a plan file
    if path is not None and Path(path).is_file():
        facts['plan'] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:8]


def merge(first: dict, second: dict) -> dict:
    """Return ``first`` with the changes of ``second``, as one inheriting config over another; both stay as they are.

    Example:
        >>> merge(dict(a=dict(b=1, c=2)), dict(a=dict(c=3)))
        {'a': {'b': 1, 'c': 3}}
    """
    if second.get('_delete_'):
        return second
    merged = dict(first)
    for key, value in second.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
