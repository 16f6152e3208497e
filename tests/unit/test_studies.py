"""Studies: what a study file means, what is refused, what a row is, and what differences show."""
import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from mmengine.config import Config
from scipy import stats

from vvq_mm.errors import QuantizationError
from vvq_mm.studies import COLUMNS, Run, compare, execute, holm, read_rows, read_study
from vvq_mm.studies.check import check_configs
from vvq_mm.studies.compare import verdict
from vvq_mm.studies.report import make_summary, make_tables, spread
from vvq_mm.studies.rows import find, lock, write_rows
from vvq_mm.studies.run import merge
from vvq_mm.studies.worker import images_seen

CONFIGS = Path(__file__).parents[2] / 'configs'
SHIPPED = sorted((CONFIGS / 'studies').glob('*.yaml'))
STUDY = dict(
    name='toy', config='configs/digits/vit_w4a4.py', baseline='plain', changes=dict(train_cfg=dict(max_epochs=2)),
    methods=dict(
        plain=dict(title='Plain'),
        crops=dict(title='+ crops', extends='plain', changes=dict(train_dataloader=dict(dataset=dict(num_crops=4)))),
        bins=dict(extends='crops', changes=dict(train_cfg=dict(max_epochs=3)))),
    runs=[dict(methods=['plain', 'bins'], bits=[4, '2/8'], seeds=[0, 1])])


def study_file(tmp_path, **changes):
    path = tmp_path / 'study.yaml'
    path.write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False))
    return path


def row(run, last, **values):
    facts = dict.fromkeys(COLUMNS, '')
    facts.update(study=run.study, config=run.config, method=run.method, bits=run.bits, seed=str(run.seed), last=last,
                 evaluated_on=run.evaluate_on, digest=run.digest, steps='10', crops='40', seconds='1.0')
    return {**facts, **values}


# what a study file means

def test_runs_are_methods_times_bits_times_seeds_the_seeds_outermost(tmp_path):
    names = [run.name for run in read_study(study_file(tmp_path)).runs]
    assert names == [f'{method}_{bits}_seed{seed}' for seed in (0, 1) for method in ('plain', 'bins')
                     for bits in ('w4a4', 'w2a8')]


def test_a_method_has_the_changes_of_all_that_it_extends_over_those_of_the_study(tmp_path):
    changes = read_study(study_file(tmp_path)).runs[-1].changes
    assert changes == dict(train_cfg=dict(max_epochs=3), train_dataloader=dict(dataset=dict(num_crops=4)),
                           model=dict(policy=dict(weight=dict(bits=2), act=dict(bits=8))))


def test_the_config_of_a_run_inherits_and_names_what_differs(tmp_path):
    path = tmp_path / 'run.py'
    run = Run('toy', 'bins', '2/2', 7, str(CONFIGS / 'digits' / 'vit_w4a4.py'),
              dict(model=dict(policy=dict(weight=dict(bits=2)), distiller=None)), evaluate_on='test')
    path.write_text(run.config_text())
    cfg = Config.fromfile(path)
    assert (cfg.model.policy.weight.bits, cfg.model.policy.act.bits, cfg.model.distiller) == (2, 4, None)
    assert cfg.randomness.seed == 7


def test_evaluating_on_test_leaves_nothing_of_the_validation(tmp_path):
    """Fashion-MNIST validates on the last 8,800 training images: their `indices` must not cut the test images."""
    path = tmp_path / 'run.py'
    shipped = str(CONFIGS / 'fashion_mnist' / 'deit_w4a4.py')
    path.write_text(Run('toy', 'plain', '', 0, shipped, {}, 'test').config_text())
    cfg, base = Config.fromfile(path), Config.fromfile(shipped)
    assert cfg.val_dataloader == cfg.test_dataloader == base.test_dataloader != base.val_dataloader
    assert cfg.val_evaluator == base.test_evaluator


def test_merging_leaves_both_as_they_are_and_delete_replaces():
    first, second = dict(a=dict(b=1, c=2), d=1), dict(a=dict(_delete_=True, c=3))
    assert merge(first, second) == dict(a=dict(_delete_=True, c=3), d=1)
    assert (first, second) == (dict(a=dict(b=1, c=2), d=1), dict(a=dict(_delete_=True, c=3)))


