"""A config's model, its images, and how good the one is on the other."""
from functools import partial
from itertools import islice
from typing import Iterable, List, NamedTuple, Optional, Tuple

import torch
from mmengine.config import Config
from mmengine.registry import FUNCTIONS
from mmpretrain.registry import DATASETS, MODELS
from torch import nn
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from vvq_mm.errors import QuantizationError

from .teacher import load_weights

SMALLEST = 1e-12  # probability below which a logarithm is not taken


class Score(NamedTuple):
    """How good a model is on some images.

    Args:
        top1 (float): share of images whose most probable class is the label, in %.
        loss (float): mean cross-entropy of the labels, in nats; ln(classes) is guessing.
        images (int): how many there were.
    """

    top1: float
    loss: float
    images: int


def build_model(cfg: Config, checkpoint: Optional[str] = None) -> nn.Module:
    """Return the config's model in eval mode with its data preprocessor and without its distiller.

    Args:
        cfg (Config): of a training; it stays as it is.
        checkpoint (str, optional): its weights, or the float weights of a quantised model. Defaults to none.

    Raises:
        CheckpointError: the checkpoint cannot be read or does not fit.
    """
    model = cfg.model.copy()
    model.pop('distiller', None)
    if cfg.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor', cfg.data_preprocessor)
    model = MODELS.build(model)
    if checkpoint is not None:
        load_weights(model, checkpoint)
    model.eval()
    return model


def build_batches(dataloader: dict, images: Optional[int] = None, batch_size: Optional[int] = None) -> DataLoader:
    """Return batches of the data set of a config's ``dataloader``, in one process.

    Args:
        dataloader (dict): as in a config; its data set, batch size and collate function count.
        images (int, optional): take that many, spread evenly over the data set. Defaults to all.
        batch_size (int, optional): defaults to that of the config.
    """
    dataset = DATASETS.build(dataloader['dataset'])
    if images is not None and images < len(dataset):
        dataset = Subset(dataset, [index * len(dataset) // images for index in range(images)])
    collate = dict(dataloader.get('collate_fn', dict(type='default_collate')))
    collate = partial(FUNCTIONS.get(collate.pop('type')), **collate)
    return DataLoader(dataset, batch_size or dataloader['batch_size'], collate_fn=collate)


def calibration_images(model: nn.Module, batches: Iterable, count: int) -> List[torch.Tensor]:
    """Return the preprocessed images of the first ``count`` batches, for :func:`vvq_mm.calibrate`."""
    return [model.data_preprocessor(data, False)['inputs'] for data in islice(iter(batches), count)]


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable, progress: Optional[str] = None) -> Score:
    """Return the :class:`Score` of a classifier of MMPretrain; it is left in eval mode.

    Args:
        model (nn.Module): the classifier.
        batches (iterable): of :func:`build_batches`.
        progress (str, optional): what a progress bar says. Defaults to no bar.

    Raises:
        QuantizationError: there are no images.
    """
    model.eval()
    total = Score(0, 0.0, 0)
    for data in tqdm(batches, desc=progress, disable=progress is None, leave=False):
        total = Score(*map(sum, zip(total, count(model.val_step(data)))))
    return mean(total)


def count(data_samples: list) -> Score:
    """Return correct predictions, summed loss and number of images in predicted data samples.

    Samples without a ``pred_score`` or with several labels count as none.
    """
    pairs = [_pair(sample) for sample in data_samples]
    pairs = [pair for pair in pairs if pair is not None]
    correct = sum(int(score.argmax() == label) for score, label in pairs)
    loss = sum(-score[label].double().clamp_min(SMALLEST).log().item() for score, label in pairs)
    return Score(correct, loss, len(pairs))


def mean(total: Score) -> Score:
    """Return the averages of what :func:`count` counted.

    Raises:
        QuantizationError: nothing was counted.
    """
    if not total.images:
        raise QuantizationError('expected images with one label each and predicted probabilities, got none; check the '
                                'data set, and that the model is a classifier')
    return Score(100 * total.top1 / total.images, total.loss / total.images, total.images)


def _pair(sample) -> Optional[Tuple[torch.Tensor, int]]:
    score, label = getattr(sample, 'pred_score', None), getattr(sample, 'gt_label', None)
    return None if score is None or label is None or label.numel() != 1 else (score, int(label))
