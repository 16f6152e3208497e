"""Parts of a quantised transformer: which slots, and which blocks of them, a name such as `query` stands for."""
import difflib
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from torch import nn

from vvq_mm.errors import QuantizationError
from vvq_mm.layers import weighted_mixin
from vvq_mm.surgery import iter_quantizers

from .cost import is_attention

LAYER = ('weight', 'input')
QUERY, KEY, VALUE = range(3)  # which third of the rows of a fused qkv weight
# Module type -> role of a module -> its slots; (slot, third) is a third of the rows of the fused qkv weight. The input
# of qkv is one tensor for query, key and value: it belongs to MHSA alone.
TYPES: Dict[str, Dict[str, tuple]] = {
    'MHSA': {'qkv': LAYER, 'products': ('query', 'key', 'value', 'prob'), 'projection': LAYER, 'in attention': LAYER},
    'FFN': {'fc1': LAYER, 'fc2': LAYER},
    'query': {'qkv': (('weight', QUERY), ), 'products': ('query', )},
    'key': {'qkv': (('weight', KEY), ), 'products': ('key', )},
    'value': {'qkv': (('weight', VALUE), ), 'products': ('value', )},
    'softmax': {'products': ('prob', )},
    'projection': {'projection': LAYER},
    'fc1': {'fc1': LAYER},
    'fc2': {'fc2': LAYER},
    'patch embedding': {'patch embedding': LAYER},
    'patch merging': {'patch merging': LAYER},
    'head': {'head': LAYER},
}
SETS = ('types', 'blocks', 'heads', 'layers')


class Piece(NamedTuple):
    """A slot, or blocks of it.

    Args:
        module (str): its dotted name.
        slot (str): of the module.
        blocks (dict | None): ``dict(groups=, axis=, members=)`` as ``float_part`` of a quantizer; None for all of it.
    """

    module: str
    slot: str
    blocks: Optional[dict] = None


class Part(NamedTuple):
    """What can be left in float as one.

    Args:
        name (str): for people.
        pieces (tuple of Piece): the quantised slots that it covers.
    """

    name: str
    pieces: Tuple[Piece, ...]


class Place(NamedTuple):
    """Where a module sits: its role, the number of its transformer block or None, and its attention's heads."""

    role: str
    block: Optional[int] = None
    heads: Optional[int] = None


def find_places(model: nn.Module) -> Dict[str, Place]:
    """Return role and block of every attention and weighted layer, by name, found by structure.

    A block is the smallest module around an attention that holds other weighted layers: the last of these is ``fc2``,
    those before it are ``fc1``. Layers before the first block are the patch embedding, those after the last the head,
    those between blocks patch merging.
    """
    modules = {name: module for name, module in model.named_modules() if name}
    attentions = [name for name, module in modules.items() if is_attention(module)]
    layers = [name for name, module in modules.items() if weighted_mixin(module)]
    if not attentions:
        raise QuantizationError(f'expected a model with attentions, got {type(model).__name__} without one; only '
                                "`layers` are parts of such a model")
    blocks = {_block(name, layers): name for name in attentions}
    places = {}
    for number, (block, attention) in enumerate(blocks.items()):
        heads = modules[attention].num_heads
        places[attention] = Place('products', number, heads)
        inside = [name for name in layers if _within(name, block)]
        others = [name for name in inside if not _within(name, attention)]
        for name in inside:
            if name in others:
                role = 'fc2' if name == others[-1] else 'fc1'
            else:
                child = name.removeprefix(f'{attention}.')
                role = {'qkv': 'qkv', 'proj': 'projection'}.get(child, 'in attention')
            places[name] = Place(role, number, heads)
    first, last = (min(map(layers.index, set(layers) & set(places))), max(map(layers.index, set(layers) & set(places))))
    for index, name in enumerate(layers):
        outside = 'patch embedding' if index < first else 'head' if index > last else 'patch merging'
        places.setdefault(name, Place(outside))
    return {name: places[name] for name in modules if name in places}


def _within(name: str, parent: str) -> bool:
    return name == parent or not parent or name.startswith(f'{parent}.')


def _block(attention: str, layers: Sequence[str]) -> str:
    """Return the name of the smallest module around an attention that holds other weighted layers."""
    parent = attention
    while parent:
        parent = parent.rpartition('.')[0]
        if any(_within(name, parent) and not _within(name, attention) for name in layers):
            break
    return parent