def test_the_digest_follows_the_definition_and_not_the_seed():
    config = str(CONFIGS / 'fashion_mnist' / 'deit_w4a4.py')
    run = Run('toy', 'plain', '4/4', 0, config, dict(train_cfg=dict(max_epochs=1)))
    assert run.digest == Run('other', 'else', '', 5, config, dict(train_cfg=dict(max_epochs=1))).digest
    assert len({run.digest, Run('toy', 'plain', '4/4', 0, config, dict(train_cfg=dict(max_epochs=7))).digest,
                Run('toy', 'plain', '4/4', 0, config, run.changes, 'test').digest}) == 3


def test_the_digest_follows_what_is_inherited_and_a_plan_file(tmp_path):
    digests = []
    for lr, bits in ((1, 2), (2, 2), (2, 3)):
        base = tmp_path / f'base{lr}.py'  # of another name, since what was read is remembered
        base.write_text(f'model = dict()\noptim_wrapper = dict(lr={lr})')
        plan = tmp_path / f'plan{bits}.json'
        plan.write_text(str(bits))
        policy = dict(type='PlanFile', path=str(plan))
        digests.append(Run('toy', 'plain', '', 0, str(base), dict(model=dict(policy=policy))).digest)
    assert len(set(digests)) == 3


@pytest.mark.parametrize('path', [path for path in SHIPPED if path.stem not in ('methods', 'fashion_mnist_data')], ids=lambda path: path.stem)
def test_shipped_studies_can_be_read(path):
    study = read_study(path)
    assert study.runs and Path(path.parents[2] / study.config).is_file()


