"""Registries: children of MMEngine's for MMEngine's kinds, plain ones for what only this package has.

A config names a component of this package as ``type='vvq_mm.Name'``; the prefix makes MMEngine import this module, and
``locations`` import the modules that register the components, so a config needs no ``custom_imports``.
"""
from typing import Optional

import mmengine.registry as mmengine_registry
from mmengine.registry import Registry

from vvq_mm.errors import QuantizationError


class PluginRegistry(Registry):
    """A registry of scope ``vvq_mm`` that looks in MMPretrain's of the same kind for what it does not have itself.

    MMEngine marks what a config inherits through ``vvq_mm::`` with ``_scope_='vvq_mm'``; an unprefixed MMPretrain name
    in there, or a default inside MMPretrain's own code, must still be found.
    """

    def get(self, key: str) -> Optional[type]:
        found = super().get(key)
        if found is None and '.' not in key:
            found = super().get(f'mmpretrain.{key}')
        return found


_LOCATIONS = dict(MODELS=['models', 'distillers', 'losses'], HOOKS=['hooks'], DATASETS=['datasets'],
                  TRANSFORMS=['datasets'], FUNCTIONS=['datasets'], DATA_SAMPLERS=['datasets'])


def _child(kind: str) -> PluginRegistry:
    """Return the child of MMEngine's ``kind``; without locations MMEngine would look for a function we do not have."""
    parent = getattr(mmengine_registry, kind)
    locations = [f'vvq_mm.{name}' for name in _LOCATIONS.get(kind, ['version'])]
    return PluginRegistry(parent.name, parent=parent, scope='vvq_mm', locations=locations)


MODELS, HOOKS, DATASETS, TRANSFORMS, FUNCTIONS, DATA_SAMPLERS = map(_child, _LOCATIONS)
# The other kinds hold nothing of ours: they exist so that MMEngine finds the scope wherever it has written it.
for _kind in ('EVALUATOR', 'INFERENCERS', 'LOG_PROCESSORS', 'LOOPS', 'METRICS', 'MODEL_WRAPPERS', 'OPTIMIZERS',
              'OPTIM_WRAPPERS', 'OPTIM_WRAPPER_CONSTRUCTORS', 'PARAM_SCHEDULERS', 'RUNNERS', 'RUNNER_CONSTRUCTORS',
              'STRATEGIES', 'TASK_UTILS', 'VISBACKENDS', 'VISUALIZERS', 'WEIGHT_INITIALIZERS'):
    _child(_kind)


def _build(cfg, registry, **kwargs):
    """Build ``cfg`` from ``registry`` without changing ``cfg`` and without switching MMEngine's default scope."""
    arguments = {key: value for key, value in cfg.items() if key not in ('type', '_scope_')}
    name = cfg.get('type')
    found = registry.get(name.removeprefix('vvq_mm.')) if isinstance(name, str) else name
    if not callable(found):
        known = ', '.join(sorted(registry.module_dict))
        raise QuantizationError(f'expected `type` to be a known {registry.name} ({known}), got {name!r}; register your '
                                'own with @register_module() of the registry in vvq_mm.registry, and import it before '
                                'the config is built')
    return found(**arguments, **kwargs)


QUANTIZERS = Registry('quantizer', scope='vvq_mm', build_func=_build, locations=['vvq_mm.quantizers'])
POLICIES = Registry('policy', scope='vvq_mm', build_func=_build, locations=['vvq_mm.policy'])
SCHEDULES = Registry('schedule', scope='vvq_mm', build_func=_build, locations=['vvq_mm.schedules'])
