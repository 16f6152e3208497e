"""One call from a trained checkpoint to files that were checked against it."""
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Callable, List, NamedTuple, Optional, Sequence, Union

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from torch import Tensor, nn
from tqdm import tqdm

from vvq_mm.errors import QuantizationError
from vvq_mm.utils.checkpoint import read_checkpoint
from vvq_mm.utils.evaluate import build_batches, build_model

from .checks import check_exportable
from .codes import onnx_codes, torch_codes
from .description import describe
from .files import fresh_folder
from .kernels import integer_products
from .onnx_export import DEFAULT_OPSET, check_opset, export_onnx
from .onnx_graph import INT2_OPSET
from .packed import save_packed
from .parity import check_parity, compare
from .runtimes import open_runtime
from .sizes import float_rest, size_report

FORMATS = dict(packed='.safetensors', onnx='.onnx')
SUMMARY = 'export.json'
BATCH, LEAST_IMAGES = 8, 256
RUNS = dict(packed=('packed', 'integer'), onnx=('onnxruntime', 'openvino'))  # each format


class Images(NamedTuple):
    """Preprocessed images to compare on.

    Args:
        batches (list of Tensor): (B, C, H, W) each.
        source (str): where they come from.
        labels (Tensor, optional): the class of each; None for noise, and for data without one label an image.
        real (bool): whether they are images of the config's data, not noise.
    """

    batches: List[Tensor]
    source: str
    labels: Optional[Tensor]
    real: bool


