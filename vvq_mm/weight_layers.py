"""Which layers' weights oscillation is tracked in and regularised: chosen by width and by name."""
import difflib
from typing import List, NamedTuple, Optional, Sequence

from torch import Tensor, nn

from vvq_mm.errors import QuantizationError
from vvq_mm.functional.groups import expand_groups
from vvq_mm.policy.rules import match
from vvq_mm.quantizers import Quantizer
from vvq_mm.surgery import iter_quantizers


class WeightLayer(NamedTuple):
    """A layer with a quantised weight.

    Args:
        name (str): its dotted name in the model.
        module (nn.Module): the layer; ``module.weight`` is the latent weight.
        quantizer (Quantizer): of the weight.
    """

    name: str
    module: nn.Module
    quantizer: Quantizer

    def latent(self) -> Tensor:
        """Return the latent weight less the offset, if there is one; differentiable."""
        weight, offset = self.module.weight, self.quantizer.offset
        return weight if offset is None else weight - expand_groups(offset, weight.shape, self.quantizer.axis)

    def codes(self) -> Tensor:
        """Return the integer codes of the weight."""
        return self.quantizer.codes(self.module.weight)


def select_weights(model: nn.Module, max_bits: int = 8, layers: Optional[Sequence[str]] = None) -> List[WeightLayer]:
    """Return the layers whose weight has at most ``max_bits`` bits and whose name fits one of ``layers``.

    A weight with a part in float has no codes to follow, so its layer is left out.

    Args:
        model (nn.Module): a quantised model.
        max_bits (int): widest weight to take. Defaults to 8, all.
        layers (sequence of str, optional): globs on names, or ``re:`` and a regular expression. Defaults to all.

    Raises:
        QuantizationError: nothing is that narrow, or a glob fits none of what is.
    """
    found = [WeightLayer(name, module, quantizer) for name, module, slot, quantizer in iter_quantizers(model)
             if slot == 'weight' and quantizer.in_float is None]
    narrow = {layer.name: layer for layer in found if layer.quantizer.bits <= max_bits}
    if not narrow:
        widths = ', '.join(str(bits) for bits in sorted({layer.quantizer.bits for layer in found}))
        raise QuantizationError(f'expected weights of at most {max_bits} bits (max_bits={max_bits}), the model has: '
                                f'{widths or "no quantised weight at all"}; raise max_bits, or leave oscillation '
                                'tracking and regularisation out')
    if layers is None:
        return list(narrow.values())
    chosen = set()
    for pattern in layers:
        names = match(pattern, narrow)
        if not names:
            near = difflib.get_close_matches(pattern, narrow, n=3, cutoff=0.0)
            raise QuantizationError(f'expected {pattern!r} in `layers` to fit the name of a layer whose weight has at '
                                    f'most {max_bits} bits, it fits none; the nearest names are {", ".join(near)}')
        chosen.update(names)
    return [layer for name, layer in narrow.items() if name in chosen]