def test_the_configs_of_a_shipped_study_pass_the_check(monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    check_configs(read_study(CONFIGS / 'studies' / 'digits.yaml').runs[:3])


def test_a_run_without_the_hook_that_reports_accuracies_is_refused():
    run = Run('toy', 'plain', '', 0, str(CONFIGS / 'digits' / 'vit_w4a4.py'), dict(default_hooks=dict(accuracy=None)))
    with pytest.raises(QuantizationError, match='expected an AccuracyReportHook in .*vit_w4a4.py, got none in plain of'):
        check_configs([run])


def test_a_hook_with_an_unknown_option_is_found_by_the_check():
    run = Run('toy', 'plain', '', 0, str(CONFIGS / 'digits' / 'vit_w4a4.py'),
              dict(default_hooks=dict(oscillation=dict(momentun=0.1))))
    with pytest.raises(QuantizationError, match='plain of the study toy: TypeError: .*momentun'):
        check_configs([run])


def test_shipped_tunings_never_look_at_test_images():
    tunings = [read_study(path) for path in SHIPPED if 'tuning' in path.stem]
    assert tunings and all(run.evaluate_on == 'val' for study in tunings for run in study.runs)


@pytest.mark.parametrize('bits', [4, 3, 2])
def test_the_shipped_fashion_mnist_config_is_what_the_study_supports(bits):
    run = next(run for run in read_study(CONFIGS / 'studies' / 'fashion_mnist.yaml').runs
               if (run.method, run.bits) == ('lsq_plus', f'{bits}/{bits}'))
    studied = Config.fromstring(run.config_text(), '.py')
    shipped = Config.fromfile(CONFIGS / 'fashion_mnist' / f'deit_w{bits}a{bits}.py')
    for key in ('policy', 'backbone', 'distiller.type'):
        assert _get(studied.model, key) == _get(shipped.model, key)
    for key in ('train_dataloader.batch_size', 'train_dataloader.dataset', 'optim_wrapper', 'param_scheduler',
                'train_cfg.max_iters', 'default_hooks.oscillation.regularizer', 'load_from'):
        assert _get(studied, key) == _get(shipped, key), key


def _get(config, key):
    for part in key.split('.'):
        config = config[part]
    return config


# what is refused

@pytest.mark.parametrize('changes, message', [
    (dict(baselin='plain'), "a key to be one of name, title.*got 'baselin' in .*study.yaml; did you mean 'baseline'"),
    (dict(baseline='pain'), "baseline to be one of plain, bins, got 'pain'.*did you mean 'plain'"),
    (dict(evaluate_on='train'), "evaluate_on to be one of val, test, got 'train'"),
    (dict(runs=[dict(methods=['bin'], bits=[4], seeds=[0])]), "got 'bin' in .*group 1 of runs; did you mean 'bins'"),
    (dict(runs=[dict(methods=['bins'], bit=[4], seeds=[0])]), "got 'bit' in .*did you mean 'bits'"),
    (dict(runs=[dict(methods=['bins'], bits=[4])]), 'expected seeds in .*group 1 of runs'),
    (dict(methods=dict(plain=dict(extend='x'))), "got 'extend' in .*method plain; did you mean 'extends'"),
    (dict(methods=dict(plain=dict(extends='plian'))), "got 'plian' in .*did you mean 'plain'"),
    (dict(methods=dict(plain=dict(extends='b'), b=dict(extends='plain'))), 'extend a method that does not extend it'),
    (dict(runs=2 * [dict(methods=['plain'], bits=[4], seeds=[0])]), 'each run once, got plain_w4a4_seed0 twice'),
    (dict(runs=[]), 'at least one group of runs, got none'),
    (dict(runs=[dict(methods='plain', bits=[4], seeds=[0])]), "methods to be a list of at least one, got 'plain'"),
    (dict(runs=[dict(methods=['plain'], bits=[4], seeds=['x'])]), "seeds to be whole numbers, got 'x'"),
    (dict(runs=[dict(methods=['plain'], bits=['w2a2'], seeds=[0])]), "bits as 4, or '4/8' .*got 'w2a2'"),
    (dict(methods=dict(plain=dict(changes='x'))), "changes to be nested as in a config, got 'x'"),
    (dict(methods=['plain']), r"methods to be a mapping, got \['plain'\]"),
    (dict(methods={'a/b': {}}), "of letters, digits.*got 'a/b'"),
], ids=['key', 'baseline', 'evaluate_on', 'method', 'group key', 'missing', 'method key', 'extends', 'circle', 'twice',
        'no runs', 'no list', 'seed', 'bits', 'changes', 'no mapping', 'name'])
def test_a_typo_names_the_nearest_known_word(tmp_path, changes, message):
    with pytest.raises(QuantizationError, match=message):
        read_study(study_file(tmp_path, **changes))


def test_a_missing_study_file_names_its_neighbours(tmp_path):
    study_file(tmp_path)
    with pytest.raises(QuantizationError, match='found none; near it: study.yaml'):
        read_study(tmp_path / 'sudy.yaml')


def test_what_is_not_yaml_is_refused(tmp_path):
    (tmp_path / 'study.yaml').write_text('a: [1')
    with pytest.raises(QuantizationError, match='expected YAML in .*study.yaml'):
        read_study(tmp_path / 'study.yaml')


# rows

def test_rows_come_back_as_they_were_written(tmp_path):
    rows = [row(run, '90.00') for run in read_study(study_file(tmp_path)).runs]
    write_rows(tmp_path / 'rows.csv', rows)
    assert read_rows(tmp_path / 'rows.csv', 'toy') == rows


def test_rows_of_another_study_are_refused(tmp_path):
    runs = read_study(study_file(tmp_path)).runs
    write_rows(tmp_path / 'rows.csv', [row(runs[0], '90')])
    with pytest.raises(QuantizationError, match="rows of the study 'mine' in .*rows.csv, got one of 'toy'"):
        read_rows(tmp_path / 'rows.csv', 'mine')


def test_a_file_with_other_columns_is_refused(tmp_path):
    (tmp_path / 'rows.csv').write_text('a,b\n1,2\n')
    with pytest.raises(QuantizationError, match=r"expected columns study,.*got \['a', 'b'\]"):
        read_rows(tmp_path / 'rows.csv', 'toy')


def test_a_row_of_a_method_that_was_defined_differently_is_refused(tmp_path):
    run = read_study(study_file(tmp_path)).runs[0]
    with pytest.raises(QuantizationError, match='plain_w4a4_seed0 made with another .00000000, now .*has changed'):
        find([row(run, '90', digest='00000000')], run, tmp_path / 'rows.csv')


def test_two_studies_do_not_write_one_file(tmp_path):
    with lock(tmp_path / 'rows.csv'):
        with pytest.raises(QuantizationError, match='only study that writes .*rows.csv, another one is at it'):
            execute([], tmp_path / 'rows.csv', tmp_path)
    with lock(tmp_path / 'rows.csv'):
        pass


@pytest.mark.parametrize('batches, expected', [(12, 24016), (11, 25600)], ids=['partial last batch', 'left out'])
def test_crops_are_those_that_were_drawn(batches, expected):
    assert images_seen(iterations=200, batches=batches, batch_size=128, images=1437) == expected


# what differences show

pairs = st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=2, max_size=6)


