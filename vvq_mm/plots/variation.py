"""Pictures of variation: several models side by side, from what :func:`vvq_mm.analysis.variation.measure` returned."""
import re
from math import erfc
from pathlib import Path
from typing import Callable, List, Sequence, Tuple, Union

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from .style import COLORS, GREY, INK, MAIN, PALE, SECOND, WARM, save, style

SLOTS = dict(weight='weights', input='inputs')
MEAN = dict(weight='mean |w|', input='mean |x| of inputs')
OPERANDS = dict(query=MAIN, key=WARM, value='#e3a72f')
NORMAL_KURTOSIS = 3.0
MOST_LABELS = 60  # module names that fit under a panel
Models = Sequence[dict]


def plot_magnitude(models: Models, path: Union[str, Path]) -> None:
    """Draw the mean magnitude of each module's weights and inputs with SDAM, the spread over modules.

    Args:
        models (sequence of dict): of :func:`vvq_mm.analysis.variation.measure`, each with a ``name``.
        path (str | Path): PNG file to write; its folder is made.
    """
    figure, axes = _grid(models, rows=2, sharey='row')
    for column, model in enumerate(models):
        for axis, (slot, words) in zip(axes[:, column], SLOTS.items()):
            sites, known = _sites(model, slot), model['sdam'][slot]
            low, high = known['mean'] - known['sdam'], known['mean'] + known['sdam']
            axis.axhspan(low, high, color=PALE, alpha=0.6, lw=0)
            axis.axhline(known['mean'], color=GREY, lw=1)
            axis.bar(range(len(sites)), _values(sites, 'magnitude'), color=_color(column), width=0.75)
            _panel(axis, MEAN[slot] if column == 0 else '', sites)
            axis.set_title(f'{words}: SDAM {known["sdam"]:.3g}, {known["relative"] or 0:.0%} of the mean '
                           f'{known["mean"]:.3g}', loc='left', fontsize=9, color=INK)
    _finish(figure, axes, models, 'Mean magnitude of each module', 'line: mean over modules; band: one SDAM (standard '
            'deviation over modules) to either side; left to right: order in the model', path)


def plot_tails(models: Models, path: Union[str, Path]) -> None:
    """Draw kurtosis and share of outliers of each module's weights and inputs; arguments as above."""
    figure, axes = _grid(models, rows=2, sharey='row')
    tints = dict(zip(SLOTS, (MAIN, WARM)))
    outside = models[0]['sigma']
    for column, model in enumerate(models):
        for slot, tint in tints.items():
            sites = _sites(model, slot)
            for axis, measure, factor in zip(axes[:, column], ('kurtosis', 'outliers'), (1, 100)):
                axis.plot(factor * _values(sites, measure), 'o', color=tint, ms=4, alpha=0.85)
        kurtosis, outliers = axes[:, column]
        _panel(kurtosis, 'kurtosis (normal: 3)' if column == 0 else '', sites, log=True)
        kurtosis.axhline(NORMAL_KURTOSIS, color=GREY, lw=1, ls=(0, (4, 2)), zorder=1)
        _panel(outliers, f'values beyond {outside:g} std, %' if column == 0 else '', sites)
        outliers.axhline(100 * _beyond_normal(outside), color=GREY, lw=1, ls=(0, (4, 2)), zorder=1)
    _legend(figure, {words: tints[slot] for slot, words in SLOTS.items()})
    _finish(figure, axes, models, 'Tails of each module', f'dashed: a normal distribution (kurtosis 3, '
            f'{_beyond_normal(outside):.2%} beyond {outside:g} standard deviations)', path)


def plot_channels(models: Models, path: Union[str, Path]) -> None:
    """Draw how far the channels of each module lie apart in mean magnitude; arguments as above."""
    figure, axes = _grid(models, rows=2, sharey='row')
    for column, model in enumerate(models):
        for axis, slot in zip(axes[:, column], SLOTS):
            sites = _sites(model, slot)
            quantiles = _channel_quantiles(sites)
            x = np.arange(len(sites))
            axis.vlines(x, quantiles[0], quantiles[6], color=PALE, lw=1.5)
            axis.vlines(x, quantiles[1], quantiles[5], color=SECOND, lw=2)
            axis.vlines(x, quantiles[2], quantiles[4], color=MAIN, lw=4)
            axis.plot(x, quantiles[3], '_', color=INK, ms=6, mew=1.5)
            axis.plot(x, quantiles[6], 'o', color=WARM, ms=2.5)
            _panel(axis, f'{MEAN[slot]}, per channel' if column == 0 else '', sites, log=True)
    _finish(figure, axes, models, 'Channels of each module', 'output channels of weights, channels of inputs; dark: '
            'the middle half, light: 5 to 95 %, pale: all, red: the largest, dash: median', path)


