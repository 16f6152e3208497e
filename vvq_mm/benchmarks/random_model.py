"""Exported files of a config's model with random weights: as large and as fast as trained ones."""
from pathlib import Path
from typing import List

import torch
from mmengine.config import Config

from vvq_mm.calibration import calibrate
from vvq_mm.export import describe, export_onnx, save_packed
from vvq_mm.export.write import image_size
from vvq_mm.utils.evaluate import build_model


def write_random(config: str, folder: Path) -> List[Path]:
    """Write a config's model as a packed and an ONNX file, with seeded random weights, calibrated on noise.

    Args:
        config (str): config file of a quantised training; neither its data nor its checkpoint is read.
        folder (Path): for ``NAME.safetensors`` and ``NAME.onnx``; made if there is none.
    """
    torch.manual_seed(0)
    cfg = Config.fromfile(config)
    model, shape = build_model(cfg), image_size(cfg)
    calibrate(model, [torch.randn(4, *shape)])
    folder.mkdir(parents=True, exist_ok=True)
    description = describe(cfg, model, shape)
    packed, onnx = (folder / f'{Path(config).stem}{suffix}' for suffix in ('.safetensors', '.onnx'))
    save_packed(model, packed, description)
    export_onnx(model, onnx, description)
    return [packed, onnx]