@given(pairs)
def test_the_paired_difference_is_that_of_the_t_test(values):
    ours, theirs = ({str(seed): pair[side] for seed, pair in enumerate(values)} for side in (0, 1))
    difference, delta = compare(ours, theirs), np.array([a - b for a, b in values])
    assert difference.mean == pytest.approx(delta.mean(), abs=1e-9)
    error = delta.std(ddof=1) / math.sqrt(len(delta))
    if error > 0.01:
        assert difference.error == pytest.approx(error)
        expected = stats.ttest_rel(list(ours.values()), list(theirs.values())).pvalue
        assert difference.p == pytest.approx(expected, abs=1e-6)


def test_only_seeds_that_both_have_are_compared():
    assert compare({'0': 2.0, '5': 9.0}, {'0': 1.0, '1': 7.0}).pairs == 1
    assert compare({'5': 9.0}, {'0': 1.0}) is None


def test_equal_differences_show_nothing():
    """One more image right of 360 with each of three seeds is no proof without a spread."""
    difference = compare(dict(enumerate([98.06, 98.33, 97.22])), dict(enumerate([98.33, 98.61, 97.5])))  # rounded
    assert difference.mean == pytest.approx(-0.28, abs=0.01) and verdict(difference, difference.p) == ''


def test_one_pair_shows_nothing():
    difference = compare({'0': 90.0}, {'0': 10.0})
    assert math.isnan(difference.error) and verdict(difference, float('nan')) == ''


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_only_makes_values_larger_and_keeps_their_order(values):
    adjusted = holm(values)
    assert all(1 >= new >= old for new, old in zip(adjusted, values))
    assert [new for _, new in sorted(zip(values, adjusted))] == sorted(adjusted)


def test_holm_by_hand():
    assert holm([0.01, float('nan'), 0.04, 0.03])[::2] == [0.03, 0.06] and math.isnan(holm([float('nan')])[0])


@pytest.mark.parametrize('ours, adjusted, mark', [
    ([3.0, 3.1, 2.9], 0.01, '**'), ([3.0, 3.1, 2.9], 0.2, '*'), ([3.0, -3.1, 2.9], 0.01, '')],
    ids=['clear', 'beyond two errors', 'within two errors'])
def test_marks_do_not_oversell(ours, adjusted, mark):
    difference = compare(dict(enumerate(ours)), dict.fromkeys(range(3), 0.0))
    assert verdict(difference, adjusted) == mark


def test_the_table_has_means_and_differences(tmp_path):
    study = read_study(study_file(tmp_path, config=str(CONFIGS / 'digits' / 'vit_w4a4.py')))
    values = dict(plain=(90.0, 92.0), bins=(93.0, 94.0))
    rows = [row(run, str(values[run.method][run.seed]), full_precision='95.00', start='80', start_loss='1.5',
                oscillating='0.25') for run in study.runs if run.bits == '4/4']
    tables = make_tables(study, rows)
    assert '| method | W4A4 | W4A4 − baseline | W4A4 − extended |' in tables
    assert '| Plain | 91.00 ± 1.41 |  |  |' in tables
    assert '| bins | 93.50 ± 0.71 | +2.50 ± 0.50 * |' in tables
    assert '| bins | 80.00 ± 0.00 | 1.50 ± 0.00 | 25.00 ± 0.00 % |' in tables
    assert '| Plain | 91.00 ± 1.41 |\n| bins | 93.50 ± 0.71 * |' in make_summary(study, rows)
    assert '10 steps and 40 crops' in tables and 'for the 1 comparisons' in tables


def test_spread_leaves_out_what_is_empty():
    assert (spread(['', '']), spread(['97']), spread(['97', '', '99'], ' %')) == ('', '97.00', '98.00 ± 1.41 %')
