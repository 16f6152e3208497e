"""Bar charts of what a model gains when a part of it stays in float."""
from pathlib import Path
from typing import Optional, Sequence, Union

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .style import GREY, INK, MAIN, PALE, WARM, save

MOST = 40  # bars of a picture
FAR = 2.5  # times the longest bar: full precision beyond that is said in words
LABELS = dict(gain_top1='gain in top-1 (percentage points)', gain_loss='gain in loss (nats)')
FORMATS = dict(gain_top1='+.2f', gain_loss='+.3f')


def plot_sensitivity(rows: Sequence[dict], path: Union[str, Path], title: str, caption: str,
                     full: Optional[dict] = None) -> None:
    """Draw a bar for each part, one panel for each kind of gain, in the order of the rows.

    Args:
        rows (sequence of dict): ``part`` (str), ``gain_top1``, and where known ``gain_loss``, ``error`` (standard error
            of ``gain_top1``) and ``weights`` (share of the quantised weights).
        path (str | Path): PNG file to write; its folder is made.
        title (str): heading.
        caption (str): what was measured on what.
        full (dict, optional): the gains of full precision, by the same names: a dotted line.
    """
    shown = list(rows[:MOST])
    if len(rows) > MOST:
        caption += f'; the first {MOST} of {len(rows)} parts'
    caption = f'gain over everything quantised; {caption}'
    keys = [key for key in LABELS if shown and key in shown[0]]
    figure = Figure(figsize=(4.2 + 3.6 * len(keys), 1.9 + 0.27 * len(shown)), dpi=160, layout='constrained')
    axes = figure.subplots(1, len(keys), sharey=True, squeeze=False)[0]
    for axis, key in zip(axes, keys):
        limit = (full or {}).get(key)
        far = limit is not None and limit > FAR * max([abs(row[key]) for row in shown])
        _bars(axis, shown, key, None if far else limit)
        axis.set_xlabel(LABELS[key] + (f'; everything in float: {limit:+.3g}' if far else ''), color=INK)
    axes[0].set_yticks(range(len(shown)), [_name(row) for row in shown])
    axes[0].set_ylim(len(shown) - 0.4, -0.6)
    figure.suptitle(title, x=0.01, ha='left', color=INK, fontsize=13, weight='bold')
    figure.supxlabel(caption, x=0.01, ha='left', color=GREY, fontsize=9)
    save(figure, path)


def _name(row: dict) -> str:
    share = row.get('weights')
    return f'{row["part"]} ({f"{share:.0%}" if share >= 0.005 else "<1%"} of weights)' if share else row['part']


def _bars(axis: Axes, rows: Sequence[dict], key: str, full: Optional[float]) -> None:
    """Draw one kind of gain, each bar with its number; gains below zero in another colour."""
    values = [row[key] for row in rows]
    errors = [row.get('error') or 0 for row in rows] if key == 'gain_top1' else [0] * len(rows)
    axis.barh(range(len(rows)), values, height=0.68, color=[MAIN if value >= 0 else WARM for value in values],
              xerr=errors if any(errors) else None, error_kw=dict(ecolor=INK, lw=1, capsize=2))
    ends = [value + sign * error for value, error in zip(values, errors) for sign in (-1, 1)]
    low, high = min([0, *ends]), max([0, *ends, full or 0])
    room = (high - low or 1) * 0.16
    for place, (value, error) in enumerate(zip(values, errors)):
        end = value + error if value >= 0 else value - error
        axis.annotate(f'{value:{FORMATS[key]}}', (end, place), (4 if value >= 0 else -4, 0), textcoords='offset points',
                      va='center', ha='left' if value >= 0 else 'right', color=INK, fontsize=8)
    if full is not None:
        axis.axvline(full, color=GREY, lw=1, ls=(0, (2, 2)))
        axis.annotate('everything in float', (full, 1), (-3, 4), xycoords=('data', 'axes fraction'),
                      textcoords='offset points', ha='right', color=GREY, fontsize=8)
    axis.axvline(0, color=GREY, lw=0.8)
    axis.set_xlim(low - (room if low < 0 else 0), high + room)
    axis.spines[['top', 'right', 'left']].set_visible(False)
    axis.spines['bottom'].set_color(PALE)
    axis.tick_params(colors=GREY, labelsize=9, length=3)
    axis.tick_params(axis='y', labelcolor=INK, length=0)
    axis.grid(axis='x', color=PALE, lw=0.6)
    axis.set_axisbelow(True)
