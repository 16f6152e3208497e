"""Finding what is wrong with runs before any of them is trained."""
import difflib
import inspect
from typing import Sequence

from mmengine.config import Config
from mmengine.runner import Runner

from vvq_mm.errors import QuantizationError
from vvq_mm.registry import HOOKS
from vvq_mm.utils.evaluate import build_model
from vvq_mm.utils.launch import existing_config

from .run import Run


def check_configs(runs: Sequence[Run]) -> None:
    """Read the config of every method at every width, and build its model and hooks, once.

    Raises:
        QuantizationError: a change names no part of the config, or something cannot be built with it.
        FileNotFoundError: the config is not there.
    """
    known = {*Config.fromfile(existing_config(runs[0].config)), *inspect.signature(Runner).parameters}
    for run in {(run.method, run.bits): run for run in runs}.values():
        where = f'{run.method}{f" at {run.bits}" if run.bits else ""} of the study {run.study}'
        for key in run.changes:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=3, cutoff=0.4)
                raise QuantizationError(f'expected a part of {run.config} to change, got {key!r} in {where}; near it: '
                                        f'{", ".join(near) or "nothing"}')
        try:
            cfg = Config.fromstring(run.config_text(), '.py')
            build_model(cfg)
            named = [*(cfg.get('default_hooks') or {}).items(), *enumerate(cfg.get('custom_hooks') or [])]
            hooks = [_check_hook(dict(hook)) for name, hook in named
                     if isinstance(hook, dict) and ('type' in hook or name not in _DEFAULT_HOOKS)]
        except Exception as error:  # whatever it is, it comes from the config, and it is better said now
            raise QuantizationError(f'{where}: {type(error).__name__}: {error}') from error
        if not any(str(hook).endswith('AccuracyReportHook') for hook in hooks):
            raise QuantizationError(f'expected an AccuracyReportHook in {run.config}, got none in {where}: a row is what '
                                    "it reports; add accuracy=dict(type='vvq_mm.AccuracyReportHook') to default_hooks")


def _check_hook(hook: dict) -> str:
    """Return the hook's type; one of this package is built, others may need a Runner around them."""
    kind = hook['type'] if isinstance(hook['type'], str) else f'{hook["type"].__module__}.{hook["type"].__name__}'
    if kind.startswith('vvq_mm.'):
        HOOKS.build(hook)
    return kind


# MMEngine fills in the type of these
_DEFAULT_HOOKS = ('runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint')
