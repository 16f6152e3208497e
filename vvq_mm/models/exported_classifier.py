"""An exported file as a classifier of MMPretrain, so that a config's test set and metrics judge it."""
from typing import List, Optional, Union

from mmengine.config import Config
from mmengine.model import BaseModel
from mmpretrain.models.heads import ClsHead
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from vvq_mm.errors import QuantizationError
from vvq_mm.export.description import check_description
from vvq_mm.export.runtimes import open_runtime
from vvq_mm.registry import HOOKS, MODELS

# hooks that look into, or copy, the network: an exported one has nothing for them
_NETWORK_HOOKS = ('vvq_mm.OscillationHook', 'mmengine.EMAHook')


@MODELS.register_module()
class ExportedClassifier(BaseModel):
    """An exported network behind the interface of ``mmpretrain.ImageClassifier``, for testing and prediction.

    Args:
        file (str): a packed or ONNX file of tools/export.py.
        backend (str, optional): ``packed``, ``integer``, ``onnxruntime`` or ``openvino``. Defaults to ``packed`` for a
            packed file and ``onnxruntime`` for an ONNX file.
        data_preprocessor (dict, optional): config of the preprocessor. Defaults to that of the file.
        num_classes (int, optional): of the data it is meant for, to be compared with the file. Defaults to no check.
        threads (int, optional): CPU threads of one inference. Defaults to the backend's own choice.

    Raises:
        QuantizationError: the file has another number of classes, or was not written by this package.

    Example:
        >>> ExportedClassifier('vit_w4a4.onnx')(torch.zeros(8, 1, 32, 32)).shape
        torch.Size([8, 10])
    """

    def __init__(self, file: str, backend: Optional[str] = None, data_preprocessor: Optional[dict] = None,
                 num_classes: Optional[int] = None, threads: Optional[int] = None) -> None:
        runtime = open_runtime(file, backend, threads)
        description = runtime.description
        if description is None:
            raise QuantizationError(f'expected a file that says what its network is, as tools/export.py writes it, got '
                                    f'{file} without a description; export it with tools/export.py')
        check_description(description)  # before anything from the file is built
        config = dict(data_preprocessor or description['model'].get('data_preprocessor') or {})
        super().__init__(data_preprocessor=MODELS.build({'type': 'mmpretrain.ClsDataPreprocessor', **config}))
        for classes in (num_classes, config.get('num_classes')):
            if classes not in (None, description['num_classes']):
                raise QuantizationError(f'expected a file with the {classes} classes of the config, got '
                                        f'{description["num_classes"]} in {file}; use the config it was exported with')
        self.runtime, self.description = runtime, description
        self.network: Optional[nn.Module] = runtime.module  # moves with this module to a device
        self.head = ClsHead()

    def forward(self, inputs: Tensor, data_samples: Optional[List[DataSample]] = None,
                mode: str = 'tensor') -> Union[Tensor, List[DataSample]]:
        """Return the logits (mode 'tensor'), or the data samples with scores and label (mode 'predict').

        Args:
            inputs (Tensor): preprocessed images (B, C, H, W), float32.
            data_samples (list[DataSample], optional): receive the predictions. Defaults to new ones.
            mode (str): ``tensor`` or ``predict``; an exported network cannot be trained.
        """
        if mode not in ('tensor', 'predict'):
            raise QuantizationError(f'expected mode tensor or predict for an exported network, got {mode!r}; load a '
                                    'packed file with vvq_mm.export.load to train it further')
        logits = self.runtime(inputs)
        return logits if mode == 'tensor' else self.head.predict((logits, ), data_samples)


def use_exported_file(cfg: Config, file: str, backend: str) -> None:
    """Replace the model of a config by an exported file, for a test; changes ``cfg``.

    Hooks that need the network itself (its weights' oscillation, its moving average) leave the config.

    Args:
        cfg (Config): of the training that the file comes from.
        file (str): the exported file.
        backend (str): what runs it.
    """
    model = cfg.model
    preprocessor = model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    classes = (model.get('head') or model).get('num_classes')  # a model of timm has no head of its own
    cfg.model = dict(type='vvq_mm.ExportedClassifier', file=str(file), backend=backend,
                     data_preprocessor=dict(preprocessor), num_classes=classes)
    cfg.load_from, cfg.resume = None, False
    unfit = tuple(HOOKS.get(name) for name in _NETWORK_HOOKS)
    hooks = cfg.get('default_hooks') or {}
    for name in [name for name, hook in hooks.items() if _is_one_of(hook, unfit)]:
        hooks.pop(name)
    cfg.custom_hooks = [hook for hook in cfg.get('custom_hooks') or [] if not _is_one_of(hook, unfit)]


def _is_one_of(hook: Optional[dict], kinds: tuple) -> bool:
    kind = hook and hook.get('type')
    kind = HOOKS.get(kind) if isinstance(kind, str) else kind
    return isinstance(kind, type) and issubclass(kind, kinds)
