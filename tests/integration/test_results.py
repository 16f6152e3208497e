"""tools/results.py: rows are measured once, and the README's table is that of the rows."""
import csv
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import tool_runs

ROOT = Path(__file__).parents[2]
TOOL = ROOT / 'tools' / 'results.py'
README_TEXT = '# Title\n\n<!-- results: begin -->\nold\n<!-- results: end -->\n\nafter\n'
ROW = dict(dataset='digits', config='vit_w2a2', bits='2/2', seed='0', full_precision='98.06', calibrated='47.22',
           last='96.39', best='97.22', steps='552', crops='137952', train_seconds='90.0', torch='2.15.0',
           mmengine='0.10.7', mmpretrain='1.2.0', vvq_mm='0.1.0')


@pytest.fixture(scope='module')
def tool():
    return runpy.run_path(str(TOOL))


@pytest.fixture
def project(tool, tmp_path):
    """A folder with a README and the rows of two seeds."""
    (tmp_path / 'README.md').write_text(README_TEXT)
    file = tmp_path / 'docs' / 'results' / 'digits.csv'
    tool['add_row'](file, ROW)
    tool['add_row'](file, dict(ROW, seed='1', last='98.39', train_seconds='150.0'))
    return tmp_path


def results(*arguments, cwd, expect=0):
    return tool_runs.run_tool(sys.executable, TOOL, *arguments, cwd=cwd, expect=expect)


def table_lines(text):
    return [line for line in text.splitlines() if line.startswith('| Digits')]


def test_a_line_holds_mean_and_deviation_over_seeds(tool, project):
    line, = table_lines(tool['make_table'](project / 'docs' / 'results'))
    assert line == ('| Digits | ViT, 4 blocks of width 64 | [2/2](configs/digits/vit_w2a2.py) | 98.06 | 47.22 '
                    '| 97.39 ± 1.41 | 97.22 | 2 | 552 | 137,952 | 2.0 min |')


def test_the_widths_come_in_the_order_of_the_family(tool, project):
    file = project / 'docs' / 'results' / 'digits.csv'
    tool['add_row'](file, dict(ROW, config='vit_fp32', bits='32/32', calibrated=''))
    tool['add_row'](file, dict(ROW, config='vit_w4a4', bits='4/4'))
    lines = table_lines(tool['make_table'](file.parent))
    assert [line.split('|')[3].strip()[1:4] for line in lines] == ['32/', '4/4', '2/2']
    assert lines[0].split('|')[5].strip() == '–'


def test_runs_of_another_length_are_not_averaged_with_the_others(tool, project):
    tool['add_row'](project / 'docs' / 'results' / 'digits.csv', dict(ROW, seed='2', steps='23'))
    assert len(table_lines(tool['make_table'](project / 'docs' / 'results'))) == 2


def test_the_caption_says_which_column_is_honest(tool, project):
    caption = ' '.join(tool['make_table'](project / 'docs' / 'results').split())
    assert 'The best epoch is chosen on the test images themselves, so "last"' in caption


def test_rows_of_another_tool_are_refused(tool, tmp_path):
    (tmp_path / 'digits.csv').write_text('method,accuracy\nLSQ,90\n')
    with pytest.raises(SystemExit, match='expected columns dataset,config.*method.*digits.csv'):
        tool['make_table'](tmp_path)


def test_write_changes_the_block_alone_and_check_agrees_then(project):
    assert 'differs from the rows' in results('report', '--check', cwd=project, expect=1)
    results('report', '--write', cwd=project)
    before, _, rest = (project / 'README.md').read_text().partition('<!-- results: begin -->\n')
    block, _, after = rest.partition('\n<!-- results: end -->')
    assert (before, after) == ('# Title\n\n', '\n\nafter\n')
    assert block == results('report', cwd=project).rstrip('\n')
    results('report', '--check', cwd=project)


def test_a_readme_without_the_marks_is_left_alone(project):
    (project / 'README.md').write_text('# Title\n')
    assert 'once each in README.md' in results('report', '--write', cwd=project, expect=1)
    assert (project / 'README.md').read_text() == '# Title\n'


@pytest.mark.parametrize('arguments, message', [
    (['--configs', 'vit_w5a5'], 'expected some of vit_fp32, vit_w4a4, vit_w3a3, vit_w2a2 for --configs, got vit_w5a5'),
    (['--cfg-options', 'train_cfg.max_epochs=1'], 'expected another --out than docs/results'),
], ids=['unknown config', 'changed config among the shipped'])
def test_a_wrong_run_ends_in_a_sentence_before_anything_is_made(tmp_path, arguments, message):
    output = results('run', 'digits', *arguments, cwd=tmp_path, expect=1)
    assert message in output and 'Traceback' not in output and not list(tmp_path.iterdir())


@pytest.fixture(scope='module')
def short_run(tmp_path_factory):
    """A copy of the repository after `run` of one epoch, the arguments, and what it said."""
    folder = tmp_path_factory.mktemp('repository')
    for name in ('configs', 'tools'):
        shutil.copytree(ROOT / name, folder / name)
    arguments = ('run', 'digits', '--out', 'tiny', '--configs', 'vit_w4a4', '--seeds', '7', '--cfg-options',
                 'train_cfg.max_epochs=1')
    return folder, arguments, results(*arguments, cwd=folder)


@pytest.mark.slow
def test_a_run_makes_what_it_needs_and_leaves_a_row(short_run):
    folder, _, output = short_run
    assert (folder / 'data' / 'digits_soft_labels' / 'meta.json').is_file() and 'Seed 7.' in output
    row, = csv.DictReader((folder / 'tiny' / 'digits.csv').read_text().splitlines())
    assert (row['config'], row['bits'], row['seed']) == ('vit_w4a4', '4/4', '7')
    assert (row['steps'], row['crops']) == ('23', str(1437 * 4))
    assert f'full precision {row["full_precision"]}, calibrated, before training {row["calibrated"]}, ' \
           f'last {row["last"]}, best {row["best"]}.' in output


@pytest.mark.slow
def test_a_run_that_has_its_row_is_skipped(short_run):
    folder, arguments, _ = short_run
    before = (folder / 'tiny' / 'digits.csv').read_bytes()
    output = results(*arguments, cwd=folder)
    assert output == f'[1/1] vit_w4a4, seed 7: has a row in {Path("tiny/digits.csv")}\n'
    assert (folder / 'tiny' / 'digits.csv').read_bytes() == before


@pytest.mark.slow
def test_a_run_that_fails_leaves_no_row(short_run):
    folder, arguments, _ = short_run
    output = results(*arguments, 'load_from=missing.pth', '--seeds', '8', cwd=folder, expect=1)
    assert 'expected tools/train.py to succeed, got exit status 1' in output.splitlines()[-1]
    assert (folder / 'tiny' / 'digits.csv').read_text().count('vit_w4a4') == 1


def test_the_table_in_the_readme_is_that_of_the_rows():
    readme = ROOT / 'README.md'
    if not readme.is_file() or '<!-- results: begin -->' not in readme.read_text(encoding='utf-8'):
        pytest.skip('README.md has no table yet')
    results('report', '--check', cwd=ROOT)
