"""Configs of full-precision Runner runs that take seconds: a tiny ViT with drop path on a few digits."""
from mmengine.config import Config
from mmengine.runner import Runner

from helpers import tiny_vit_config

IMAGES, BATCH = 12, 4
ITERS_PER_EPOCH = IMAGES // BATCH
HOOKS = [dict(type=f'vvq_mm.{name}Hook') for name in ('ExactResume', 'SafeCheckpoint', 'TrainingSummary')]


def float_config(work_dir, epochs=2, hooks=HOOKS, num_workers=0, sampler='vvq_mm.ResumableSampler', **top_level):
    """Return a Config; checkpoints are taken after every iteration."""
    digits = dict(type='vvq_mm.Digits', indices=IMAGES)
    crops = [dict(type='RandomResizedCrop', scale=32), dict(type='PackInputs')]
    model = tiny_vit_config(classes=10, in_channels=1, drop_path_rate=0.5, drop_rate=0.1)
    model['data_preprocessor'] = dict(num_classes=10, mean=[127.5], std=[127.5])
    config = dict(
        default_scope='mmpretrain',
        model=model,
        train_dataloader=dict(
            batch_size=BATCH, num_workers=num_workers, sampler=dict(type=sampler, shuffle=True),
            collate_fn=dict(type='vvq_mm.flatten_collate'),
            dataset=dict(type='vvq_mm.MultiCropDataset', dataset=digits, pipeline=crops, num_crops=2)),
        val_dataloader=dict(batch_size=BATCH, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
                            dataset=dict(digits, pipeline=[dict(type='PackInputs')])),
        val_evaluator=dict(type='Accuracy', topk=(1, )),
        val_cfg=dict(),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=1e-2), clip_grad=dict(max_norm=1.0)),
        param_scheduler=[dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=2),
                         dict(type='ExponentialLR', gamma=0.5, by_epoch=True)],
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1),
                           checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=1)),
        custom_hooks=list(hooks),
        randomness=dict(seed=3),
        env_cfg=dict(dist_cfg=dict(backend='gloo')),
        log_level='WARNING',
        work_dir=str(work_dir))
    config.update(top_level)
    return Config(config)


def run(config, name):
    """Train in this process and return the Runner."""
    config.experiment_name = name
    runner = Runner.from_cfg(config)
    runner.train()
    return runner
