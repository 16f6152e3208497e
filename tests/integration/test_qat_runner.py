"""Quantised training together with what else MMEngine's Runner offers: the end is the same bits on every way there."""
import pytest
import torch
from helpers import tiny_vit_config
from mmengine.runner import Runner
from qat_config import make_digit_labels, qat_config, qat_hooks
from runner_config import run


@pytest.fixture(scope='module')
def labels(tmp_path_factory):
    return make_digit_labels(tmp_path_factory.mktemp('labels'))


def weights(folder, iteration, key='state_dict'):
    return torch.load(folder / f'iter_{iteration}.pth', weights_only=True)[key]


def differences(got, expected):
    assert got.keys() == expected.keys()
    return [name for name in expected if not torch.equal(got[name].nan_to_num(-99.), expected[name].nan_to_num(-99.))]


def assert_resume_is_exact(config, folder, stop, last, keys=('state_dict', )):
    """Run ``config(work_dir)``, resume it from iteration ``stop`` elsewhere, and compare both ends."""
    run(config(folder / 'whole'), f'whole_{folder.name}')
    resumed = config(folder / 'resumed')
    resumed.merge_from_dict(dict(resume=True, load_from=str(folder / 'whole' / f'iter_{stop}.pth')))
    run(resumed, f'resumed_{folder.name}')
    for key in keys:
        assert not differences(weights(folder / 'resumed', last, key), weights(folder / 'whole', last, key))


@pytest.mark.parametrize('freeze', [None, 0.05], ids=['free', 'freezing'])
def test_an_average_of_weights_resumes_exactly(labels, tmp_path, freeze):
    hooks = dict(qat_hooks(freeze=freeze), ema=dict(type='EMAHook', momentum=0.1))
    keys = ('state_dict', 'ema_state_dict')
    assert_resume_is_exact(lambda folder: qat_config(folder, labels, hooks=hooks), tmp_path, 4, 6, keys)


def test_gradient_accumulation_resumes_exactly(labels, tmp_path):
    def config(folder):
        config = qat_config(folder, labels)
        config.optim_wrapper.accumulative_counts = 3
        return config

    assert_resume_is_exact(config, tmp_path, 3, 6)


def test_an_iteration_based_run_resumes_exactly(labels, tmp_path):
    options = dict(train_cfg=dict(by_epoch=False, max_iters=5), param_scheduler=[],
                   val_cfg=None, val_dataloader=None, val_evaluator=None)
    assert_resume_is_exact(lambda folder: qat_config(folder, labels, **options), tmp_path, 4, 5)


def test_worker_processes_change_nothing(labels, tmp_path):
    run(qat_config(tmp_path / 'without', labels, epochs=1), 'without')
    config = qat_config(tmp_path / 'with', labels, epochs=1)
    config.train_dataloader.num_workers = 2
    run(config, 'with')
    assert not differences(weights(tmp_path / 'with', 3), weights(tmp_path / 'without', 3))


def test_a_saved_model_evaluates_to_the_accuracy_of_its_training(labels, tmp_path):
    hub = run(qat_config(tmp_path, labels, epochs=1), 'trained').message_hub
    trained = hub.get_scalar('val/accuracy/top1').current()
    config = qat_config(tmp_path / 'test', labels, load_from=str(tmp_path / 'iter_3.pth'), test_cfg=dict(),
                        experiment_name='tested')
    config.test_dataloader, config.test_evaluator = config.val_dataloader, config.val_evaluator
    assert Runner.from_cfg(config).test()['accuracy/top1'] == trained


def test_a_teacher_beside_stored_labels_is_in_no_checkpoint(labels, tmp_path):
    config = qat_config(tmp_path, labels, epochs=1)
    pixels = dict(num_classes=10, mean=[127.5], std=[127.5])
    teacher = dict(tiny_vit_config(classes=10, in_channels=1), data_preprocessor=pixels)
    config.model.distiller = dict(type='vvq_mm.SumDistiller', distillers=dict(
        stored=dict(type='vvq_mm.SoftLabelDistiller', weight=0.5),
        online=dict(type='vvq_mm.TeacherDistiller', teacher=teacher, weight=0.5)))
    scalars = run(config, 'teacher').message_hub.log_scalars
    assert {'train/loss_kd_stored', 'train/loss_kd_online'} <= scalars.keys()
    assert not [name for name in weights(tmp_path, 3) if 'teacher' in name or 'distiller' in name]
