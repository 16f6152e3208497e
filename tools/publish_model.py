"""Reduce a checkpoint to what a user needs: the weights, the config text and the class names; optimizer and logs go.

    python tools/publish_model.py work_dirs/vit_fp32/epoch_60.pth vit_fp32.pth
"""
import argparse
from pathlib import Path

import torch

from vvq_mm.utils.checkpoint import read_checkpoint
from vvq_mm.utils.launch import errors_in_a_sentence


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('checkpoint', help='checkpoint of a training')
    parser.add_argument('out', help='file to write')
    args = parser.parse_args()
    with errors_in_a_sentence():
        checkpoint = read_checkpoint(args.checkpoint)
        meta = {key: checkpoint['meta'][key] for key in ('cfg', 'dataset_meta', 'seed') if key in checkpoint['meta']}
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        torch.save(dict(meta=meta, state_dict=checkpoint['state_dict']), args.out)
        print(f'{args.out}: {len(checkpoint["state_dict"])} tensors, {Path(args.out).stat().st_size / 1e6:.2f} MB')


if __name__ == '__main__':
    main()
