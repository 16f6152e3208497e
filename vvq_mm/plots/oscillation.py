"""Pictures of oscillation during one training."""
from pathlib import Path
from typing import Sequence, Tuple, Union

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from .style import GREY, INK, MAIN, SECOND, WARM, percent, save, style

LAYERS = colormaps['viridis']
CELLS = 24  # histogram cells per code


def plot_oscillation(history: dict, path: Union[str, Path], threshold: float = 0.005) -> None:
    """Draw the share of oscillating weights, the share of codes that move, and the regulariser's weight over time.

    Args:
        history (dict): of :class:`vvq_mm.oscillation.OscillationTracker`: lists ``iteration``, ``share``, ``flips``,
            ``weight``, and ``layers``, lists by name.
        path (str | Path): PNG file to write; its folder is made.
        threshold (float): frequency above which a weight oscillates, for the caption. Defaults to 0.005.
    """
    regularised = any(history['weight'])
    heights = [3.2, 1, 1] if regularised else [3.2, 1]
    figure = Figure(figsize=(8, 1.5 + 0.8 * sum(heights)), dpi=160, layout='constrained')
    share, flips, *rest = figure.subplots(len(heights), 1, sharex=True, height_ratios=heights)
    steps = history['iteration']
    marker = 'o' if len(steps) == 1 else None

    layers = list(history['layers'].items())
    for index, (_, values) in enumerate(layers):
        color = LAYERS(0.92 * index / max(len(layers) - 1, 1))
        share.plot(steps, values, color=color, alpha=0.45, lw=0.9, marker=marker, ms=3)
    share.plot(steps, history['share'], color=INK, lw=2.4, marker=marker, label='all tracked layers')
    share.plot([], [], color=LAYERS(0.45), alpha=0.7, lw=1, label='one line per layer: first dark, last light')
    share.legend(loc='upper left', frameon=False, fontsize=9, labelcolor=INK)
    share.set_ylim(0, 1.22 * max([*history['share'], *(value for _, values in layers for value in values), 1e-4]))
    style(share, 'oscillating weights', ticks=5)
    share.yaxis.set_major_formatter(percent)
    share.set_title('Weights that oscillate between two integer codes', loc='left', color=INK, fontsize=13, pad=22,
                    weight='bold')
    caption = f'a weight oscillates while it turns back in more than {threshold:.1%} of the steps (running mean)'
    share.text(0, 1.025, caption, color=GREY, fontsize=9, transform=share.transAxes)

    _filled(flips, steps, history['flips'], MAIN, 'codes moved\nper step')
    flips.yaxis.set_major_formatter(percent)
    if regularised:
        _filled(rest[0], steps, history['weight'], WARM, 'regulariser\nweight')
        rest[0].yaxis.set_major_formatter('{x:g}')
    bottom = rest[0] if rest else flips
    bottom.set_xlabel('training iteration', color=INK)
    bottom.xaxis.set_major_formatter(EngFormatter(sep=''))
    bottom.set_xlim(0, 1.01 * steps[-1])
    save(figure, path)


def plot_latent_histograms(panels: Sequence[dict], path: Union[str, Path], pairs: bool = False) -> None:
    """Draw where latent weights lie between the borders of their bins, one panel per layer.

    Args:
        panels (sequence of dict): ``title`` (str), ``positions`` (Tensor or array: latent weights / scale), ``qmin``
            and ``qmax`` (int, limits of the codes).
        path (str | Path): PNG file to write; its folder is made.
        pairs (bool): whether each two panels are a layer in two runs, and get a row and the same axes. Defaults to
            False.
    """
    columns = 2 if pairs else min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(max(4.3 * columns, 6), 0.7 + 3 * rows), dpi=160, layout='constrained')
    axes = figure.subplots(rows, columns, squeeze=False, sharex='row' if pairs else False,
                           sharey='row' if pairs else False).flatten()
    for axis, panel in zip(axes, panels):
        _draw_histogram(axis, **panel)
    for axis in axes[len(panels):]:
        axis.set_axis_off()
    for axis in axes[::columns]:
        axis.set_ylabel('share of weights', color=INK)
    figure.suptitle('Latent weights around the codes they round to', x=0.01, ha='left', color=INK, fontsize=13,
                    weight='bold')
    figure.supxlabel('dotted: border between two codes, where a small step changes the code; '
                     'grey: beyond the last code, clipped and without gradient',
                     x=0.01, ha='left', color=GREY, fontsize=9)
    save(figure, path)


def latent_histogram(positions, qmin: int, qmax: int) -> Tuple[np.ndarray, np.ndarray]:
    """Return the edges of the cells (in codes, 24 cells per code) and the share of the finite weights in each.

    Args:
        positions (Tensor | array): latent weights / scale.
        qmin (int): smallest code.
        qmax (int): largest code.
    """
    positions = np.asarray(positions, dtype=np.float64).ravel()
    positions = positions[np.isfinite(positions)]
    low, high = np.quantile(positions, [0.0005, 0.9995]) if positions.size else (qmin, qmax)
    levels = qmax - qmin + 1
    low = np.clip(np.floor(low), qmin - levels, qmin - 1)
    high = np.clip(np.ceil(high), qmax + 1, qmax + levels)
    edges = np.linspace(low, high, int(round(high - low)) * CELLS + 1)
    return edges, np.histogram(positions, edges)[0] / max(positions.size, 1)


def _draw_histogram(axis: Axes, title: str, positions, qmin: int, qmax: int) -> None:
    """Draw one layer: bars tinted by code (grey: clipped), dotted borders halfway between the codes."""
    edges, shares = latent_histogram(positions, qmin, qmax)
    if not shares.any():
        axis.set_title(f'{title}: no weight near its codes', loc='left', fontsize=9, color=WARM)
        return
    centres = (edges[1:] + edges[:-1]) / 2
    codes = np.clip(np.round(centres), qmin, qmax).astype(int)
    outside = (centres < qmin) | (centres > qmax)
    tints = np.where(outside, GREY, np.where(codes % 2 == 0, MAIN, SECOND))
    axis.bar(centres, shares, width=np.diff(edges), color=tints, lw=0)
    for border in np.arange(qmin, qmax) + 0.5:
        axis.axvline(border, color=WARM, lw=0.7, ls=(0, (2, 2)))
    style(axis, '')
    axis.margins(x=0)
    axis.set_title(title, loc='left', fontsize=9, color=INK)
    axis.set_xlabel('latent weight / scale', fontsize=9, color=INK)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9))
    axis.yaxis.set_major_formatter(percent)


def _filled(axis: Axes, steps: Sequence, values: Sequence, color: str, label: str) -> None:
    axis.plot(steps, values, color=color, lw=1.6, marker='o' if len(steps) == 1 else None)
    axis.fill_between(steps, values, color=color, alpha=0.12, lw=0)
    axis.set_ylim(0, 1.15 * max([*values, 1e-6]))
    style(axis, label)
