"""Print which layer and which activation of a config's model is quantised how, what is left in float, and the cost.

    python tools/print_plan.py configs/vvq/deit_b_w4a4.py [--out plan.json]

The JSON file can be used as a policy: ``policy=dict(_delete_=True, type='PlanFile', path='plan.json')``.
"""
import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmpretrain.utils import register_all_modules
from rich.console import Console
from rich.table import Table

import vvq_mm  # noqa: F401  (makes vvq_mm:: bases known)
from vvq_mm.analysis import model_cost
from vvq_mm.policy import QuantPlan, describe
from vvq_mm.utils.evaluate import build_model
from vvq_mm.utils.launch import errors_in_a_sentence, existing_config

MEGA, GIGA = 1e6, 1e9


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('config', help='config file')
    parser.add_argument('--out', help='write the plan, the cost and the model name as JSON')
    parser.add_argument('--img-size', type=int,
                        help="side of the image for the BitOps (default: the backbone's img_size, or 224)")
    parser.add_argument('--cfg-options', nargs='+', action=DictAction,
                        help='override settings of the config, key=value')
    return parser.parse_args()


def plan_table(plan: QuantPlan, model: torch.nn.Module) -> Table:
    """One row per module; activation slots that are alike share a line."""
    table = Table(title='Quantised')
    for column in ('module', 'shape', 'weight', 'activations'):
        table.add_column(column, overflow='fold')
    for name, slots in plan.slots.items():
        weight = getattr(model.get_submodule(name), 'weight', None)
        acts = defaultdict(list)
        for slot, config in slots.items():
            if slot != 'weight':
                acts[describe(config) if config else 'float'].append(slot)
        if not any(slots.values()):
            continue
        words = (describe(slots['weight']) if slots['weight'] else 'float') if 'weight' in slots else ''
        table.add_row(name, 'x'.join(map(str, weight.shape)) if weight is not None else '', words,
                      '\n'.join(f'{", ".join(names)}: {text}' for text, names in acts.items()))
    return table


def float_table(plan: QuantPlan) -> Table:
    """One row per reason."""
    table = Table(title='Left in float (biases too: they are added to sums of products)')
    table.add_column('why')
    table.add_column('what', overflow='fold')
    by_reason = defaultdict(list)
    for name, reason in plan.reasons.items():
        by_reason[reason].append(name)
    for reason, names in by_reason.items():
        shown = names if len(names) <= 6 else names[:3] + [f'... {len(names) - 4} more ...', names[-1]]
        table.add_row(reason, ', '.join(shown))
    return table


def print_plan(args: argparse.Namespace) -> None:
    register_all_modules()
    cfg = Config.fromfile(existing_config(args.config))
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    model = build_model(cfg)
    if getattr(model, 'plan', None) is None:
        raise vvq_mm.QuantizationError(f'expected a model with a policy in {args.config}, got '
                                       f'{type(model).__name__} without one; use '
                                       " type='vvq_mm.QATImageClassifier' and set its policy")
    backbone = cfg.model.get('backbone') or cfg.model  # of a timm model, there is one level less
    size = args.img_size or backbone.get('img_size', 224)
    size = (size, size) if isinstance(size, int) else tuple(size)
    cost = model_cost(model, torch.zeros(1, backbone.get('in_channels', backbone.get('in_chans', 3)), *size))
    count = model.plan.count()
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(plan_table(model.plan, model), float_table(model.plan))
    console.print(f'{count["weight"]} weight and {count["act"]} activation quantizers')
    console.print(f'size    {cost.bytes / MEGA:10.2f} MB    float32 {cost.float_bytes / MEGA:10.2f} MB    '
                  f'{cost.float_bytes / cost.bytes:5.1f} times smaller')
    ratio = cost.float_bit_operations / cost.bit_operations
    console.print(f'BitOps  {cost.bit_operations / GIGA:10.3g} G     '
                  f'float32 {cost.float_bit_operations / GIGA:10.4g} G     '
                  f'{ratio:5.1f} times fewer    (one {size[0]}x{size[1]} image)')
    if args.out:
        out = Path(args.out)
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(dict(config=args.config, plan=model.plan.to_dict(), cost=cost._asdict()), indent=1))
        console.print(f'written to {out}')


if __name__ == '__main__':
    arguments = parse_args()
    with errors_in_a_sentence():
        print_plan(arguments)
