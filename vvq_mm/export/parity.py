"""Is the exported file the same network? Logits and codes of both, on the same images."""
import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Callable, Dict, Iterable, NamedTuple, Optional

import numpy as np
import torch
from torch import Tensor, nn

from vvq_mm.errors import QuantizationError

from .codes import LOGITS, follow

MIN_AGREEMENT = 99.5  # % of the images with the same most probable class
# Two computations of the same float differ in its last bits, so a code whose value lies on a border of two bins may
# differ by one. Between equal inputs that is this rare, or these few where there are few codes.
MAX_BORDER_SHARE, FEW = 1e-3, 2
MAX_NOISE_DIFFERENCE = 0.5  # mean, of logits of noise, in units of their spread; of unrelated networks it is above 1
MAX_ROUNDING = 1e-3  # of logits from equal codes, in units of their spread
CODE_BATCHES = 4  # whose codes are compared: reading them takes a second run of both networks


@dataclass
class Parity:
    """How an exported file differs from the fake-quantised model.

    Args:
        images (int): compared.
        agreement (float): share of images with the same most probable class, in %.
        max_difference, mean_difference (float): of the logits, absolute.
        spread (float): standard deviation of the model's logits, for comparison.
        codes (int): activation codes compared, of the first four batches; 0 where they cannot be read.
        differing_codes (int): of these, how many differ from what the model makes of the file's codes before them.
        model_accuracy, accuracy (float, optional): top-1 of model and file on these images, in %, if they have labels.
        first (dict, optional): of the first slot with such a difference: ``slot``, ``share``, ``largest`` difference.
        wrong (dict, optional): of the first slot with more of them than bin borders explain.
        rounding (float, optional): largest difference of logits that follow from equal codes, in units of ``spread``.
    """

    images: int
    agreement: float
    max_difference: float
    mean_difference: float
    spread: float
    codes: int = 0
    differing_codes: int = 0
    model_accuracy: Optional[float] = None
    accuracy: Optional[float] = None
    first: Optional[dict] = None
    wrong: Optional[dict] = None
    rounding: Optional[float] = None

    def asdict(self) -> dict:
        return asdict(self)


def compare(model: nn.Module, exported: Callable[[Tensor], Tensor], batches: Iterable[Tensor],
            read_codes: Optional[Callable[[Tensor], Dict[str, np.ndarray]]] = None,
            labels: Optional[Tensor] = None) -> Parity:
    """Return how an exported network differs from the model.

    Args:
        model (nn.Module): the fake-quantised model.
        exported (callable): images -> logits.
        batches (iterable of Tensor): preprocessed images (B, C, H, W).
        read_codes (callable, optional): images -> ``MODULE.SLOT`` -> codes of the exported network, and ``logits``.
            Defaults to none.
        labels (Tensor, optional): the class of each image. Defaults to none.
    """
    ours, theirs, counts, errors = [], [], {}, []
    for number, images in enumerate(batches):
        with torch.no_grad():
            ours.append(model(images).float())
        theirs.append(exported(images).float())
        if read_codes is not None and number < CODE_BATCHES:
            codes = read_codes(images)
            differences, logits = follow(model, images, codes)
            errors.append(float(np.abs(logits.cpu().numpy() - codes[LOGITS]).max()))
            for slot, difference in differences.items():
                counts.setdefault(slot, Counter()).update(difference.ravel().tolist())
    ours, theirs = torch.cat(ours), torch.cat(theirs)
    difference, spread = (ours - theirs).abs(), ours.std().item()
    slots = [_Slot(slot, sum(count.values()) - count[0], sum(count.values()), max(count))
             for slot, count in counts.items()]
    return Parity(
        len(ours), _share(ours, theirs.argmax(1)), difference.max().item(), difference.mean().item(), spread,
        sum(slot.codes for slot in slots), sum(slot.differing for slot in slots),
        None if labels is None else _share(ours, labels), None if labels is None else _share(theirs, labels),
        next((slot.asdict() for slot in slots if slot.differing), None),
        next((slot.asdict() for slot in slots if slot.is_wrong()), None), max(errors) / spread if errors else None)


class _Slot(NamedTuple):
    """How the codes of a slot differ, by their number and by the largest difference."""

    name: str
    differing: int
    codes: int
    largest: int

    def is_wrong(self) -> bool:
        return self.largest > 1 or self.differing > max(FEW, MAX_BORDER_SHARE * self.codes)

    def asdict(self) -> dict:
        return dict(slot=self.name, share=self.differing / self.codes, largest=self.largest)


def _share(logits: Tensor, classes: Tensor) -> float:
    """Return on how many images the most probable class is the given one, in %."""
    return 100 * (logits.argmax(1) == classes).double().mean().item()


def check_parity(parity: Parity, where: str, real_images: bool = True) -> None:
    """Raise if a file differs by more than rounding at bin borders explains.

    From equal inputs, at most 0.1 % of a slot's codes may differ, by one, and the logits by 0.1 % of their spread. The
    most probable class must be the same on at least 99.5 % of the images, if these are images and not noise. For noise
    without codes there is a coarse bound on the logits only.

    Raises:
        QuantizationError: names the first layer where the codes differ by more.
    """
    wrong, expected = parity.wrong, f'expected {where} to be the trained network, but'
    if not math.isfinite(parity.max_difference):
        raise QuantizationError(f'{expected} it, or the network itself, gives logits that are NaN or infinite')
    if not real_images and not parity.codes and parity.mean_difference > MAX_NOISE_DIFFERENCE * parity.spread:
        raise QuantizationError(f'{expected} its logits of generated images differ by {parity.mean_difference:.3g} on '
                                f'average, where they spread by {parity.spread:.3g}')
    if wrong is not None:
        raise QuantizationError(f'{expected} its codes differ from {wrong["slot"]} on: {wrong["share"]:.2%} of them '
                                f'there, by up to {wrong["largest"]}; rounding at bin borders explains '
                                f'{MAX_BORDER_SHARE:.1%} and 1. This is a defect: please report it')
    if parity.rounding is not None and not parity.rounding <= MAX_ROUNDING:
        raise QuantizationError(f'{expected} its logits differ where all codes are equal, by {parity.rounding:.2%} of '
                                f'their spread; rounding explains {MAX_ROUNDING:.1%}, so the classifier after the last '
                                'codes is another one. This is a defect: please report it')
    if real_images and parity.agreement < MIN_AGREEMENT:
        codes = 'its codes agree' if parity.codes else 'its codes cannot be read'
        raise QuantizationError(f'expected the same most probable class on at least {MIN_AGREEMENT} % of '
                                f'{parity.images} images, got {parity.agreement:.2f} % with {where}; {codes} layer by '
                                'layer, so rounding at bin borders adds up: was the network trained to the end?')
