"""Pictures of oscillation in one or more trainings, side by side."""
from os.path import commonprefix
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from .style import GREY, INK, MAIN, PALE, WARM, percent, save, style

RUNS = (MAIN, WARM, GREY)


def plot_share_over_time(histories: Mapping[str, dict], path: Union[str, Path], threshold: float = 0.005) -> None:
    """Draw the share of oscillating weights over time, with the middle half of the layers, and what goes with it.

    Below: the share of codes that move in a step, and the regulariser's weight if a run had one.

    Args:
        histories (mapping): of :class:`vvq_mm.oscillation.OscillationTracker`, with at least one record, by the run's
            name.
        path (str | Path): PNG file to write; its folder is made.
        threshold (float): frequency above which a weight oscillates, for the caption. Defaults to 0.005.
    """
    panels = {'share': 'oscillating weights', 'flips': 'codes moved\nper step', 'weight': 'regulariser\nweight'}
    if not any(any(history['weight']) for history in histories.values()):
        del panels['weight']
    figure = Figure(figsize=(8, 4 + 0.9 * (len(panels) - 1)), dpi=160, layout='constrained')
    axes = figure.subplots(len(panels), 1, sharex=True, height_ratios=[3.2] + [1] * (len(panels) - 1))
    for axis, (key, label) in zip(axes, panels.items()):
        for color, (name, history) in zip(RUNS, histories.items()):
            if key == 'weight' and not any(history['weight']):
                continue
            steps = history['iteration']
            axis.plot(steps, history[key], color=color, lw=2, label=name, marker='o' if len(steps) == 1 else None)
            if key == 'share' and history['layers']:
                low, high = np.quantile(list(history['layers'].values()), [0.25, 0.75], axis=0)
                axis.fill_between(steps, low, high, color=color, alpha=0.15, lw=0)
        style(axis, label, ticks=5 if key == 'share' else 3)
        axis.set_ylim(0)
        axis.yaxis.set_major_formatter('{x:g}' if key == 'weight' else percent)
    _title(axes[0], 'Weights that oscillate between two integer codes', _meaning(threshold),
           'line: all tracked weights; band: the middle half of the layers')
    _legend(figure, axes[0])
    axes[-1].set_xlabel('training iteration', color=INK)
    axes[-1].xaxis.set_major_formatter(EngFormatter(sep=''))
    axes[-1].set_xlim(0, 1.01 * max(history['iteration'][-1] for history in histories.values()))
    save(figure, path)


def plot_layers(shares: Mapping[str, Mapping[str, float]], totals: Mapping[str, float], path: Union[str, Path],
                threshold: float = 0.005) -> None:
    """Draw the share of oscillating weights in each layer, one bar per run.

    Args:
        shares (mapping): by the run's name, and in that by layer; all runs have the same layers.
        totals (mapping): by the run's name, the share in all layers together.
        path (str | Path): PNG file to write; its folder is made.
        threshold (float): frequency above which a weight oscillates, for the caption. Defaults to 0.005.
    """
    prefix, names = split_names(list(next(iter(shares.values()))))
    rows = ['all together', *names]
    height, thick = 0.16 + 0.13 * len(shares), 0.8 / len(shares)
    figure = Figure(figsize=(8, 1.7 + height * len(rows)), dpi=160, layout='constrained')
    axis = figure.subplots()
    places = np.arange(len(rows))
    for index, (color, (name, layers)) in enumerate(zip(RUNS, shares.items())):
        values = [totals[name], *layers.values()]
        bars = axis.barh(places + (index - (len(shares) - 1) / 2) * thick, values, height=0.92 * thick, color=color,
                         label=name)
        axis.bar_label(bars, [f'{value:.2%}' for value in values], padding=2, fontsize=7, color=GREY)
    style(axis, '')
    axis.set_yticks(places, rows, fontsize=8, color=INK)
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.tick_params(axis='y', length=0)
    axis.grid(False, axis='y')
    axis.grid(axis='x', color=PALE, lw=0.6)
    axis.set_xlim(0, 1.1 * max(1e-4, *(share for layers in shares.values() for share in layers.values())))
    axis.xaxis.set_major_formatter(percent)
    axis.set_xlabel('oscillating weights', color=INK)
    _title(axis, 'Oscillating weights by layer', _meaning(threshold), *([f'layers of {prefix}'] if prefix else []))
    _legend(figure, axis)
    save(figure, path)


