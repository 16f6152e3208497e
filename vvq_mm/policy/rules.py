"""Policies: from rules on module names to a plan."""
import difflib
import fnmatch
import json
import re
from pathlib import Path
from typing import Dict, List, Optional, Tuple

from torch import nn

from vvq_mm.errors import QuantizationError
from vvq_mm.layers import MATMULS, attention_mixin, weighted_mixin
from vvq_mm.registry import POLICIES, QUANTIZERS

from .granularity import resolve_granularity
from .plan import QuantPlan

# What the network itself fixes: probabilities are never negative.
SLOT_DEFAULTS = {'prob': dict(signed=False)}
# What every quantizer takes; the rest belongs to a type and goes when a rule changes the type.
COMMON_OPTIONS = ('bits', 'signed', 'offset', 'granularity', 'init', 'float_part')
# Parts of the names of parameters that are added to activations.
ADDED = ('embed', 'token', 'bias')


@POLICIES.register_module()
class RulePolicy:
    """Two templates and a table of rules, ordered from general to specific.

    Every linear layer, convolution and attention starts with the templates; then each rule that matches changes only
    what it names. The more of a name a rule spells out, the later it is read (see :func:`specificity`), so the most
    specific word is the last. The order in which rules are written does not matter: MMEngine sorts the keys of a config
    that it saves, and merges those of configs that inherit. A key is a glob on the dotted module name (``*`` matches
    dots too), or ``re:`` and a regular expression. A value is

    * a number: these bits for all slots of the module;
    * ``None``: the module stays in float;
    * a dict from slots (``weight``, ``input``, ``query``, ``key``, ``value``, ``prob``; ``act`` for all activation
      slots) to a number, ``None``, or a dict of quantizer options (``bits``, ``signed``, ``offset``, ``granularity``,
      ``init``, ``float_part``, ``grad_scale``, ``type``).

    Args:
        weight (dict | None): quantizer of weights. None leaves all in float unless a rule says otherwise.
        act (dict | None): quantizer of activations.
        rules (dict): the table. Defaults to none.
        matmul (str): ``float``, or ``int8``: linear layers and both products of an attention run on integer codes in
            forward, which gives the same values faster where the device has int8 products; backward stays in the
            training dtype. Defaults to ``float``.
        strict (bool): whether a product that cannot run on integers is an error; otherwise it runs on floats, and a
            line in the log names it. Defaults to False.

    Raises:
        QuantizationError: a rule that matches no module, or a slot that its modules do not have.

    Example:
        >>> policy = RulePolicy(weight=dict(type='LSQQuantizer', bits=4), act=dict(type='LSQQuantizer', bits=4),
        ...                     rules={'head': 8, '*.fc2': dict(input=dict(signed=False, offset=True))})
    """

    def __init__(self, weight: Optional[dict], act: Optional[dict], rules: Optional[dict] = None,
                 matmul: str = 'float', strict: bool = False) -> None:
        for name, value in dict(weight=weight, act=act, rules=rules).items():
            if value is not None and not isinstance(value, dict):
                raise QuantizationError(f'expected {name} of RulePolicy to be a dict or None, got {value!r}')
        if matmul not in MATMULS:
            raise QuantizationError(f'expected matmul to be one of {", ".join(MATMULS)}, got {matmul!r} in RulePolicy')
        self.weight, self.act, self.rules = weight, act, dict(rules or {})
        self.matmul, self.strict = matmul, strict

    def plan(self, model: nn.Module) -> QuantPlan:
        """Return the plan for ``model``, which may be on the meta device; nothing is changed."""
        slots = {name: {slot: self._template(slot) for slot in mixin.SLOTS}
                 for name, mixin in quantisable(model).items()}
        if not slots:
            raise QuantizationError('expected a model with a linear layer, convolution or attention inside, got '
                                    f'{type(model).__name__} without one; wrap a single layer in nn.Sequential')
        reasons: Dict[str, str] = {}
        for pattern in sorted(self.rules, key=specificity):
            if pattern.startswith('_') and pattern.endswith('_'):
                continue  # MMEngine's own keys, such as `_scope_`
            self._apply(pattern, self.rules[pattern], slots, reasons)
        for name, configs in slots.items():
            for slot, config in configs.items():
                if config is None:
                    reasons.setdefault(f'{name}.{slot}', 'the template for it is None')
                else:
                    configs[slot] = _resolve(config, model, name, slot)
        reasons.update(_float_modules(model, slots))
        return QuantPlan(slots, reasons, self.matmul, self.strict)

    def _template(self, slot: str) -> Optional[dict]:
        template = self.weight if slot == 'weight' else self.act
        return None if template is None else {**template, **SLOT_DEFAULTS.get(slot, {})}

    def _apply(self, pattern: str, value, slots: Dict[str, dict], reasons: Dict[str, str]) -> None:
        """Let one rule change the slots it matches."""
        names = match(pattern, slots)
        if not names:
            near = difflib.get_close_matches(pattern, slots, n=3, cutoff=0.0)
            raise QuantizationError(f'expected the rule {pattern!r} to match a linear layer, convolution or attention, '
                                    f'it matches none; the nearest names are {", ".join(near)}; '
                                    'tools/print_plan.py CONFIG lists all')
        if not isinstance(value, dict):  # a number sets the bits of every slot that has a template
            number, value = value, {slot: value for name in names for slot in slots[name]
                                    if value is None or self._template(slot) is not None}
            if not value:
                raise QuantizationError(f'expected a template for a slot of {", ".join(names[:3])}, there is none, got '
                                        f'{number!r} in the rule {pattern!r}; name the slot there, as '
                                        'dict(weight=dict(type=.., bits=..))')
        for slot, change in sorted(value.items(), key=lambda item: item[0] != 'act'):  # `act` is the general one
            if slot.startswith('_'):
                continue
            having = [(name, key) for name in names for key in slots[name]
                      if key == slot or (slot == 'act' and key != 'weight')]
            if not having:
                known = sorted({key for name in names for key in slots[name]})
                raise QuantizationError(f'expected a slot of {", ".join(names[:3])} ({", ".join(known)}; act for all '
                                        f'activations), got {slot!r} in the rule {pattern!r}')
            for name, key in having:
                slots[name][key] = self._change(slots[name][key], change, key, pattern)
                reasons.pop(f'{name}.{key}', None)  # an earlier rule may have left it in float
                if change is None:
                    reasons[f'{name}.{key}'] = f'rule {pattern!r}'

    def _change(self, config: Optional[dict], change, slot: str, pattern: str) -> Optional[dict]:
        """Return the slot's config after one rule."""
        if change is None:
            return None
        is_dict = isinstance(change, dict)
        change = {key: value for key, value in change.items() if key != '_scope_'} if is_dict else dict(bits=change)
        config = self._template(slot) if config is None else config
        if config is None and not {'type', 'bits'} <= change.keys():
            raise QuantizationError(f'expected type and bits for {slot!r} in the rule {pattern!r}, got {change}: there '
                                    'is no template to start from')
        if config and config.get('type') != change.get('type', config.get('type')):  # options of another quantizer
            config = {key: value for key, value in config.items() if key in COMMON_OPTIONS}
        return {**(config or {}), **change}


