"""The rows of the training benchmark: which model runs, and how."""
from dataclasses import dataclass, replace
from typing import List, Sequence

FLOAT, EAGER, COMPILED, INTEGER, AUTOCAST, OTHERS = (
    'full precision', 'ours, eager', 'ours, compiled', 'ours, int8 products', 'ours, BF16 autocast', 'other code')
PEER_NAMES = {'straight-through': 'straight-through formula', 'torch': "torch's learnable operator",
              'torchao': 'torchao', 'brevitas': 'Brevitas'}


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Args:
        name (str): of the row.
        group (str): the family that it is drawn with.
        model (str): ``float``, ``ours`` or a key of :data:`vvq_mm.benchmarks.PEERS`. Defaults to ours.
        matmul (str): of the policy, ``float`` or ``int8``. Defaults to ``float``.
        compiled (bool): whether ``torch.compile`` compiles forward and loss as one graph. Defaults to False.
        autocast (bool): whether forward runs under bfloat16 autocast. Defaults to False.
        library (str): of float32 products on a CPU, ``MKL`` or ``oneDNN``. Defaults to ``MKL``.
        fused_attention (bool): of a float model: torch's fused operator instead of ``softmax(q k^T) v`` written out.
            Defaults to False.
        distil (bool): whether it learns from soft labels, else from labels. Defaults to True.
        regularize (bool): whether bins are regularised. Defaults to False.
        track (bool): whether oscillation is tracked. Defaults to False.
    """

    name: str
    group: str
    model: str = 'ours'
    matmul: str = 'float'
    compiled: bool = False
    autocast: bool = False
    library: str = 'MKL'
    fused_attention: bool = False
    distil: bool = True
    regularize: bool = False
    track: bool = False

    @property
    def is_full(self) -> bool:
        """Whether this is quantisation-aware training with everything on."""
        return self.distil and self.regularize and self.track


def make_variants(cuda: bool, libraries: Sequence[str] = ('MKL', )) -> List[Variant]:
    """Return all rows of a device, in the order of the table.

    Quantised models run on the fastest float products: those of the first library on a CPU, bfloat16 autocast on CUDA.
    Full precision is tried with both attention formulas and every library.

    Args:
        cuda (bool): whether the device is a GPU.
        libraries (sequence of str): of float32 products on this CPU, the fastest first. Defaults to ``MKL`` alone.
    """
    library = libraries[0]
    if cuda:
        return [*_float('FP32', [library], cuda, compiled=False),
                *_float('BF16 autocast', [library], cuda, autocast=True),
                *(replace(variant, autocast=True) for variant in [*_ours(), *_others()])]
    everything = dict(compiled=True, autocast=True, regularize=True, track=True)
    autocast = [Variant('BF16 autocast, compiled, everything on', AUTOCAST, **everything),
                Variant('BF16 autocast, int8 compiled, everything on', AUTOCAST, matmul='int8', **everything)]
    return [*_float('FP32', sorted(libraries), cuda, compiled=False),
            *_float('FP32', [library], cuda, eager=False), *_float('BF16 autocast', [library], cuda, autocast=True),
            *(replace(variant, library=library) for variant in [*_ours(), *autocast, *_others()])]


def _float(dtype: str, libraries: Sequence[str], cuda: bool, eager: bool = True, compiled: bool = True,
           autocast: bool = False) -> List[Variant]:
    """Return the full-precision rows of a dtype."""
    names = {library: dtype if cuda or autocast else f'{dtype}, {library}' for library in libraries}
    return [Variant(f'{names[library]}, {"fused" if fused else "explicit"} attention' + ', compiled' * compiling, FLOAT,
                    model='float', library=library, fused_attention=fused, compiled=compiling, autocast=autocast,
                    distil=False)
            for compiling in [False] * eager + [True] * compiled for library in libraries for fused in (True, False)]


def _ours() -> List[Variant]:
    """Return the rows of this package, a knob more from line to line."""
    regularized, everything = dict(regularize=True), dict(regularize=True, track=True)
    compiled, integer = dict(compiled=True), dict(compiled=True, matmul='int8')
    return [Variant('eager, labels alone', EAGER, distil=False),
            Variant('eager, distillation', EAGER),
            Variant('eager, + regulariser', EAGER, **regularized),
            Variant('eager, everything on', EAGER, **everything),
            Variant('compiled, distillation', COMPILED, **compiled),
            Variant('compiled, everything on', COMPILED, **compiled, **everything),
            Variant('int8 compiled, distillation', INTEGER, **integer),
            Variant('int8 compiled, + regulariser', INTEGER, **integer, **regularized),
            Variant('int8 compiled, everything on', INTEGER, **integer, **everything),
            Variant('int8 eager, everything on', INTEGER, matmul='int8', **everything)]


def _others() -> List[Variant]:
    """Return the rows of other people's fake quantisation."""
    return [Variant('textbook', OTHERS, model='textbook'),
            Variant('textbook, loop over bins, float tracker', OTHERS, model='textbook', regularize=True, track=True),
            *(Variant(name, OTHERS, model=model) for model, name in PEER_NAMES.items())]
