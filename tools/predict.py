"""Print the classes that an exported file sees in images.

    python tools/predict.py vit_w4a4.onnx three.png seven.png --topk 2
"""
import argparse
from itertools import islice
from typing import Iterator, List

import torch
from mmengine.dataset import default_collate
from tqdm import tqdm

from vvq_mm.export.images import ImageReader
from vvq_mm.export.runtimes import BACKENDS
from vvq_mm.models import ExportedClassifier
from vvq_mm.utils.launch import errors_in_a_sentence


def positive(text: str) -> int:
    """Parse a number of things."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f'expected a positive number, got {text}')
    return int(text)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('file', help='packed (.safetensors) or ONNX file of tools/export.py')
    parser.add_argument('images', nargs='+', help='image files')
    parser.add_argument('--backend', choices=list(BACKENDS),
                        help='what runs the file; by default packed or onnxruntime, depending on the file')
    parser.add_argument('--topk', type=positive, default=3, help='classes per image (default: 3)')
    parser.add_argument('--batch-size', type=positive, default=8, help='images per forward (default: 8)')
    parser.add_argument('--threads', type=positive, help="CPU threads (default: the backend's own choice)")
    return parser.parse_args()


@torch.no_grad()
def predict(model: ExportedClassifier, images: List[str], batch_size: int) -> Iterator[torch.Tensor]:
    """Yield the probabilities of all classes for each image file."""
    samples = map(ImageReader(model.description), tqdm(images, disable=None, leave=False))
    while batch := list(islice(samples, batch_size)):
        for sample in model.test_step(default_collate(batch)):
            yield sample.pred_score


def table(images: List[str], probabilities: Iterator[torch.Tensor], classes: List[str], topk: int) -> List[str]:
    """Return the lines of the table: image, class and probability, the most probable first."""
    rows = [('image', 'class', 'probability')]
    for image, scores in zip(images, probabilities):
        best = scores.topk(min(topk, len(scores)))
        for rank, (score, label) in enumerate(zip(best.values.tolist(), best.indices.tolist())):
            rows.append(('' if rank else image, str(classes[label]), f'{100 * score:.1f} %'))
    width, name_width = (max(len(row[column]) for row in rows) for column in (0, 1))
    return [f'{image:{width}}  {name:{name_width}}  {score:>11}' for image, name, score in rows]


def main() -> None:
    args = parse_args()
    with errors_in_a_sentence():
        model = ExportedClassifier(args.file, args.backend, threads=args.threads).eval()
        classes = model.description.get('classes') or list(range(model.description['num_classes']))
        probabilities = predict(model, args.images, args.batch_size)
        print('\n'.join(table(args.images, probabilities, classes, args.topk)))


if __name__ == '__main__':
    main()
