"""The oscillation report: distances and sums against naive float64 formulas, and its pictures."""
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

from vvq_mm.analysis.oscillation import EDGES, NEAR, add_flips, border_distance, flips_by_distance
from vvq_mm.functional.fake_quant import quantize
from vvq_mm.functional.grid import IntGrid
from vvq_mm.plots.oscillation import latent_histogram, plot_latent_histograms
from vvq_mm.plots.oscillation_report import plot_flips_by_distance, plot_layers, plot_share_over_time, split_names

TWO_BIT = IntGrid.of(2, signed=True)
grids = st.builds(IntGrid.of, st.integers(2, 8), st.booleans())
weights = st.lists(st.tuples(st.floats(-140, 300), st.floats(0, 1)), min_size=1, max_size=40)


def naive_distance(position, grid):
    return min(abs(position - (code + 0.5)) for code in range(grid.qmin, grid.qmax))


def naive_class(distance):
    """The first class whose upper edge is not exceeded; the last is beyond all."""
    return next((index for index, upper in enumerate(EDGES[1:]) if distance <= upper), len(EDGES) - 1)


def doubles(values):
    return torch.tensor(values, dtype=torch.float64)


@given(positions=st.lists(st.floats(-300, 300), min_size=1, max_size=30), grid=grids)
def test_distance_is_that_to_the_nearest_of_all_borders(positions, grid):
    expected = [naive_distance(position, grid) for position in positions]
    assert border_distance(doubles(positions), grid).tolist() == pytest.approx(expected)


@given(position=st.floats(-300, 300), grid=grids)
def test_distance_exceeds_one_half_exactly_beyond_the_last_code(position, grid):
    distance = border_distance(doubles([position]), grid).item()
    outside = max(grid.qmin - position, position - grid.qmax)
    if outside > 1e-9:
        assert distance == pytest.approx(0.5 + outside)
    elif outside <= 0:
        assert distance <= 0.5


@given(position=st.floats(-10, 10), step=st.floats(0.01, 0.5))
def test_a_code_changes_by_a_step_towards_the_border_exactly_if_the_step_is_longer_than_the_distance(position, step):
    distance = border_distance(doubles([position]), TWO_BIT).item()
    if abs(distance - step) < 1e-6:
        return
    moved = doubles([position, position - step, position + step])
    codes = quantize(moved, torch.ones(1), None, TWO_BIT).tolist()
    assert (len(set(codes)) > 1) == (step > distance)


@given(data=weights, grid=grids, threshold=st.floats(0, 1))
def test_sums_by_class_equal_the_naive_loop(data, grid, threshold):
    flips = flips_by_distance(*map(doubles, zip(*data)), grid, threshold)
    count, total, turning = ([0.0] * len(EDGES) for _ in range(3))
    for (_, frequency), distance in zip(data, border_distance(doubles([position for position, _ in data]), grid)):
        index = naive_class(distance.item())
        count[index] += 1
        total[index] += frequency
        turning[index] += frequency > threshold
    assert flips.weights.tolist() == count and flips.oscillating.tolist() == turning
    assert flips.frequency.tolist() == pytest.approx(total)


@given(data=weights, cut=st.integers(1, 39))
def test_layers_add_up_to_what_all_their_weights_give(data, cut):
    positions, frequency = map(doubles, zip(*data))
    parts = [flips_by_distance(positions[part], frequency[part], TWO_BIT, 0.1)
             for part in (slice(cut), slice(cut, None))]
    whole = flips_by_distance(positions, frequency, TWO_BIT, 0.1)
    for got, expected in zip(add_flips(parts), whole):
        torch.testing.assert_close(got, expected)


@given(data=weights)
def test_summary_is_of_single_weights(data):
    got = flips_by_distance(*map(doubles, zip(*data)), TWO_BIT, 0.1).summary()
    count = len(data)
    distances = [border_distance(doubles([position]), TWO_BIT).item() for position, _ in data]
    turning = [distance for distance, (_, frequency) in zip(distances, data) if frequency > 0.1]
    assert got['weights'] == count and got['oscillating'] == len(turning) / count
    assert got['frequency'] == pytest.approx(sum(frequency for _, frequency in data) / count)
    assert got['near'] == sum(distance <= NEAR for distance in distances) / count
    assert got['beyond'] == sum(distance > 0.5 for distance in distances) / count
    assert got['near_of_oscillating'] == (sum(distance <= NEAR for distance in turning) / len(turning)
                                          if turning else None)