def plot_heads(models: Models, path: Union[str, Path]) -> None:
    """Draw each head's query, key and value: magnitude, kurtosis and weights; models without heads are left out.

    Raises:
        ValueError: no model has heads.
    """
    models = [model for model in models if head_values(model, 'magnitude')]
    if not models:
        raise ValueError('expected a model with attention heads to draw, got none')
    rows: List[Tuple[str, str, Callable]] = [('mean |x| of a head', 'magnitude', head_values),
                                             ('kurtosis of a head', 'kurtosis', head_values),
                                             ('mean |w| of its rows', 'magnitude', head_weights)]
    figure, axes = _grid(models, rows=len(rows), sharey='row')
    for column, model in enumerate(models):
        for axis, (label, measure, read) in zip(axes[:, column], rows):
            for index, (part, blocks) in enumerate(read(model, measure).items()):
                for block, heads in enumerate(blocks):
                    place = np.full(len(heads), block + 0.25 * (index - 1))
                    axis.plot(place, np.array(heads, dtype=float), 'o', color=OPERANDS[part], ms=4, alpha=0.7, mew=0)
            style(axis, label if column == 0 else '')
            axis.set_xticks(range(len(head_values(model, 'magnitude')['query'])))
            axis.set_xlim(-0.5, len(axis.get_xticks()) - 0.5)
            axis.vlines(np.array(axis.get_xticks())[1:] - 0.5, 0, 1, color=PALE, lw=0.8,
                        transform=axis.get_xaxis_transform())
        axes[-1, column].set_xlabel('attention block', color=INK)
    _legend(figure, OPERANDS)
    _finish(figure, axes, models, 'Query, key and value of each head',
            'one dot per head; mean |w|: of the rows of the fused qkv weight that make this head', path)


def head_values(model: dict, measure: str) -> dict:
    """Return for query, key and value the heads' values, a list for each attention in the order of the model."""
    blocks = {part: [site['heads'][measure] for site in model['sites'] if site['slot'] == part and site['heads']]
              for part in OPERANDS}
    return blocks if all(blocks.values()) else {}


def head_weights(model: dict, measure: str) -> dict:
    """Return the same for the rows of each fused qkv weight."""
    sites = [site for site in model['sites'] if site['slot'] == 'weight' and site['heads']
             and site['heads']['label'][0].startswith('query')]
    return {part: [[value for label, value in zip(site['heads']['label'], site['heads'][measure])
                    if label.startswith(part)] for site in sites] for part in OPERANDS}


def short_name(module: str) -> str:
    """Return a module's name without the parts that say nothing.

    Example:
        >>> short_name('backbone.layers.0.attn.qkv')
        '0.attn.qkv'
    """
    return re.sub(r'\b(backbone|model|layers|blocks)\.', '', module)


def _sites(model: dict, slot: str) -> List[dict]:
    return [site for site in model['sites'] if site['slot'] == slot]


def _values(sites: List[dict], measure: str) -> np.ndarray:
    """Return a measure of each site; null in JSON, where it is not defined, is NaN."""
    return np.array([site[measure] for site in sites], dtype=float)


def _channel_quantiles(sites: List[dict]) -> np.ndarray:
    """Return the quantiles of the channels' magnitudes, (quantiles, sites); 0, which no log axis has, is NaN."""
    rows = [site['channels']['magnitude'] if site['channels'] else [np.nan] * 7 for site in sites]
    values = np.array(rows, dtype=float).reshape(-1, 7).T
    return np.where(values > 0, values, np.nan)


def _beyond_normal(sigma: float) -> float:
    """Return the share of a normal distribution beyond ``sigma`` standard deviations, both tails."""
    return erfc(sigma / 2**0.5)


def _color(column: int) -> str:
    return COLORS[(column + 1) % len(COLORS)]


def _grid(models: Models, rows: int, sharey: str) -> Tuple[Figure, np.ndarray]:
    """Return a figure of one column per model, the wider the more modules it has."""
    widths = [min(max(2.5 + 0.09 * len(_sites(model, 'weight')), 4.2), 7.5) for model in models]
    figure = Figure(figsize=(max(sum(widths), 8), 1.2 + 2.7 * rows), dpi=160, layout='constrained')
    return figure, figure.subplots(rows, len(models), squeeze=False, sharey=sharey, width_ratios=widths)


def _panel(axis: Axes, label: str, sites: List[dict], log: bool = False) -> None:
    """Style a panel whose places are the sites' modules."""
    style(axis, label, ticks=5)
    if log:
        axis.set_yscale('log')
        low, high = axis.get_ylim()  # of all panels so far that share the axis
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1, )))
        axis.yaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f'{value:g}'))
    step = -(-len(sites) // MOST_LABELS)
    axis.set_xticks(range(0, len(sites), max(step, 1)))
    axis.set_xticklabels([])
    axis.set_xlim(-0.8, max(len(sites), 1) - 0.2)


def _legend(figure: Figure, tints: dict) -> None:
    handles = [Patch(color=tint, label=words) for words, tint in tints.items()]
    figure.legend(handles=handles, frameon=False, fontsize=9, labelcolor=INK, loc='outside upper right',
                  ncols=len(handles))


def _finish(figure: Figure, axes: np.ndarray, models: Models, title: str, caption: str, path: Union[str, Path]) -> None:
    """Name modules and models, and write the picture."""
    for column, model in enumerate(models):
        bottom, top = axes[-1, column], axes[0, column]
        sites = _sites(model, 'weight')
        if not bottom.get_xlabel():
            names = [short_name(sites[int(place)]['module']) for place in bottom.get_xticks()]
            bottom.set_xticklabels(names, rotation=90, fontsize=6.5)
        title_lines = filter(None, (model['name'], top.get_title('left')))
        top.set_title('\n'.join(title_lines), loc='left', fontsize=9, color=INK)
    figure.suptitle(title, x=0.01, ha='left', color=INK, fontsize=13, weight='bold')
    figure.supxlabel(caption, x=0.01, ha='left', color=GREY, fontsize=9)
    save(figure, path)
