"""Work and limits against hand counts; tables, JSON and picture of results."""
import json
from io import StringIO

import pytest
import torch
from helpers import policy
from rich.console import Console
from torch import nn

from vvq_mm.benchmarks import Rates, Timing, Work, limits, measure_rates, step_work
from vvq_mm.benchmarks.plot import plot_results
from vvq_mm.benchmarks.report import markdown_table, row, terminal_table, write_json
from vvq_mm.surgery import quantize_


@pytest.fixture
def results():
    reference = Timing([1., 1., 1.])
    return [row('FP32', 'full precision', reference, reference, batch=8, saved_bytes=2**20),
            row('ours | compiled', 'vvq_mm', Timing([1.25, 1.5, 1.75]), reference, batch=8, note='a note')]


class Net(nn.Module):
    """A 2x2 patch embedding and two linear layers, the last one in float."""

    def __init__(self):
        super().__init__()
        self.embed, self.hidden, self.head = nn.Conv2d(3, 5, 2, stride=2), nn.Linear(5, 7), nn.Linear(7, 2)

    def forward(self, x):
        return self.head(self.hidden(self.embed(x).flatten(2).transpose(1, 2)).mean(1))


def test_step_work_is_what_one_counts_by_hand():
    model = Net()
    quantize_(model, policy(rules={'head': None, 'hidden': dict(input=None)}))
    work = step_work(model, torch.randn(1, 3, 4, 4), batch=10)
    embed, hidden, head = 4 * 5 * 12, 4 * 5 * 7, 7 * 2  # multiply-accumulates of an image: 4 patches
    assert work.act_elements == 10 * 3 * 4 * 4
    assert work.weight_elements == 5 * 12 + 7 * 5
    assert work.forward_operations == 10 * 2 * embed
    assert work.float_operations == 10 * 2 * (hidden + head)
    assert work.backward_operations == 10 * 2 * (embed + 2 * (hidden + head))


def test_limits_divide_the_work_by_the_rates():
    work = Work(act_elements=1000, weight_elements=100, forward_operations=600, float_operations=200,
                backward_operations=1600)
    rates = Rates(bytes_per_second=10., float32=2., bfloat16=4., int8=6.)
    assert limits(work, rates) == dict(quantisers_separate=5 * 4 * 1100 / 10, quantisers_fused=1100 / 10,
                                       products=2400 / 2, products_int8=1800 / 2 + 600 / 6)
    assert limits(work, rates, torch.bfloat16) == dict(quantisers_separate=5 * (2 * 1000 + 4 * 100) / 10,
                                                       quantisers_fused=1100 / 10, products=2400 / 4,
                                                       products_int8=1800 / 4 + 600 / 6)
    assert 'products_int8' not in limits(work, rates._replace(int8=None))


def test_rates_of_this_machine_are_measured():
    rates = measure_rates('cpu', size=64, repeats=2)
    assert min(rates.bytes_per_second, rates.float32, rates.bfloat16) > 1e6


def test_first_column_after_the_name_is_the_ratio(results):
    header, _, first, second = markdown_table(results).splitlines()
    assert header.split(' | ')[:2] == ['| variant', 'ratio']
    assert first.startswith('| FP32 | 1.00 |')
    assert second == '| ours \\| compiled | 1.50 | 1.38–1.62 | 1,500.0 | – | – | 5.3 | a note |'


def test_terminal_table_has_the_same_cells(results):
    console = Console(width=140, record=True, file=StringIO())
    console.print(terminal_table(results, 'a title'))
    text = console.export_text()
    assert 'a title' in text and '1.38–1.62' in text
    assert text.split().index('ratio') == text.split().index('variant') + 1


def test_json_has_results_settings_and_machine(results, tmp_path):
    write_json(tmp_path / 'new' / 'results.json', results, dict(model='deit-t', batch=8))
    data = json.loads((tmp_path / 'new' / 'results.json').read_text())
    assert data['results'] == results and data['settings'] == dict(model='deit-t', batch=8)
    assert data['machine']['torch'] == torch.__version__ and data['machine']['threads'] == torch.get_num_threads()
    assert data['machine']['device']


def test_plot_is_written(results, tmp_path):
    plot_results(results, tmp_path / 'new' / 'bars.png', subtitle='DeiT-T')
    assert (tmp_path / 'new' / 'bars.png').read_bytes().startswith(b'\x89PNG')
