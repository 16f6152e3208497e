"""The shortest time that the quantisers' traffic and the products of a training step can take on a device."""
from typing import Dict, NamedTuple, Optional, Union

import torch
from torch import Tensor, nn

from vvq_mm.analysis.cost import is_attention, multiply_accumulates
from vvq_mm.surgery import iter_quantizers, quantizer_mode

from .measure import interleaved

# Passes over a quantised tensor by one kernel each way: forward reads x and writes the result; backward reads the
# upstream gradient and x and writes the gradient. Between fused neighbours only a 1-byte code is written in addition.
PASSES, CODE_BYTES = 5, 1
LATENT_BYTES = 4  # latent weights are float32


class Work(NamedTuple):
    """What the quantisers and the products of one training step have to do.

    Args:
        act_elements (int): quantised activations of the batch.
        weight_elements (int): quantised weights.
        forward_operations (int): multiplications and additions of the forward products with both operands quantised.
        float_operations (int): of the other forward products.
        backward_operations (int): of the products of backward.
    """

    act_elements: int
    weight_elements: int
    forward_operations: int
    float_operations: int
    backward_operations: int

    def quantiser_bytes(self, act_bytes: int = 4, fused: bool = False) -> int:
        """Return the bytes that the quantisers move.

        Args:
            act_bytes (int): size of an activation: 4 float32, 2 bfloat16. Defaults to 4.
            fused (bool): whether quantisation happens inside the kernels before and after it, else in one kernel of its
                own each way. Defaults to False.

        Example:
            >>> Work(10, 1, 0, 0, 0).quantiser_bytes(act_bytes=2)
            120
        """
        if fused:
            return (self.act_elements + self.weight_elements) * CODE_BYTES
        return PASSES * (self.act_elements * act_bytes + self.weight_elements * LATENT_BYTES)


class Rates(NamedTuple):
    """What a device reaches: bytes per second of a large copy, operations per second of a large matrix product.

    ``int8`` is None where there is no int8 product.
    """

    bytes_per_second: float
    float32: float
    bfloat16: float
    int8: Optional[float]


@torch.no_grad()
def step_work(model: nn.Module, image: Tensor, batch: int) -> Work:
    """Return the :class:`Work` of a training step of a quantised model.

    Backward has two products for each of the forward, but one for the first layer, whose input needs no gradient.

    Args:
        model (nn.Module): quantised; it runs in float.
        image (Tensor): (1, 3, H, W).
        batch (int): images of the step.
    """
    sizes, handles = {}, []
    for name, _, slot, quantizer in iter_quantizers(model):
        handles.append(quantizer.register_forward_hook(
            lambda _, inputs, __, key=(name, slot): sizes.__setitem__(key, inputs[0].numel())))
    try:
        with quantizer_mode(model, 'float'):
            model(image)
    finally:
        for handle in handles:
            handle.remove()
    products = {name: 2 * count * batch for name, count in multiply_accumulates(model, image).items()}
    exact = sum(count // 2 * sum(all((name, slot) in sizes for slot in pair) for pair in _operands(model, name))
                for name, count in products.items())
    total = sum(products.values())
    return Work(act_elements=batch * sum(size for (_, slot), size in sizes.items() if slot != 'weight'),
                weight_elements=sum(size for (_, slot), size in sizes.items() if slot == 'weight'),
                forward_operations=exact, float_operations=total - exact,
                backward_operations=2 * total - next(iter(products.values()), 0))


def _operands(model: nn.Module, name: str) -> list:
    """Return the slots of the two halves of a module's products: an attention has two, a layer the same one twice."""
    attention = is_attention(model.get_submodule(name))
    return [('query', 'key'), ('prob', 'value')] if attention else [('weight', 'input')] * 2


def measure_rates(device: Union[str, torch.device] = 'cpu', size: Optional[int] = None, repeats: int = 10) -> Rates:
    """Return the :class:`Rates` of a device, the best of ``repeats``, with the process's threads and precision flags.

    Args:
        device (str | torch.device): where. Defaults to ``cpu``.
        size (int, optional): edge of the square matrices; 65,536 times that is the length of the copied float32 vector.
            Defaults to 1024 on the CPU and 8192 on CUDA.
        repeats (int): runs of each. Defaults to 10.
    """
    size = size or (1024 if torch.device(device).type == 'cpu' else 8192)
    source = torch.ones(size << 16, device=device)  # written to: zeros may be one page of memory seen many times
    target = torch.empty_like(source)
    steps = {'copy': lambda: target.copy_(source)}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.randn(size, size, device=device).to(dtype)
        steps[str(dtype)] = lambda matrix=matrix: matrix @ matrix
    codes = torch.randint(-8, 8, (size, size), device=device, dtype=torch.int8)
    try:
        torch._int_mm(codes, codes)
        steps['int8'] = lambda: torch._int_mm(codes, codes)
    except (RuntimeError, NotImplementedError):
        pass
    best = {name: timing.minimum for name, timing in
            interleaved(steps, repeats, warmup=2, device=device, progress=False).items()}
    operations = 2 * size**3
    return Rates(bytes_per_second=2 * source.numel() * source.element_size() / best['copy'],
                 float32=operations / best['torch.float32'], bfloat16=operations / best['torch.bfloat16'],
                 int8=operations / best['int8'] if 'int8' in best else None)


def limits(work: Work, rates: Rates, dtype: torch.dtype = torch.float32) -> Dict[str, float]:
    """Return lower limits in seconds, each of its part alone, nothing overlapped.

    Args:
        work (Work): of :func:`step_work`.
        rates (Rates): of :func:`measure_rates`.
        dtype (torch.dtype): of activations and float products, float32 or bfloat16. Defaults to float32.

    Returns:
        dict: ``quantisers_separate`` (one kernel each way), ``quantisers_fused``, ``products`` (all in ``dtype``) and,
        where the device has int8 products, ``products_int8`` (those of the forward with both operands quantised).

    Example:
        >>> limits(Work(100, 0, 80, 20, 180), Rates(2000., 100., 200., 400.))['products_int8']
        2.2
    """
    rate = rates.float32 if dtype == torch.float32 else rates.bfloat16
    in_float = work.float_operations + work.backward_operations
    result = dict(
        quantisers_separate=work.quantiser_bytes(dtype.itemsize) / rates.bytes_per_second,
        quantisers_fused=work.quantiser_bytes(fused=True) / rates.bytes_per_second,
        products=(in_float + work.forward_operations) / rate)
    if rates.int8:
        result['products_int8'] = in_float / rate + work.forward_operations / rates.int8
    return result
