"""The figures of docs/export.md are those of docs/results, and they keep to what the page promises."""
import json
import sys

import pytest
from tool_runs import REPOSITORY, run_tool

PAGE = REPOSITORY / 'docs' / 'export.md'
EXPORTS = sorted((REPOSITORY / 'docs' / 'results' / 'export').glob('*.json'))
INFERENCE = sorted((REPOSITORY / 'docs' / 'results').glob('inference_*.json'), reverse=True)


@pytest.mark.parametrize('tool, files', [('export.py', EXPORTS), ('benchmark_inference.py', INFERENCE)],
                         ids=['export', 'inference'])
def test_the_tables_of_the_page_are_made_from_the_results(tool, files):
    assert files
    run_tool(sys.executable, REPOSITORY / 'tools' / tool, '--report', *files, '--check', PAGE, cwd=REPOSITORY)


@pytest.mark.parametrize('path', EXPORTS, ids=[path.stem for path in EXPORTS])
def test_every_file_is_the_network_that_was_trained(path):
    for entry in json.loads(path.read_text())['files'].values():
        for backend, parity in entry['parity'].items():
            assert parity['images'] >= 360 and parity['agreement'] >= 99.5, backend
            assert abs(parity['accuracy'] - parity['model_accuracy']) <= 0.1, backend
            assert backend != 'packed' or parity['max_difference'] == 0


@pytest.mark.parametrize('path', INFERENCE, ids=[path.stem for path in INFERENCE])
def test_whatever_is_called_int8_ran_integer_kernels_in_every_product(path):
    rows = [row for row in json.loads(path.read_text())['results'] if row['group'] == 'ours']
    for row in rows:
        count, total = (int(number) for number in row['products'].removeprefix('int8: ').split(' of '))
        assert count == total > 0
