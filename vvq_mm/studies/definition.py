"""STUDY.yaml: which methods, at which bits, with which seeds, of which config."""
import difflib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional

import yaml

from vvq_mm.errors import QuantizationError

from .run import EVALUATE_ON, Run, merge

STUDY_KEYS = ('name', 'title', 'config', 'evaluate_on', 'baseline', 'changes', 'prepare', 'include', 'methods', 'runs')
METHOD_KEYS = ('title', 'extends', 'changes')
GROUP_KEYS = ('methods', 'bits', 'seeds')


@dataclass(frozen=True)
class Method:
    """A way of training: what it changes in the config.

    Args:
        name (str): as the study file calls it.
        title (str): as the table calls it.
        parent (str | None): the method that it extends.
        changes (dict): its own over those of its parent, nested as in an inheriting config.
    """

    name: str
    title: str
    parent: Optional[str]
    changes: Dict[str, Any]


@dataclass(frozen=True)
class Study:
    """What a study file says; see docs/analysis.md for its keys.

    Args:
        name (str): of the study; each row of its CSV carries it.
        title (str): for the table.
        config (str): path of the config that all runs inherit.
        baseline (str): the method that all others are compared with.
        methods (dict): :class:`Method` by name, in the order of the table.
        runs (list of Run): in the order in which they are trained.
        prepare (dict): path of what must exist -> arguments of Python that make it.
    """

    name: str
    title: str
    config: str
    baseline: str
    methods: Dict[str, Method]
    runs: List[Run]
    prepare: Dict[str, str] = field(default_factory=dict)


def read_study(path: Path) -> Study:
    """Read a study file.

    Raises:
        QuantizationError: an unknown key or method, named with the nearest known ones, or a missing one.
    """
    data = _load(path, STUDY_KEYS, ('name', 'config', 'baseline', 'runs'))
    included = [_load(path.parent / name, ('methods', 'prepare'), ()) for name in _list(data.get('include'))]
    definitions = _join('methods', [*included, data], path)
    prepare = _join('prepare', [*included, data], path)
    data['name'] = str(data['name'])
    evaluate_on = data.get('evaluate_on', 'val')
    _known([evaluate_on], EVALUATE_ON, 'evaluate_on', path)
    resolved = {name: _resolve(name, definitions, path) for name in definitions}
    order: Dict[str, Method] = {}
    runs = []
    for number, group in enumerate(_list(data['runs']), start=1):
        where = f'{path}, group {number} of runs'
        _check_group(group, where)
        _known(group['methods'], resolved, 'a method', where)
        order.update({name: resolved[name] for name in group['methods']})
        runs += [Run(data['name'], name, _label(bits), seed, data['config'],
                     merge(merge(data.get('changes') or {}, _bits(bits)), resolved[name].changes), evaluate_on)
                 for seed in group['seeds'] for name in group['methods'] for bits in group['bits']]
    if not runs:
        raise QuantizationError(f'expected at least one group of runs, got none in {path}')
    _known([data['baseline']], order, 'baseline', path)
    names = [run.name for run in runs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise QuantizationError(f'expected each run once, got {", ".join(twice[:3])} twice in {path}')
    return Study(data['name'], data.get('title', data['name']), data['config'], data['baseline'],
                 {name: order[name] for name in definitions if name in order}, runs, prepare)


def _load(path: Path, known: Iterable[str], needed: Iterable[str]) -> dict:
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [file.name for file in path.parent.glob('*.y*ml')], n=3, cutoff=0.4)
        raise QuantizationError(f'expected a study file at {path}, found none; near it: {", ".join(near) or "nothing"}')
    try:
        data = yaml.safe_load(path.read_text(encoding='utf-8'))
    except yaml.YAMLError as error:
        found = ' '.join(str(error).split())
        raise QuantizationError(f'expected YAML in {path}, got something else: {found}') from error
    _check_keys(data, known, needed, path)
    return data


def _list(value) -> list:
    return value if isinstance(value, list) else [] if value is None else [value]


def _join(key: str, parts: Iterable[dict], path: Path) -> dict:
    """Return a mapping of several files as one; the later wins."""
    joined = {}
    for part in parts:
        if not isinstance(part.get(key) or {}, dict):
            raise QuantizationError(f'expected {key} to be a mapping, got {part[key]!r} in {path} or what it includes')
        joined.update(part.get(key) or {})
    return joined


def _check_group(group: dict, where: str) -> None:
    _check_keys(group, GROUP_KEYS, GROUP_KEYS, where)
    for key in GROUP_KEYS:
        if not isinstance(group[key], list) or not group[key]:
            raise QuantizationError(f'expected {key} to be a list of at least one, got {group[key]!r} in {where}')
    for seed in group['seeds']:
        if not isinstance(seed, int):
            raise QuantizationError(f'expected seeds to be whole numbers, got {seed!r} in {where}')
    for bits in group['bits']:
        if not re.fullmatch(r'[2-8](/[2-8])?', str(bits)):
            raise QuantizationError(f"expected bits as 4, or '4/8' for weights and activations, got {bits!r} in {where}")


def _check_keys(data, known: Iterable[str], needed: Iterable[str], where) -> None:
    if not isinstance(data, dict):
        raise QuantizationError(f'expected a mapping with {", ".join(known)} in {where}, got {data!r}')
    _known(data, known, 'a key', where)
    if missing := [key for key in needed if key not in data]:
        raise QuantizationError(f'expected {", ".join(missing)} in {where}, got only {", ".join(data) or "nothing"}')


def _known(names: Iterable[str], known: Iterable[str], what: str, where) -> None:
    """Raise with the nearest known name if one is not known."""
    known = list(known)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1, cutoff=0.4)
            hint = f'; did you mean {near[0]!r}?' if near else ''
            raise QuantizationError(f'expected {what} to be one of {", ".join(known)}, got {name!r} in {where}{hint}')


def _resolve(name: str, definitions: dict, path: Path, children: tuple = ()) -> Method:
    """Return a method with the changes of all that it extends."""
    where = f'{path}, method {name}'
    if not re.fullmatch(r'[\w.+-][\w.+ -]*', str(name)):
        raise QuantizationError(f'expected the name of a method, which names a folder, to be of letters, digits, "_", '
                                f'".", "+", "-" and spaces, got {name!r} in {path}')
    definition = definitions[name] or {}
    _check_keys(definition, METHOD_KEYS, (), where)
    parent = definition.get('extends')
    changes = definition.get('changes') or {}
    if not isinstance(changes, dict):
        raise QuantizationError(f'expected changes to be nested as in a config, got {changes!r} in {where}')
    if parent is not None:
        _known([parent], definitions, 'extends', where)
        if parent in (name, *children):
            raise QuantizationError(f'expected {name} to extend a method that does not extend it, got {parent!r} in '
                                    f'{path}')
        changes = merge(_resolve(parent, definitions, path, (name, *children)).changes, changes)
    return Method(name, definition.get('title', name), parent, changes)


def _label(bits) -> str:
    return bits if '/' in str(bits) else f'{bits}/{bits}'


def _bits(bits) -> dict:
    """Return what a number, or ``'weight/activation'``, changes in the config's policy."""
    weight, act = (int(part) for part in _label(bits).split('/'))
    return dict(model=dict(policy=dict(weight=dict(bits=weight), act=dict(bits=act))))
