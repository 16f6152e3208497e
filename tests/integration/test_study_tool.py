"""tools/study.py: a study of tiny size, killed and started again, and its table in a file."""
import csv
import re
import runpy
import sys

import pytest
import yaml
from qat_config import make_digit_labels, qat_config
from tool_runs import REPOSITORY, run_tool

RUNS = dict(methods=['plain', 'bins'], bits=[2], seeds=[0, 1])
METHODS = dict(
    plain=dict(title='Plain', changes=dict(train_cfg=dict(max_epochs=1))),
    bins=dict(title='+ bins', extends='plain', changes=dict(default_hooks=dict(oscillation=dict(regularizer=dict(
        type='vvq_mm.BinRegularizer', weight=0.01))))))
DIE_AFTER_THE_FIRST_ROW = '''
import os, signal, sys
from pathlib import Path
from vvq_mm.studies import execute, read_study

if __name__ == '__main__':
    execute(read_study(Path('study.yaml')).runs, Path('rows.csv'), Path('runs'),
            report=lambda done, run, row: os.kill(os.getpid(), signal.SIGKILL))
'''


TOOL = REPOSITORY / 'tools' / 'study.py'


def study(*arguments, **options):
    """Run the tool in a process of its own."""
    return run_tool(sys.executable, TOOL, *arguments, **options)


@pytest.fixture
def here(monkeypatch, capsys):
    """The tool in this process, which starts at once: (folder, *arguments) -> what it said."""
    def main(folder, *arguments):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, 'argv', ['study.py', *map(str, arguments)])
        try:
            runpy.run_path(str(TOOL), run_name='__main__')
        except SystemExit as error:
            return str(error.code)
        return capsys.readouterr().out
    return main