def find_parts(model: nn.Module, kind: str) -> List[Part]:
    """Return the parts of a quantised model that a set consists of; slots that are in float anyway belong to none.

    Args:
        model (nn.Module): quantised.
        kind (str): ``types`` of modules, ``blocks``, ``heads`` (of every attention), or ``layers`` (weight and input of
            each, and the two products of each attention).

    Example:
        >>> [part.name for part in find_parts(model, 'blocks')]
        ['block 0', 'block 1']
    """
    quantised = {(name, slot) for name, _, slot, _ in iter_quantizers(model)}
    pieces = _layers(model) if kind == 'layers' else {'types': _types, 'blocks': _blocks, 'heads': _heads}[kind](
        find_places(model))
    parts: Dict[str, List[Piece]] = {}
    for name, piece in pieces:
        if (piece.module, piece.slot) in quantised:
            parts.setdefault(name, []).append(piece)
    return [Part(name, tuple(found)) for name, found in parts.items()]


def _types(places: Dict[str, Place]) -> Iterator[Tuple[str, Piece]]:
    for part, roles in TYPES.items():
        for name, place in places.items():
            for slot in roles.get(place.role, ()):
                blocks = None if isinstance(slot, str) else dict(groups=3, axis=0, members=[slot[1]])
                yield part, Piece(name, slot if isinstance(slot, str) else slot[0], blocks)


def _blocks(places: Dict[str, Place]) -> Iterator[Tuple[str, Piece]]:
    for name, place in places.items():
        if place.block is not None:
            slots = TYPES['MHSA']['products'] if place.role == 'products' else LAYER
            yield from ((f'block {place.block}', Piece(name, slot)) for slot in slots)


def _heads(places: Dict[str, Place]) -> Iterator[Tuple[str, Piece]]:
    """A head: its rows of query, key and value, its four operands, its columns and input channels of the projection."""
    for block in sorted({place.block for place in places.values() if place.block is not None}):
        inside = {name: place for name, place in places.items() if place.block == block}
        for head in range(next(iter(inside.values())).heads):
            for name, place in inside.items():
                heads = place.heads
                axes = {'products': {slot: 1 for slot in TYPES['MHSA']['products']}, 'qkv': {'weight': 0},
                        'projection': {'weight': 1, 'input': -1}}.get(place.role, {})
                for slot, axis in axes.items():
                    thirds = 3 if place.role == 'qkv' else 1
                    members = [third * heads + head for third in range(thirds)]
                    yield f'block {block} head {head}', Piece(name, slot, dict(groups=thirds * heads, axis=axis,
                                                                              members=members))


def _layers(model: nn.Module) -> Iterator[Tuple[str, Piece]]:
    for name, _, slot, _ in iter_quantizers(model):
        pair = {'query': ' (query, key)', 'key': ' (query, key)', 'value': ' (prob, value)', 'prob': ' (prob, value)'}
        yield name + pair.get(slot, ''), Piece(name, slot)


def choose_parts(model: nn.Module, words: Sequence[str]) -> List[Part]:
    """Return the parts that ``words`` name: a set (``types``, ``blocks``, ``heads``, ``layers``), or parts one by one.

    Capitals do not matter, and ``_`` stands for a space.

    Raises:
        QuantizationError: a word that names none, with the nearest; or one that this model does not have.
    """
    chosen: Dict[str, Part] = {}
    for word in words:
        if word in SETS:
            chosen.update((part.name, part) for part in find_parts(model, word))
            continue
        known = {_plain(part.name): part for kind in SETS for part in find_parts(model, kind)}
        part = known.get(_plain(word))
        if part is None:
            raise QuantizationError(_unknown(model, word, known))
        chosen[part.name] = part
    return list(chosen.values())


def _plain(word: str) -> str:
    return word.lower().replace('_', ' ')


def _unknown(model: nn.Module, word: str, known: Dict[str, Part]) -> str:
    present = ', '.join(part.name for part in find_parts(model, 'types'))
    if _plain(word) in map(str.lower, TYPES):
        return (f'expected module types that {type(model).__name__} has and the config quantises ({present}), got '
                f'{word!r} in --parts')
    names = [*SETS, *known]
    near = difflib.get_close_matches(_plain(word), names, n=1, cutoff=0.4)
    hint = f'; did you mean {known[near[0]].name if near[0] in known else near[0]!r}?' if near else ''
    return f'expected {", ".join(SETS)}, or parts of the model ({present}, ...), got {word!r} in --parts{hint}'
