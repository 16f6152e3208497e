"""Pictures: they are written, they show the data, and odd data does not break them."""
import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.image import imread

from vvq_mm.plots import plot_latent_histograms, plot_oscillation

PANEL = dict(title='layers.0 (2 bit)', positions=torch.linspace(-3, 2, 500), qmin=-2, qmax=1)


def history(records=5, weight=0.01):
    values = [0.01 * i for i in range(records)]
    return dict(iteration=[50 * (i + 1) for i in range(records)], share=values, flips=values,
                weight=[weight * i for i in range(records)], layers={f'layers.{i}': values for i in range(3)})


@pytest.mark.parametrize('data', [history(), history(1), history(weight=0.0), history(2) | dict(layers={})],
                         ids=['usual', 'one record', 'no regulariser', 'no layers'])
def test_share_over_time_is_written_into_a_new_folder(tmp_path, data):
    path = tmp_path / 'new' / 'share.png'
    plot_oscillation(data, path)
    assert imread(path).std() > 0


def test_the_regulariser_has_a_panel_only_if_there_was_one(tmp_path):
    for name, weight in dict(plain=0.0, regularised=0.01).items():
        plot_oscillation(history(weight=weight), tmp_path / f'{name}.png')
    assert len(imread(tmp_path / 'regularised.png')) > len(imread(tmp_path / 'plain.png'))


@pytest.mark.parametrize('count', [1, 2, 3, 4])
def test_histograms_of_any_number_of_layers_are_written(tmp_path, count):
    plot_latent_histograms([PANEL] * count, tmp_path / 'latent.png')
    assert imread(tmp_path / 'latent.png').std() > 0


@pytest.mark.parametrize('positions', [np.zeros(10), np.array([1e9, -1e9, 0.]), np.full(5, np.nan)],
                         ids=['all equal', 'far out', 'not finite'])
def test_odd_weights_are_drawn(tmp_path, positions):
    plot_latent_histograms([dict(PANEL, positions=positions)], tmp_path / 'latent.png')
    assert (tmp_path / 'latent.png').stat().st_size > 0


def test_the_callers_backend_and_figures_are_left_alone(tmp_path):
    before = matplotlib.get_backend(auto_select=False)
    plot_oscillation(history(), tmp_path / 'share.png')
    assert matplotlib.get_backend(auto_select=False) == before
    assert matplotlib._pylab_helpers.Gcf.figs == {}