def test_means_by_distance_and_none_where_there_is_no_weight():
    flips = flips_by_distance(doubles([0.49, 0.52, 0.1, 5.]), doubles([0.2, 0.1, 0., 0.]), TWO_BIT, 0.15)
    got = flips.by_distance()
    empty = [None] * 6
    assert got['weights'] == [0.5, 0, 0, 0, 0, 0, 0, 0.25, 0, 0, 0.25]
    assert got['frequency'] == [pytest.approx(0.15), *empty, 0., None, None, 0.]
    assert got['oscillating'] == [0.5, *empty, 0., None, None, 0.]


def test_single_precision_weights_on_a_code_or_border_are_in_the_outer_classes():
    flips = flips_by_distance(torch.tensor([-2., -1., 0., 1., -1.5, -0.5, 0.5]), torch.zeros(7), TWO_BIT, 0.1)
    assert flips.weights.tolist() == [3, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0]


def history(weight=0.0, records=4):
    values = [0.01 * (index + 1) for index in range(records)]
    return dict(iteration=[10 * (index + 1) for index in range(records)], share=values, flips=values,
                weight=[weight] * records, layers={'a': values, 'b': values, 'c': values})


@pytest.mark.parametrize('histories', [dict(one=history()), dict(one=history(), two=history(0.1, 2)),
                                       dict(one=history(records=1))], ids=['one run', 'two runs', 'one record'])
def test_shares_over_time_are_drawn(tmp_path, histories):
    plot_share_over_time(histories, tmp_path / 'new' / 'share.png')
    assert imread(tmp_path / 'new' / 'share.png').std() > 0


def test_every_layer_of_every_run_gets_a_bar(tmp_path):
    heights = []
    for runs, layers in ((1, 2), (2, 2), (2, 9)):
        shares = {f'run {run}': {f'net.{layer}': 0.1 for layer in range(layers)} for run in range(runs)}
        plot_layers(shares, dict.fromkeys(shares, 0.1), tmp_path / 'layers.png')
        heights.append(len(imread(tmp_path / 'layers.png')))
    assert heights[0] < heights[1] < heights[2]


def test_nothing_that_oscillates_is_drawn_too(tmp_path):
    plot_layers(dict(run={'a': 0.0}), dict(run=0.0), tmp_path / 'layers.png')
    still = flips_by_distance(torch.zeros(3), torch.zeros(3), TWO_BIT, 0.1).by_distance()
    plot_flips_by_distance(dict(run=still, other=still), EDGES, tmp_path / 'flips.png')
    assert imread(tmp_path / 'layers.png').std() > 0 and imread(tmp_path / 'flips.png').std() > 0


@pytest.mark.parametrize('names, expected', [
    (['net.0.a', 'net.0.b', 'net.1.a'], ('net', ['0.a', '0.b', '1.a'])),
    (['net.layers.a'], ('net.layers', ['a'])),
    (['first', 'second'], ('', ['first', 'second'])),
    (['net.a', 'net.a.b', 'net.a.c'], ('net', ['a', 'a.b', 'a.c'])),
], ids=['shared', 'one', 'plain', 'one inside another'])
def test_names_lose_the_module_they_share(names, expected):
    assert split_names(names) == expected


def test_histogram_counts_each_weight_in_the_drawn_range_once():
    positions = torch.linspace(-1.9, 0.9, 1000)
    edges, shares = latent_histogram(positions, -2, 1)
    assert math.isclose(shares.sum(), 1) and len(edges) == len(shares) + 1 and {-0.5, 0.5} <= set(edges.round(9))


def test_pairs_make_two_columns(tmp_path):
    panels = [dict(title=str(index), positions=torch.randn(50), qmin=-2, qmax=1) for index in range(4)]
    plot_latent_histograms(panels, tmp_path / 'pairs.png', pairs=True)
    plot_latent_histograms(panels, tmp_path / 'all.png')
    pairs, every = imread(tmp_path / 'pairs.png').shape, imread(tmp_path / 'all.png').shape
    assert pairs[1] < every[1] and pairs[0] == every[0]
