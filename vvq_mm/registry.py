"""Registries: children of MMEngine's for MMEngine's kinds, plain ones for what only this package has.

A config names a component of this package as ``type='vvq_mm.Name'``; the prefix makes MMEngine import this module, and
``locations`` import the modules that register the components, so a config needs no ``custom_imports``.
"""
from mmengine.registry import DATA_SAMPLERS as MMENGINE_DATA_SAMPLERS
from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import FUNCTIONS as MMENGINE_FUNCTIONS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import Registry

_DATA = ['vvq_mm.datasets']

MODELS = Registry('model', parent=MMENGINE_MODELS, scope='vvq_mm',
                  locations=['vvq_mm.models', 'vvq_mm.distillers', 'vvq_mm.losses'])
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='vvq_mm', locations=['vvq_mm.hooks'])
DATASETS = Registry('dataset', parent=MMENGINE_DATASETS, scope='vvq_mm', locations=_DATA)
TRANSFORMS = Registry('transform', parent=MMENGINE_TRANSFORMS, scope='vvq_mm', locations=_DATA)
FUNCTIONS = Registry('function', parent=MMENGINE_FUNCTIONS, scope='vvq_mm', locations=_DATA)
DATA_SAMPLERS = Registry('data sampler', parent=MMENGINE_DATA_SAMPLERS, scope='vvq_mm', locations=_DATA)


def _build(cfg, registry, **kwargs):
    """Build ``cfg`` from ``registry`` without changing ``cfg`` and without switching MMEngine's default scope."""
    arguments = dict(cfg)
    name = arguments.pop('type', None)
    arguments.pop('_scope_', None)
    found = name if callable(name) else registry.get(name.removeprefix('vvq_mm.')) if isinstance(name, str) else None
    if found is None:
        known = ', '.join(sorted(registry.module_dict))
        raise KeyError(f"expected `type` to be one of the known {registry.name}s ({known}), got {name!r}; register yours with "
                       f"`@vvq_mm.registry.{registry.name.upper().rstrip('Y')}...register_module()` and import it first")
    return found(**arguments, **kwargs)


QUANTIZERS = Registry('quantizer', scope='vvq_mm', build_func=_build, locations=['vvq_mm.quantizers'])
POLICIES = Registry('policy', scope='vvq_mm', build_func=_build, locations=['vvq_mm.policy'])
SCHEDULES = Registry('schedule', scope='vvq_mm', build_func=_build, locations=['vvq_mm.schedules'])