@POLICIES.register_module()
class PlanFile:
    """A plan read from the JSON file that ``tools/print_plan.py CONFIG --out FILE`` wrote.

    Args:
        path (str): the file.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def plan(self, model: nn.Module) -> QuantPlan:
        if not Path(self.path).is_file():
            raise QuantizationError(f'expected a plan in {self.path}, found no such file; write one with '
                                    f'tools/print_plan.py CONFIG --out {self.path}')
        plan, found = self._read(), quantisable(model)
        unknown = sorted(set(plan.slots) - set(found))
        if unknown:
            raise QuantizationError(f'expected modules of the model in {self.path}, got {", ".join(unknown[:3])}; the '
                                    'plan was made for another model')
        for name, slots in plan.slots.items():
            wrong = sorted(set(slots) - set(found[name].SLOTS))
            if wrong:
                known = ', '.join(found[name].SLOTS)
                raise QuantizationError(f'expected slots of {name} ({known}) in {self.path}, got {", ".join(wrong)}')
        return plan

    def _read(self) -> QuantPlan:
        try:
            data = json.loads(Path(self.path).read_text())
            return QuantPlan.from_dict(data.get('plan', data))
        except (ValueError, KeyError, AttributeError) as error:
            raise QuantizationError(f'expected the JSON of a plan in {self.path}, got something else ({error!r}); '
                                    f'write it again with tools/print_plan.py CONFIG --out {self.path}') from error


def quantisable(model: nn.Module) -> Dict[str, type]:
    """Return the modules that can be quantised, by name, with their mixin; in the order of the model."""
    found = {name: weighted_mixin(module) or attention_mixin(module)
             for name, module in model.named_modules() if name}
    return {name: mixin for name, mixin in found.items() if mixin is not None}


def specificity(pattern: str) -> Tuple[int, str]:
    """Return the key that orders rules: how many letters, digits and underscores they spell out, then the alphabet.

    Example:
        >>> sorted(['backbone.layers.11.*', '*', '*.qkv'], key=specificity)
        ['*', '*.qkv', 'backbone.layers.11.*']
    """
    return len(re.sub(r'\W', '', pattern.removeprefix('re:'))), pattern


def match(pattern: str, names) -> List[str]:
    """Return the names that a glob, or ``re:`` and a regular expression, matches as a whole.

    Example:
        >>> match('*.qkv', ['layers.0.attn.qkv', 'layers.0.attn.proj'])
        ['layers.0.attn.qkv']
    """
    if pattern.startswith('re:'):
        return [name for name in names if re.fullmatch(pattern[3:], name)]
    return [name for name in names if fnmatch.fnmatchcase(name, pattern)]


def _resolve(config: dict, model: nn.Module, name: str, slot: str) -> dict:
    """Return the arguments of the quantizer: granularity as groups and axis, and where it is."""
    config = {key: value for key, value in config.items() if key != '_scope_'}
    if not {'type', 'bits'} <= config.keys():
        raise QuantizationError(f'expected type and bits for {name} ({slot}), got {config}; write them into the '
                                "template of the policy, as dict(type='LSQQuantizer', bits=4)")
    groups, axis = resolve_granularity(config.pop('granularity', 'tensor'), model, name, slot)
    kind = 'weight' if slot == 'weight' else 'act'
    quantizer = config.get('type')
    if isinstance(quantizer, type) and QUANTIZERS.get(quantizer.__name__) is quantizer:
        config['type'] = quantizer.__name__  # a lazy config names the class itself; a plan is JSON
    return dict(config, groups=groups, axis=axis, kind=kind)


def _float_modules(model: nn.Module, slots: Dict[str, dict]) -> Dict[str, str]:
    """Return why each module with parameters of its own that is not in the plan stays in float."""
    reasons = {}
    for name, module in model.named_modules():
        own = [key for key, _ in module.named_parameters(recurse=False)]
        if own and name not in slots:
            kind = type(module).__name__
            added = all(any(word in key for word in ADDED) for key in own)
            why = f'{", ".join(own)} are added, not multiplied' if added else 'no quantised class for it'
            reasons[name or 'the model itself'] = f'{kind}: {"normalisation stays in float" if "Norm" in kind else why}'
    return reasons
