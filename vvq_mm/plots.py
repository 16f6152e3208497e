"""Pictures of oscillation, as PNG files; drawn without a display and without touching pyplot's global state."""
from pathlib import Path
from typing import Sequence, Union

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

INK, GREY, PALE = '#1c2733', '#6b7885', '#d9dee3'
MAIN, SECOND, WARM = '#0b5fa5', '#6fa8d6', '#d1495b'
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
    _style(share, 'oscillating weights')
    share.yaxis.set_major_formatter(_percent)
    share.set_title('Weights that oscillate between two integer codes', loc='left', color=INK, fontsize=13, pad=22,
                    weight='bold')
    caption = f'a weight oscillates while it turns back in more than {threshold:.1%} of the steps (running mean)'
    share.text(0, 1.025, caption, color=GREY, fontsize=9, transform=share.transAxes)

    _filled(flips, steps, history['flips'], MAIN, 'codes moved\nper step')
    flips.yaxis.set_major_formatter(_percent)
    if regularised:
        _filled(rest[0], steps, history['weight'], WARM, 'regulariser\nweight')
        rest[0].yaxis.set_major_formatter('{x:g}')
    bottom = rest[0] if rest else flips
    bottom.set_xlabel('training iteration', color=INK)
    bottom.xaxis.set_major_formatter(EngFormatter(sep=''))
    bottom.set_xlim(0, 1.01 * steps[-1])
    _save(figure, path)


def plot_latent_histograms(panels: Sequence[dict], path: Union[str, Path]) -> None:
    """Draw where latent weights lie between the borders of their bins, one panel per layer.

    Args:
        panels (sequence of dict): ``title`` (str), ``positions`` (Tensor or array: latent weights / scale), ``qmin``
            and ``qmax`` (int, limits of the codes).
        path (str | Path): PNG file to write; its folder is made.
    """
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(max(4.3 * columns, 6), 0.7 + 3 * rows), dpi=160, layout='constrained')
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis, panel in zip(axes, panels):
        _histogram(axis, **panel)
    for axis in axes[len(panels):]:
        axis.set_axis_off()
    for axis in axes[::columns]:
        axis.set_ylabel('share of weights', color=INK)
    figure.suptitle('Latent weights around the codes they round to', x=0.01, ha='left', color=INK, fontsize=13,
                    weight='bold')
    figure.supxlabel('dotted: border between two codes, where a small step changes the code; '
                     'grey: beyond the last code, clipped and without gradient',
                     x=0.01, ha='left', color=GREY, fontsize=9)
    _save(figure, path)


def _histogram(axis: Axes, title: str, positions, qmin: int, qmax: int) -> None:
    """Draw one layer: bars tinted by code (grey: clipped), dotted borders halfway between the codes."""
    positions = np.asarray(positions, dtype=np.float64).ravel()
    positions = positions[np.isfinite(positions)]
    if not positions.size:
        axis.set_title(f'{title}: no finite weight', loc='left', fontsize=9, color=WARM)
        return
    low, high = np.quantile(positions, [0.0005, 0.9995])
    levels = qmax - qmin + 1
    low = np.clip(np.floor(low), qmin - levels, qmin - 1)
    high = np.clip(np.ceil(high), qmax + 1, qmax + levels)
    edges = np.linspace(low, high, int(round(high - low)) * CELLS + 1)
    counts, _ = np.histogram(positions, edges)
    centres = (edges[1:] + edges[:-1]) / 2
    codes = np.clip(np.round(centres), qmin, qmax).astype(int)
    outside = (centres < qmin) | (centres > qmax)
    tints = np.where(outside, GREY, np.where(codes % 2 == 0, MAIN, SECOND))
    axis.bar(centres, counts / max(positions.size, 1), width=np.diff(edges), color=tints, lw=0)
    for border in np.arange(qmin, qmax) + 0.5:
        axis.axvline(border, color=WARM, lw=0.7, ls=(0, (2, 2)))
    _style(axis, '')
    axis.set_xlim(low, high)
    axis.set_title(title, loc='left', fontsize=9, color=INK)
    axis.set_xlabel('latent weight / scale', fontsize=9, color=INK)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=9))
    axis.yaxis.set_major_formatter(_percent)


def _filled(axis: Axes, steps: Sequence, values: Sequence, color: str, label: str) -> None:
    axis.plot(steps, values, color=color, lw=1.6, marker='o' if len(steps) == 1 else None)
    axis.fill_between(steps, values, color=color, alpha=0.12, lw=0)
    axis.set_ylim(0, 1.15 * max([*values, 1e-6]))
    _style(axis, label)


def _percent(value: float, position: int = 0) -> str:
    return f'{100 * value:g}%'


def _style(axis: Axes, label: str) -> None:
    """Leave two thin axes and a pale grid."""
    axis.spines[['top', 'right']].set_visible(False)
    axis.spines[['left', 'bottom']].set_color(PALE)
    axis.tick_params(colors=GREY, labelsize=9, length=3)
    axis.yaxis.set_major_locator(MaxNLocator(5 if label == 'oscillating weights' else 3))
    axis.grid(axis='y', color=PALE, lw=0.6)
    axis.set_axisbelow(True)
    if label:
        axis.set_ylabel(label, color=INK)


def _save(figure: Figure, path: Union[str, Path]) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor='white')
