# The ImageNet recipe of VVQ (arXiv 2307.00331, section 5 and the official code), as plain data: no base, no import, so
# that text configs (`_base_`) and lazy configs (`read_base`) share it. The model families beside this file put it
# together.
#
# "Batch" and "epoch": a step sees batch_size images per process and num_crops crops of each. One epoch is one pass over
# the images; the paper counts a pass with 4 crops as 4 epochs, so its 150 epochs are 38 passes here.
#
# To change a setting in your own config, name its path: model.policy.rules, train_dataloader.dataset.num_crops,
# default_hooks.oscillation.regularizer.weight.end, ... Only lists would have to be repeated, and nothing here hides in
# one.

# ---- what is quantised: two templates, then the table of exceptions; the most specific rule wins
vvq_policy = dict(
    type='vvq_mm.RulePolicy',
    weight=dict(type='LSQQuantizer', bits=4, granularity='tensor', init='mse', grad_scale='l1'),
    act=dict(type='LSQQuantizer', bits=4, granularity='tensor', init='mse', grad_scale='lsq'),
    rules={
        '*.qkv': dict(weight=dict(granularity='qkv')),  # query, key and value keep a scale each
        '*.ffn.layers.1': dict(input=dict(signed=False, offset=True)),  # after GELU: from -0.17 up
        'backbone.patch_embed.projection': dict(weight=8, input=8),
        'head.*': dict(weight=8, input=8),
    })
vvq_swin_rules = {
    'backbone.patch_embed.projection': dict(weight=8, input=None),  # the image stays in float, as in the official code
    '*.downsample.reduction': dict(weight=8, input=None),
}

# ---- multi-crop distillation from stored soft labels
vvq_distiller = dict(type='vvq_mm.SoftLabelDistiller', tail='smooth', temperature=1.0, hard_weight=0.0)
vvq_train_dataloader = dict(
    batch_size=16,  # images per process; 8 processes x 16 images x 4 crops = 512 crops per step
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='vvq_mm.ResumableSampler', shuffle=True),
    collate_fn=dict(type='vvq_mm.flatten_collate'),
    dataset=dict(
        type='vvq_mm.MultiCropDataset',
        num_crops=4,
        soft_labels='data/imagenet_soft_labels',
        dataset=dict(
            type='ImageNet', data_root='data/imagenet', split='train', pipeline=[dict(type='LoadImageFromFile')]),
        pipeline=[
            dict(type='vvq_mm.ReplayCrop', scale=224),
            dict(type='PackInputs', algorithm_keys=('soft_label', )),
        ]))

# ---- optimisation
vvq_optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=5e-4, weight_decay=1e-4, eps=1e-8, betas=(0.9, 0.999), fused=True),
    clip_grad=None,
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        flat_decay_mult=0.0,
        custom_keys={
            '.cls_token': dict(decay_mult=0.0),
            '.pos_embed': dict(decay_mult=0.0),
            '.relative_position_bias_table': dict(decay_mult=0.0),
            '_quantizer': dict(decay_mult=0.0, lr_mult=1.0),  # learning rate of scales and offsets
        }))
vvq_param_scheduler = [dict(type='CosineAnnealingLR', eta_min=0, by_epoch=True, begin=0, convert_to_iter_based=True)]
vvq_train_cfg = dict(by_epoch=True, max_epochs=38, val_interval=1)
vvq_auto_scale_lr = dict(base_batch_size=128, enable=False)  # images per step; 512 crops with 4 of each

# ---- hooks, by name, so that one setting can be changed (docs/hooks.md)
vvq_hooks = dict(
    logger=dict(type='LoggerHook', interval=100),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=3, save_best='accuracy/top1', rule='greater'),
    calibrate=dict(type='vvq_mm.CalibrateHook', num_batches=4),
    oscillation=dict(
        type='vvq_mm.OscillationHook',
        momentum=0.01,
        log_interval=100,
        regularizer=dict(
            type='vvq_mm.BinRegularizer',
            reduction='sum',
            # rises along a cosine from a quarter of the training on
            weight=dict(type='CosineSchedule', start=0.0, end=0.01, begin=0.25, until=1.0))),
    summary=dict(type='vvq_mm.TrainingSummaryHook'),
    accuracy=dict(type='vvq_mm.AccuracyReportHook'),
    exact_resume=dict(type='vvq_mm.ExactResumeHook'),
    safe_checkpoint=dict(type='vvq_mm.SafeCheckpointHook'),
    check_finite=dict(type='vvq_mm.CheckFiniteHook', interval=50),
)
