"""The benchmark as a bar chart: time of a training step over the full-precision step."""
from pathlib import Path
from typing import List, Union

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from vvq_mm.plots.style import COLORS, GREY, INK, PALE

from .report import MIB


def plot_results(results: List[dict], path: Union[str, Path], title: str = 'Time of a training step',
                 subtitle: str = '') -> None:
    """Draw one bar per result: the ratio, its quartiles as a whisker, time and saved memory beside it.

    Args:
        results (list of dict): of :func:`vvq_mm.benchmarks.report.row`, drawn in this order; a colour per group.
        path (str | Path): PNG file to write; its folder is made.
        title (str): above the picture.
        subtitle (str): model, batch, device; one line under the title. Defaults to none.
    """
    groups = list(dict.fromkeys(result['group'] for result in results))
    colors = {group: COLORS[index % len(COLORS)] for index, group in enumerate(groups)}
    breaks = [a['group'] != b['group'] for a, b in zip(results, results[1:])]
    places = [index + 0.45 * sum(breaks[:index]) for index in range(len(results))]
    figure = Figure(figsize=(10, 2.1 + 0.36 * (places[-1] + 1)), dpi=160, layout='constrained')
    axis = figure.subplots()
    longest = max(result['ratio_q3'] for result in results)
    for place, result in zip(places, results):
        axis.barh(place, result['ratio'], height=0.72, color=colors[result['group']], zorder=2)
        axis.plot([result['ratio_q1'], result['ratio_q3']], [place, place], color=INK, lw=1.1, zorder=3,
                  marker='|', ms=5)
        start = max(result['ratio_q3'], 1.0) + 0.012 * longest  # not across the line at 1
        axis.text(start, place, _label(result), va='center', fontsize=8.5, color=INK, zorder=5,
                  bbox=dict(facecolor='white', edgecolor='none', pad=1))
    axis.axvline(1, color=INK, lw=1.2, ls=(0, (4, 2)), zorder=4)
    axis.set_yticks(places, [result['name'] for result in results], fontsize=9, color=INK)
    axis.set_ylim(places[-1] + 0.7, -0.7)
    axis.set_xlim(0, 1.4 * longest)
    axis.set_xlabel('time over the full-precision step (dashed); whisker: quartiles over rounds', color=INK)
    axis.grid(axis='x', color=PALE, lw=0.8, zorder=0)
    axis.set_axisbelow(True)
    axis.tick_params(axis='y', length=0)
    axis.tick_params(axis='x', colors=GREY, labelsize=8.5)
    axis.spines[:].set_visible(False)
    axis.set_title(title, loc='left', color=INK, fontsize=13, weight='bold', pad=22 if subtitle else 8)
    axis.text(0, 1, subtitle, color=GREY, fontsize=9, transform=axis.transAxes, va='bottom')
    figure.legend(handles=[Patch(color=colors[group], label=group) for group in groups], loc='outside lower center',
                  ncols=3, frameon=False, fontsize=8.5, labelcolor=INK)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _label(result: dict) -> str:
    """Return the text at the end of a bar: ratio, time, memory kept for backward."""
    parts = [f'{result["ratio"]:.2f}×', f'{result["seconds"]["median"] * 1000:,.0f} ms']
    if result['saved_bytes'] is not None:
        parts.append(f'{result["saved_bytes"] / MIB:,.0f} MiB saved')
    return '   '.join(parts)
