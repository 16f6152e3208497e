"""Configs in files that anyone may have written: registered names and plain values alone.

MMEngine finds a ``type`` that is not registered by importing whatever dotted path it spells, so nothing from a file is
handed to a registry before it went through :func:`check_config`.
"""
import math
from typing import Any, Callable, Dict, Mapping, Optional

import mmengine.registry as mmengine_registry
import mmpretrain.registry  # noqa: F401  its registries become children of MMEngine's
import numpy as np
from mmengine.registry import Registry

from vvq_mm.errors import QuantizationError
from vvq_mm.registry import QUANTIZERS

HOME = 'mmpretrain'  # the scope in which configs from files are built
# Arguments that name weights elsewhere, of MMEngine and timm.
_FETCHING = {'init_cfg', 'pretrained', 'pretrained_cfg', 'pretrained_cfg_overlay', 'checkpoint', 'checkpoint_path'}
# Where the classes of a network are, in the libraries that register any: others read files that their arguments name,
# some by unpickling. A class of any other package is one that its user imported.
_LIBRARIES = ('mmpretrain', 'mmengine', 'mmcv', 'torch', 'vvq_mm')
_HEADS = ('cls', 'conformer', 'deit', 'efficientformer', 'levit', 'linear', 'margin', 'multi_label_cls',
          'multi_label_linear', 'multi_task', 'stacked', 'vig', 'vision_transformer')
_NETWORKS = ('mmcv.cnn', 'torch.nn', 'mmengine.model', 'vvq_mm.models.qat_classifier', *(
    f'mmpretrain.models.{part}' for part in (
        'backbones', 'necks', 'losses', 'classifiers.image', 'classifiers.timm', 'utils.data_preprocessor',
        *(f'heads.{name}_head' for name in _HEADS))))
_TRAINING = {'policy', 'distiller', 'train_cfg', 'batch_augments'}


def plain_config(value: Any, kind: str, scope: str, where: str) -> Any:
    """Return a trusted config as JSON: names of registered classes, builtins for NumPy, nothing for training alone.

    Args:
        value: a config, or a part of one.
        kind (str): the registry that builds it: ``MODELS``, ``TRANSFORMS`` or ``QUANTIZERS``.
        scope (str): MMEngine's default scope for it.
        where (str): what it is, for errors.

    Raises:
        QuantizationError: something that cannot be written, or a class that is not registered.

    Example:
        >>> plain_config(dict(type='VisionTransformer', img_size=(32, 32)), 'MODELS', 'mmpretrain', 'model')
        {'type': 'VisionTransformer', 'img_size': [32, 32]}
    """
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        scope = value.get('_scope_') or scope
        left_out = _FETCHING | _TRAINING if kind == 'MODELS' else ()
        return {key: _portable_name(item, kind, scope, where) if key == 'type'
                else plain_config(item, kind, scope, f'{where}.{key}')
                for key, item in value.items()
                if not key.startswith('_') and key not in left_out}
    if isinstance(value, (list, tuple)):
        return [plain_config(item, kind, scope, where) for item in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return plain_config(value.tolist(), kind, scope, where)
    if value is None or isinstance(value, (str, int)) or isinstance(value, float) and math.isfinite(value):
        return value
    raise QuantizationError(f'expected {where} to be numbers, words, lists and dicts with words as keys, got '
                            f'{value!r}, which cannot be written into a file; change the config')


def check_config(value: Any, kind: str, where: str) -> None:
    """Raise unless a config from a file names registered classes only, and nothing to fetch.

    Args:
        value: as JSON gives it.
        kind (str): the registry that would build it.
        where (str): what it is, for errors.

    Raises:
        QuantizationError: says what it names.
    """
    if isinstance(value, list):
        for item in value:
            check_config(item, kind, where)
    elif isinstance(value, dict):
        for key, item in value.items():
            if key.startswith('_') or kind == 'MODELS' and key in _FETCHING | _TRAINING:
                raise QuantizationError(f'expected {where} without scopes, training settings and weights from '
                                        f'elsewhere, got {key}={item!r}; export the model again')
            check_config(item, kind, f'{where}.{key}')
        if 'type' in value:
            check_type(value['type'], kind, where)
    elif kind == 'MODELS' and isinstance(value, str) and ':' in value:  # an address, or hf-hub:NAME in timm
        raise QuantizationError(f'expected {where} to be built without fetching anything, got {value!r}; use the plain '
                                'name of the model')


def check_type(name: Any, kind: str, where: str) -> None:
    """Raise unless ``name`` is that of a registered class, of a model one that networks are made of."""
    found = registered(name, kind)
    is_known = isinstance(found, type) or kind == 'TRANSFORMS' and callable(found)  # torchvision's are functions
    if not is_known or kind == 'MODELS' and not _is_network(found.__module__):
        raise _unknown(name, kind, where)


def _is_network(module: str) -> bool:
    own = any(module == part or module.startswith(f'{part}.') for part in _NETWORKS)
    return own or module.split('.')[0] not in _LIBRARIES


def registered(name: Any, kind: str) -> Optional[Callable]:
    """Return what is registered under ``name`` or ``scope.name``, or None; unlike MMEngine, imports nothing for it.

    Example:
        >>> registered('VisionTransformer', 'MODELS').__name__
        'VisionTransformer'
        >>> registered('os.system', 'MODELS') is None
        True
    """
    if not isinstance(name, str):
        return None
    nodes = _nodes(kind)
    scope, _, key = name.rpartition('.')
    places = [nodes[scope]] if scope in nodes else [] if scope else list(nodes.values())[:2]
    return next((node.module_dict[key] for node in places if key in node.module_dict), None)


def _nodes(kind: str) -> Dict[str, Registry]:
    """Return the registries of a kind by scope; names without a scope are looked up in the first two."""
    if kind == 'QUANTIZERS':
        nodes = {QUANTIZERS.scope: QUANTIZERS}
    else:
        root = getattr(mmengine_registry, kind)
        nodes = {HOME: root.children[HOME], root.scope: root, **root.children}
    for node in nodes.values():
        node.import_from_location()
    return nodes


def _portable_name(value: Any, kind: str, scope: str, where: str) -> str:
    """Return the name under which :func:`registered` finds what ``value`` means in a trusted config of ``scope``."""
    nodes = _nodes(kind)
    target = value
    if isinstance(value, str):
        try:
            target = nodes.get(scope, next(iter(nodes.values()))).get(value)
        except RuntimeError as error:  # MMEngine's word for a name that it does not know
            raise _unknown(value, kind, where) from error
        if registered(value, kind) is target:
            return value
    names = [f'{scope}.{key}' for scope, node in nodes.items() for key, item in node.module_dict.items()
             if item is target]
    if not names:
        raise _unknown(value, kind, where)
    return names[0].removeprefix(f'{HOME}.')


def _unknown(name: Any, kind: str, where: str) -> QuantizationError:
    return QuantizationError(f'expected a registered class in {where}, got type={name!r}, which is not in the registry '
                             f'{kind} or reads other files; import the package that registers it')
