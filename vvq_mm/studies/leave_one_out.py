"""Leave-one-part-out by training (arXiv 2307.00331, section 4.1): the runs, and what their rows show."""
import json
from math import isfinite
from pathlib import Path
from statistics import mean
from typing import List, Optional, Sequence

from mmengine.config import Config

from vvq_mm.analysis.parts import Part
from vvq_mm.analysis.sensitivity import plan_without
from vvq_mm.errors import QuantizationError
from vvq_mm.policy import QuantPlan

from .compare import compare
from .run import Run, merge

ALL = 'all'
LENGTHS = ('begin', 'end', 'T_max')  # of schedules
PER_EPOCH = ('gamma', 'milestones', 'step_size')  # of schedules that fall by a factor


def make_runs(cfg: Config, config: str, plan: QuantPlan, parts: Sequence[Part], seeds: Sequence[int], folder: Path,
              iterations: Optional[int] = None, checkpoint: Optional[str] = None) -> List[Run]:
    """Return a run of everything quantised and one of everything but each part, for every seed.

    The plans of the variants are written to ``folder/plans``. A layer of which a part is in float is neither tracked
    for oscillation nor regularised: its weight has no codes as a whole.

    Args:
        cfg (Config): of a quantised training.
        config (str): its path, which the runs inherit.
        plan (QuantPlan): of its model.
        parts (sequence of Part): each of them in float in one variant.
        seeds (sequence of int): of the trainings; variants are compared seed by seed.
        folder (Path): for the plans.
        iterations (int, optional): training steps. Defaults to those of the config.
        checkpoint (str, optional): where training starts. Defaults to ``load_from`` of the config.
    """
    changes = {} if iterations is None else budget(cfg, iterations)
    if checkpoint is not None:
        changes['load_from'] = str(checkpoint)
    (folder / 'plans').mkdir(parents=True, exist_ok=True)
    variants = {ALL: changes}
    for part in parts:
        path = folder / 'plans' / f'all_but_{part.name.replace(" ", "_").replace("/", "_")}.json'
        path.write_text(json.dumps(dict(config=config, plan=plan_without(plan, part).to_dict()), indent=1))
        policy = dict(_delete_=True, type='vvq_mm.PlanFile', path=str(path))
        variants[f'{ALL} but {part.name}'] = merge(changes, dict(model=dict(policy=policy)))
    return [Run('sensitivity', method, '', seed, config, changed) for seed in seeds
            for method, changed in variants.items()]


def budget(cfg: Config, iterations: int) -> dict:
    """Return the changes that make a config train for so many steps, with its learning-rate schedules in proportion.

    Schedules that count iterations in a training that counts epochs (a short warm-up) stay as they are.

    Raises:
        QuantizationError: a schedule that falls by a factor per epoch, whose shape does not depend on the length.
    """
    loop = cfg.train_cfg
    ratio = iterations / (loop.get('max_epochs') or loop['max_iters'])
    given = cfg.get('param_scheduler') or []
    schedulers = []
    for scheduler in [given] if isinstance(given, dict) else given:
        scheduler = {key: value for key, value in scheduler.items() if key != 'convert_to_iter_based'}
        by_epoch = scheduler.get('by_epoch', True)
        if by_epoch and set(PER_EPOCH) & set(scheduler):
            raise QuantizationError(f'expected schedules with a beginning and an end, got {scheduler["type"]} in '
                                    f'{cfg.filename}; leave --iterations out, or shorten the training in a config')
        if by_epoch or not loop.get('max_epochs'):
            scheduler.update((key, round(scheduler[key] * ratio)) for key in LENGTHS if key in scheduler)
        schedulers.append(dict(scheduler, by_epoch=False))
    return dict(train_cfg=dict(_delete_=True, by_epoch=False, max_iters=iterations, val_interval=iterations),
                param_scheduler=schedulers,
                default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=iterations)))


def summarise(rows: Sequence[dict], parts: Sequence[Part], shares: Sequence[float]) -> List[dict]:
    """Return what each part gains, by falling gain: means over seeds, and the error of the difference by seed.

    Args:
        rows (sequence of dict): of :func:`vvq_mm.studies.execute`.
        parts (sequence of Part): of :func:`make_runs`.
        shares (sequence of float): of the quantised weights that are in each part.
    """
    last = {}
    for row in rows:
        last.setdefault(row['method'], {})[row['seed']] = float(row['last'])
    gains = []
    for part, share in zip(parts, shares):
        ours = last[f'{ALL} but {part.name}']
        difference = compare(ours, last[ALL])
        gains.append(dict(part=part.name, weights=share, top1=mean(ours.values()), gain_top1=difference.mean,
                          error=difference.error if isfinite(difference.error) else None, seeds=difference.pairs))
    return sorted(gains, key=lambda gain: -gain['gain_top1'])