def export(config: Union[str, Path, Config], checkpoint: Union[str, Path], out: Union[str, Path],
           formats: Sequence[str] = ('packed', ), images: int = LEAST_IMAGES, opset: int = DEFAULT_OPSET,
           force: bool = False, backends: Optional[Sequence[str]] = None) -> dict:
    """Write a trained model in one or several formats, compare each file with the model, and return the summary.

    Nothing is left in ``out`` if a step fails.

    Args:
        config (str | Path | Config): of the training.
        checkpoint (str | Path): trained with it.
        out (str | Path): folder for ``NAME.safetensors``, ``NAME.onnx`` and ``export.json``; NAME is the config's.
        formats (sequence of str): of ``packed`` and ``onnx``. Defaults to ``packed``.
        images (int): of the config's test data to compare on, at least 256. Defaults to 256.
        opset (int): of the ONNX file, see :func:`vvq_mm.export.export_onnx`. Defaults to 24.
        force (bool): replace files of the same names in a folder that is not empty. Defaults to False.
        backends (sequence of str, optional): what the files are compared in: ``packed`` and ``integer`` (compiled, a
            minute more) for a packed file, ``onnxruntime`` and ``openvino`` for an ONNX file. Defaults to all that are
            installed but ``integer``, and ``openvino`` from opset 25 on.

    Returns:
        dict: what ``export.json`` holds: ``files``, ``sizes``, ``float`` (what stays in float and why).

    Raises:
        QuantizationError: nothing to export, or a file that differs from the model by more than rounding explains.
        CheckpointError: a checkpoint that does not fit the config.

    Example:
        >>> summary = export('configs/digits/vit_w2a2.py', 'epoch_24.pth', 'out', ['packed', 'onnx'])
        >>> summary['files']['onnx']['parity']['onnxruntime']['agreement']
        100.0
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise QuantizationError(f'expected formats of {", ".join(FORMATS)}, got {list(formats)}')
    if images < LEAST_IMAGES:
        raise QuantizationError(f'expected at least {LEAST_IMAGES} images to compare on, got {images}')
    if 'onnx' in formats:
        check_opset(opset)
    compared = {kind: _backends(kind, backends, opset) for kind in formats}
    cfg = config if isinstance(config, Config) else Config.fromfile(config)
    with fresh_folder(out, force) as folder:
        model = build_model(cfg, str(checkpoint))
        check_exportable(model)
        found = comparison_images(cfg, model, images)
        description = describe(cfg, model, tuple(found.batches[0].shape[1:]), read_checkpoint(checkpoint))
        name = Path(cfg.filename or 'model').stem
        summary = dict(config=str(cfg.filename), checkpoint=str(checkpoint), images=found.source,
                       sizes=size_report(model), float=float_rest(model), files={})
        for kind, names in compared.items():
            path = folder / f'{name}{FORMATS[kind]}'
            MMLogger.get_current_instance().info(f'Writing {path.name} and comparing it with the model on '
                                                 f'{found.source}.')
            if kind == 'packed':
                save_packed(model, path, description)
            else:
                export_onnx(model, path, description, opset)
            summary['files'][kind] = _entry(model, path, names, found, summary['sizes'])
        (folder / SUMMARY).write_text(json.dumps(summary, indent=2) + '\n')
    return summary


def comparison_images(cfg: Config, model: nn.Module, count: int) -> Images:
    """Return ``count`` preprocessed test images of a config, or noise of their shape where its data cannot be read."""
    logger = MMLogger.get_current_instance()
    try:
        if cfg.get('test_dataloader') is None:
            raise FileNotFoundError('there is no test_dataloader')
        loader = build_batches(cfg.test_dataloader, count, BATCH)
        data = [model.data_preprocessor(batch, False) for batch in tqdm(loader, 'images', leave=False)]
        labels = [getattr(sample, 'gt_label', torch.empty(0)) for batch in data for sample in batch['data_samples']]
        labels = torch.cat(labels) if all(label.numel() == 1 for label in labels) else None
        batches = [batch['inputs'] for batch in data]
        return Images(batches, f'{sum(map(len, batches))} test images', labels, True)
    except (AttributeError, KeyError, OSError) as error:
        logger.warning(f'The test images of the config cannot be read ({error}); the comparison takes generated ones, '
                       'on which the share of equal classes says little.')
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(BATCH, *image_size(cfg), generator=generator) for _ in range(-(-count // BATCH))]
    return Images(batches, f'{count} generated images', None, False)


def image_size(cfg: Config) -> List[int]:
    """Return channels, height and width of the images that a config describes."""
    pipeline = ((cfg.get('test_dataloader') or {}).get('dataset') or {}).get('pipeline') or []
    crops = [step['crop_size'] for step in pipeline if 'crop_size' in step]
    size = (crops or [cfg.model.get('backbone', {}).get('img_size', 224)])[-1]
    mean = (cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}).get('mean') or [0, 0, 0]
    return [len(mean), *(size if isinstance(size, (list, tuple)) else (size, size))]


def _backends(kind: str, wanted: Optional[Sequence[str]], opset: int) -> List[str]:
    """Return what a format is compared in."""
    if wanted is None:  # OpenVINO refuses the two-bit integers of the newest opsets
        wanted = [name for name in ('packed', *RUNS['onnx'])
                  if name == 'packed' or (find_spec(name) and (name != 'openvino' or opset < INT2_OPSET))]
    unknown = [name for name in wanted if name not in (*RUNS['packed'], *RUNS['onnx'])]
    found = [name for name in RUNS[kind] if name in wanted]
    if unknown or not found:
        raise QuantizationError(f'expected backends of {", ".join(RUNS[kind])} to compare the {kind} file in, got '
                                f'{", ".join(wanted) or "none"}; the ONNX ones come with '
                                "`pip install 'vvq_mm[deploy]'`")
    return found


def _entry(model: nn.Module, path: Path, backends: Sequence[str], images: Images, sizes: dict) -> dict:
    """Compare a file with the model in all its runtimes and return what the summary says of it."""
    size = path.stat().st_size
    entry = dict(file=path.name, bytes=size, over_float32=size / sizes['float32'], over_theory=size / sizes['theory'],
                 parity={}, integer_products={})
    for backend in backends:
        runtime = open_runtime(path, backend)
        parity = compare(model, runtime, tqdm(images.batches, f'{path.name} in {backend}', leave=False),
                         _code_reader(runtime), images.labels)
        check_parity(parity, f'{path.name} in {backend}', images.real)
        entry['parity'][backend] = parity.asdict()
        if backend != 'packed':
            products = integer_products(path, backend)
            entry['integer_products'][backend] = dict(
                integer=sum(product.integer for product in products), all=len(products),
                others={product.name: product.kernel for product in products if not product.integer})
    return entry


def _code_reader(runtime) -> Optional[Callable]:
    if runtime.backend == 'onnxruntime':
        return onnx_codes(runtime.path)
    return torch_codes(runtime.module) if runtime.backend == 'packed' else None