def plot_flips_by_distance(classes: Mapping[str, Dict[str, list]], edges: Sequence[float], path: Union[str, Path],
                           threshold: float = 0.005) -> None:
    """Draw how often codes turn back, and how many weights there are, by distance from the nearest border.

    Args:
        classes (mapping): by the run's name, ``frequency``, ``oscillating`` and ``weights`` of each class, as
            :meth:`vvq_mm.analysis.oscillation.Flips.by_distance` returns them; None where a class is empty.
        edges (sequence of float): of the classes, in codes; one more class follows, beyond the last code.
        path (str | Path): PNG file to write; its folder is made.
        threshold (float): frequency above which a weight oscillates, for the caption. Defaults to 0.005.
    """
    panels = {'frequency': 'turns per\nweight and step', 'oscillating': 'share that\noscillates',
              'weights': 'share of\nall weights'}
    figure = Figure(figsize=(8, 6.2), dpi=160, layout='constrained')
    axes = figure.subplots(len(panels), 1, sharex=True)
    step = edges[1] - edges[0]
    centres = np.array([*(np.array(edges[1:]) + edges[:-1]) / 2, edges[-1] + 1.5 * step])
    thick = 0.84 * step / len(classes)
    for axis, (key, label) in zip(axes, panels.items()):
        for index, (color, (name, values)) in enumerate(zip(RUNS, classes.items())):
            axis.bar(centres + (index - (len(classes) - 1) / 2) * thick, _numbers(values[key]), width=0.95 * thick,
                     color=color, label=name)
        style(axis, label)
        axis.yaxis.set_major_formatter('{x:g}' if key == 'frequency' else percent)
    axes[-1].set_xticks([*edges[::2], centres[-1]], [*(f'{edge:g}' for edge in edges[::2]), 'beyond the\nlast code'])
    axes[-1].set_xlabel('distance of the latent weight from the nearest border, in codes (0.5: on a code)', color=INK)
    _title(axes[0], 'Codes that turn back, by distance of the weight from the border', _meaning(threshold))
    _legend(figure, axes[0])
    save(figure, path)


def split_names(names: Sequence[str]) -> Tuple[str, List[str]]:
    """Return the module that all dotted names lie in, and the names inside it.

    Example:
        >>> split_names(['backbone.layers.0', 'backbone.layers.1', 'backbone.embed'])
        ('backbone', ['layers.0', 'layers.1', 'embed'])
    """
    shared = commonprefix([name.split('.')[:-1] for name in names])
    return '.'.join(shared), ['.'.join(name.split('.')[len(shared):]) for name in names]


def _meaning(threshold: float) -> str:
    return f'a weight oscillates while it turns back in more than {threshold:.1%} of the steps (running mean)'


def _title(axis: Axes, title: str, *caption: str) -> None:
    axis.set_title(title, loc='left', color=INK, fontsize=13, pad=9 + 13 * len(caption), weight='bold')
    axis.annotate('\n'.join(caption), (0, 1), (0, 7), textcoords='offset points', xycoords='axes fraction', color=GREY,
                  fontsize=9, in_layout=False)


def _legend(figure: Figure, axis: Axes) -> None:
    """Name the runs below everything; a single one too, since no title says which it is."""
    figure.legend(*axis.get_legend_handles_labels(), loc='outside lower left', ncols=2, frameon=False, fontsize=9,
                  labelcolor=INK)


def _numbers(values: Sequence[Optional[float]]) -> List[float]:
    return [0.0 if value is None else value for value in values]