def write_study(path, config, **changes):
    data = dict(name='tiny', title='A tiny study', config=str(config), evaluate_on='test', baseline='plain',
                methods=METHODS, runs=[RUNS])
    path.write_text(yaml.safe_dump({**data, **changes}))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A folder with a config and a study file."""
    folder = tmp_path_factory.mktemp('study')
    hooks = dict(calibrate=dict(type='vvq_mm.CalibrateHook', num_batches=1),
                 accuracy=dict(type='vvq_mm.AccuracyReportHook'),
                 oscillation=dict(type='vvq_mm.OscillationHook', momentum=0.1, plot=False))
    config = qat_config(folder / 'unused', make_digit_labels(folder), hooks={}, default_hooks=hooks)
    config.test_dataloader, config.test_evaluator, config.test_cfg = config.val_dataloader, config.val_evaluator, {}
    config.dump(folder / 'config.py')
    write_study(folder / 'study.yaml', folder / 'config.py')
    return folder


@pytest.fixture(scope='module')
def finished(folder):
    """The rows of an uninterrupted study, and what the tool said."""
    output = study('study.yaml', '--csv', 'whole.csv', '--work-dir', 'whole', '--jobs', '2', cwd=folder)
    return rows(folder / 'whole.csv'), output


def rows(file):
    with file.open() as stream:
        return [{key: value for key, value in row.items() if key != 'seconds'} for row in csv.DictReader(stream)]


@pytest.mark.slow
def test_every_run_leaves_a_row_with_all_that_is_asked_of_it(finished):
    found, output = finished
    assert [(row['method'], row['bits'], row['seed']) for row in found] == [
        (method, '2/2', seed) for seed in '01' for method in ('plain', 'bins')]
    assert all(value for row in found for value in row.values())
    assert (found[0]['steps'], found[0]['crops'], found[0]['evaluated_on']) == ('3', '24', 'test')
    assert 'All 4 runs have rows' in output


@pytest.mark.slow
def test_a_study_that_was_killed_ends_with_the_same_rows(folder, finished):
    (folder / 'die.py').write_text(DIE_AFTER_THE_FIRST_ROW)
    run_tool(sys.executable, 'die.py', cwd=folder, expect=-9)
    assert rows(folder / 'rows.csv') == finished[0][:1]
    output = study('study.yaml', '--csv', 'rows.csv', '--work-dir', 'runs', '--jobs', '2', cwd=folder)
    assert rows(folder / 'rows.csv') == finished[0] and output.count('trained,') == 3


@pytest.mark.slow
def test_the_tables_go_into_a_file_and_are_checked(folder, finished, here):
    page = folder / 'page.md'
    marks = [f'<!-- study tiny{kind}: {end} -->' for kind in ('', ' summary') for end in ('begin', 'end')]
    page.write_text('\n'.join(['before', *marks]))
    arguments = ['study.yaml', '--csv', 'whole.csv', '--report']
    assert 'differs from the rows' in here(folder, *arguments, '--check', page)
    assert here(folder, *arguments, '--write', page) == here(folder, *arguments, '--check', page) == ''
    assert page.read_text().startswith('before\n')
    assert page.read_text().count('| + bins | ') == 3  # a line in each table


@pytest.mark.slow
def test_a_run_that_fails_is_named_and_the_others_have_rows(folder):
    methods = dict(METHODS, bad=dict(changes=dict(train_dataloader=dict(dataset=dict(num_crops=99)))))
    write_study(folder / 'failing.yaml', folder / 'config.py', methods=methods,
                runs=[dict(methods=['bad', 'plain'], bits=[2], seeds=[0])])
    output = study('failing.yaml', '--csv', 'failing.csv', '--work-dir', 'failing', cwd=folder, expect=1)
    assert 'expected 2 runs to end well, 1 did not: bad_w2a2_seed0' in output and 'Traceback' not in output
    assert 'got 99; ask for fewer' in (folder / 'failing' / 'bad_w2a2_seed0' / 'log.txt').read_text()
    assert [row['method'] for row in rows(folder / 'failing.csv')] == ['plain']


@pytest.mark.parametrize('changes, message', [
    (dict(runs=[dict(RUNS, methods=['bin'])]), "got 'bin' in study.yaml, group 1 of runs; did you mean 'bins'"),
    (dict(changes=dict(modle=dict())), "a part of .* to change, got 'modle' in plain at 2/2 .*near it: model"),
    (dict(changes=dict(model=dict(policy=dict(weight=dict(inti='mse'))))), "plain at 2/2 of the study tiny: .*inti"),
], ids=['method', 'part of the config', 'quantizer option'])
def test_a_wrong_study_ends_in_a_sentence_before_anything_runs(folder, tmp_path, here, changes, message):
    write_study(tmp_path / 'study.yaml', folder / 'config.py', **changes)
    assert re.search(message, here(tmp_path, 'study.yaml'))
    assert [path.name for path in tmp_path.iterdir()] == ['study.yaml']


def shipped_tables():
    """(study file, page with its tables) of all that the repository ships."""
    studies = REPOSITORY / 'configs' / 'studies'
    pages = [REPOSITORY / 'README.md', *sorted((REPOSITORY / 'docs').glob('*.md'))]
    return [(path, page) for path in sorted(studies.glob('*.yaml')) for page in pages
            if re.search(f'<!-- study {path.stem}( summary)?: begin', page.read_text(encoding='utf-8'))]


def test_every_shipped_study_has_its_tables_on_a_page():
    assert {(path.stem, page.name) for path, page in shipped_tables()} == {
        ('digits', 'ablation.md'), ('digits_shipped', 'README.md'), ('fashion_mnist', 'README.md'),
        ('fashion_mnist', 'ablation.md'), ('fashion_mnist_start', 'ablation.md'),
        ('fashion_mnist_tuning', 'ablation.md')}


@pytest.mark.parametrize('path, page', shipped_tables(), ids=lambda path: path.name)
def test_shipped_tables_are_those_of_the_rows(here, path, page):
    assert here(REPOSITORY, path.relative_to(REPOSITORY), '--report', '--check', page) == ''
