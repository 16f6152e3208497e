"""The description of a quantised model: plain JSON from which it is built again without its training config."""
from copy import deepcopy
from typing import Dict, List, Mapping, Optional, Sequence

import torch
from mmengine.config import Config
from mmpretrain.registry import DATASETS, MODELS
from torch import nn

from vvq_mm.errors import QuantizationError
from vvq_mm.policy import QuantPlan
from vvq_mm.surgery import apply_plan, quantizer_mode
from vvq_mm.version import __version__

from .safe_config import HOME, check_config, check_type, plain_config

FORMAT, VERSION = 'vvq_mm', 1
KEYS = ('format', 'version', 'vvq_mm', 'model', 'plan', 'classes', 'num_classes', 'input_shape', 'pipeline')
# Of a quantizer; written out, so that a reader need not know them.
_DEFAULTS = dict(signed=True, offset=False, groups=1, axis=0)


def describe(cfg: Config, model: nn.Module, input_shape: Sequence[int], checkpoint: Optional[dict] = None) -> dict:
    """Return the description of a quantised model.

    Args:
        cfg (Config): of its training; it stays as it is.
        model (nn.Module): built from ``cfg`` (see ``vvq_mm.utils.evaluate.build_model``), with its ``plan``.
        input_shape (sequence of int): channels, height and width of a preprocessed image.
        checkpoint (dict, optional): its checkpoint, whose ``meta`` may name the classes. Defaults to the names that the
            class of the test data set has.

    Returns:
        dict: ``format``, ``version``, ``vvq_mm`` (the package's version), ``model``, ``plan``, ``classes`` (list of
        str, or None), ``num_classes``, ``input_shape`` and ``pipeline`` (the test transforms).

    Raises:
        QuantizationError: a model in float, or a config that cannot be written so.

    Example:
        >>> describe(cfg, build_model(cfg, 'epoch_24.pth'), (1, 32, 32))['num_classes']
        10
    """
    if getattr(model, 'plan', None) is None:
        raise QuantizationError(f'expected a quantised model with its plan to describe, got {type(model).__name__} in '
                                'float; give the config and the checkpoint of a quantised training')
    config = cfg.model.copy()
    if cfg.get('data_preprocessor') is not None:
        config.setdefault('data_preprocessor', cfg.data_preprocessor)
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    while 'dataset' in dataset and 'pipeline' not in dataset:  # a wrapper around the data set
        dataset = dataset['dataset']
    scope = cfg.get('default_scope') or HOME
    num_classes = _count_classes(model, input_shape)
    description = dict(
        format=FORMAT,
        version=VERSION,
        vvq_mm=__version__,
        model=plain_config(config, 'MODELS', scope, 'model'),
        plan=pack_plan(model.plan),
        classes=_class_names(checkpoint, dataset, num_classes),
        num_classes=num_classes,
        input_shape=[int(size) for size in input_shape],
        pipeline=plain_config(dataset.get('pipeline') or [], 'TRANSFORMS', scope, 'pipeline'))
    check_description(description)
    return description


def build_described(description: dict) -> nn.Module:
    """Return the quantised model of a description in eval mode, with fresh weights and uncalibrated quantizers.

    Raises:
        QuantizationError: a description that is not one of ours, names a class that is not registered, or does not fit
            the installed versions.
    """
    check_description(description)
    try:
        plan = unpack_plan(description['plan'])
        model = MODELS.build(dict(deepcopy(description['model']), _scope_=HOME))
        apply_plan(model, plan)
    except Exception as error:  # whatever a class thinks of its arguments
        raise QuantizationError('expected a model that can be built from its description, written by vvq_mm '
                                f'{description["vvq_mm"]}, got {type(error).__name__}: {error}; install the versions '
                                'that it was exported with, or export it again') from error
    model.plan = plan
    model.eval()  # not chained: some of MMPretrain's train() return None
    return model


def check_version(description: dict) -> None:
    """Raise a :class:`QuantizationError` unless a description is one of this version of the format."""
    if not isinstance(description, dict) or description.get('format') != FORMAT:
        raise QuantizationError('expected a description that vvq_mm wrote, got something else; export the model again')
    if description.get('version') != VERSION:
        raise QuantizationError(f'expected format version {VERSION}, got {description.get("version")}, written by '
                                f'vvq_mm {description.get("vvq_mm")}; install that version, or export the model again')


def check_description(description: dict) -> None:
    """Raise a :class:`QuantizationError` unless this version can build the description, and safely."""
    check_version(description)
    missing = [key for key in KEYS if key not in description]
    if missing:
        raise QuantizationError(f'expected a whole description, {", ".join(missing)} is missing; export the model '
                                'again')
    try:
        model, plan = description['model'], description['plan']
        check_type(model.get('type'), 'MODELS', 'model')
        check_config(model, 'MODELS', 'model')
        check_config(description['pipeline'], 'TRANSFORMS', 'pipeline')
        for config in plan['configs']:
            check_type(config.get('type'), 'QUANTIZERS', 'plan')
            check_config(config, 'QUANTIZERS', 'plan')
    except (AttributeError, KeyError, TypeError) as error:
        raise QuantizationError('expected a description that vvq_mm wrote, got one whose parts are of other kinds '
                                f'({error!r}); export the model again') from error


def pack_plan(plan: QuantPlan) -> dict:
    """Return a plan as JSON: each different config once, and for each slot the number of its config, or None.

    Example:
        >>> packed = pack_plan(QuantPlan({'head': {'weight': dict(type='LSQQuantizer', bits=4), 'input': None}}))
        >>> packed['slots']
        {'head': {'weight': 0, 'input': None}}
    """
    configs: List[dict] = []
    slots: Dict[str, dict] = {}
    for name, slot, config in plan.items():
        number = None
        if config is not None:
            config = plain_config({**_DEFAULTS, **config}, 'QUANTIZERS', HOME, f'the plan of {name}')
            configs += [] if config in configs else [config]
            number = configs.index(config)
        slots.setdefault(name, {})[slot] = number
    return dict(configs=configs, slots=slots, matmul=plan.matmul, strict=plan.strict)


def unpack_plan(packed: dict) -> QuantPlan:
    """Return the plan of :func:`pack_plan`; why a slot is in float is not in it."""
    configs = packed['configs']
    slots = {name: {slot: None if number is None else dict(configs[number]) for slot, number in numbers.items()}
             for name, numbers in packed['slots'].items()}
    return QuantPlan(slots, {}, packed['matmul'], packed['strict'])


@torch.no_grad()
def _count_classes(model: nn.Module, input_shape: Sequence[int]) -> int:
    """Return the number of logits of an image."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with quantizer_mode(model, 'float'):
            return model(torch.zeros(1, *input_shape, device=next(model.parameters()).device)).shape[-1]
    finally:
        for module in training:
            module.training = True


def _class_names(checkpoint: Optional[dict], dataset: Mapping, count: int) -> Optional[List[str]]:
    """Return the first names of ``count`` classes that checkpoint, data set config or data set class give, or None."""
    meta = ((checkpoint or {}).get('meta') or {}).get('dataset_meta') or {}
    kind = dataset.get('type')
    kind = DATASETS.get(kind) if isinstance(kind, str) else kind
    for source in (meta, dataset.get('metainfo') or {}, dataset, getattr(kind, 'METAINFO', {})):
        names = source.get('classes')
        if isinstance(names, (list, tuple)) and len(names) == count:
            return [str(name) for name in names]
    return None
